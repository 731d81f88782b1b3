"""What all doors are held against: one small project, and what the package reads of it."""

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

from demo.__main__ import REPORTS
from sandbox import Project, Sandbox
from unit_tests.helpers import without_beginning
from unit_tests.installed import PACKAGE, Connector, Run, configured

REPOSITORY = PACKAGE.parent
MANIFEST, COMPONENTS = PACKAGE / "manifest.yaml", PACKAGE / "components.py"
KEYS = {
    "annotations": ["id"],
    "annotation_categories": ["id"],
    "cohorts": ["id"],
    "events_list": ["id"],
    "channel_classifiers": ["id"],
    "event_categories": ["id"],
    "event_types": ["event_type"],
    "event_properties": ["event_type", "event_property"],
    "user_properties": ["user_property"],
    "group_properties": ["group_type", "group_property"],
    "lookup_tables": ["name"],
    "lookup_table_rows": ["table", "row_number"],
    "experiments": ["id"],
    "flags": ["id"],
    "flag_versions": ["flag_id", "version"],
    "deployments": ["id"],
    "mutexes": ["id"],
    "holdouts": ["id"],
    "deletion_jobs": ["day", "app"],
    "deleted_users": ["amplitude_id", "day", "app"],
    "session_replays": ["replay_id"],
    "cohort_members": ["cohort_id", "amplitude_id"],
    "events": ["uuid"],
    "raw_events_files": ["path"],
    "daily_user_counts": ["date", "metric", "segment"],
    "weekly_user_counts": ["date", "metric", "segment"],
    "monthly_user_counts": ["date", "metric", "segment"],
    "revenue_ltv": ["cohort_date", "day_number"],
    "average_session_length": ["date"],
    "sessions_per_user": ["date"],
    "session_lengths": ["date", "bucket"],
    "active_users": ["date"],
    "retention": ["cohort_date", "day_number"],
    "event_counts": ["date", "event_type", "metric"],
    "report_signups_by_country": ["date", "event_number", "group"],
    "report_checkout": ["date", "step", "group"],
}
# Files need a folder and somebody who takes them, which is no door's matter.
TABLES = [stream for stream in KEYS if stream != "raw_events_files"]
_STARTED = datetime.now(timezone.utc)  # tools that are at work have clocks of their own
_HOUR, _HOURS = timedelta(hours=1), 7 * 24

Records = dict[str, list[dict[str, Any]]]


def small_sandbox(eu: bool = False) -> Sandbox:
    """A project with events in four hours of each day, served at a standstill and without budgets.

    Its days go on being what they are, and many syncs may follow each other: what a real project
    would make wait is tested elsewhere.
    """
    quiet = (_first_hour() + n * _HOUR for n in range(_HOURS) if n % 24 >= 4)
    return Sandbox(
        Project(empty_hours=frozenset(quiet)),
        clock=lambda: _STARTED,
        eu=eu,
        cost_limits=(),
        concurrent_cost=10_000,
        taxonomy_limits=(),
        deletion_limits=(),
        cohort_limits=(),
        cohort_quota=10_000,
    )


def settings(sandbox: Sandbox) -> dict[str, Any]:
    """A week that is over: whichever door reads, and however late, it reads the same.

    With the first of a month in it, and a Monday, there is something to read of every stream. What
    it costs is less than the connector would wait for.
    """
    end = _first_hour() + _HOURS * _HOUR
    return {
        "start_date": f"{_first_hour():%Y-%m-%dT%H:00:00Z}",
        "end_date": f"{end:%Y-%m-%dT%H:00:00Z}",
        "request_time_range": 48,
        "dashboard_lookback_days": 2,
        "management_api_key": sandbox.management_key,
        "reports": REPORTS,
        # One whose file comes at once, and one whose file comes from the storage
        "cohort_ids": ["p7q2w8rt", "z5y4n6bv"],
        "cohort_member_properties": ["plan"],
    }


def _first_hour() -> datetime:
    this_month = _STARTED.replace(day=1, hour=0, minute=0, second=0, microsecond=0)
    return (this_month - timedelta(days=1)).replace(day=1)


