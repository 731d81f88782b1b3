"""Amplitude's endpoints: what each accepts, costs and answers.

An endpoint that can't make sense of its parameters raises a ValueError, which is answered 400 in
the form of its family.
"""

import io
import json
import re
import zipfile
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import date, datetime, timedelta, timezone
from itertools import islice
from operator import gt, lt, methodcaller
from typing import TYPE_CHECKING, Any

from sandbox import answers, experiments, jobs, plan
from sandbox.answers import Answer, as_json, as_text, dashboard, short_date
from sandbox.params import Params, Query, parse_day
from sandbox.params import days as days_of
from sandbox.project import LTV_DAYS, Project, Record, bucket
from sandbox.reports import CHARTS, Chart, Funnel, Retention, Segmentation

if TYPE_CHECKING:
    from sandbox.app import ReceivedRequest, Sandbox


@dataclass(frozen=True)
class Family:
    """What endpoints have in common.

    Args:
        name: names the budget of cost that they share; `` is none.
        error: makes an error of a status and details.
        forbidden: the answer to wrong keys.
        at_once: how many of their requests may be in progress at once, if fewer than of all.
        subdomain: of the host they are on, if it is not the main one.
        has_bearer: they take the management key, not those of the project.
        is_storage: they are on the host of a storage, which knows nothing of keys and limits.
    """

    name: str
    error: Callable[[int, str], Answer]
    forbidden: Answer
    at_once: int | None = None
    subdomain: str = ""
    has_bearer: bool = False
    is_storage: bool = False


DASHBOARD = Family("dashboard", answers.envelope, answers.FORBIDDEN)
TAXONOMY = Family("taxonomy", answers.taxonomy_error, answers.FORBIDDEN, at_once=4)
DELETIONS = Family("deletions", answers.envelope, answers.FORBIDDEN)
REPLAYS = Family("", answers.replay_error, answers.REPLAYS_UNAUTHORIZED)
LOOKUP = Family("", answers.lookup_error, answers.LOOKUP_FORBIDDEN, subdomain="data-api")
COHORT_JOBS = Family("cohort jobs", answers.envelope, answers.FORBIDDEN)
WITHOUT_BUDGET = Family("", answers.envelope, answers.FORBIDDEN)
STORAGE = Family("", as_text, answers.FORBIDDEN, subdomain="storage", is_storage=True)
EXPERIMENT = Family(
    "experiments",
    answers.experiment_error,
    answers.EXPERIMENT_UNAUTHORIZED,
    subdomain="experiment",
    has_bearer=True,
)
# Of paths that no endpoint has, by subdomain.
FALLBACKS = {family.subdomain: family for family in (DASHBOARD, LOOKUP, EXPERIMENT, STORAGE)}

# What a project gets whose plan lacks something: status and details.
MISSING_PLANS = {
    "taxonomy": (404, "Taxonomy API access requires an Enterprise plan"),
    "cohorts": (403, "Behavioral Cohorts are not part of this organization's plan"),
    "session_replays": (403, "Session Replay is not enabled for this project"),
}


@dataclass(frozen=True)
class Endpoint:
    """An endpoint of GET requests.

    Args:
        answer: makes the answer to a request that its family's budget allows.
        cost: of a request with these parameters, in the units of that budget.
        accepts: the values of each parameter as a pattern; any other parameter is refused. None
            leaves all of them to `answer`.
        plan: the key of `MISSING_PLANS` that it depends on.
        has_cutoff: it refuses days that are too far back.
    """

    family: Family
    answer: Callable[["Sandbox", "ReceivedRequest"], Answer]
    cost: Callable[[Query], int] = lambda _: 1
    accepts: Mapping[str, str] | None = None
    plan: str = ""
    has_cutoff: bool = False

    def check(self, params: Query) -> None:
        """Refuse a parameter that is unknown, or has a value that is."""
        for name, value in params.pairs if self.accepts is not None else ():
            if not re.fullmatch((self.accepts or {}).get(name, "(?!)"), value, re.DOTALL):
                raise ValueError(f"Invalid parameter {name}")


def find(path: str) -> Endpoint | None:
    """The endpoint of a path, unquoted."""
    if path.startswith(_LOOKUP_PATH) and path.endswith("/csv"):
        return ENDPOINTS[_LOOKUP_PATH + "<name>/csv"]
    if path in ENDPOINTS:
        return ENDPOINTS[path]
    # Those of one job or file, the longer names first.
    patterns = (name for name in ENDPOINTS if "<id>" in name)
    found = (p for p in patterns if re.fullmatch(re.escape(p).replace("<id>", "[^/]+"), path))
    return ENDPOINTS.get(next(found, ""))


