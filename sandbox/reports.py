"""Questions about events, and saved charts: what each costs, what it answers, and the truth of it.

Sources: https://amplitude.com/docs/apis/analytics/dashboard-rest (Event segmentation, Funnel
analysis, Retention analysis, Get results from an existing chart; Rate limits).
"""

import json
import math
import random
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date, timedelta
from functools import cached_property
from itertools import product
from typing import TYPE_CHECKING, Any

from sandbox.answers import Answer, as_json, dashboard, short_date
from sandbox.params import Query, days
from sandbox.project import EVENT_TYPES, RETENTION_DAYS, Project, Record, bucket

if TYPE_CHECKING:
    from sandbox.app import Sandbox

Labels = tuple[str, ...]

_GROUP_COST = 4
# Documented are 1,000, and 100 without a limit; recorded are 10,000, and 185 groups without.
_MOST_GROUPS = 10_000
# A property's value, the values of the condition.
_OPERATORS: dict[str, Callable[[str, list[str]], bool]] = {
    "is": lambda value, values: value in values,
    "is not": lambda value, values: value not in values,
    "contains": lambda value, values: any(part in value for part in values),
    "does not contain": lambda value, values: not any(part in value for part in values),
    "less": lambda value, values: value < values[0],
    "less or equal": lambda value, values: value <= values[0],
    "greater": lambda value, values: value > values[0],
    "greater or equal": lambda value, values: value >= values[0],
    "set is": lambda value, values: value in values,
    "set is not": lambda value, values: value not in values,
}


@dataclass(frozen=True)
class Condition:
    """What users or events must meet: a property's value, or (`prop` is empty) a `share` of all."""

    prop: str = ""
    operator: str = "is"
    values: tuple[str, ...] = ()
    share: float = 1.0

    def is_met(self, value: str) -> bool:
        return _OPERATORS[self.operator](value, [*self.values])


@dataclass(frozen=True)
class Event:
    """An event object: a type, its filters, and the properties it is grouped by."""

    type: str
    filters: tuple[Condition, ...] = ()
    by: Labels = ()


@dataclass(frozen=True)
class Question:
    """What all questions have: days, events, segments of conditions and groups.

    Raises:
        ValueError: groups, and more than one segment.
    """

    days: list[date]
    events: list[Event]
    segments: list[tuple[Condition, ...]] = field(default_factory=lambda: [()])
    by: Labels = ()
    limit: int = _MOST_GROUPS

    def __post_init__(self) -> None:
        if len(self.segments) > 1 and self.by:
            raise ValueError("Group by is only possible with a single segment")
        if not 1 <= self.limit <= _MOST_GROUPS:
            raise ValueError("Invalid parameter limit")

    @property
    def conditions(self) -> int:
        """Segments and the conditions in them; a group-by counts as four."""
        return sum(1 + len(s) for s in self.segments) + _GROUP_COST * len(self.by)

    def parts(
        self, project: Project, day: date, event: Event, segment: Sequence[Condition], count: float
    ) -> dict[Labels, int]:
        """`count` users or events of a day by their groups, as far as they meet all conditions."""
        shares = _shares(project, day, (*segment, *event.filters), (*event.by, *self.by))
        parts, before, seen = {}, 0, 0.0
        for labels, share in shares.items():
            seen += share
            parts[labels] = round(count * seen) - before
            before += parts[labels]
        return parts


