"""Amplitude's endpoints, limits and faults, as an ASGI application behind an HTTPS proxy."""

import hashlib
import io
import json
import re
import threading
import time
import zipfile
from base64 import b64encode
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import date, datetime, timedelta, timezone
from fnmatch import fnmatchcase
from typing import Any
from zoneinfo import ZoneInfo

import anyio
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.types import Message, Receive, Scope, Send

from sandbox.project import Project
from sandbox.server import DroppedConnectionError, HttpsProxy

STANDARD_HOST = "amplitude.com"
EU_HOST = "analytics.eu.amplitude.com"
_HOUR = timedelta(hours=1)

Params = dict[str, str]


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
        when: tells from the query parameters whether the fault applies.
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
    Amplitude's units; the export has none. `started` and `finished` are seconds of
    `time.monotonic()`; `finished` is None until the last byte is sent or the connection is closed.
    `has_credentials` says whether any were sent, right or wrong.
    """

    method: str
    host: str
    path: str
    params: Params
    started: float
    status: int | None = None
    cost: int = 0
    finished: float | None = None
    has_credentials: bool = False


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
        clock: the current time, as an aware datetime. Rate limits go by real time instead.
        export_delay: how long after it closes an hour becomes exportable. Amplitude: two hours.
        size_limit: largest export archive, in bytes; larger ones are answered 400, going by
            `Project.archive_bytes`. Amplitude: 4 GB.
        project_timezone: IANA name of the time zone of dashboard dates.
        eu: serve the project from the EU host instead of the standard one.
        cost_limits: (cost, seconds): the cost that may be spent in any such span of time.
        cost_skew: seconds by which those spans are longer: the clock of a server is its own.
        max_concurrency: requests that may be in progress at once, of all endpoints together.
        port: port of the proxy; 0 picks a free one.

    Sources: https://amplitude.com/docs/apis/analytics/export and
    https://amplitude.com/docs/apis/analytics/dashboard-rest (Rate limits).
    """

    def __init__(
        self,
        project: Project,
        *,
        clock: Callable[[], datetime] = lambda: datetime.now(timezone.utc),
        export_delay: timedelta = timedelta(hours=2),
        size_limit: int = 4 * 2**30,
        project_timezone: str = "UTC",
        eu: bool = False,
        cost_limits: Sequence[tuple[int, float]] = ((1_000, 300.0), (108_000, 3600.0)),
        cost_skew: float = 1.0,
        max_concurrency: int = 5,
        port: int = 0,
    ) -> None:
        self.project = project
        self.clock = clock
        self.export_delay = export_delay
        self.size_limit = size_limit
        self.project_timezone = project_timezone
        self.host = EU_HOST if eu else STANDARD_HOST
        self.spending = Spending(cost_limits, cost_skew)
        self.max_concurrency = max_concurrency
        self.peak_concurrency = 0
        self.api_key, self.secret_key = (
            hashlib.sha256(f"{name} {project.seed} {self.host}".encode()).hexdigest()[:32]
            for name in ("api key", "secret key")
        )
        self._in_progress = 0
        self._requests: list[ReceivedRequest] = []
        self._faults: list[Fault] = []
        self._lock = threading.Lock()
        self._proxy = HttpsProxy(self._serve, (STANDARD_HOST, EU_HOST), port)
        self._endpoints: dict[str, Callable[[Params], _Answer]] = {
            "/api/2/export": self._export,
            "/api/2/users": self._users,
            "/api/2/sessions/average": self._average_session_length,
            "/api/2/events/list": lambda _: _json({"data": project.events_list()}),
            "/api/3/annotations": lambda _: _json({"data": project.annotations()}),
            "/api/3/cohorts": self._cohorts,
        }

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

    async def _serve(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope, receive)
        received = ReceivedRequest(
            request.method,
            request.url.hostname or "",
            request.url.path,
            dict(request.query_params),
            time.monotonic(),
            has_credentials="Authorization" in request.headers,
        )
        with self._lock:
            self._requests.append(received)
            self._in_progress += 1
            self.peak_concurrency = max(self.peak_concurrency, self._in_progress)
            is_one_too_many = self._in_progress > self.max_concurrency

        async def send_and_finish(message: Message) -> None:
            # Before the last byte goes out: the client may start its next request right after it.
            if message["type"] == "http.response.body" and not message.get("more_body"):
                self._finish(received)
            await send(message)

        try:
            authorization = request.headers.get("Authorization", "")
            if not self._is_authorized(received, authorization):
                answer, fault = _forbidden(received.path), None
            elif is_one_too_many:
                answer, fault = _error(429, "Too Many Requests: Exceeded concurrent limit"), None
            else:
                fault = self._take_fault(received)
                if fault and not await _stays_connected(request, fault.delay):
                    return
                answer = await run_in_threadpool(self._answer, received, fault)
            received.status = answer.status
            await answer.response(fault)(scope, receive, send_and_finish)
        finally:
            self._finish(received)

    def _finish(self, received: ReceivedRequest) -> None:
        with self._lock:
            if received.finished is None:
                received.finished = time.monotonic()
                self._in_progress -= 1

    def _is_authorized(self, received: ReceivedRequest, authorization: str) -> bool:
        expected = b64encode(f"{self.api_key}:{self.secret_key}".encode()).decode()
        return received.host == self.host and authorization == f"Basic {expected}"

    def _take_fault(self, received: ReceivedRequest) -> Fault | None:
        with self._lock:
            for n, fault in enumerate(self._faults):
                if fault.times == 0 or not fnmatchcase(received.path, fault.path):
                    continue
                if fault.when is None or fault.when(received.params):
                    if fault.times is not None:
                        self._faults[n] = replace(fault, times=fault.times - 1)
                    return fault
        return None

    def _answer(self, received: ReceivedRequest, fault: Fault | None) -> "_Answer":
        if fault and (fault.status or fault.body is not None):
            answer = _Answer(fault.status or 200, fault.body or b"", "text/plain")
        else:
            answer = self._genuine(received)
        if fault and (fault.transform or fault.content_length):
            body = answer.body if isinstance(answer.body, bytes) else b"".join(answer.body)
            body = fault.transform(body) if fault.transform else body
            is_chunked = not fault.content_length and not isinstance(answer.body, bytes)
            answer = replace(answer, body=iter([body]) if is_chunked else body)
        return answer

    def _genuine(self, received: ReceivedRequest) -> "_Answer":
        endpoint = self._endpoints.get(received.path)
        if endpoint is None or received.method != "GET":
            return _error(404, "Not Found")
        try:
            received.cost = _cost(received.path, received.params)
        except ValueError as error:
            return _error(400, str(error), "Invalid chart definition")
        with self._lock:
            is_affordable = self.spending.book(received.cost, time.monotonic())
        if not is_affordable:
            details = f"Too Many Requests: Exceeded rate limit with query of cost {received.cost}"
            return _error(429, details)
        return endpoint(received.params)

    def _export(self, params: Params) -> "_Answer":
        try:
            start, end = (_parse_hour(params.get(name, "")) for name in ("start", "end"))
        except ValueError as error:
            return _text(400, str(error))
        if not timedelta(0) <= end - start < timedelta(days=365):
            return _text(400, "The range must be of 1 hour to 365 days.")
        hours = self.exportable_hours(start, end)
        if not hours:
            return _text(404, "Raw data files were not found.")
        if self.project.archive_bytes(hours) > self.size_limit:
            return _text(400, "The export is over the size limit.")
        name = f"{self.project.project_id}_{params['start']}_{params['end']}.zip"
        headers = {"Content-Disposition": f'attachment; filename="{name}"'}
        return _Answer(200, _archive(self.project, hours), "application/zip", headers)

    def _users(self, params: Params) -> "_Answer":
        group, metric = params.get("g"), params.get("m", "active")
        if params.get("i", "1") != "1" or metric not in ("active", "new"):
            return _error(400, "Invalid interval or metric", "Invalid chart definition")
        if group and (group != "country" or not self.project.has_country):
            return _error(400, f"Invalid user property {group}", "Invalid chart definition")
        count = self.project.active_users if metric == "active" else self.project.new_users
        days = _days(params)
        by_day = [count(day) if self._has_begun(day) else {} for day in days]
        if not group:
            return _series(days, {0: [sum(counts.values()) for counts in by_day]})
        countries = {country: 0 for counts in by_day for country in counts}
        return _series(days, {c: [counts.get(c, 0) for counts in by_day] for c in countries})

    def _average_session_length(self, params: Params) -> "_Answer":
        length, days = self.project.average_session_length, _days(params)
        # A day without sessions is the integer 0, as captured from an empty project.
        return _series(days, {0: [length(d) or 0 if self._has_begun(d) else 0 for d in days]})

    def _cohorts(self, params: Params) -> "_Answer":
        cohorts = self.project.cohorts()
        if params.get("includeSyncInfo") != "true":
            cohorts = [{k: v for k, v in c.items() if k != "syncMetadata"} for c in cohorts]
        return _json({"cohorts": cohorts})

    def _has_begun(self, day: date) -> bool:
        return day <= self.clock().astimezone(ZoneInfo(self.project_timezone)).date()