def _chart(
    answer: Callable[["Sandbox", "ReceivedRequest"], Answer],
    unit: int,
    accepts: Mapping[str, str],
    has_cutoff: bool = False,
) -> Endpoint:
    """A query that costs days x conditions x `unit`; a group-by counts as four conditions."""

    def cost(params: Params) -> int:
        return len(days_of(params)) * unit * (5 if params.get("g") else 1)

    accepts = {"start": ".*", "end": ".*", **accepts}
    return Endpoint(DASHBOARD, answer, cost, accepts, has_cutoff=has_cutoff)


def _question(
    kind: type[Segmentation] | type[Funnel] | type[Retention], accepts: Mapping[str, str]
) -> Endpoint:
    """A query about events, which knows its own cost."""
    return Endpoint(
        DASHBOARD,
        lambda sandbox, request: kind.parse(request.params).answer(sandbox),
        lambda params: kind.parse(params).cost,
        {**dict.fromkeys(("start", "end", "s"), ".*"), **accepts},
    )


def _saved_chart(chart: Chart) -> Endpoint:
    return Endpoint(DASHBOARD, lambda sandbox, _: chart.answer(sandbox), lambda _: chart.cost, {})


def _list(name: str, root_key: str = "data") -> Endpoint:
    """A list that the method `name` of the project holds."""
    read = methodcaller(name)
    return Endpoint(DASHBOARD, lambda sandbox, _: as_json({root_key: read(sandbox.project)}))


def _taxonomy(read: Callable[[Project, "ReceivedRequest"], Any]) -> Endpoint:
    def answer(sandbox: "Sandbox", request: "ReceivedRequest") -> Answer:
        return as_json({"success": True, "data": read(sandbox.project, request)})

    return Endpoint(TAXONOMY, answer, plan="taxonomy")


def _managed(
    name: str, accepts: Mapping[str, str], read: Callable[["Sandbox", Params], list[Record]]
) -> Endpoint:
    """A list of Amplitude Experiment, in pages; `nextCursor` is opaque, and null on the last."""

    def answer(sandbox: "Sandbox", request: "ReceivedRequest") -> Answer:
        # How many are returned without a limit is undocumented.
        size = min(int(request.params.get("limit", "100")), sandbox.experiment_page)
        cursor, found = request.params.get("cursor"), read(sandbox, request.params)
        start = _read_cursor(cursor) if cursor else 0
        end = start + size
        cursor = urlsafe_b64encode(f"after {end}".encode()).decode() if end < len(found) else None
        return as_json({name: found[start:end], "nextCursor": cursor})

    paging = {"limit": r"[1-9]\d{0,8}", "cursor": ".+"}
    return Endpoint(EXPERIMENT, answer, accepts={**paging, **accepts})


def _configurations(name: str) -> Endpoint:
    def read(sandbox: "Sandbox", params: Params) -> list[Record]:
        found = getattr(experiments, name)(sandbox.project, sandbox.clock())
        archived_too = params.get("includeArchived") == "true"
        return [
            each
            for each in found
            if (archived_too or not each["deleted"])
            and params.get("key", each["key"]) == each["key"]
            and params.get("projectId", each["projectId"]) == each["projectId"]
        ]

    filters = {"key": ".*", "projectId": r"\d+", "includeArchived": "true|false"}
    return _managed(name, filters, read)


def _groups(name: str) -> Endpoint:
    read = getattr(experiments, name)
    return _managed(name, {}, lambda sandbox, _: read(sandbox.project, sandbox.clock()))


def _versions(sandbox: "Sandbox", params: Params) -> list[Record]:
    start, end = (_parse_moment(params.get(name)) for name in ("start", "end"))
    now = sandbox.clock()
    start = start or datetime.min.replace(tzinfo=timezone.utc)
    return experiments.versions(sandbox.project, start, min(end or now, now))


def _export(sandbox: "Sandbox", request: "ReceivedRequest") -> Answer:
    params, project = request.params, sandbox.project
    start, end = (_parse_hour(params.get(name, "")) for name in ("start", "end"))
    if not timedelta(0) <= end - start < timedelta(days=365):
        raise ValueError("The range must be of 1 hour to 365 days.")
    hours = sandbox.exportable_hours(start, end)
    if not hours:
        return answers.envelope(404, "Raw data files were not found.")
    if project.archive_bytes(hours) > sandbox.size_limit:
        raise ValueError("The export is over the size limit.")
    name = f"{project.project_id}_{params['start']}_{params['end']}.zip"
    headers = {"Content-Disposition": f'attachment; filename="{name}"'}
    return Answer(200, _archive(project, hours), "application/zip", headers)


