"""Manifest and components as they are, in every place that can run them within seconds.

What takes longer (a wheel per Python, PyAirbyte and DuckDB, the image) is in door_tests/.
"""

import fnmatch
import hashlib
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
import requests
import yaml

from door_tests.common import (
    COMPONENTS,
    KEYS,
    MANIFEST,
    REPOSITORY,
    TABLES,
    Delivery,
    check_discover_and_read,
    delivery,
    image_layout,
    in_order,
    key_of,
    settings,
    small_sandbox,
)
from sandbox import Sandbox
from unit_tests.installed import (
    BIN,
    RUNNER_ENV,
    RUNNER_OPTIONS,
    SOURCE_DECLARATIVE_MANIFEST,
    Connector,
    at_moment,
)
from unit_tests.test_manifest import nodes

# As the Builder sends it: what the user sees as YAML, and the text of components.py.
BUILDER_LIMITS = {"record_limit": 1000, "page_limit": 5, "slice_limit": 5}
# They have more slices than that, or more records.
CUT_BY_THE_BUILDER = {
    *("average_session_length", "session_lengths", "event_counts", "lookup_table_rows"),
}
# Another stream of each family is read, in the same way.
TWINS = {
    *("weekly_user_counts", "monthly_user_counts", "sessions_per_user", "annotation_categories"),
    *("event_categories", "user_properties", "group_properties", "deleted_users"),
    *("flags", "mutexes", "holdouts"),
}
# A test read must not spend more than one download of a cohort.
SPARED_BY_THE_BUILDER = {"cohort_members"}
# The CDK gives requesters of our own nothing to tell the Builder of their requests.
WITHOUT_REQUESTS = {"cohort_members", "report_signups_by_country", "report_checkout"}
INJECTED = {
    "__injected_components_py": COMPONENTS.read_text(),
    "__injected_components_py_checksums": {
        "md5": hashlib.md5(COMPONENTS.read_bytes()).hexdigest(),
        "sha256": hashlib.sha256(COMPONENTS.read_bytes()).hexdigest(),
    },
}


# Reports are made of the config.
STATIC = [stream for stream in KEYS if not stream.startswith("report_")]


def names_of(streams: list[dict[str, Any]]) -> list[str]:
    """The names of a manifest's streams, those under a condition included."""
    return [each["name"] for stream in streams for each in stream.get("streams", [stream])]


def manifest() -> dict[str, Any]:
    return yaml.safe_load(MANIFEST.read_text())  # type: ignore[no-any-return]


def test_when_components_are_named_then_by_the_name_that_every_place_registers_them_under() -> None:
    # The tests below can't tell: the package is installed beside each place that they try.
    for path, node in nodes(manifest()):
        if path.endswith("/class_name"):
            names = ("source_declarative_manifest.components.", "airbyte_cdk.")
            assert node.startswith(names), path
    assert "source_amplitude" not in COMPONENTS.read_text()


@pytest.mark.xdist_group("doors")
class TestCommandLine:
    def test_given_the_two_files_when_run_by_the_manifest_runner_then_all_is_the_same(
        self, sandbox: Sandbox, expected: Delivery, tmp_path: Path
    ) -> None:
        runner = Connector(
            tmp_path, sandbox, SOURCE_DECLARATIVE_MANIFEST, env=RUNNER_ENV, **settings(sandbox)
        )
        assert check_discover_and_read(runner, *RUNNER_OPTIONS) == expected

    def test_given_the_layout_of_a_manifest_only_image_when_run_then_all_is_the_same(
        self, sandbox: Sandbox, expected: Delivery, tmp_path: Path
    ) -> None:
        # The image's own entry looks for /airbyte/integration_code first and comes to this
        # function; door_tests/test_image.py takes that way, in a root of its own.
        entry = "from source_declarative_manifest.run import handle_local_manifest_command as run"
        command = [sys.executable, "-c", f"import sys; {entry}; run(sys.argv[1:])"]
        layout = image_layout(tmp_path / "integration_code")
        image = Connector(
            tmp_path, sandbox, command, env={"PYTHONPATH": str(layout)}, **settings(sandbox)
        )
        package = Connector(tmp_path, sandbox)

        assert check_discover_and_read(image) == expected
        assert [m["spec"] for m in image.run("spec").messages if m["type"] == "SPEC"] == [
            m["spec"] for m in package.run("spec").messages if m["type"] == "SPEC"
        ]


class ManifestServer:
    """A running ``manifest-server``, asked as the Builder asks it."""

    def __init__(self, url: str, sandbox: Sandbox) -> None:
        self._url = url
        self._keys = (sandbox.api_key, sandbox.secret_key)
        self._session = requests.Session()
        self._session.trust_env = False  # the sandbox is this process's proxy in other tests

    def is_up(self) -> bool:
        try:
            return self._session.get(f"{self._url}/health/").ok
        except requests.ConnectionError:
            return False

    def post(self, endpoint: str, **body: Any) -> dict[str, Any]:
        answer = self._session.post(
            f"{self._url}/v1/manifest/{endpoint}", json={"manifest": manifest(), **body}
        )
        assert answer.ok, answer.text[:2000]
        assert not any(key in answer.text for key in self._keys), "a key was returned"
        return answer.json()  # type: ignore[no-any-return]


