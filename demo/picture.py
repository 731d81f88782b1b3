"""A picture of a synced project, drawn from its DuckDB file by SQL."""

from collections import Counter
from datetime import timedelta
from pathlib import Path
from typing import Any

import duckdb
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.dates import AutoDateLocator
from matplotlib.figure import Figure
from matplotlib.ticker import StrMethodFormatter

_COLOUR = "#1e61f0"
_STYLE: Any = {
    "axes.axisbelow": True,
    "axes.spines.left": False,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlepad": 12,
    "axes.xmargin": 0.01,
    "date.autoformatter.day": "%d %b",
    "date.autoformatter.hour": "%d %b %H:%M",
    "date.autoformatter.month": "%b %Y",
    "xtick.major.pad": 8,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
}

# Hours without events have no rows to count; the range gives them their 0.
EVENTS_PER_HOUR = """
    WITH arrived AS (SELECT date_trunc('hour', server_upload_time) AS hour FROM events)
    SELECT hours.hour, count(arrived.hour)
    FROM (SELECT unnest(range(min(hour), max(hour) + INTERVAL 1 HOUR, INTERVAL 1 HOUR)) AS hour
          FROM arrived) AS hours
    LEFT JOIN arrived USING (hour)
    GROUP BY ALL ORDER BY ALL
"""

DAILY_USERS = """
    SELECT metric, date, sum(users) FROM daily_user_counts GROUP BY ALL ORDER BY ALL
"""

EVENT_TYPES = """
    SELECT event_type, count(*) AS events FROM events GROUP BY ALL ORDER BY events
"""

RETENTION = """
    SELECT cohort_date, day_number, users / cohort_size, is_complete
    FROM retention WHERE cohort_size > 0 ORDER BY ALL
"""

# Of the first report of each kind
SEGMENTATION = """
    SELECT "group", date, sum(value) FROM {table} WHERE event_number = 1 GROUP BY ALL ORDER BY ALL
"""
FUNNEL = """
    SELECT step, event, sum(users) FROM {table} GROUP BY ALL ORDER BY step
"""
KINDS = """
    SELECT min(table_name) FILTER (column_name = 'event_number'),
           min(table_name) FILTER (column_name = 'step')
    FROM duckdb_columns() WHERE starts_with(table_name, 'report_')
"""


def draw(db: Path, picture: Path) -> bool:
    """Draw events, users, retention and reports as a PNG, as far as `db` holds them.

    Returns whether there was anything to draw.
    """
    with duckdb.connect(str(db), read_only=True) as connection:
        tables = {name for (name,) in connection.execute("SHOW TABLES").fetchall()}

        def rows(table: str | None, query: str) -> list[Any]:
            return connection.execute(query).fetchall() if table in tables else []

        hours, types = rows("events", EVENTS_PER_HOUR), rows("events", EVENT_TYPES)
        users, cohorts = rows("daily_user_counts", DAILY_USERS), rows("retention", RETENTION)
        counted, funnel = connection.execute(KINDS).fetchone() or (None, None)
        groups = rows(counted, SEGMENTATION.format(table=counted))
        steps = rows(funnel, FUNNEL.format(table=funnel))
    if not (hours or users or cohorts or groups or steps):
        return False
    with rc_context(_STYLE):
        columns = 3 if groups or steps else 2
        figure = Figure(figsize=(6.5 * columns, 7.5), dpi=150, layout="constrained")
        axes = figure.subplots(2, columns, width_ratios=[5, 3, 4][:columns])
        (above, right), (below, last) = (row[:2] for row in axes)
        if columns == 3:
            _draw_groups(axes[0][2], groups, counted)
            _draw_steps(axes[1][2], steps, funnel)
        _draw_hours(above, hours)
        _draw_types(right, types)
        _draw_users(below, users)
        _draw_retention(last, cohorts)
        picture.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(picture, bbox_inches="tight", pad_inches=0.25)
    return True


def _draw_hours(axes: Axes, hours: list[Any]) -> None:
    if hours:
        starts, counts = zip(*hours, strict=True)
        edges = [*starts, starts[-1] + timedelta(hours=1)]
        axes.stairs(counts, edges, fill=True, color=_COLOUR, alpha=0.25)
        axes.stairs(counts, edges, color=_COLOUR, linewidth=1.2)
    _label(axes, "Events per hour", "hour of server_upload_time, UTC")