def _users(sandbox: "Sandbox", request: "ReceivedRequest") -> Answer:
    metric, by = request.params.get("m", "active"), request.params.get("g") or None
    buckets: dict[date, list[date]] = {}
    for day in days_of(request.params):
        first = bucket(day, int(request.params.get("i", "1")))[0]
        # A week that lies in the range by half is counted over that half.
        buckets.setdefault(first, []).extend([day] if sandbox.has_begun(day) else [])
    counts = [sandbox.project.count_users(metric, days, by) for days in buckets.values()]
    labels = dict.fromkeys(label for count in counts for label in count)
    series: dict[Any, list[int]] = {s: [count.get(s, 0) for count in counts] for s in labels}
    if by is None:
        series = {0: [sum(count.values()) for count in counts]}
    if not any(map(any, series.values())):
        series = {}
    data = {
        "xValues": [first.isoformat() for first in buckets],
        "series": [*series.values()],
        "seriesCollapsed": [[0] for _ in series],
        "seriesLabels": [*series],
        "seriesMeta": [{"segmentIndex": 0} for _ in series],
    }
    return dashboard(data)


def _per_day(name: str) -> Callable[["Sandbox", "ReceivedRequest"], Answer]:
    """The figure of sessions that the method `name` of the project holds for each day."""

    def answer(sandbox: "Sandbox", request: "ReceivedRequest") -> Answer:
        days, read = days_of(request.params), getattr(sandbox.project, name)
        # A day without sessions is the integer 0, as captured from an empty project.
        values = [read(day) or 0 if sandbox.has_begun(day) else 0 for day in days]
        data = {
            "xValues": [f"{day}T00:00:00" for day in days],
            "series": [values],
            "seriesMeta": [{"segmentIndex": 0, "sessionIndex": 0}],
        }
        return dashboard(data)

    return answer


def _session_lengths(sandbox: "Sandbox", request: "ReceivedRequest") -> Answer:
    days = days_of(request.params)
    by_day = [sandbox.project.session_lengths(day) for day in days]
    begun = [lengths for day, lengths in zip(days, by_day, strict=True) if sandbox.has_begun(day)]
    counts = {label: sum(lengths[label] for lengths in begun) for label in by_day[0]}
    data: Record = {"series": [], "xValues": []}
    if any(counts.values()):
        data = {"series": [[*counts.values()]], "xValues": [*counts]}
    return dashboard(data, withSets=False)


def _composition(sandbox: "Sandbox", request: "ReceivedRequest") -> Answer:
    by, days = request.params.get("p"), filter(sandbox.has_begun, days_of(request.params))
    if not by:
        raise ValueError("Invalid parameter p")
    users = {k: n for k, n in sandbox.project.count_users("active", days, by).items() if n}
    data: Record = {"xValues": [], "series": [], "seriesLabels": []}
    if users:
        data = {"xValues": [*users], "series": [[*users.values()]], "seriesLabels": [by]}
    return dashboard(data)


def _revenue_ltv(sandbox: "Sandbox", request: "ReceivedRequest") -> Answer:
    divisor = {"0": "count", "1": "paid", "2": ""}[request.params.get("m", "0")]
    values, complete = {}, {}
    for day in filter(sandbox.has_begun, reversed(days_of(request.params))):
        cohort = sandbox.project.revenue_ltv(day, sandbox.today)
        by = cohort[divisor] or 1 if divisor else 1
        values[short_date(day)] = {
            k: round(v / by, 2) if k.startswith("r") else v for k, v in cohort.items()
        }
        age = (sandbox.today - day).days
        complete[short_date(day)] = {f"r{n}d": n <= age for n in range(1, LTV_DAYS + 1)}
    # Of what is combined, the names alone are recorded.
    combined: Record = {
        name: round(sum(cells[name] for cells in values.values()), 2)
        for name in next(iter(values.values()), {})
    }
    combined_complete = {
        name: all(cells[name] for cells in complete.values())
        for name in next(iter(complete.values()), {})
    }
    series = {
        "dates": [*values],
        "values": values,
        "complete": complete,
        "combined": combined,
        "combined_complete": combined_complete,
        "combined_projected": combined,
    }
    return dashboard({"seriesLabels": [""], "series": [series]})


def _cohorts(sandbox: "Sandbox", request: "ReceivedRequest") -> Answer:
    cohorts = sandbox.cohorts()
    if request.params.get("includeSyncInfo") != "true":
        cohorts = [{k: v for k, v in c.items() if k != "syncMetadata"} for c in cohorts]
    return as_json({"cohorts": cohorts})


