"""Files of raw_events_files as engines read them: DuckDB, and the real Spark."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import duckdb
import pytest

from door_tests.common import REPOSITORY
from sandbox import Fault, Project, Sandbox
from scripts.lake_schemas import DUCKDB, columns
from scripts.lake_schemas import duckdb as duckdb_statement
from unit_tests.installed import Connector, Run

STREAM = "raw_events_files"
HOUR = timedelta(hours=1)
# As locked as poetry.lock is, but not in it: 430 MB, which only this test wants.
SPARK = REPOSITORY / ".cache" / "spark-4.0.5"
SPARK_PACKAGES = """
pyspark==4.0.5 --hash=sha256:a0d44b0e7faf0458ad83b7aa664e7ed8b96beed8a55d66ce3b0dfac2309dfca6
py4j==0.10.9.9 --hash=sha256:c7c26e4158defb37b0bb124933163641a2ff6e3a3913f7811b0ddbe07ed61533
"""


@dataclass(frozen=True)
class GrowingProject(Project):
    """A project with hours of which the export does not have all yet."""

    short_hours: frozenset[datetime] = frozenset()

    def iter_members(self, hour: datetime) -> Iterator[tuple[str, bytes]]:
        for name, content in super().iter_members(hour):
            if hour not in self.short_hours:
                yield name, content
            elif "#0" in name:  # packed anew later on: its events then are in two files
                yield name.replace("#0", "#9"), content


@dataclass
class Lake:
    """An object storage, as a destination fills it while the sync goes on."""

    folder: Path
    staging: Path
    truth: list[dict[str, Any]]
    day: str

    def take(self, line: str) -> bool:
        """Move the file of a record away, and folders that are left empty."""
        message = json.loads(line) if line.startswith('{"type":"RECORD"') else None
        if message:
            reference = message["record"]["file_reference"]
            file = Path(reference["staging_file_url"])
            target = self.folder / reference["source_file_relative_path"]
            target.parent.mkdir(parents=True, exist_ok=True)
            file.replace(target)
            with suppress(OSError):
                file.parent.rmdir()
                file.parent.parent.rmdir()
        return bool(message)

    def sync(
        self, connector: Connector, state: list[dict[str, Any]] | None, dies_after: int = 0
    ) -> Run:
        options = connector.read_options(STREAM, state=state)
        process = connector.start("read", *options)
        output, taken = "", 0
        for line in process.stdout or ():
            output += line
            taken += self.take(line)
            if dies_after and taken == dies_after:
                process.send_signal(signal.SIGTERM)
        process.wait(timeout=30)
        return connector.finished(process, output)


@pytest.fixture(scope="module")
def lake(tmp_path_factory: pytest.TempPathFactory) -> Lake:
    """After a death, a whole sync, a late file, an hour that grew, another death, and a sync."""
    folder = tmp_path_factory.mktemp("lake")
    today = datetime.now(timezone.utc).replace(hour=0, minute=0, second=0, microsecond=0)
    end = today - 22 * HOUR  # the day before yesterday's last hours, and yesterday's first
    start = end - 12 * HOUR
    hours = [start + n * HOUR for n in range(12)]
    whole = GrowingProject(events_per_hour=40, first_hour=start)
    lake = Lake(
        folder / "lake",
        folder / "staging",
        [event for hour in hours for event in whole.events(hour)],
        f"{end:%Y-%m-%d}",
    )
    lake.staging.mkdir()
    with Sandbox(
        replace(whole, empty_hours=frozenset([hours[-3]]), short_hours=frozenset([hours[-2]]))
    ) as sandbox:
        connector = Connector(
            folder,
            sandbox,
            env={"AIRBYTE_STAGING_DIRECTORY": str(lake.staging)},
            start_date=f"{start:%Y-%m-%dT%H:00:00Z}",
            end_date=f"{end:%Y-%m-%dT%H:00:00Z}",
            request_time_range=2,
        )
        # One window that does not come, so that no sync ends before it dies.
        slow = Fault(
            "/api/2/export",
            delay=60,
            when=lambda params: params["start"] == f"{hours[8]:%Y%m%dT%H}",
        )
        sandbox.inject(slow)
        dead = lake.sync(connector, None, dies_after=8)
        assert dead.exit_code == -signal.SIGTERM
        first = lake.sync(connector, dead.states() or None)
        assert first.exit_code == 0, first.output[-3000:]
        sandbox.project = whole
        sandbox.inject(slow)
        dead = lake.sync(connector, first.states(), dies_after=2)
        assert dead.exit_code == -signal.SIGTERM
        last = lake.sync(connector, dead.states() or first.states())
        assert last.exit_code == 0, last.output[-3000:]
        assert last.state(STREAM) == {"hour": f"{hours[-1]:%Y%m%dT%H}"}
    assert not [path for path in lake.staging.rglob("*") if path.is_file()]
    return lake


def values(event: dict[str, Any]) -> dict[str, Any]:
    """What a row has to hold of an event, as Amplitude sent it."""
    kinds = columns(("text", "", "", "", "json", "time"))
    held = {}
    for name, kind in kinds.items():
        value = event.get(name)
        if value is not None and kind == "time":
            value = datetime.fromisoformat(value)
        held[name] = value
    return held


def read_back(row: dict[str, Any]) -> dict[str, Any]:
    """A row of an engine, in which objects and lists are texts."""
    kinds = columns(("text", "", "", "", "json", "time"))
    held = {}
    for name, kind in kinds.items():
        value = row[name]
        if value is not None and (kind == "json" or name == "amplitude_attribution_ids"):
            value = json.loads(value)
        if isinstance(value, str) and kind == "time":
            value = datetime.fromisoformat(value)
        held[name] = value
    return held


def by_uuid(rows: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    assert len(rows) == len({row["uuid"] for row in rows})
    return {row["uuid"]: row for row in rows}


def of_the_day(lake: Lake) -> list[dict[str, Any]]:
    return [event for event in lake.truth if event["server_upload_time"][:10] == lake.day]


def test_given_a_lake_when_duckdb_reads_it_then_every_event_is_there_with_all_its_values(
    lake: Lake,
) -> None:
    with duckdb.connect() as connection:
        connection.execute(duckdb_statement().replace("'events/", f"'{lake.folder}/events/"))
        result = connection.execute("SELECT DISTINCT ON (uuid) * FROM events")
        names = [description[0] for description in result.description or []]
        rows = [dict(zip(names, row, strict=True)) for row in result.fetchall()]
        kinds = dict(
            connection.execute("SELECT column_name, column_type FROM (DESCRIBE events)").fetchall()
        )
        plan = connection.execute(
            f"EXPLAIN ANALYZE SELECT count(*) FROM events WHERE date = '{lake.day}'"
        ).fetchall()[0][1]
        counts = connection.execute(
            "SELECT count(*), count(DISTINCT uuid),"
            f" count(DISTINCT uuid) FILTER (date = '{lake.day}') FROM events"
        ).fetchone()
    assert kinds == {**columns(DUCKDB), "date": "DATE", "hour": "INTEGER"}
    assert by_uuid([read_back(row) for row in rows]) == by_uuid(list(map(values, lake.truth)))
    for row in rows:
        assert row["server_upload_time"].date() == row["date"]
        assert row["server_upload_time"].hour == row["hour"]
    assert counts
    assert counts[0] > counts[1] == len(lake.truth), "an hour was packed anew"
    assert counts[2] == len(of_the_day(lake))
    [read, of] = map(int, re.findall(r"Scanning Files: (\d+)/(\d+)", plan)[0])
    assert 0 < read < of == len([*lake.folder.rglob("*.json.gz")])


@pytest.fixture(scope="module")
def spark_environment() -> dict[str, str]:
    """That of a Python that has Spark. It is installed once, beside the virtual environment."""
    java = shutil.which("java")
    if not java:
        pytest.skip("there is no Java on this machine: Spark was not tried")
    version = subprocess.run([java, "-version"], capture_output=True, text=True).stderr
    major = re.search(r'version "(\d+)', version)
    if not major or int(major[1]) < 17:
        pytest.skip(f"Spark 4 wants Java 17, and this is {version.splitlines()[0]}")
    if not (SPARK / "ready").exists():
        requirements = SPARK.with_suffix(".txt")
        requirements.parent.mkdir(exist_ok=True)
        requirements.write_text(SPARK_PACKAGES)
        pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "install", "--quiet"]
        options = ["--no-deps", "--require-hashes", "--upgrade", "--target", str(SPARK)]
        done = subprocess.run(
            [*pip, *options, "--requirement", str(requirements)], capture_output=True, text=True
        )
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
        (SPARK / "ready").touch()
    return {**os.environ, "PYTHONPATH": f"{SPARK}{os.pathsep}{REPOSITORY}"}


def test_given_a_lake_when_spark_reads_it_then_every_event_is_there_and_a_day_is_read_alone(
    lake: Lake, spark_environment: dict[str, str], tmp_path: Path
) -> None:
    found = tmp_path / "found.json"
    done = subprocess.run(
        [sys.executable, "-m", "door_tests.lake", str(lake.folder), lake.day, str(found)],
        env=spark_environment,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    answer = json.loads(found.read_text())
    rows = answer["events"]
    assert by_uuid([read_back(row) for row in rows]) == by_uuid(list(map(values, lake.truth)))
    for row in rows:
        assert row["server_upload_time"][:13] == f"{row['date']} {row['hour']:02}"
    assert answer["rows"] > len(lake.truth), "an hour was packed anew"
    days_files = (lake.folder / "events" / f"date={lake.day}").rglob("*.json.gz")
    assert len(of_the_day(lake)) <= answer["rows of the day"] < answer["rows"]
    assert [*days_files]
    assert re.search(rf"PartitionFilters: \[[^\]]*date#\d+ = {lake.day}", answer["plan of the day"])