@dataclass
class Delivery:
    """What one reading of all streams gave: records in the order of their keys, and states."""

    records: Records
    states: list[dict[str, Any]]


def delivery(run: Run) -> Delivery:
    assert run.exit_code == 0, run.output[-3000:]
    records = {stream: in_order(stream, run.records(stream)) for stream in TABLES}
    assert all(records.values()), "a stream without records shows nothing"
    return Delivery(records, [_without_run_time(state) for state in run.states()])


def _without_run_time(state: dict[str, Any]) -> dict[str, Any]:
    """A state without the seconds that a sync took: the CDK writes them beside those of parts; nor
    what it began with, which is noted for new parts in the package only."""
    stream = state["stream"]
    kept = {k: v for k, v in stream["stream_state"].items() if k != "lookback_window"}
    return {**state, "stream": {**stream, "stream_state": without_beginning(kept)}}


def in_order(stream: str, records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return sorted(records, key=lambda record: key_of(stream, record))


def key_of(stream: str, record: Mapping[str, Any]) -> tuple[str, ...]:
    return tuple(str(record[name]) for name in KEYS[stream])


def check_discover_and_read(door: Connector, *options: str) -> Delivery:
    """A door that keeps to Airbyte's command line, through all that a connection needs of it."""
    assert door.run("check", *options).connection_status() == {"status": "SUCCEEDED"}
    [catalog] = [m for m in door.run("discover", *options).messages if m["type"] == "CATALOG"]
    streams = catalog["catalog"]["streams"]
    keys = {s["name"]: [key for [key] in s["source_defined_primary_key"]] for s in streams}
    assert list(keys.items()) == list(KEYS.items())
    catalog_file = door.folder / "configured.json"
    read = [stream for stream in streams if stream["name"] in TABLES]
    catalog_file.write_text(json.dumps(configured(read)))
    return delivery(door.run("read", "--catalog", str(catalog_file), *options))


def image_layout(folder: Path) -> Path:
    """The folder of Airbyte's manifest-only image: the two files beside the CDK's own runner.

    Source: airbyte-cdk's Dockerfile and the recipe Dockerfile.manifest-only-connector, which copies
    manifest.yaml and components.py into source_declarative_manifest/.
    """
    from airbyte_cdk.cli.source_declarative_manifest import _run

    package = folder / "source_declarative_manifest"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    runner = Path(_run.__file__)
    (package / "run.py").write_bytes(runner.read_bytes())
    (package / "spec.json").write_bytes(runner.with_name("spec.json").read_bytes())
    for file in (MANIFEST, COMPONENTS):
        (package / file.name).write_bytes(file.read_bytes())
    (folder / "main.py").write_text("from source_declarative_manifest.run import run\n\nrun()\n")
    return folder


def load(
    source: Mapping[str, str],
    db: Path,
    sandbox: Sandbox,
    folder: Path,
    times: int = 1,
    strategy: str = "auto",
) -> None:
    """Sync all streams but those of files into DuckDB through PyAirbyte, in a process of its own.

    `source` is what ``airbyte.get_source`` takes to find the connector. Airbyte's own folders are
    in `folder`.
    """
    settings_file = folder / "pyairbyte.json"
    settings_file.write_text(
        json.dumps(
            {
                "config": sandbox.config(**settings(sandbox)),
                "source": source,
                "db": str(db),
                "strategy": strategy,
                "times": times,
                "environment": sandbox.env,
            }
        )
    )
    environment: Mapping[str, str] = {
        **os.environ,
        "AIRBYTE_ENABLE_UNSAFE_CODE": "true",
        "NO_LIVE_PROGRESS": "1",
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(REPOSITORY),
    }
    done = subprocess.run(
        [sys.executable, "-m", "door_tests.pyairbyte_sync", str(settings_file)],
        env=environment,
        cwd=folder,
        text=True,
        capture_output=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert sandbox.secret_key not in done.stdout + done.stderr