def _session_replays(sandbox: "Sandbox", request: "ReceivedRequest") -> Answer:
    params = request.params
    size, order = int(params.get("page_size", "50")), params.get("sort_order", "asc")
    if not 1 <= size <= 200:
        raise ValueError("page_size must be between 1 and 200")
    start, end = (_parse_moment(params.get(f"{name}_time")) for name in ("start", "end"))
    after = _read_token(params["page_token"], order) if "page_token" in params else None
    if after and order == "asc":
        start = _parse_moment(f"{after[0]}Z")
    elif after:
        end = _parse_moment(f"{after[0]}Z")
    replays = sandbox.iter_session_replays(start, end, newest_first=order == "desc")
    if after:
        is_later = gt if order == "asc" else lt
        replays = (r for r in replays if is_later(_position(r), after))
    page = list(islice(replays, size + 1))
    token = None
    if len(page) > size:
        content = json.dumps([order, *_position(page[size - 1])])
        token = urlsafe_b64encode(content.encode()).decode()
    return as_json({"session_replays": page[:size], "next_page_token": token})


def _deletions(sandbox: "Sandbox", request: "ReceivedRequest") -> Answer:
    start, end = (parse_day(request.params.get(n, ""), "-") for n in ("start_day", "end_day"))
    months = (end.year - start.year) * 12 + end.month - start.month
    if end < start or (months, end.day) > (6, start.day):
        raise ValueError("The time range must be of a day to six months")
    jobs = sandbox.project.deletion_jobs(start, end, sandbox.today)
    return as_json(jobs) if jobs else Answer(200, b"[]", "text/html")


def _lookup_tables(sandbox: "Sandbox", _: "ReceivedRequest") -> Answer:
    return as_json(sandbox.project.lookup_tables())


def _lookup_csv(_: "Sandbox", request: "ReceivedRequest") -> Answer:
    name = request.path.removeprefix(_LOOKUP_PATH).removesuffix("/csv")
    tables = [table for table in plan.LOOKUP_TABLES if table.name == name]
    if not tables:
        raise ValueError(f"Lookup table {name} does not exist")
    headers = {"Content-Disposition": 'attachment; filename="table.csv"'}
    return Answer(200, tables[0].csv(), "text/csv", headers)


_LOOKUP_PATH = "/api/3/lookup_table/"

