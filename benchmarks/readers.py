"""The programs that are compared, each with the arguments of an Airbyte connector."""

import json
import os
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import yaml

from benchmarks.archives import HOUR, Server
from benchmarks.measure import MeasureError

PACKAGE = "airbyte-source-amplitude==0.6.19"
_HERE = Path(__file__).parent
_SCRIPTS = Path(sysconfig.get_path("scripts"))
# A venv is to see nothing of the caller's.
_OWN_PACKAGES = {"PYTHONPATH": ""}


def _catalog(stream: str) -> dict[str, Any]:
    return {
        "streams": [
            {
                "stream": {
                    "name": stream,
                    "json_schema": {},
                    "supported_sync_modes": ["full_refresh", "incremental"],
                },
                "sync_mode": "incremental",
                "destination_sync_mode": "append",
            }
        ]
    }


_CATALOG = _catalog("events")


# Its CDK asks certifi whom to trust, whatever REQUESTS_CA_BUNDLE says: this has certifi obey.
_TRUST = """\
import os, certifi; \
certifi.where = lambda file=os.environ.get("REQUESTS_CA_BUNDLE", certifi.where()): file
"""


class NotInstalledError(Exception):
    """The published package is not there; the message says why."""


@dataclass(frozen=True)
class Reader:
    """A program that reads events.

    Args:
        name: as the report calls it.
        program: how it is started, up to the command (`read`).
        options: what follows the common options of the command.
        env: added to its environment.
        catalog: its configured catalog.
        prints: whether it prints the records it reads.
        stages: whether it leaves the archives, hour by hour, in the staging folder.
    """

    name: str
    program: tuple[str, ...]
    options: tuple[str, ...] = ()
    env: Mapping[str, str] = field(default_factory=dict)
    catalog: Mapping[str, Any] = field(default_factory=lambda: _CATALOG)
    prints: bool = True
    stages: bool = False


@dataclass(frozen=True)
class Span:
    """The hours a process is to read: `hours` of them from the `skip`-th on, `window` at a time."""

    hours: int
    window: int = 24
    skip: int = 0

    def config(self, server: Server) -> dict[str, Any]:
        start = server.project.start + self.skip * HOUR
        # Right whether the last hour counts as part of the range or not.
        end = start + self.hours * HOUR - timedelta(seconds=1)
        return {
            **server.config,
            "start_date": f"{start:%Y-%m-%dT%H:%M:%SZ}",
            "end_date": f"{end:%Y-%m-%dT%H:%M:%SZ}",
            "request_time_range": self.window,
        }


OURS = Reader("source-amplitude", (str(_SCRIPTS / "source-amplitude"),))
FLOOR = Reader("floor (no CDK)", (sys.executable, "-m", "benchmarks.floor"))
INFLATE, PARSE = (
    Reader(f"floor, until {step}", FLOOR.program, ("--until", step), prints=False)
    for step in ("inflate", "parse")
)
FILES = replace(OURS, name=f"{OURS.name}, files", catalog=_catalog("raw_events_files"), stages=True)
CURL = Reader("curl", (sys.executable, "-m", "benchmarks.curl"), prints=False, stages=True)


def without_isal(folder: Path) -> Reader:
    """Ours as a plain `pip install` has it: the standard library inflates."""
    hidden = folder / "without-isal"
    hidden.mkdir()
    (hidden / "isal.py").write_text("raise ImportError")
    return replace(OURS, name=f"{OURS.name}, without isal", env={"PYTHONPATH": str(hidden)})


def recipe(folder: Path) -> Reader:
    """The published recipe: stock decoders, seven timestamps parsed."""
    return _declarative("published recipe", _manifest(), folder)


def stock(folder: Path) -> Reader:
    """The published recipe without its transformation."""
    manifest = _manifest()
    _drop_transformation(manifest)
    return _declarative("stock decoders only", manifest, folder)


def prebuilt(folder: Path) -> Reader:
    """The CDK alone: records that cost nothing to make."""
    manifest = _manifest()
    _drop_transformation(manifest)
    retriever = manifest["streams"][0]["retriever"]
    retriever["record_selector"]["extractor"] = {
        "type": "CustomRecordExtractor",
        "class_name": "source_declarative_manifest.components.PrebuiltRecords",
    }
    return _declarative("CDK, prebuilt records", manifest, folder)


def package(folder: Path, may_install: bool) -> Reader:
    """The last published package, as pip installs it into a venv of its own under `folder`.

    Raises:
        NotInstalledError: it could not be installed, or `may_install` is False and it is not there.
    """
    venv, catalog = folder / PACKAGE, folder / f"{PACKAGE}.json"
    program = venv / "bin" / "source-amplitude"
    if not catalog.exists():
        if not may_install:
            raise NotInstalledError("a quick run installs nothing")
        _install(venv)
        catalog.write_text(json.dumps(_discover(program)))
    configured = json.loads(catalog.read_text())
    return Reader("published package", (str(program),), env=_OWN_PACKAGES, catalog=configured)


def _install(venv: Path) -> None:
    # Its dependencies know no later Python.
    own = [sys.executable] if sys.version_info < (3, 12) else []
    pythons = [*own, *filter(None, map(shutil.which, ("python3.11", "python3.10")))]
    if not pythons:
        raise NotInstalledError("it needs Python 3.10 or 3.11, and neither is installed")
    _run(pythons[0], "-m", "venv", "--clear", str(venv))
    _run(str(venv / "bin" / "pip"), "install", "--quiet", PACKAGE)
    (site_packages,) = venv.glob("lib/python3.*/site-packages")
    (site_packages / "sandbox.pth").write_text(_TRUST)


def _run(*command: str) -> str:
    env = {**os.environ, **_OWN_PACKAGES}
    done = subprocess.run(command, capture_output=True, text=True, env=env)
    if done.returncode:
        reason = (done.stderr.splitlines() or [f"exit code {done.returncode}"])[-1]
        raise NotInstalledError(f"{Path(command[0]).name} failed: {reason}")
    return done.stdout


def _discover(program: Path) -> dict[str, Any]:
    """A catalog with the package's own idea of the stream."""
    config = {"api_key": "k", "secret_key": "s", "start_date": "2024-01-01T00:00:00Z"}
    file = program.parent / "config.json"
    file.write_text(json.dumps(config))
    for line in _run(str(program), "discover", "--config", str(file)).splitlines():
        message = json.loads(line)
        if message["type"] == "CATALOG":
            streams = message["catalog"]["streams"]
            events = next(stream for stream in streams if stream["name"] == "events")
            return {"streams": [{**_CATALOG["streams"][0], "stream": events}]}
    raise MeasureError("The published package discovered nothing.")


def _manifest() -> dict[str, Any]:
    manifest: dict[str, Any] = yaml.safe_load((_HERE / "published_recipe.yaml").read_text())
    return manifest


def _drop_transformation(manifest: dict[str, Any]) -> None:
    stream = manifest["streams"][0]
    del stream["transformations"]
    # The format of untouched records is to be the first that is tried.
    del stream["incremental_sync"]["cursor_datetime_formats"][0]


def _declarative(name: str, manifest: dict[str, Any], folder: Path) -> Reader:
    file = folder / f"{name}.yaml"
    file.write_text(yaml.safe_dump(manifest))
    return Reader(
        name,
        (str(_SCRIPTS / "source-declarative-manifest"),),
        (
            *("--manifest-path", str(file)),
            *("--components-path", str(_HERE / "published_recipe.py")),
        ),
        {"AIRBYTE_ENABLE_UNSAFE_CODE": "true"},
    )