@dataclass(frozen=True)
class Segmentation(Question):
    """A query of event segmentation.

    Args:
        metric: `uniques`, `totals`, `average` (totals per unique) or `pct_dau` (0 to 100).
        interval: 1, 7 or 30 days.
    """

    metric: str = "uniques"
    interval: int = 1

    @classmethod
    def parse(cls, query: Query) -> "Segmentation":
        if "g2" in query and "g" not in query:
            raise ValueError("Invalid parameter g2")
        return cls(
            days=days(query),
            events=[_event(query.get(n, ""), n) for n in ("e", "e2") if n in query or n == "e"],
            segments=_segments(query),
            by=tuple(query[name] for name in ("g", "g2") if query.get(name)),
            limit=int(query.get("limit", _MOST_GROUPS)),
            metric=query.get("m", "uniques"),
            interval=int(query.get("i", "1")),
        )

    @property
    def cost(self) -> int:
        unit = sum(1 + _GROUP_COST * len(event.by) for event in self.events)
        return len(self.days) * self.conditions * unit

    @cached_property
    def spans(self) -> dict[date, list[date]]:
        """The days of each value, by the first day of their week or month, which may be before."""
        spans: dict[date, list[date]] = {}
        for day in self.days:
            spans.setdefault(bucket(day, self.interval)[0], []).append(day)
        return spans

    def figures(
        self, sandbox: "Sandbox"
    ) -> dict[tuple[int, int, Labels], tuple[list[float], float]]:
        """Values by span and the one of all days together, of each segment, event and group.

        Of more groups than `limit` only the largest are there. Days that have not begun count 0.
        """
        found = {}
        for (s, segment), (e, event) in product(enumerate(self.segments), enumerate(self.events)):
            by_span, whole = [
                [
                    self._values(sandbox.project, filter(sandbox.has_begun, span), event, segment)
                    for span in spans
                ]
                for spans in (self.spans.values(), [self.days])
            ]
            for labels in sorted(whole[0], key=lambda g: (-whole[0][g], g))[: self.limit]:
                values = [values.get(labels, 0) for values in by_span]
                found[s, e, labels] = (values, whole[0][labels])
        return found

    def records(self, sandbox: "Sandbox") -> list[Record]:
        """A row per span, segment (from 0), event and group, which is `(all)` without any."""
        return [
            {
                "date": first.isoformat(),
                "segment": s,
                "event": self.events[e].type,
                "group": "; ".join(labels) or "(all)",
                "value": value,
            }
            for (s, e, labels), (values, _) in self.figures(sandbox).items()
            for first, value in zip(self.spans, values, strict=True)
        ]

    def answer(self, sandbox: "Sandbox") -> Answer:
        """Recorded, but for two events, of which the documents tell."""
        figures = self.figures(sandbox)
        dates = [first.isoformat() for first in self.spans]
        if not any(any(values) for values, _ in figures.values()):
            return dashboard({"xValues": dates, "series": [], "seriesLabels": []})
        is_grouped = any(labels for *_, labels in figures)
        data: Record = {
            "xValues": dates,
            "series": [values for values, _ in figures.values()],
            "seriesCollapsed": [
                [{"value": whole} if is_grouped else {"setId": "", "value": whole}]
                for _, whole in figures.values()
            ],
            "seriesLabels": [self._label(*figure) for figure in figures],
        }
        if len(self.events) > 1:
            data["seriesMeta"] = [{"segmentIndex": s, "eventIndex": e} for s, e, _ in figures]
        return dashboard(data)

    def _label(self, segment: int, event: int, labels: Labels) -> Any:
        if not labels:
            return segment
        if len(self.events) > 1 or self.events[0].by:
            return [event, "; ".join(labels)]
        return [*labels] if len(labels) > 1 else labels[0]

    def _values(
        self, project: Project, span: Iterable[date], event: Event, segment: Sequence[Condition]
    ) -> dict[Labels, float]:
        span = [*span]
        if self.metric in ("uniques", "totals"):
            return self._counts(project, span, event, segment, self.metric)
        uniques = self._counts(project, span, event, segment, "uniques")
        # Parts of either are rounded by themselves, so one may be smaller than it can be.
        if self.metric == "average":
            totals = self._counts(project, span, event, segment, "totals")
            return {g: max(totals[g], n) / n if n else 0 for g, n in uniques.items()}
        active = self._counts(project, span, Event("_active", by=event.by), segment, "uniques")
        return {g: 100 * n / max(active[g], n) if n else 0 for g, n in uniques.items()}

    def _counts(
        self,
        project: Project,
        span: Sequence[date],
        event: Event,
        segment: Sequence[Condition],
        metric: str,
    ) -> dict[Labels, float]:
        # All groups are there, even in a span without days.
        by_day = [self.parts(project, self.days[0], event, segment, 0)]
        for day in span:
            count = project.count_events(metric, [day], event.type)
            by_day.append(self.parts(project, day, event, segment, count))
        groups = dict.fromkeys(labels for parts in by_day for labels in parts)
        found = {}
        for labels in groups:
            counts = [parts.get(labels, 0) for parts in by_day]
            # As in Project.count_events: who comes again counts once.
            again = sum(map(bool, counts)) if metric == "uniques" else 1
            found[labels] = round(sum(counts) * again**-0.5) if again else 0
        return found


