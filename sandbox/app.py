"""Amplitude's keys, limits and faults, as an ASGI application behind an HTTPS proxy."""

import hashlib
import threading
import time
from base64 import b64encode
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import date, datetime, timedelta, timezone
from fnmatch import fnmatchcase
from itertools import chain
from typing import Any
from urllib.parse import parse_qsl
from zoneinfo import ZoneInfo

import anyio
from starlette.concurrency import run_in_threadpool
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response, StreamingResponse
from starlette.types import Message, Receive, Scope, Send

from sandbox.answers import Answer
from sandbox.endpoints import DASHBOARD, FALLBACKS, MISSING_PLANS, Endpoint, Family, find
from sandbox.jobs import STORAGE_HOST, CohortJobs
from sandbox.params import Params, Query
from sandbox.params import days as days_of
from sandbox.project import (
    REPLAY_RETENTION_DAYS,
    RETENTION_DAYS,
    Project,
    Record,
    bucket,
)
from sandbox.reports import CHARTS, Event, Funnel, Retention, Segmentation
from sandbox.server import DroppedConnectionError, HttpsProxy

STANDARD_HOST = "amplitude.com"
EU_HOST = "analytics.eu.amplitude.com"
# By subdomain, "" standing for the main one: the host of the standard region, and of the EU.
HOSTS = {
    "": (STANDARD_HOST, EU_HOST),
    "data-api": ("data-api.amplitude.com", "data-api.eu.amplitude.com"),
    "experiment": ("experiment.amplitude.com", "experiment.eu.amplitude.com"),
    "storage": (STORAGE_HOST, STORAGE_HOST),
}
_HOUR, _DAY = timedelta(hours=1), timedelta(days=1)


@dataclass(frozen=True)
class Fault:
    """What goes wrong with the requests it matches.

    A request meets its fault after the key has been accepted. Requests that a fault with a `status`
    or a `body` answers cost nothing; any other fault alters the answer the request would have had.

    Args:
        path: path of the endpoint; `*` stands for any characters.
        times: how many requests it alters; None is all of them.
        status: status code to answer with.
        body: body to answer with; without `status` it comes with 200.
        headers: response headers to add or replace.
        drop_after: number of bytes of the body after which the connection is closed.
        delay: seconds to wait before answering.
        when: tells from the parameters, of the query and of the form, whether the fault applies.
        transform: alters the body. The body is held in memory for it.
        content_length: send the export with its Content-Length instead of chunked. The body is held
            in memory for it.
    """

    path: str
    times: int | None = 1
    status: int | None = None
    body: bytes | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    drop_after: int | None = None
    delay: float = 0.0
    when: Callable[[Params], bool] | None = None
    transform: Callable[[bytes], bytes] | None = None
    content_length: bool = False


@dataclass
class ReceivedRequest:
    """A request as the sandbox saw it.

    `status` is None until the answer begins, and stays so if the client leaves before. `cost` is in
    Amplitude's units; what is refused, the export, replays and lookup tables have none, and a
    request for deletion jobs or to the management API costs 1 of its own budget. `started` and
    `finished` are seconds of `time.monotonic()`; `finished` is None until the last byte is sent or
    the connection is closed. `has_credentials` says whether any were sent, right or wrong. `params`
    has the last value of a parameter that is repeated, and all of them in `pairs`. `form` is what
    the body holds.
    """

    method: str
    host: str
    path: str
    params: Query
    started: float
    status: int | None = None
    cost: int = 0
    finished: float | None = None
    has_credentials: bool = False
    form: Params = field(default_factory=dict)


class Spending:
    """What has been spent of Amplitude's budget, counted as a server counts: by its own clock.

    Args:
        limits: (cost, seconds): the cost that may be spent in any such span of time.
        skew: seconds by which those spans are longer.
    """

    def __init__(self, limits: Sequence[tuple[int, float]], skew: float) -> None:
        self._limits = limits
        self._skew = skew
        self._spent: list[tuple[float, int]] = []

    def book(self, cost: int, now: float) -> bool:
        """Spend `cost` at the second `now`; False, and nothing is spent, if it is too much."""
        for limit, seconds in self._limits:
            since = now - seconds - self._skew
            if cost + sum(c for at, c in self._spent if at > since) > limit:
                return False
        self._spent.append((now, cost))
        return True


