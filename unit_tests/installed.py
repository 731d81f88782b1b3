"""The installed commands as subprocesses, sent to a sandbox by environment variables alone."""

import base64
import json
import logging
import os
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime, timezone
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import quote, quote_plus

from airbyte_cdk.models import AirbyteMessage, AirbyteMessageSerializer, Type

from sandbox import Sandbox
from source_amplitude import SourceAmplitude
from unit_tests.helpers import without_beginning

PACKAGE = Path(__file__).parents[1] / "source_amplitude"
BIN = Path(sys.executable).parent
# In the middle of an hour, a day, a week and a month, for tests that need no other moment.
MOMENT = datetime(2026, 3, 11, 12, 20, tzinfo=timezone.utc)
SOURCE_AMPLITUDE = [str(BIN / "source-amplitude")]
SOURCE_DECLARATIVE_MANIFEST = [str(BIN / "source-declarative-manifest")]
# The command without the minutes for which it would wait for the budget of cost.
WITHOUT_COSTS = [
    *(sys.executable, "-c"),
    "from source_amplitude import components; from source_amplitude.run import run; "
    "components.price = lambda *_: 1; run()",
]
RUNNER_ENV = {"AIRBYTE_ENABLE_UNSAFE_CODE": "true"}
RUNNER_OPTIONS = [
    *("--manifest-path", str(PACKAGE / "manifest.yaml")),
    *("--components-path", str(PACKAGE / "components.py")),
]


@dataclass
class Run:
    """What a command printed, and how it ended."""

    exit_code: int
    output: str

    @property
    def messages(self) -> list[dict[str, Any]]:
        # Not splitlines(), which takes U+2028 in a record for the end of a line.
        lines = self.output.split("\n")
        return [json.loads(line) for line in lines if line.startswith('{"type":')]

    def records(self, stream: str) -> list[dict[str, Any]]:
        found = (message["record"] for message in self.messages if message["type"] == "RECORD")
        return [record["data"] for record in found if record["stream"] == stream]

    def states(self) -> list[dict[str, Any]]:
        """The last state of each stream, in the form that ``--state`` takes."""
        last = {
            message["state"]["stream"]["stream_descriptor"]["name"]: message["state"]
            for message in self.messages
            if message["type"] == "STATE"
        }
        return [{"type": "STREAM", "stream": state["stream"]} for _, state in sorted(last.items())]

    def state(self, stream: str) -> dict[str, Any]:
        found = [s["stream"] for s in self.states()]
        states = {s["stream_descriptor"]["name"]: s["stream_state"] for s in found}
        return without_beginning(states[stream])

    def connection_status(self) -> dict[str, Any]:
        [status] = [m for m in self.messages if m["type"] == "CONNECTION_STATUS"]
        return status["connectionStatus"]  # type: ignore[no-any-return]

    def errors(self) -> dict[str, dict[str, Any]]:
        """The first error of each stream that has one."""
        traces = [m["trace"]["error"] for m in self.messages if m.get("trace", {}).get("error")]
        of_streams = [error for error in traces if error.get("stream_descriptor")]
        return {error["stream_descriptor"]["name"]: error for error in reversed(of_streams)}

    def first_error(self) -> dict[str, Any]:
        errors = [m["trace"]["error"] for m in self.messages if m.get("trace", {}).get("error")]
        return errors[0]  # type: ignore[no-any-return]


@cache
def discovered_streams(
    has_management_key: bool = False, reports: str = "[]"
) -> list[dict[str, Any]]:
    """What ``discover`` prints, without a process for it; test_end_to_end.py compares the two.

    ``reports`` are those of the config, as JSON.
    """
    required = dict.fromkeys(("api_key", "secret_key", "start_date"), "2024-01-01T00:00:00Z")
    config = {**required, "reports": json.loads(reports)}
    if has_management_key:
        config["management_api_key"] = "key"
    catalog = SourceAmplitude(config=config).discover(logging.getLogger("airbyte"), config)
    message = AirbyteMessage(type=Type.CATALOG, catalog=catalog)
    return AirbyteMessageSerializer.dump(message)["catalog"]["streams"]  # type: ignore[no-any-return]