@dataclass(frozen=True)
class Funnel(Question):
    """A query of a funnel; `window` is the conversion window in seconds.

    Args:
        mode: `ordered`, `unordered` or `sequential`.
        who: `active` users, or `new` ones alone.
    """

    mode: str = "ordered"
    who: str = "active"
    window: int = 2_592_000

    @classmethod
    def parse(cls, query: Query) -> "Funnel":
        if len(query.all("e")) < 2:
            raise ValueError("A funnel must have at least two steps")
        return cls(
            days=days(query),
            events=[_event(step, "e") for step in query.all("e")],
            segments=_segments(query),
            by=tuple(filter(None, [query.get("g")])),
            limit=int(query.get("limit", "100")),
            mode=query.get("mode", "ordered"),
            who=query.get("n", "active"),
            window=int(query.get("cs", "2592000")),
        )

    @property
    def cost(self) -> int:
        unit = sum(2 + _GROUP_COST * len(event.by) for event in self.events)
        return len(self.days) * self.conditions * unit

    def figures(self, sandbox: "Sandbox") -> dict[tuple[int, Labels], dict[date, list["Step"]]]:
        """The steps of each day, of each segment and group: of more than `limit` the largest.

        There are none at all if nobody took the first step.
        """
        found: dict[tuple[int, Labels], dict[date, list[Step]]] = {}
        by = tuple(name for event in self.events for name in event.by)
        first = Event(self.events[0].type, self.events[0].filters, by)
        for s, segment in enumerate(self.segments):
            groups: dict[Labels, dict[date, list[Step]]] = {}
            for day in self.days:
                users = self._users_of(sandbox, day)
                parts = self.parts(sandbox.project, day, first, segment, users)
                for labels, part in parts.items():
                    groups.setdefault(labels, {})[day] = self._steps(sandbox, day, labels, part)
            size = {g: sum(steps[0].users for steps in of.values()) for g, of in groups.items()}
            for labels in sorted(groups, key=lambda g: (-size[g], g))[: self.limit]:
                found[s, labels] = groups[labels]
        has_users = any(steps[0].users for of in found.values() for steps in of.values())
        return found if has_users else {}

    def is_complete(self, sandbox: "Sandbox", day: date) -> bool:
        """Whether nobody of that day can convert any more."""
        return (sandbox.today - day).days > self._window_days

    def records(self, sandbox: "Sandbox") -> list[Record]:
        """What a report of this query must be: a row per group, day and step."""
        return [
            {
                "date": day.isoformat(),
                "step": number,
                "event": event.type,
                "group": "; ".join(labels) or "(all)",
                "users": step.users,
                "conversion": step.users / steps[0].users if steps[0].users else None,
                "median_seconds": step.median / 1000 if number > 1 and step.users else None,
                "average_seconds": step.average / 1000 if number > 1 and step.users else None,
                "is_complete": self.is_complete(sandbox, day),
            }
            for (_, labels), by_day in self.figures(sandbox).items()
            for day, steps in by_day.items()
            for number, (event, step) in enumerate(zip(self.events, steps, strict=True), start=1)
        ]

    def answer(self, sandbox: "Sandbox") -> Answer:
        data = []
        xs: Record = {
            "xValues": [f"{day}" for day in self.days],
            "formattedXValues": [*map(short_date, self.days)],
        }
        for (s, labels), by_day in self.figures(sandbox).items():
            users, medians, averages = (
                [[getattr(step, name) for step in steps] for steps in by_day.values()]
                for name in ("users", "median", "average")
            )
            raw = [sum(column) for column in zip(*users, strict=True)]
            before = [raw[0], *raw[:-1]]
            element: Record = {
                "meta": {"segmentIndex": s},
                "events": [event.type for event in self.events],
                "groupValue": "; ".join(labels),
                "stepByStep": [n / m if m else 0 for n, m in zip(raw, before, strict=True)],
                "cumulative": [n / raw[0] if raw[0] else 0 for n in raw],
                "cumulativeRaw": raw,
                "medianTransTimes": medians[0],
                "avgTransTimes": averages[0],
                "dayFunnels": {"series": users, **xs},
                "dayMedianTransTimes": {"series": medians, **xs},
                "dayAvgTransTimes": {"series": averages, **xs},
                "propsum": [],
            }
            data.append(element)
        return dashboard(data, numSeries=len(data))

    @property
    def _window_days(self) -> int:
        return math.ceil(self.window / 86400)

    def _users_of(self, sandbox: "Sandbox", day: date) -> int:
        if not sandbox.has_begun(day):
            return 0
        users = sandbox.project.count_events("uniques", [day], self.events[0].type)
        if self.who == "active":
            return users
        new, active = (sandbox.project.count_users(who, [day]) for who in ("new", "active"))
        return round(users * sum(new.values()) / max(1, sum(active.values())))

    def _steps(self, sandbox: "Sandbox", day: date, labels: Labels, users: int) -> list["Step"]:
        # While users of the day can still convert, some of them will.
        age = max(0, (sandbox.today - day).days)
        progress = min(1.0, (age + 1) / (self._window_days + 1)) ** 0.5
        mode = {"ordered": 0.9, "unordered": 1.0, "sequential": 0.7}[self.mode]
        steps = [Step(users, 0, 0)]
        for n, (before, event) in enumerate(zip(self.events, self.events[1:], strict=False)):
            parts = (sandbox.project.seed, n, before.type, event.type, labels, day.isoformat())
            chance = random.Random(f"funnel {parts}")
            share = sum(_shares(sandbox.project, day, event.filters, ()).values())
            rate = chance.uniform(0.4, 0.8) * mode * progress * share
            median = round(chance.uniform(0.01, 0.1) * self.window * 1000)
            reached = round(steps[-1].users * rate)
            steps.append(Step(reached, median, 2 * median) if reached else Step(0, 0, 0))
        return steps