@contextmanager
def manifest_server(sandbox: Sandbox) -> Iterator[ManifestServer]:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command, variables = at_moment(
        sandbox.clock(),
        [str(BIN / "manifest-server"), "start", "--host", "127.0.0.1", "--port", str(port)],
    )
    process = subprocess.Popen(
        command,
        env={**os.environ, **sandbox.env, **RUNNER_ENV, **variables},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        server = ManifestServer(f"http://127.0.0.1:{port}", sandbox)
        until = time.monotonic() + 300
        while not server.is_up():
            assert process.poll() is None, "manifest-server has ended"
            assert time.monotonic() < until, "manifest-server does not answer"
            time.sleep(0.1)
        yield server
    finally:
        process.terminate()
        process.wait()


@pytest.fixture(scope="module")
def server(sandbox: Sandbox) -> Iterator[ManifestServer]:
    with manifest_server(sandbox) as running:
        yield running


def assert_delivered(stream: str, test_read: dict[str, Any], expected: Delivery) -> None:
    """A test read gave what the package delivers of a stream, or a part of what is too much."""
    records, truth = read_records(stream, test_read), expected.records[stream]
    assert test_read["test_read_limit_reached"] is (stream in CUT_BY_THE_BUILDER)
    if stream in CUT_BY_THE_BUILDER | SPARED_BY_THE_BUILDER:
        assert records
        keys = {key_of(stream, record) for record in records}
        truth = [record for record in truth if key_of(stream, record) in keys]
    assert records == truth


def read_records(stream: str, test_read: dict[str, Any]) -> list[dict[str, Any]]:
    """The records of a test read, without the nulls that the Builder, unlike a sync, shows."""
    pages = [page for part in test_read["slices"] for page in part["pages"]]
    records = [record for page in pages for record in page["records"]]
    without_nulls = [{k: v for k, v in record.items() if v is not None} for record in records]
    return in_order(stream, without_nulls)


# All in one process of pytest-xdist, as far as they share the server and what is expected of it.
@pytest.mark.xdist_group("manifest-server")
class TestBuilder:
    @pytest.fixture
    def config(self, sandbox: Sandbox) -> dict[str, Any]:
        return sandbox.config(**settings(sandbox))

    def test_given_valid_keys_when_checked_then_it_succeeds(
        self, server: ManifestServer, config: dict[str, Any]
    ) -> None:
        assert server.post("check", config={**config, **INJECTED})["success"] is True

    def test_given_a_start_date_in_the_future_when_checked_then_the_field_is_named(
        self, server: ManifestServer, config: dict[str, Any]
    ) -> None:
        answer = server.post("check", config={**config, **INJECTED, "start_date": "2130-01-01"})
        assert answer["success"] is False
        assert "Start Date (start_date) is not valid: '2130-01-01' lies" in answer["message"]

    def test_when_discovered_then_every_stream_is_there(
        self, server: ManifestServer, config: dict[str, Any]
    ) -> None:
        catalog = server.post("discover", config={**config, **INJECTED})["catalog"]
        assert [stream["name"] for stream in catalog["streams"]] == list(KEYS)

    def test_when_fully_resolved_then_streams_stand_without_references(
        self, server: ManifestServer, config: dict[str, Any]
    ) -> None:
        streams = server.post("full_resolve", config={**config, **INJECTED})["manifest"]["streams"]
        assert names_of(streams) == list(KEYS)
        assert "$ref" not in json.dumps(streams)

    def test_given_a_server_that_has_just_started_when_resolved_then_no_components_are_needed(
        self, sandbox: Sandbox
    ) -> None:
        # Components, once injected, stay registered in the process for all later requests.
        with manifest_server(sandbox) as fresh:
            streams = fresh.post("resolve")["manifest"]["streams"]
        assert names_of(streams) == STATIC
        assert "$ref" not in json.dumps(streams)

    @pytest.mark.parametrize("stream", [stream for stream in TABLES if stream not in TWINS])
    def test_given_a_stream_when_test_read_then_records_schema_and_slices_come_back(
        self,
        server: ManifestServer,
        expected: Delivery,
        config: dict[str, Any],
        stream: str,
    ) -> None:
        read = server.post(
            "test_read",
            config=config,
            stream_name=stream,
            custom_components_code=INJECTED["__injected_components_py"],
            **BUILDER_LIMITS,
        )
        assert [log for log in read["logs"] if log["level"] in ("ERROR", "WARN")] == []
        assert_delivered(stream, read, expected)
        found = {name for record in expected.records[stream] for name in record}
        assert set(read["inferred_schema"]["properties"]) == found
        if stream not in WITHOUT_REQUESTS:
            assert all(part["pages"][0]["request"]["url"] for part in read["slices"])

    def test_given_a_range_of_one_hour_when_events_are_test_read_then_five_hours_are_downloaded(
        self, server: ManifestServer, sandbox: Sandbox, config: dict[str, Any]
    ) -> None:
        before = len(sandbox.requests)
        read = server.post(
            "test_read",
            config={**config, "request_time_range": 1},
            stream_name="events",
            custom_components_code=INJECTED["__injected_components_py"],
            **BUILDER_LIMITS,
        )
        windows = [request.params for request in sandbox.requests[before:]]
        assert len(read["slices"]) == len(windows) == 5
        assert all(window["start"] == window["end"] for window in windows)
        assert read["test_read_limit_reached"] is True


@pytest.mark.xdist_group("manifest-server")
class TestBuilderCommandLine:
    def ask(self, sandbox: Sandbox, folder: Path, command: str, **catalog: Any) -> dict[str, Any]:
        asked = {
            **sandbox.config(**settings(sandbox)),
            **INJECTED,
            "__injected_declarative_manifest": manifest(),
            "__command": command,
            "__test_read_config": {"max_records": 1000, "max_slices": 5, "max_pages_per_slice": 5},
        }
        files = {"config": asked, "catalog": catalog, "state": []}
        for name, content in files.items():
            (folder / f"{name}.json").write_text(json.dumps(content))
        options = [o for name in files for o in (f"--{name}", str(folder / f"{name}.json"))]
        main = [sys.executable, "-m", "airbyte_cdk.connector_builder.main", "read", *options]
        started, variables = at_moment(sandbox.clock(), main)
        done = subprocess.run(
            started,
            env={**os.environ, **sandbox.env, **RUNNER_ENV, **variables},
            cwd=folder,
            text=True,
            capture_output=True,
        )
        assert done.returncode == 0, done.stderr[-2000:]
        assert sandbox.secret_key not in done.stdout + done.stderr
        [answer] = [
            message["record"]
            for line in done.stdout.rstrip("\n").split("\n")
            if (message := json.loads(line))["type"] == "RECORD"
        ]
        return answer["data"]  # type: ignore[no-any-return]

    def test_given_the_manifest_when_resolved_then_streams_stand_without_references(
        self, sandbox: Sandbox, tmp_path: Path
    ) -> None:
        for command in ("resolve_manifest", "full_resolve_manifest"):
            streams = self.ask(sandbox, tmp_path, command)["manifest"]["streams"]
            assert names_of(streams) == (list(KEYS) if command.startswith("full") else STATIC)
            assert "$ref" not in json.dumps(streams)

    @pytest.mark.parametrize("stream", ["events", "daily_user_counts"])
    def test_given_a_stream_when_test_read_then_its_records_come_back(
        self, sandbox: Sandbox, expected: Delivery, tmp_path: Path, stream: str
    ) -> None:
        configured = {
            "stream": {
                "name": stream,
                "json_schema": {},
                "supported_sync_modes": ["full_refresh", "incremental"],
            },
            "sync_mode": "incremental",
            "destination_sync_mode": "overwrite",
        }
        read = self.ask(sandbox, tmp_path, "test_read", streams=[configured])
        assert_delivered(stream, read, expected)
        assert read["inferred_schema"]["properties"]


@pytest.mark.xdist_group("doors")
class TestCatalogOfConnectors:
    METADATA = yaml.safe_load((REPOSITORY / "metadata.yaml").read_text())["data"]

    def test_when_every_stream_is_read_in_both_regions_then_the_allowed_hosts_are_those_called(
        self, sandbox: Sandbox, expected: Delivery, tmp_path: Path
    ) -> None:
        with small_sandbox(eu=True) as eu:
            assert delivery(Connector(tmp_path, eu, **settings(eu)).read()) == expected
            called = {request.host for request in (*sandbox.requests, *eu.requests)}
            allowed = self.METADATA["allowedHosts"]["hosts"]
            by_pattern = {pattern: fnmatch.filter(called, pattern) for pattern in allowed}
            assert all(by_pattern.values())
            assert called == set(chain(*by_pattern.values()))
            assert sandbox.refused_targets == eu.refused_targets == []

    def test_given_metadata_and_spec_when_an_entry_is_made_then_nothing_is_missing_from_it(
        self, sandbox: Sandbox, tmp_path: Path
    ) -> None:
        [spec] = [
            m["spec"] for m in Connector(tmp_path, sandbox).run("spec").messages if "spec" in m
        ]
        assert spec["documentationUrl"] == self.METADATA["documentationUrl"]
        assert "<svg" in (REPOSITORY / self.METADATA["icon"]).read_text()
        assert set(self.METADATA["suggestedStreams"]["streams"]) <= set(KEYS)
        assert {suite["suite"] for suite in self.METADATA["connectorTestSuitesOptions"]} == {
            "unitTests",
            "acceptanceTests",
        }
        needed_besides = {
            "ab_internal",
            "connectorType",
            "definitionId",
            "dockerImageTag",
            "dockerRepository",
            "githubIssueLabel",
            "license",
            "maxSecondsBetweenMessages",
            "name",
            "releaseDate",
            "releaseStage",
            "supportLevel",
        }
        assert needed_besides <= set(self.METADATA)
        assert all(entry["enabled"] for entry in self.METADATA["registryOverrides"].values())