def configured(streams: Iterable[dict[str, Any]]) -> dict[str, Any]:
    """A catalog that reads each stream incrementally, where it can be."""
    return {
        "streams": [
            {
                "stream": stream,
                "sync_mode": stream["supported_sync_modes"][-1],
                "destination_sync_mode": "append",
            }
            for stream in streams
        ]
    }


def at_moment(moment: datetime, command: list[str]) -> tuple[list[str], dict[str, str]]:
    """A command of this environment and the variables with which its clock starts at a moment."""
    is_python = command[0] == sys.executable
    starter = str(Path(__file__).with_name("at_moment.py"))
    return [sys.executable, starter, *command[is_python:]], {"AT_MOMENT": moment.isoformat()}


def forms_of(text: str) -> list[str]:
    """How servers and logs write a text: as it is, in JSON, in Python and in a URL."""
    escaped = [json.dumps(text, ensure_ascii=to_ascii)[1:-1] for to_ascii in (True, False)]
    return [text, *escaped, repr(text)[1:-1], quote(text), quote(text, safe=""), quote_plus(text)]


class Connector:
    """One installed command with one config, run in a folder of its own.

    Every run is checked for the keys: they must not be in anything that a process prints. The clock
    of a command of this environment goes on from the sandbox's; those of others are on their own.
    """

    def __init__(
        self,
        folder: Path,
        sandbox: Sandbox,
        command: list[str] = SOURCE_AMPLITUDE,
        env: Mapping[str, str] | None = None,
        **config: Any,
    ) -> None:
        self.folder = folder
        self.config = sandbox.config(**config)
        self._sandbox = sandbox
        self._command = command
        self._env = {**os.environ, **sandbox.env, "TMPDIR": str(folder / "tmp"), **(env or {})}
        (folder / "tmp").mkdir(exist_ok=True)

    @property
    def command(self) -> list[str]:
        return self._at_moment()[0]

    @property
    def env(self) -> dict[str, str]:
        return {**self._env, **self._at_moment()[1]}

    def _at_moment(self) -> tuple[list[str], dict[str, str]]:
        if Path(self._command[0]).parent != BIN:
            return self._command, {}
        return at_moment(self._sandbox.clock(), self._command)

    def run(self, verb: str, *options: str, timeout: float = 120) -> Run:
        process = self.start(verb, *options)
        output, _ = process.communicate(timeout=timeout)
        return self.finished(process, output)

    def start(
        self, verb: str, *options: str, prepare: Callable[[], None] | None = None
    ) -> "subprocess.Popen[str]":
        """Start a command; `prepare` is called in its process before it."""
        config = self._write("config.json", self.config) if verb != "spec" else []
        return subprocess.Popen(
            [*self.command, verb, *config, *options],
            env=self.env,
            cwd=self.folder,
            encoding="utf-8",
            errors="replace",  # where a process was killed in the middle of a character
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            preexec_fn=prepare,
        )

    def finished(self, process: "subprocess.Popen[str]", output: str) -> Run:
        keys = [str(self.config[name]) for name in ("api_key", "secret_key")]
        secrets = [*keys, base64.b64encode(":".join(keys).encode()).decode()]
        if "management_api_key" in self.config:
            secrets.append(str(self.config["management_api_key"]))
        for secret in secrets:
            for form in forms_of(secret):
                assert form not in output, "a key was printed"
        return Run(process.returncode, output)

    def check(self) -> Run:
        return self.run("check")

    def read_options(self, *streams: str, state: list[dict[str, Any]] | None = None) -> list[str]:
        named = [
            stream
            for stream in discovered_streams(
                "management_api_key" in self.config, json.dumps(self.config.get("reports", []))
            )
            # Files need a folder, and somebody who takes them.
            if stream["name"] in streams or (not streams and not stream["is_file_based"])
        ]
        return [
            *self._write("catalog.json", configured(named), "--catalog"),
            *(self._write("state.json", state, "--state") if state else []),
        ]

    def read(self, *streams: str, state: list[dict[str, Any]] | None = None) -> Run:
        """Sync the named streams, incrementally where they can; without names, all that have no
        files."""
        return self.run("read", *self.read_options(*streams, state=state))

    def _write(self, name: str, content: object, option: str = "--config") -> list[str]:
        path = self.folder / name
        path.write_text(json.dumps(content))
        return [option, str(path)]