@dataclass(frozen=True)
class Step:
    """Users who took a step, and the milliseconds that they took to get there."""

    users: int
    median: int
    average: int


@dataclass(frozen=True)
class Retention(Question):
    """A query of retention: users of the first event, and those of the second who came back.

    Args:
        mode: `nday`, `rolling` (that day or later) or `bracket`; of the last two only the documents
            tell.
        brackets: first day and the one after the last, of each bracket.
    """

    mode: str = "nday"
    brackets: Sequence[tuple[int, int]] = ()

    @classmethod
    def parse(cls, query: Query) -> "Retention":
        mode = query.get("rm", "nday")
        if mode not in ("nday", "rolling", "bracket"):  # the documents have `n-day`
            raise ValueError("Invalid retention method.")
        return cls(
            days=days(query),
            events=[
                _event(query.get("se", ""), "se", pseudo=("_new", "_active")),
                _event(query.get("re", ""), "re", pseudo=("_all", "_active")),
            ],
            segments=_segments(query),
            mode=mode,
            brackets=_brackets(query.get("rb", "")) if mode == "bracket" else (),
        )

    @property
    def cost(self) -> int:
        return len(self.days) * self.conditions * 8

    def cells(self, sandbox: "Sandbox", cohort: date, segment: int = 0) -> list[Record]:
        """The cells of a cohort: its size, then one for each day, or bracket, up to today.

        `count` of `outof` users. `incomplete` are the last two of them (recorded), and a bracket
        that has not ended.
        """
        start, returning = self.events
        age = (sandbox.today - cohort).days
        last = max(age, RETENTION_DAYS)
        users = sandbox.project.retained_users(cohort, start.type, returning.type, last)
        among = _shares(sandbox.project, cohort, (*self.segments[segment], *start.filters), ())
        back = _shares(sandbox.project, cohort, returning.filters, ())
        size, *came = (round(count * among[()]) for count in users)
        spans: Sequence[tuple[int, int]] = self.brackets or [(n, n + 1) for n in range(age + 1)]
        if self.mode == "rolling":
            spans = [(n, RETENTION_DAYS + 1) for n in range(RETENTION_DAYS + 1)]
        # Yesterday still counts as one that changes.
        late = 1 if self.mode == "nday" else 0
        cells = [_cell(size, size, age == 0)]
        for first, end in spans:
            if first <= age:
                count = max(came[first : min(end, age + 1)], default=0)
                cells.append(_cell(round(count * back[()]), size, age < end + late))
        return cells

    def answer(self, sandbox: "Sandbox") -> Answer:
        cohorts = [day for day in reversed(self.days) if sandbox.has_begun(day)]
        series = []
        for s in range(len(self.segments)):
            values = {
                f"{short_date(day)}, {day.year}": self.cells(sandbox, day, s) for day in cohorts
            }
            combined = []
            for n in range(max(map(len, values.values()), default=0)):
                cells = [cohort[n] for cohort in values.values() if n < len(cohort)]
                combined.append(
                    {
                        "count": sum(cell["count"] for cell in cells),
                        "outof": sum(cell["outof"] for cell in cells),
                        "retainedSetId": None,
                        "incomplete": any(cell["incomplete"] for cell in cells),
                    }
                )
            series.append({"dates": [*values], "values": values, "combined": combined})
        meta = [{"segmentIndex": s, "eventIndex": 0} for s in range(len(self.segments))]
        return dashboard({"series": series, "seriesMeta": meta})


