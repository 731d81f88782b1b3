"""Downloads of cohorts: jobs that are made, take their time, and leave a file for seven days.

Source: https://amplitude.com/docs/apis/analytics/behavioral-cohorts (Get one cohort). How a file in
the storage is named and what the storage refuses are those of Amazon S3; what Amplitude answers
beyond its limits, and to who asks for what is left of the month, is known from third parties only.
Recorded: files come gzipped, whatever the client accepts, and with all cells in quotes.
"""

import hashlib
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from typing import TYPE_CHECKING
from urllib.parse import urlencode

from sandbox import answers
from sandbox.answers import Answer, as_json

if TYPE_CHECKING:
    from sandbox.app import ReceivedRequest, Sandbox

STORAGE_HOST = "amplitude-cohort-exports.s3.us-west-2.amazonaws.com"
REQUEST_PATH = "/api/5/cohorts/request/"
STATUS_PATH = "/api/5/cohorts/request-status/"
STORAGE_PATH = "/exports/"
_LINK_DAYS, _ADDRESS_SECONDS = 7, 60
_ENCODING = {"Content-Encoding": "gzip"}


@dataclass(frozen=True)
class Job:
    """A download that was asked for.

    Args:
        made: when, by the clock of the sandbox.
        started: the same, in seconds of `Sandbox.seconds`.
        computed_at: when the members that it gives were computed, in epoch seconds.
        properties: the names of those that it gives; None is all.
    """

    request_id: str
    cohort_id: str
    made: datetime
    started: float
    computed_at: int
    properties: tuple[str, ...] | None


class CohortJobs:
    """The jobs of one project.

    Args:
        quota: how many may be made in a calendar month.
        seconds: how long one takes. Amplitude: 30 to 60 seconds or more.
        inline_bytes: the largest file that Amplitude sends itself.
    """

    def __init__(self, quota: int, seconds: float, inline_bytes: int) -> None:
        self.quota = quota
        self.seconds = seconds
        self.inline_bytes = inline_bytes
        self.jobs: dict[str, Job] = {}

    def usage(self, now: datetime) -> int:
        """The number of jobs made in this month."""
        return sum(
            (job.made.year, job.made.month) == (now.year, now.month) for job in self.jobs.values()
        )

    def find(self, request_id: str) -> Job:
        if request_id not in self.jobs:
            raise ValueError(f"Invalid request id {request_id}")
        return self.jobs[request_id]

    def is_done(self, job: Job, now: float) -> bool:
        return now >= job.started + self.seconds


def usage(sandbox: "Sandbox", _: "ReceivedRequest") -> Answer:
    now = sandbox.clock().astimezone(timezone.utc)
    next_month = (now.replace(day=1) + timedelta(days=32)).replace(day=1)
    jobs = sandbox.cohort_jobs
    resets_at = f"{next_month:%Y-%m-%dT00:00:00Z}"
    counts = {"limit": jobs.quota, "usage": jobs.usage(now), "resets_at": resets_at}
    return as_json({"rest_download": counts})


def make(sandbox: "Sandbox", request: "ReceivedRequest") -> Answer:
    jobs, now = sandbox.cohort_jobs, sandbox.clock().astimezone(timezone.utc)
    cohort_id = request.path.removeprefix(REQUEST_PATH)
    cohorts = {cohort["id"]: cohort for cohort in sandbox.cohorts()}
    if cohort_id not in cohorts:
        raise ValueError(f"Invalid cohort id {cohort_id}")
    if jobs.usage(now) >= jobs.quota:
        return answers.envelope(429, f"Exceeded {jobs.quota} cohort downloads per month")
    properties = tuple(request.params.all("propKeys"))
    if request.params.get("props", "0") == "0":
        properties = ()
    name = f"{sandbox.project.seed} {cohort_id} {len(jobs.jobs)}"
    request_id = hashlib.sha256(name.encode()).hexdigest()[:8]
    jobs.jobs[request_id] = Job(
        request_id,
        cohort_id,
        now,
        sandbox.seconds(),
        cohorts[cohort_id]["lastComputed"],
        properties if properties or request.params.get("props") != "1" else None,
    )
    return as_json({"request_id": request_id, "cohort_id": cohort_id}, 202)


def status(sandbox: "Sandbox", request: "ReceivedRequest") -> Answer:
    job = sandbox.cohort_jobs.find(request.path.removeprefix(STATUS_PATH))
    is_done = sandbox.cohort_jobs.is_done(job, sandbox.seconds())
    state = "JOB COMPLETED" if is_done else "JOB INPROGRESS"
    ids = {"request_id": job.request_id, "cohort_id": job.cohort_id}
    return as_json({**ids, "async_status": state}, 200 if is_done else 202)


def file(sandbox: "Sandbox", request: "ReceivedRequest") -> Answer:
    jobs, now = sandbox.cohort_jobs, sandbox.clock()
    job = jobs.find(request.path.removeprefix(REQUEST_PATH).removesuffix("/file"))
    if not jobs.is_done(job, sandbox.seconds()) or now > job.made + timedelta(days=_LINK_DAYS):
        raise ValueError(f"There is no file of request {job.request_id}")
    if sum(map(len, _csv(sandbox, job))) <= jobs.inline_bytes:
        return Answer(200, _gzipped(_csv(sandbox, job)), "text/csv", _ENCODING)
    date = f"{now.astimezone(timezone.utc):%Y%m%dT%H%M%SZ}"
    query = {"X-Amz-Date": date, "X-Amz-Expires": _ADDRESS_SECONDS}
    path = f"{STORAGE_PATH}{job.request_id}.csv"
    signed = urlencode({**query, "X-Amz-Signature": _signature(sandbox, path, date)})
    return Answer(302, b"", "text/plain", {"Location": f"https://{STORAGE_HOST}{path}?{signed}"})


def stored(sandbox: "Sandbox", request: "ReceivedRequest") -> Answer:
    """A file at the address to which Amplitude has led; it is signed, and takes no keys."""
    if request.has_credentials:
        return _xml(400, "InvalidArgument")
    date = request.params.get("X-Amz-Date", "")
    if request.params.get("X-Amz-Signature") != _signature(sandbox, request.path, date):
        return _xml(403, "SignatureDoesNotMatch")
    signed = datetime.strptime(date, "%Y%m%dT%H%M%SZ").replace(tzinfo=timezone.utc)
    if sandbox.clock() > signed + timedelta(seconds=_ADDRESS_SECONDS):
        return _xml(403, "AccessDenied")
    request_id = request.path.removeprefix(STORAGE_PATH).removesuffix(".csv")
    job = sandbox.cohort_jobs.find(request_id)
    length = sum(map(len, _gzipped(_csv(sandbox, job))))
    headers = {**_ENCODING, "Content-Length": str(length)}
    return Answer(200, _gzipped(_csv(sandbox, job)), "text/csv", headers)


def _csv(sandbox: "Sandbox", job: Job) -> Iterator[bytes]:
    return sandbox.project.cohort_csv(job.cohort_id, job.computed_at, job.properties)


def _gzipped(chunks: Iterator[bytes]) -> Iterator[bytes]:
    packer = zlib.compressobj(wbits=zlib.MAX_WBITS | 16)
    for chunk in chunks:
        yield packer.compress(chunk)
    yield packer.flush()


def _signature(sandbox: "Sandbox", path: str, date: str) -> str:
    return hashlib.sha256(f"{sandbox.secret_key} {path} {date}".encode()).hexdigest()


def _xml(code: int, name: str) -> Answer:
    return Answer(code, f"<Error><Code>{name}</Code></Error>".encode(), "application/xml")