class Sandbox:
    """A stand-in for Amplitude's API that serves one project; it runs while used in a `with`.

    Args:
        project: the data to serve.
        clock: the current time, as an aware datetime.
        seconds: what rate limits and the jobs of cohorts go by instead, which may not stand still.
        export_delay: how long after it closes an hour becomes exportable. Amplitude: two hours.
        size_limit: largest export archive, in bytes; larger ones are answered 400, going by
            `Project.archive_bytes`. Amplitude: 4 GB.
        project_timezone: IANA name of the time zone of dashboard dates.
        eu: serve the project from the EU host instead of the standard one.
        cost_limits: (cost, seconds): the cost that may be spent in any such span of time.
        cost_skew: seconds by which those spans are longer: the clock of a server is its own.
        concurrent_cost: the cost of the dashboard's requests that may be in progress at once. One
            of 415 was refused.
        history_days: how far sessions and the composition reach back. Amplitude: about a year.
        taxonomy_limits: as `cost_limits`, of the taxonomy alone; four requests at once besides.
        deletion_limits: as `cost_limits`, of the requests for deletion jobs; there is no skew.
        cohort_limits: as `cost_limits`, of the downloads of cohorts; there is no skew.
        cohort_quota: how many cohorts may be downloaded in a calendar month.
        cohort_job_seconds: how long it takes to prepare one. Amplitude: 30 to 60 or more.
        cohort_inline_bytes: the largest file of members that is not led to the storage.
        experiment_limits: the same, of the requests to the management API.
        experiment_page: the most elements of its pages. Amplitude: 1,000.
        missing_plans: what the project's plan lacks: keys of `MISSING_PLANS`.
        max_concurrency: requests that may be in progress at once, of all endpoints together.
        port: port of the proxy; 0 picks a free one.

    Sources: https://amplitude.com/docs/apis/analytics/export and
    https://amplitude.com/docs/apis/analytics/dashboard-rest (Rate limits), for the taxonomy and
    deletions https://amplitude.com/docs/apis/analytics/taxonomy (Limits) and
    https://amplitude.com/docs/apis/analytics/user-privacy (Limits), and for the management API
    https://amplitude.com/docs/apis/experiment/experiment-management-api (Rate limiting).
    """

    def __init__(
        self,
        project: Project,
        *,
        clock: Callable[[], datetime] = lambda: datetime.now(timezone.utc),
        seconds: Callable[[], float] = time.monotonic,
        export_delay: timedelta = timedelta(hours=2),
        size_limit: int = 4 * 2**30,
        project_timezone: str = "UTC",
        eu: bool = False,
        cost_limits: Sequence[tuple[int, float]] = ((1_000, 300.0), (108_000, 3600.0)),
        cost_skew: float = 1.0,
        concurrent_cost: int = 414,
        history_days: int = 365,
        taxonomy_limits: Sequence[tuple[int, float]] = ((7_200, 3600.0),),
        deletion_limits: Sequence[tuple[int, float]] = ((1, 1.0),),
        cohort_limits: Sequence[tuple[int, float]] = ((4, 60.0), (60, 600.0)),
        cohort_quota: int = 500,
        cohort_job_seconds: float = 0.0,
        cohort_inline_bytes: int = 4096,
        experiment_limits: Sequence[tuple[int, float]] = ((100, 1.0), (100_000, 86_400.0)),
        experiment_page: int = 1_000,
        missing_plans: frozenset[str] = frozenset(),
        max_concurrency: int = 5,
        port: int = 0,
    ) -> None:
        self.project = project
        self.clock = clock
        self.seconds = seconds
        self.export_delay = export_delay
        self.size_limit = size_limit
        self.project_timezone = project_timezone
        self.host = HOSTS[""][eu]
        self.concurrent_cost = concurrent_cost
        self.history_days = history_days
        self.experiment_page = experiment_page
        self.missing_plans = missing_plans
        self.spending = Spending(cost_limits, cost_skew)
        self._spending = {
            "dashboard": self.spending,
            "taxonomy": Spending(taxonomy_limits, cost_skew),
            "deletions": Spending(deletion_limits, 0),
            "cohort jobs": Spending(cohort_limits, 0),
            "experiments": Spending(experiment_limits, 0),
        }
        self.cohort_jobs = CohortJobs(cohort_quota, cohort_job_seconds, cohort_inline_bytes)
        self._computed: dict[str, int] = {}
        self.max_concurrency = max_concurrency
        self.peak_concurrency = 0
        self.api_key, self.secret_key, self.management_key = (
            hashlib.sha256(f"{name} {project.seed} {self.host}".encode()).hexdigest()[:32]
            for name in ("api key", "secret key", "management key")
        )
        self._in_progress: list[ReceivedRequest] = []
        self._requests: list[ReceivedRequest] = []
        self._faults: list[Fault] = []
        self._lock = threading.Lock()
        self._proxy = HttpsProxy(self._serve, [*dict.fromkeys(chain(*HOSTS.values()))], port)

    def __enter__(self) -> "Sandbox":
        self._proxy.__enter__()
        return self

    def __exit__(self, *exception: object) -> None:
        self._proxy.__exit__(*exception)

    @property
    def env(self) -> dict[str, str]:
        """Environment variables that send a process's requests here; merge them into its own."""
        proxy = {"HTTPS_PROXY": self._proxy.url, "REQUESTS_CA_BUNDLE": str(self._proxy.ca_file)}
        # Clients prefer the lower-case names, and a NO_PROXY of the caller could lead past us.
        return {**proxy, "https_proxy": self._proxy.url, "NO_PROXY": "", "no_proxy": ""}

    @property
    def requests(self) -> list[ReceivedRequest]:
        """Every request received so far, oldest first, as it stands now."""
        with self._lock:
            return [replace(request) for request in self._requests]

    @property
    def refused_targets(self) -> list[str]:
        """`host:port` of every connection asked for that is not Amplitude's."""
        return list(self._proxy.refused)

    def config(self, **overrides: Any) -> dict[str, Any]:
        """A connector config for this project; it starts at its first hour, or three days ago."""
        start = self.project.first_hour or self.clock() - timedelta(days=3)
        return {
            "api_key": self.api_key,
            "secret_key": self.secret_key,
            "data_region": "EU Residency Server" if self.host == EU_HOST else "Standard Server",
            "start_date": f"{start.astimezone(timezone.utc):%Y-%m-%dT%H:00:00Z}",
            "project_timezone": self.project_timezone,
            **overrides,
        }

    def inject(self, fault: Fault) -> None:
        """Let matching requests meet `fault`; of several, the first one with times left is used."""
        with self._lock:
            self._faults.append(fault)

    def exportable_hours(self, start: datetime, end: datetime) -> list[datetime]:
        """The hours from `start` to `end`, both inclusive, that the export has data for now."""
        latest = self.clock() - self.export_delay - _HOUR
        hours = (start + n * _HOUR for n in range((end - start) // _HOUR + 1))
        return [hour for hour in hours if hour <= latest and self.project.event_count(hour)]

    def compute_cohort(self, cohort_id: str, computed_at: int) -> None:
        """Compute a cohort anew, at an epoch second; its members change with that."""
        self._computed[cohort_id] = computed_at

    def cohorts(self) -> list[Record]:
        """As `Project.cohorts`, as of when they were computed last."""
        return [
            {**cohort, "lastComputed": self._computed.get(cohort["id"], cohort["lastComputed"])}
            for cohort in self.project.cohorts()
        ]

    @property
    def today(self) -> date:
        """The current day in the project's time zone."""
        return self.clock().astimezone(ZoneInfo(self.project_timezone)).date()

    def has_begun(self, day: date) -> bool:
        """Whether it has, in the project's time zone: other days have no figures yet."""
        return day <= self.today

    def count_users(
        self, metric: str, day: date, interval: int = 1, by: str | None = None
    ) -> dict[str, int]:
        """As `Project.count_users`, of the whole day (1), week (7) or month (30) so far."""
        return self.project.count_users(metric, filter(self.has_begun, bucket(day, interval)), by)

    def retention(self, cohort: date) -> list[Record]:
        """As `reports.Retention.cells`, of new users who come back, up to day 30."""
        events = [Event("_new"), Event("_active")]
        return Retention([cohort], events).cells(self, cohort)[: RETENTION_DAYS + 2]

    def segmentation(self, params: Iterable[tuple[str, str]]) -> list[Record]:
        """As `reports.Segmentation.records`, of the parameters of a request."""
        return Segmentation.parse(Query(params)).records(self)

    def funnel(self, params: Iterable[tuple[str, str]]) -> list[Record]:
        """As `reports.Funnel.records`, of the parameters of a request."""
        return Funnel.parse(Query(params)).records(self)

    def composition(self, params: Iterable[tuple[str, str]]) -> list[Record]:
        """Users of each day by the values of the property, of the parameters of a request."""
        query = Query(params)
        return [
            {"date": f"{day}", "property": query["p"], "value": value, "users": users}
            for day in days_of(query)
            for value, users in self.count_users("active", day, by=query["p"]).items()
            if users
        ]

    def chart(self, chart_id: str) -> list[Record]:
        """As `reports.Chart.records`."""
        return next(chart for chart in CHARTS if chart.id == chart_id).records(self)

    def iter_session_replays(
        self,
        start: datetime | None = None,
        end: datetime | None = None,
        newest_first: bool = False,
    ) -> Iterator[Record]:
        """As `Project.iter_session_replays`, of what has begun and is retained.

        A session in progress ends now.
        """
        now = self.clock().astimezone(timezone.utc)
        oldest, latest = now - REPLAY_RETENTION_DAYS * _DAY, f"{now:%Y-%m-%dT%H:%M:%S}"
        start, end = max(start or oldest, oldest), min(end or now, now)
        for replay in self.project.iter_session_replays(start, end, newest_first):
            yield {**replay, "end_time": min(replay["end_time"], latest)}

    async def _serve(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope, receive)
        try:
            form = await _form(request)
        except ClientDisconnect:
            return
        received = ReceivedRequest(
            request.method,
            request.url.hostname or "",
            scope["path"],  # unquoted, while Starlette's URL ends at a question mark in it
            Query(request.query_params.multi_items()),
            time.monotonic(),
            has_credentials="Authorization" in request.headers,
            form=form,
        )
        family = self._family(received)
        with self._lock:
            self._requests.append(received)
            self._in_progress.append(received)
            self.peak_concurrency = max(self.peak_concurrency, len(self._in_progress))
            of_amplitude = [r for r in self._in_progress if not self._family(r).is_storage]
            is_one_too_many = len(of_amplitude) > self.max_concurrency
            if family.at_once:
                relatives = [r for r in self._in_progress if self._family(r) is family]
                is_one_too_many |= len(relatives) > family.at_once

        async def send_and_finish(message: Message) -> None:
            # Before the last byte goes out: the client may start its next request right after it.
            if message["type"] == "http.response.body" and not message.get("more_body"):
                self._finish(received)
            await send(message)

        try:
            authorization = request.headers.get("Authorization", "")
            if not self._is_authorized(received, family, authorization):
                answer, fault = family.forbidden, None
            elif is_one_too_many:
                details, fault = "Too Many Requests: Exceeded concurrent limit", None
                answer = family.error(429, details)
            else:
                fault = self._take_fault(received)
                answer = await run_in_threadpool(self._answer, received, fault)
                if fault and not await _stays_connected(request, fault.delay):
                    return
            received.status = answer.status
            await _response(answer, fault)(scope, receive, send_and_finish)
        finally:
            self._finish(received)

    def _finish(self, received: ReceivedRequest) -> None:
        with self._lock:
            if received.finished is None:
                received.finished = time.monotonic()
                # By identity: equal requests may be in progress.
                self._in_progress = [r for r in self._in_progress if r is not received]

    def _is_authorized(self, received: ReceivedRequest, family: Family, authorization: str) -> bool:
        if family.is_storage:
            return True  # it has keys of its own, in the address
        keys = b64encode(f"{self.api_key}:{self.secret_key}".encode()).decode()
        expected = f"Bearer {self.management_key}" if family.has_bearer else f"Basic {keys}"
        is_eu = self.host == EU_HOST
        return received.host == HOSTS[family.subdomain][is_eu] and authorization == expected

    def _endpoint(self, received: ReceivedRequest) -> Endpoint | None:
        endpoint = find(received.path) if received.method == "GET" else None
        if endpoint and received.host not in HOSTS[endpoint.family.subdomain]:
            return None
        return endpoint

    def _family(self, received: ReceivedRequest) -> Family:
        endpoint = self._endpoint(received)
        if endpoint:
            return endpoint.family
        subdomains = [name for name, hosts in HOSTS.items() if received.host in hosts]
        return FALLBACKS[subdomains[0] if subdomains else ""]

    def _take_fault(self, received: ReceivedRequest) -> Fault | None:
        with self._lock:
            for n, fault in enumerate(self._faults):
                if fault.times == 0 or not fnmatchcase(received.path, fault.path):
                    continue
                if fault.when is None or fault.when({**received.params, **received.form}):
                    if fault.times is not None:
                        self._faults[n] = replace(fault, times=fault.times - 1)
                    return fault
        return None

    def _answer(self, received: ReceivedRequest, fault: Fault | None) -> Answer:
        if fault and (fault.status or fault.body is not None):
            answer = Answer(fault.status or 200, fault.body or b"", "text/plain")
        else:
            answer = self._genuine(received)
        if fault and (fault.transform or fault.content_length):
            body = answer.body if isinstance(answer.body, bytes) else b"".join(answer.body)
            body = fault.transform(body) if fault.transform else body
            is_chunked = not fault.content_length and not isinstance(answer.body, bytes)
            answer = replace(answer, body=iter([body]) if is_chunked else body)
        return answer

    def _genuine(self, received: ReceivedRequest) -> Answer:
        endpoint, family = self._endpoint(received), self._family(received)
        if endpoint is None:
            return family.error(404, "Not Found")
        if endpoint.plan in self.missing_plans:
            return family.error(*MISSING_PLANS[endpoint.plan])
        try:
            endpoint.check(received.params)
            if endpoint.has_cutoff and self._is_too_old(days_of(received.params)[0]):
                return family.error(403, "Date too far back")
            cost = endpoint.cost(received.params)
            if exceeded := self._book(received, family, cost):
                details = f"Exceeded {exceeded} limit with query of cost {cost}"
                return family.error(429, f"Too Many Requests: {details}")
            return endpoint.answer(self, received)
        except ValueError as error:
            return family.error(400, str(error))

    def _is_too_old(self, day: date) -> bool:
        return day < self.today - self.history_days * _DAY

    def _book(self, received: ReceivedRequest, family: Family, cost: int) -> str:
        """Spend the cost of a request, or name the limit that it exceeds."""
        with self._lock:
            if family is DASHBOARD:
                in_progress = sum(r.cost for r in self._in_progress if self._family(r) is family)
                if in_progress + cost > self.concurrent_cost:
                    return "concurrent"
            spending = self._spending.get(family.name)
            if spending and not spending.book(cost, self.seconds()):
                return "rate"
            received.cost = cost
        return ""


def _response(answer: Answer, fault: Fault | None) -> Response:
    body, headers = answer.body, {**answer.headers, **(fault.headers if fault else {})}
    if fault and fault.drop_after is not None:
        if isinstance(body, bytes):
            headers["Content-Length"] = str(len(body))
            body = iter([body])
        body = _cut(body, fault.drop_after)
    if isinstance(body, bytes):
        return Response(body, answer.status, headers, answer.media_type)
    return StreamingResponse(body, answer.status, headers, answer.media_type)


def _cut(chunks: Iterator[bytes], length: int) -> Iterator[bytes]:
    for chunk in chunks:
        yield chunk[:length]
        length -= len(chunk)
        if length <= 0:
            break
    raise DroppedConnectionError


async def _stays_connected(request: Request, seconds: float) -> bool:
    until = time.monotonic() + seconds
    while (left := until - time.monotonic()) > 0:
        if await request.is_disconnected():
            return False
        await anyio.sleep(min(left, 0.05))
    return True


async def _form(request: Request) -> Params:
    """The form in the body, which a GET request may have as well."""
    kind = request.headers.get("Content-Type", "")
    if not kind.startswith("application/x-www-form-urlencoded"):
        return {}
    return dict(parse_qsl((await request.body()).decode(), keep_blank_values=True))