def _cell(count: int, size: int, is_incomplete: bool) -> Record:
    ids = {"retainedSetId": None, "dropoffSetId": None}
    return {"count": count, "outof": size, "incomplete": is_incomplete, **ids}


@dataclass(frozen=True)
class Chart(ABC):
    """A saved chart over the last `length` days up to today.

    Args:
        metric: what it counts.
        headings: those of its labels.
        compares: it has a row more for each, of as many days before.
    """

    id: str
    title: str
    metric: str
    length: int
    headings: Labels
    compares: bool = False

    @property
    def cost(self) -> int:
        periods = 2 if self.compares else 1
        return periods * self.query(self._days(date(2024, 1, 1))).cost

    @abstractmethod
    def query(self, days: list[date]) -> Segmentation | Funnel:
        """What it asks of some days."""

    @abstractmethod
    def table(
        self, sandbox: "Sandbox", days: list[date]
    ) -> tuple[list[date], dict[Labels, list[str]]]:
        """Dates, and the cells of each row by its labels."""

    def heading(self, day: date) -> str:
        """How the column of a date is headed."""
        return f"{day}"

    def rows(self, sandbox: "Sandbox") -> tuple[list[date], list[tuple[Labels, bool, list[str]]]]:
        """Dates, and each row: its labels, whether it is of the period before, and its cells."""
        days = self._days(sandbox.today)
        dates, table = self.table(sandbox, days)
        before: dict[Labels, list[str]] = {}
        if self.compares:
            _, before = self.table(sandbox, self._days(days[0] - timedelta(days=1)))
        rows = []
        for labels, cells in table.items():
            rows.append((labels, False, cells))
            if labels in before:
                rows.append((labels, True, before[labels]))
        return dates, rows

    def records(self, sandbox: "Sandbox") -> list[Record]:
        """What a report of this chart must be: a row per series and date."""
        dates, rows = self.rows(sandbox)
        return [
            {
                "series": " | ".join(labels),
                "labels": dict(zip(self.headings, labels, strict=True)),
                "is_previous": is_previous,
                "date": f"{day}T00:00:00",
                "value": float(cell.rstrip("%")) if cell else None,
                "is_percentage": cell.endswith("%"),
            }
            for labels, is_previous, cells in rows
            for day, cell in zip(dates, cells, strict=True)
        ]

    def answer(self, sandbox: "Sandbox") -> Answer:
        """CSV in an envelope. Tabs keep spreadsheets from taking texts for formulas.

        Recorded: a label is blank where it is that of the row above, and so are all to its left.
        """
        dates, rows = self.rows(sandbox)
        lines = [[_quoted(self.title)], [], [_quoted(self.metric)], []]
        lines.append([*map(_quoted, self.headings), *(_quoted(self.heading(day)) for day in dates)])
        above: Labels = ()
        for labels, is_previous, cells in rows:
            shown = (f"[Previous] {labels[0]}", *labels[1:]) if is_previous else labels
            texts = [
                '""' if shown[: n + 1] == above[: n + 1] else _quoted(label)
                for n, label in enumerate(shown)
            ]
            lines.append([*texts, *(f'"{cell}"' for cell in cells)])
            above = shown
        return as_json({"data": "".join(",".join(line) + "\r\n" for line in lines)})

    def _days(self, last: date) -> list[date]:
        return [last - timedelta(days=n) for n in reversed(range(self.length))]