@dataclass(frozen=True)
class _Answer:
    status: int
    body: bytes | Iterator[bytes]
    media_type: str
    headers: Mapping[str, str] = field(default_factory=dict)

    def response(self, fault: Fault | None) -> Response:
        body, headers = self.body, {**self.headers, **(fault.headers if fault else {})}
        if fault and fault.drop_after is not None:
            if isinstance(body, bytes):
                headers["Content-Length"] = str(len(body))
                body = iter([body])
            body = _cut(body, fault.drop_after)
        if isinstance(body, bytes):
            return Response(body, self.status, headers, self.media_type)
        return StreamingResponse(body, self.status, headers, self.media_type)


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


def _cost(path: str, params: Params) -> int:
    """Days x conditions x cost of the query type; a group-by counts as four conditions."""
    if path == "/api/2/export":
        return 0
    if path == "/api/2/users":
        return len(_days(params)) * (5 if params.get("g") else 1)
    if path == "/api/2/sessions/average":
        return len(_days(params)) * 4
    return 1


def _days(params: Params) -> list[date]:
    start, end = (_parse_day(params.get(name, "")) for name in ("start", "end"))
    if end < start:
        raise ValueError("The start is after the end")
    return [start + timedelta(days=n) for n in range((end - start).days + 1)]


