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

from sandbox import Project, Sandbox
from unit_tests.installed import PACKAGE, Connector, Run, configured

REPOSITORY = PACKAGE.parent
MANIFEST, COMPONENTS = PACKAGE / "manifest.yaml", PACKAGE / "components.py"
KEYS = {
    "events": "uuid",
    "active_users": "date",
    "average_session_length": "date",
    "annotations": "id",
    "cohorts": "id",
    "events_list": "id",
}
_HOUR = timedelta(hours=1)

Records = dict[str, list[dict[str, Any]]]


def small_project() -> Project:
    """Thirty hours of a few events, ending early enough for all of them to be exportable."""
    return Project(events_per_hour=8, first_hour=_last_hour() - 29 * _HOUR)


def settings() -> dict[str, Any]:
    """An End Date in the past: whichever door reads, and however late, it reads the same."""
    return {"end_date": f"{_last_hour() + _HOUR:%Y-%m-%dT%H:00:00Z}"}


def _last_hour() -> datetime:
    return _STARTED.replace(minute=0, second=0, microsecond=0) - 5 * _HOUR


_STARTED = datetime.now(timezone.utc)


@dataclass
class Delivery:
    """What one reading of all streams gave: records in the order of their keys, and states."""

    records: Records
    states: list[dict[str, Any]]


def delivery(run: Run) -> Delivery:
    assert run.exit_code == 0, run.output[-3000:]
    return Delivery(
        {stream: in_order(stream, run.records(stream)) for stream in KEYS}, run.states()
    )


def in_order(stream: str, records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return sorted(records, key=lambda record: str(record[KEYS[stream]]))


def check_discover_and_read(door: Connector, *options: str) -> Delivery:
    """A door that keeps to Airbyte's command line, through all that a connection needs of it."""
    assert door.run("check", *options).connection_status() == {"status": "SUCCEEDED"}
    [catalog] = [m for m in door.run("discover", *options).messages if m["type"] == "CATALOG"]
    assert [stream["name"] for stream in catalog["catalog"]["streams"]] == list(KEYS)
    catalog_file = door.folder / "configured.json"
    catalog_file.write_text(json.dumps(configured(catalog["catalog"]["streams"])))
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
    """Sync all streams into DuckDB through PyAirbyte, in a process of its own.

    `source` is what ``airbyte.get_source`` takes to find the connector. Airbyte's own folders are
    in `folder`.
    """
    settings_file = folder / "pyairbyte.json"
    settings_file.write_text(
        json.dumps(
            {
                "config": sandbox.config(**settings()),
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