def _draw_types(axes: Axes, types: list[Any]) -> None:
    # Fonts of charts have no pictographs, and names may be long.
    names = ["".join(c for c in name if ord(c) < 0x2000).strip()[:28] for name, _ in types[-12:]]
    axes.barh(range(len(names)), [count for _, count in types[-12:]], color=_COLOUR, alpha=0.6)
    _label(axes, "Events by type", "")
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(-0.7, max(len(names), 1) - 0.3)
    axes.grid(visible=False, axis="y")
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))


def _draw_users(axes: Axes, users: list[Any]) -> None:
    for metric, alpha in (("active", 0.45), ("new", 1.0)):
        days = [(day, count) for name, day, count in users if name == metric]
        if days:
            dates, counts = zip(*days, strict=True)
            width = 0.9 if len(dates) < 100 else 1
            axes.bar(dates, counts, width, align="edge", color=_COLOUR, alpha=alpha, label=metric)
    if users:
        axes.legend(frameon=False, ncols=2, loc="upper left")
    _label(axes, "Daily active and new users", "project's time zone; the last day is unfinished")
    axes.set_ylim(top=axes.get_ylim()[1] * 1.15)


def _draw_retention(axes: Axes, cohorts: list[Any]) -> None:
    """A triangle: a line per day on which users were new, the latest 15 of them."""
    days = sorted({row[0] for row in cohorts})[-15:]
    lines = {day: len(days) - 1 - n for n, day in enumerate(days)}
    cells = [row for row in cohorts if row[0] in lines and row[1] < 15]
    for day, number, share, is_complete in cells:
        shade = 0.05 + 0.85 * min(share, 1.0)
        axes.barh(lines[day], 0.96, 0.92, left=number - 0.48, color=_COLOUR, alpha=shade)
        axes.text(
            *(number, lines[day], f"{100 * share:.0f}"),
            fontsize="x-small",
            ha="center",
            va="center",
            color="white" if shade > 0.5 else "0.3",
            style="normal" if is_complete else "italic",
        )
    _label(axes, "Retention, %", "days after the first; italic: not over yet")
    axes.set_yticks(list(lines.values()), [f"{day:%d %b}" for day in lines])
    axes.set_ylim(-0.6, max(len(days), 1) - 0.4)
    axes.grid(visible=False)


def _draw_groups(axes: Axes, groups: list[Any], table: str | None) -> None:
    """A stack per date: the largest groups first, those beyond the sixth together."""
    totals: Counter[str] = Counter()
    for group, _, value in groups:
        totals[group] += value or 0
    largest = [group for group, _ in totals.most_common(6)]
    dates = sorted({day for _, day, _ in groups})
    below: Counter[Any] = Counter()
    for number, name in enumerate([*largest, *(["others"] if len(totals) > 6 else [])]):
        heights: Counter[Any] = Counter()
        for group, day, value in groups:
            if (group if group in largest else "others") == name:
                heights[day] += value or 0
        axes.bar(
            dates,
            [heights[day] for day in dates],
            0.9,
            bottom=[below[day] for day in dates],
            align="edge",
            color=_COLOUR,
            alpha=1 - number * 0.14,
            label=name,
        )
        below += heights
    if groups:
        axes.legend(frameon=False, ncols=3, loc="upper left", fontsize="small")
    _label(axes, table or "no such report", "by group")
    axes.set_ylim(top=axes.get_ylim()[1] * 1.3)
    axes.xaxis.set_major_locator(AutoDateLocator(maxticks=6))  # type: ignore[no-untyped-call]


def _draw_steps(axes: Axes, steps: list[Any], table: str | None) -> None:
    names = ["".join(c for c in name if ord(c) < 0x2000).strip()[:28] for _, name, _ in steps]
    users = [count for *_, count in steps]
    bars = axes.bar(range(len(steps)), users, 0.7, color=_COLOUR, alpha=0.6)
    shares = [f"{count / users[0]:.0%}" if users[0] else "" for count in users]
    axes.bar_label(bars, shares)
    _label(axes, table or "no such report", "users by step")
    axes.set_xticks(range(len(steps)), names)


def _label(axes: Axes, title: str, subtitle: str) -> None:
    axes.set_title(title, loc="left", fontweight="bold")
    axes.set_title(subtitle, loc="right", fontsize="small", color="0.4")
    axes.set_ylim(bottom=0)
    axes.grid(axis="y", color="0.9")
    axes.yaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