def _parse_day(value: str) -> date:
    if not re.fullmatch(r"\d{8}", value):
        raise ValueError(f"Invalid date {value!r}")
    return datetime.strptime(value, "%Y%m%d").date()


def _parse_hour(value: str) -> datetime:
    if not re.fullmatch(r"\d{8}T\d\d", value):
        raise ValueError(f"Invalid hour {value!r}")
    return datetime.strptime(value, "%Y%m%dT%H").replace(tzinfo=timezone.utc)


def _series(days: list[date], series: Mapping[Any, list[float]]) -> _Answer:
    data = {
        "xValues": [day.isoformat() for day in days],
        "series": list(series.values()),
        "seriesCollapsed": [[0] for _ in series],
        "seriesLabels": list(series),
        "seriesMeta": [{"segmentIndex": 0} for _ in series],
    }
    return _json({"data": data})


def _json(content: Any, status: int = 200) -> _Answer:
    return _Answer(status, json.dumps(content).encode(), "application/json")


def _text(status: int, content: str) -> _Answer:
    return _Answer(status, content.encode(), "text/plain")


def _error(status: int, details: str, message: str = "Unspecified Error") -> _Answer:
    kind = "invalid" if status == 400 else "unspecified"
    error = {"http_code": status, "type": kind, "message": message}
    return _json({"error": {**error, "metadata": {"details": details}}}, status)


def _forbidden(path: str) -> _Answer:
    if path == "/api/2/export":
        return _text(403, "Invalid API Key")
    details = {"details": "Invalid API/Secret Key combination"}
    return _json({"error": {"http_code": 403, "type": "unspecified", "metadata": details}}, 403)