@dataclass(frozen=True)
class SegmentationChart(Chart):
    """A saved chart of event segmentation: a row per group, or one for its segment."""

    event: str = ""
    interval: int = 1
    by: Labels = ()

    def query(self, days: list[date]) -> Segmentation:
        return Segmentation(
            days=days,
            events=[Event(self.event)],
            by=self.by,
            metric=self.metric,
            interval=self.interval,
        )

    def table(
        self, sandbox: "Sandbox", days: list[date]
    ) -> tuple[list[date], dict[Labels, list[str]]]:
        query = self.query(days)
        return [*query.spans], {
            labels or ("All Users",): [*map(self._cell, values)]
            for (*_, labels), (values, _) in sorted(query.figures(sandbox).items())
        }

    def heading(self, day: date) -> str:
        return f"{day}" if self.interval == 1 else f"{day}T00:00:00"

    def _cell(self, value: float) -> str:
        if self.metric == "pct_dau":
            return f"{value:.1f}%"
        if self.metric == "average":  # there is none of nobody
            return f"{value:.3f}" if value else ""
        return str(value)


@dataclass(frozen=True)
class FunnelChart(Chart):
    """A saved chart of a funnel over weeks: a row for all of it, and one per step.

    Recorded are the first row, the headings, and dates of weeks without a time.
    """

    steps: Labels = ()

    def query(self, days: list[date]) -> Funnel:
        return Funnel(days=days, events=[*map(Event, self.steps)])

    def table(
        self, sandbox: "Sandbox", days: list[date]
    ) -> tuple[list[date], dict[Labels, list[str]]]:
        weeks: dict[date, list[list[Step]]] = {}
        for by_day in self.query(days).figures(sandbox).values():
            for day, steps in by_day.items():
                weeks.setdefault(bucket(day, 7)[0], []).append(steps)
        users = [
            [sum(step.users for step in column) for column in zip(*of_days, strict=True)]
            for of_days in weeks.values()
        ]
        rows: dict[Labels, list[str]] = {
            ("All Users", "Entire Funnel"): [_fraction(n[-1], n[0]) for n in users]
        }
        for number, name in enumerate(self.steps[1:], start=1):
            rows["All Users", name] = [_fraction(n[number], n[number - 1]) for n in users]
        return [*weeks], rows


