"""Export archives that are made once, kept on disk and served with next to no work."""

import gzip
import hashlib
import inspect
import multiprocessing
import zipfile
from base64 import b64encode
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import sandbox.project
from sandbox import Project, Sandbox

HOUR = timedelta(hours=1)
# A server in a process of its own shares no interpreter lock with the harness.
_SPAWN = multiprocessing.get_context("spawn")


@dataclass(frozen=True)
class StoredProject(Project):
    """A project whose hours are zip files under `directory`, written by `prepare`.

    Args:
        directory: folder of all stored projects.
        hours: number of hours, from `first_hour` on, that hold events: `events_per_hour` each, and
            unlike its parent's this number is exact.
        payload_bytes: length of a random Base64 string added to every event. It compresses to three
            quarters, so that archives of gigabytes need not hold hundreds of millions of events.
    """

    directory: Path = Path()
    hours: int = 24
    payload_bytes: int = 0

    @property
    def start(self) -> datetime:
        assert self.first_hour, "a stored project has a beginning"
        return self.first_hour

    @property
    def total(self) -> int:
        """The number of events."""
        return self.hours * self.events_per_hour

    @property
    def all_hours(self) -> list[datetime]:
        return [self.start + n * HOUR for n in range(self.hours)]

    @property
    def stored_bytes(self) -> int:
        return self.archive_bytes(self.all_hours)

    def event_count(self, hour: datetime) -> int:
        return self.events_per_hour if self.start <= hour < self.start + self.hours * HOUR else 0

    def archive_bytes(self, hours: Iterable[datetime]) -> int:
        return sum(self.file(hour).stat().st_size for hour in hours)

    def iter_members(self, hour: datetime) -> Iterator[tuple[str, bytes]]:
        with zipfile.ZipFile(self.file(hour)) as stored:
            for name in stored.namelist():
                yield name, stored.read(name)

    def iter_events(self, hour: datetime) -> Iterator[dict[str, Any]]:
        chance = self._random("payload", hour.isoformat())
        for event in super().iter_events(hour):
            if self.payload_bytes:
                payload = b64encode(chance.randbytes(self.payload_bytes * 3 // 4)).decode()
                event["event_properties"]["payload"] = payload
            yield event

    def member_names(self, hour: datetime) -> list[str]:
        with zipfile.ZipFile(self.file(hour)) as stored:
            return stored.namelist()

    def file(self, hour: datetime) -> Path:
        """The zip of an hour, in a folder named after all that its content depends on."""
        generator = hashlib.sha256(inspect.getsource(sandbox.project).encode()).hexdigest()[:8]
        name = f"{self.events_per_hour}x{self.payload_bytes}-{self.seed}-{generator}"
        return self.directory / f"{self.start:%Y%m%d}" / name / f"{hour:%Y%m%dT%H}.zip"

    def members_of(self, hour: datetime) -> Iterator[tuple[str, bytes]]:
        """What the file of an hour is to hold."""
        return super().iter_members(hour)

    def store(self, hour: datetime) -> None:
        """Generate one hour and write its file."""
        file = self.file(hour)
        file.parent.mkdir(parents=True, exist_ok=True)
        unfinished = file.with_suffix(".tmp")
        with zipfile.ZipFile(unfinished, "w") as archive:
            for name, content in self.members_of(hour):
                archive.writestr(name, content)
        unfinished.rename(file)


@dataclass(frozen=True)
class LargeProject(StoredProject):
    """A stored project whose files hold random bytes instead of events, so that gigabytes of them
    are written in seconds: for who does not look into them.

    Args:
        parts: files of an hour, of 16 MB each.
    """

    parts: int = 1

    def file(self, hour: datetime) -> Path:
        name = f"{self.parts}-parts"
        return self.directory / f"{self.start:%Y%m%d}" / name / f"{hour:%Y%m%dT%H}.zip"

    def members_of(self, hour: datetime) -> Iterator[tuple[str, bytes]]:
        chance = self._random("bytes", hour.isoformat())
        for n in range(self.parts):
            yield f"{n}.json.gz", gzip.compress(chance.randbytes(16_000_000), 0)


@dataclass(frozen=True)
class Server:
    """A running sandbox: how a process reaches it, and the connector config for it."""

    project: StoredProject
    env: dict[str, str]
    config: dict[str, Any]


def prepare(projects: Iterable[StoredProject]) -> None:
    """Write the files of `projects` that do not exist yet, on all cores."""
    missing = [(p, hour) for p in projects for hour in p.all_hours if not p.file(hour).exists()]
    if missing:
        with ProcessPoolExecutor(mp_context=_SPAWN) as pool:
            list(pool.map(StoredProject.store, *zip(*missing, strict=True)))


@contextmanager
def serve(project: StoredProject) -> Iterator[Server]:
    """Serve `project` from a process of its own."""
    here, there = _SPAWN.Pipe()
    process = _SPAWN.Process(target=_serve, args=(project, there), daemon=True)
    process.start()
    there.close()
    try:
        yield Server(project, *here.recv())
    finally:
        here.send("stop")
        process.join()


def _serve(project: StoredProject, parent: Connection) -> None:
    with Sandbox(project) as sandbox:
        parent.send((sandbox.env, sandbox.config()))
        parent.recv()