ENDPOINTS = {
    "/api/2/export": Endpoint(WITHOUT_BUDGET, _export, lambda _: 0),
    "/api/2/users": _chart(_users, 1, {"m": "active|new", "i": "1|7|30", "g": ".*"}),
    "/api/2/sessions/average": _chart(_per_day("average_session_length"), 4, {}, has_cutoff=True),
    "/api/2/sessions/peruser": _chart(_per_day("sessions_per_user"), 4, {}, has_cutoff=True),
    "/api/2/sessions/length": _chart(_session_lengths, 4, {}, has_cutoff=True),
    "/api/2/composition": _chart(_composition, 1, {"p": ".*"}, has_cutoff=True),
    "/api/2/retention": _question(
        Retention,
        {**dict.fromkeys(("se", "re", "rm", "rb"), ".*"), "i": "1"},
    ),
    "/api/2/revenue/ltv": _chart(_revenue_ltv, 1, {"m": "[012]", "i": "1"}),
    "/api/2/events/segmentation": _question(
        Segmentation,
        {
            **dict.fromkeys(("e", "e2", "g", "g2"), ".*"),
            "m": "uniques|totals|average|pct_dau",
            "n": "any|active",
            "i": "1|7|30",
            "limit": r"\d+",
        },
    ),
    "/api/2/funnels": _question(
        Funnel,
        {
            **dict.fromkeys(("e", "g"), ".*"),
            "mode": "ordered|unordered|sequential",
            "n": "active|new",
            "i": "1",
            "cs": r"\d+",
            "limit": r"\d+",
        },
    ),
    **{f"/api/3/chart/{chart.id}/csv": _saved_chart(chart) for chart in CHARTS},
    "/api/2/events/list": _list("events_list"),
    # What it costs is not known.
    "/api/2/channel-classifiers": _list("channel_classifiers", "channelClassifiers"),
    "/api/3/annotations": _list("annotations"),
    "/api/3/annotation-categories": _list("annotation_categories"),
    "/api/3/cohorts": Endpoint(DASHBOARD, _cohorts, plan="cohorts"),
    "/api/3/cohorts/usage": Endpoint(DASHBOARD, jobs.usage, lambda _: 0, plan="cohorts"),
    jobs.REQUEST_PATH + "<id>/file": Endpoint(WITHOUT_BUDGET, jobs.file, plan="cohorts"),
    jobs.REQUEST_PATH + "<id>": Endpoint(
        COHORT_JOBS, jobs.make, accepts={"props": "[01]", "propKeys": ".+"}, plan="cohorts"
    ),
    jobs.STATUS_PATH + "<id>": Endpoint(WITHOUT_BUDGET, jobs.status, plan="cohorts"),
    jobs.STORAGE_PATH + "<id>": Endpoint(STORAGE, jobs.stored, lambda _: 0),
    "/api/2/taxonomy/event": _taxonomy(
        lambda project, request: project.event_types(_shows_deleted(request))
    ),
    "/api/2/taxonomy/category": _taxonomy(lambda project, _: project.event_categories()),
    # Recorded: in the query. The form, where it is documented, may be dropped on its way.
    "/api/2/taxonomy/event-property": _taxonomy(
        lambda project, request: project.event_properties(request.params.get("event_type"))
    ),
    "/api/2/taxonomy/user-property": _taxonomy(
        lambda project, request: project.user_properties(_shows_deleted(request))
    ),
    "/api/2/taxonomy/group-property": _taxonomy(
        lambda project, request: project.group_properties(
            {**request.params, **request.form}.get("group_type")
        )
    ),
    "/api/1/session-replays": Endpoint(
        REPLAYS,
        _session_replays,
        lambda _: 0,
        {
            **dict.fromkeys(("start_time", "end_time", "page_token"), ".*"),
            "page_size": r"\d{1,9}",
            "sort_order": "asc|desc",
        },
        plan="session_replays",
    ),
    "/api/2/deletions/users": Endpoint(DELETIONS, _deletions),
    "/api/1/experiments": _configurations("experiments"),
    "/api/1/flags": _configurations("flags"),
    "/api/1/versions": _managed("versions", {"start": ".*", "end": ".*"}, _versions),
    **{f"/api/1/{name}": _groups(name) for name in ("deployments", "mutexes", "holdouts")},
    _LOOKUP_PATH.rstrip("/"): Endpoint(LOOKUP, _lookup_tables, lambda _: 0),
    _LOOKUP_PATH + "<name>/csv": Endpoint(LOOKUP, _lookup_csv, lambda _: 0),
}


class _Sink(io.RawIOBase):
    """Collects what is written to it until it is taken; it cannot seek, so zips are streamed."""

    def __init__(self) -> None:
        self._chunks: list[bytes] = []

    def writable(self) -> bool:
        return True

    def write(self, chunk: Any) -> int:
        self._chunks.append(bytes(chunk))
        return len(chunk)

    def take(self) -> bytes:
        taken, self._chunks = b"".join(self._chunks), []
        return taken


def _archive(project: Project, hours: Iterable[datetime]) -> Iterator[bytes]:
    sink = _Sink()
    with zipfile.ZipFile(sink, "w") as archive:
        for hour in hours:
            stamp = (hour.year, hour.month, hour.day, hour.hour, 0, 0)
            for name, content in project.iter_members(hour):
                archive.writestr(zipfile.ZipInfo(name, stamp), content)
                yield sink.take()
    yield sink.take()


def _parse_hour(value: str) -> datetime:
    if not re.fullmatch(r"\d{8}T\d\d", value):
        raise ValueError(f"Invalid hour {value!r}")
    return datetime.strptime(value, "%Y%m%dT%H").replace(tzinfo=timezone.utc)


def _parse_moment(value: str | None) -> datetime | None:
    if value is None:
        return None
    moment = datetime.fromisoformat(value.replace("Z", "+00:00"))
    if moment.tzinfo is None:
        raise ValueError(f"Invalid time {value!r}")
    return moment


def _read_cursor(cursor: str) -> int:
    """The number of elements before a page."""
    try:
        return int(urlsafe_b64decode(cursor).decode().removeprefix("after "))
    except ValueError as error:
        raise ValueError("Invalid cursor") from error


def _position(replay: Record) -> tuple[str, str]:
    return replay["start_time"], replay["replay_id"]


def _read_token(token: str, order: str) -> tuple[str, str]:
    """The position of the last replay before a page."""
    try:
        token_order, start_time, replay_id = json.loads(urlsafe_b64decode(token))
    except (TypeError, ValueError) as error:
        raise ValueError("Invalid page_token") from error
    if token_order != order:
        raise ValueError("sort_order must not change between pages")
    return start_time, replay_id


def _shows_deleted(request: "ReceivedRequest") -> bool:
    return request.params.get("showDeleted") == "true"