CHARTS: list[Chart] = [
    SegmentationChart("s0ngs7wk", "Songs per week 🎧", "uniques", 28, ("Platform",),
                      event="Song Played 🎧", interval=7, by=("platform",)),
    SegmentationChart("x8k2m1qp", 'Share of users who pay, "checkout"', "pct_dau", 14,
                      ("Segment",), compares=True, event="Checkout Completed"),
    SegmentationChart("av3r4ge5", "Sign-ups per user", "average", 30, ("country", "gp:plan"),
                      event="Signed Up", by=("country", "gp:plan")),
    FunnelChart("fu9n3lwk", "From page to checkout", "conversion", 28, ("Segment", "Steps"),
                compares=True, steps=("Page Viewed", "Song Played 🎧", "Checkout Completed")),
]  # fmt: skip


def _fraction(users: int, before: int) -> str:
    return f"{users / before:.4f}" if before else ""


def _quoted(text: str) -> str:
    return '"\t{}"'.format(text.replace('"', '""'))


def _shares(
    project: Project, day: date, conditions: Sequence[Condition], by: Labels
) -> dict[Labels, float]:
    """The share of a day's users or events that meet all conditions, by groups."""
    factor = math.prod(condition.share for condition in conditions)
    names = [*dict.fromkeys([*by, *(c.prop for c in conditions if c.prop)])]
    kept = {
        name: {
            label: share
            for label, share in project.shares(name, day).items()
            if all(c.is_met(label) for c in conditions if c.prop == name)
        }
        for name in names
    }
    factor *= math.prod(sum(kept[name].values()) for name in names if name not in by)
    return {
        labels: factor * math.prod(kept[n][v] for n, v in zip(by, labels, strict=True))
        for labels in product(*(kept[name] for name in by))
    }


def _event(text: str, name: str, pseudo: Sequence[str] = ("_active", "_all", "_new")) -> Event:
    event = _json(text, name)
    if not isinstance(event, dict) or event.keys() - {"event_type", "filters", "group_by"}:
        raise ValueError(f"Invalid parameter {name}")
    if event.get("event_type") not in (*EVENT_TYPES, *pseudo):
        raise ValueError(f"Invalid event {event.get('event_type')}")
    try:
        by = tuple(group["value"] for group in event.get("group_by") or [])
        filters = tuple(
            _condition(f["subprop_key"], f["subprop_op"], f["subprop_value"])
            for f in event.get("filters") or []
        )
    except (KeyError, TypeError):
        raise ValueError(f"Invalid parameter {name}") from None
    if len(by) > 2:
        raise ValueError("An event can be grouped by two properties at most")
    return Event(event["event_type"], filters, by)


def _segments(query: Query) -> list[tuple[Condition, ...]]:
    segments: list[tuple[Condition, ...]] = []
    for text in filter(None, query.all("s")):
        conditions = _json(text, "s")
        try:
            segments.append(tuple(map(_segment_condition, conditions)))
        except (AttributeError, KeyError, TypeError):
            raise ValueError("Invalid parameter s") from None
    return segments or [()]


def _segment_condition(condition: Mapping[str, Any]) -> Condition:
    if condition.get("type") == "event":
        event = _event(json.dumps({"event_type": condition["event_type"]}), "s")
        return Condition(share=0.2 + len(event.type) / 100)
    if condition["prop"] == "userdata_cohort":
        return Condition(share=0.3)
    return _condition(condition["prop"], condition["op"], condition["values"])


def _condition(prop: str, operator: str, values: Sequence[str]) -> Condition:
    if operator not in _OPERATORS or not values or isinstance(values, str):
        raise TypeError(operator)
    return Condition(prop, operator, tuple(values))


def _brackets(text: str) -> tuple[tuple[int, int], ...]:
    brackets = _json(text, "rb")
    try:
        found = tuple((int(first), int(end)) for first, end in brackets)
    except (TypeError, ValueError):
        raise ValueError("Invalid parameter rb") from None
    if not found or any(not 0 <= first < end for first, end in found):
        raise ValueError("Invalid parameter rb")
    return found


def _json(text: str, name: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        raise ValueError(f"Invalid parameter {name}") from None
