"""Every fault that is known, through the installed command: recovered, or said what to do.

`Connector` checks each run for the keys: they are in nothing that any of them prints.
"""

import base64
import gzip
import io
import json
import logging
import os
import re
import resource
import shlex
import signal
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import IO, Any

import pytest
import requests
from airbyte_cdk.models import FailureType, SyncMode
from airbyte_cdk.sources.declarative.concurrent_declarative_source import TestLimits
from airbyte_cdk.test.models.outcome import ExpectedOutcome

from sandbox import Fault, Project, Sandbox, plan
from sandbox.endpoints import MISSING_PLANS
from source_amplitude import SourceAmplitude, run
from unit_tests.helpers import (
    config,
    described,
    final_state,
    first_error,
    read_stream,
    records,
)
from unit_tests.installed import (
    PACKAGE,
    RUNNER_ENV,
    RUNNER_OPTIONS,
    SOURCE_DECLARATIVE_MANIFEST,
    Connector,
    forms_of,
)
from unit_tests.test_end_to_end import (
    HOUR,
    assert_delivered,
    by,
    events_of,
    hour,
    now,
    records_by_stream,
    truth,
)

pytestmark = pytest.mark.usefixtures("within_an_hour")

EXPORT = "/api/2/export"
INVALID = "Invalid API Key"
REFUSED = "The API Key and the Secret Key were refused"


def first_hour() -> datetime:
    return hour(now()) - 14 * HOUR


def bad_hour() -> datetime:
    """In the second window of six hours: the faults that persist stand there."""
    return first_hour() + 8 * HOUR


@pytest.fixture
def sandbox(within_an_hour: None) -> Iterator[Sandbox]:
    with Sandbox(Project(events_per_hour=20, first_hour=first_hour())) as running:
        yield running


@pytest.fixture
def connector(sandbox: Sandbox, tmp_path: Path) -> Connector:
    return Connector(tmp_path, sandbox, request_time_range=6)


def covers_bad_hour(params: dict[str, str]) -> bool:
    return params["start"] <= f"{bad_hour():%Y%m%dT%H}" <= params["end"]


def flip_a_byte(body: bytes) -> bytes:
    return body[:3000] + bytes([body[3000] ^ 255]) + body[3001:]


def cut_off(body: bytes) -> bytes:
    return body[:-100]


def damage_members(body: bytes) -> bytes:
    """The same archive, intact as a zip, with each gzip cut off."""
    damaged = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(body)) as sound, zipfile.ZipFile(damaged, "w") as zipped:
        for name in sound.namelist():
            zipped.writestr(name, sound.read(name)[:-9])
    return damaged.getvalue()


UNUSUAL = ["crlf", "no-last-newline", "bom", "after-bom", "blank", "separator", "nul", "surrogate"]
UNUSUAL += ["not-a-number", "bytes", "first-gzip", "second-gzip", "absolute", "timestamps"]


def unusual_archive() -> bytes:
    """Every legal oddity at once: line ends, encodings, names, sizes and numbers of members."""

    def line(uuid: str, rest: bytes = b"") -> bytes:
        uploaded = f"{first_hour():%Y-%m-%d %H}:00:00.000000"
        return b'{"uuid":"%s","server_upload_time":"%s"%s}' % (
            uuid.encode(),
            uploaded.encode(),
            rest,
        )

    odd_times = b',"event_time":"2022:05:27 05:59:45.471635","client_event_time":"(none)"'
    members = {
        "187520/": b"",
        "187520/empty.gz": gzip.compress(b""),
        "187520/a.gz": gzip.compress(line("crlf") + b"\r\n" + line("no-last-newline")),
        "187520/b.gz": gzip.compress(b"\xef\xbb\xbf" + line("bom") + b"\n" + line("after-bom")),
        "187520/c.gz": gzip.compress(b"\n \n" + line("blank") + b"\n\n"),
        "187520/d.gz": gzip.compress(line("separator", ',"city":"\u2028"'.encode()) + b"\n"),
        "187520/e.gz": gzip.compress(line("nul", b',"city":"\\u0000"') + b"\n"),
        "187520/f.gz": gzip.compress(line("surrogate", b',"city":"\\ud800"') + b"\n"),
        "187520/g.gz": gzip.compress(
            line("not-a-number", b',"n":[NaN,1e999,123456789012345678901]')
        ),
        "187520/h.gz": gzip.compress(line("bytes", b',"city":"\xff"')),
        "187520/i.gz": gzip.compress(line("first-gzip") + b"\n")
        + gzip.compress(line("second-gzip")),
        "/outside.gz": gzip.compress(line("absolute")),
        "../outside.gz": gzip.compress(line("timestamps", odd_times + b',"processed_time":""')),
        **{f"187520/{n}.gz": gzip.compress(line(f"many-{n}")) for n in range(2_000)},
        **{
            f"187520/large-{n}.gz": gzip.compress(
                line(f"inflates-{n}", b',"event_properties":{"x":"%s"}' % (b"x" * 2_000_000))
            )
            for n in range(3)
        },
    }
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as zipped:
        for name, content in members.items():
            zipped.writestr(name, content)
    return packed.getvalue()


class TestRecovered:
    @pytest.mark.parametrize(
        "fault",
        [
            Fault(EXPORT, times=2, drop_after=20_000),
            Fault(EXPORT, times=2, drop_after=20_000, content_length=True),
            Fault(EXPORT, times=2, drop_after=0),
            Fault(EXPORT, body=b"<html>Please try again</html>"),
            Fault(EXPORT, body=b"Too many requests"),
            Fault(EXPORT, body=b""),
            Fault(EXPORT, times=2, transform=cut_off),
            Fault(EXPORT, times=2, transform=flip_a_byte),
            Fault(EXPORT, times=2, status=500),
            Fault(EXPORT, times=3, status=502),
            Fault(EXPORT, times=2, status=503, headers={"Retry-After": "1"}),
            Fault(EXPORT, times=2, status=504),
            Fault(EXPORT, times=2, status=429, headers={"Retry-After": "1"}),
        ],
        ids=lambda fault: str(fault.status or (fault.transform or fault).__class__.__name__),
    )
    def test_given_a_passing_fault_when_read_then_nothing_is_lost_or_doubled(
        self, sandbox: Sandbox, connector: Connector, fault: Fault
    ) -> None:
        sandbox.inject(fault)
        run = connector.read("events")
        assert run.exit_code == 0, run.output[-2000:]
        assert by("uuid", run.records("events")) == by("uuid", events_of(sandbox))
        assert "<html>Please" not in run.output

    def test_given_a_member_damaged_once_when_read_then_nothing_is_lost(
        self, sandbox: Sandbox, connector: Connector
    ) -> None:
        sandbox.inject(Fault(EXPORT, times=1, transform=damage_members))
        run = connector.read("events")
        assert run.exit_code == 0, run.output[-2000:]
        union = {event["uuid"]: event for event in run.records("events")}
        assert by("uuid", list(union.values())) == by("uuid", events_of(sandbox))
        assert "read again; their events may come twice" in run.output

    def test_given_archives_of_unusual_forms_when_read_then_all_of_them_is_read_and_nothing_written(
        self, sandbox: Sandbox, connector: Connector
    ) -> None:
        sandbox.inject(Fault(EXPORT, body=unusual_archive()))
        for _ in range(2):  # the other windows
            sandbox.inject(Fault(EXPORT, status=404, body=b"Raw data files were not found."))
        run = connector.read("events")
        assert run.exit_code == 0, run.output[-2000:]
        assert sorted(event["uuid"] for event in run.records("events")) == sorted(
            [f"many-{n}" for n in range(2_000)] + [f"inflates-{n}" for n in range(3)] + UNUSUAL
        )
        [odd] = [event for event in run.records("events") if event["uuid"] == "timestamps"]
        assert odd == {
            "uuid": "timestamps",
            "event_time": "2022-05-27T05:59:45.471635+00:00",
            "client_event_time": "(none)",
            "processed_time": "",
            "server_upload_time": f"{first_hour():%Y-%m-%dT%H}:00:00.000000+00:00",
        }
        assert list(connector.folder.rglob("outside*")) == []

    def test_given_a_page_instead_of_a_list_when_read_then_it_is_not_taken_for_an_empty_one(
        self, sandbox: Sandbox, connector: Connector
    ) -> None:
        sandbox.inject(Fault("/api/3/cohorts", body=b"<html>Please try again</html>"))
        run = connector.read("cohorts")
        assert len(run.records("cohorts")) == len(sandbox.project.cohorts())

    def test_given_a_hung_connection_when_read_then_it_is_cut_and_tried_again(
        self, sandbox: Sandbox, tmp_path: Path
    ) -> None:
        manifest = (PACKAGE / "manifest.yaml").read_text()
        impatient = tmp_path / "manifest.yaml"
        assert manifest.count("read_timeout_in_seconds: 300") == 1
        impatient.write_text(manifest.replace("seconds: 300", "seconds: 1"))
        runner = Connector(tmp_path, sandbox, SOURCE_DECLARATIVE_MANIFEST, RUNNER_ENV)
        options = Connector(tmp_path, sandbox).read_options("events")
        sandbox.inject(Fault(EXPORT, delay=60))
        paths = [str(impatient) if o.endswith(".yaml") else o for o in RUNNER_OPTIONS]
        run = runner.run("read", *options, *paths, timeout=50)
        assert by("uuid", run.records("events")) == by("uuid", events_of(sandbox))


class TestSaid:
    """Faults that persist: an error that says what to do, and a state before the gap."""

    @staticmethod
    def fails(connector: Connector) -> tuple[dict[str, Any], datetime]:
        run = connector.read("events")
        assert run.exit_code == 1
        state = run.state("events")["server_upload_time"]
        return run.first_error(), datetime.strptime(state, "%Y%m%dT%H")

    @staticmethod
    def assert_before_the_gap(state: datetime) -> None:
        assert state == (first_hour() + 5 * HOUR).replace(tzinfo=None)

    def test_given_an_hour_over_the_limit_when_read_then_the_s3_export_is_named(
        self, sandbox: Sandbox, connector: Connector
    ) -> None:
        sandbox.inject(Fault(EXPORT, times=None, status=400, when=covers_bad_hour))
        error, state = self.fails(connector)
        assert error["failure_type"] == "transient_error"
        assert "Amazon S3 destination" in error["message"]
        self.assert_before_the_gap(state)

    def test_given_a_full_disk_when_read_then_tmpdir_is_named(
        self, sandbox: Sandbox, connector: Connector
    ) -> None:
        options = connector.read_options("events")
        limit = 20_000
        process = connector.start(
            "read",
            *options,
            prepare=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)),
        )
        run = connector.finished(process, process.communicate(timeout=120)[0])
        message = run.first_error()["message"]
        assert f"could not be stored in {connector.folder / 'tmp'}: File too large" in message
        assert "TMPDIR" in message
        assert run.first_error()["failure_type"] == "system_error"

    def test_given_no_temporary_folder_at_all_when_run_then_tmpdir_is_named(self) -> None:
        code = (
            "import tempfile; tempfile._candidate_tempdir_list = lambda: ['/proc/nowhere'];"
            "from source_amplitude.run import run; run(['spec'])"
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
        assert done.returncode == 1
        assert "Point TMPDIR to one" in done.stdout
        assert done.stderr == ""

    def test_given_no_way_to_amplitude_when_checked_then_each_cause_is_named(
        self, sandbox: Sandbox, tmp_path: Path
    ) -> None:
        causes = {
            "ProxyError": {"https_proxy": "http://127.0.0.1:9"},
            "Failed to resolve": {"https_proxy": "http://nowhere.invalid:9"},
            "CERTIFICATE_VERIFY_FAILED": {"REQUESTS_CA_BUNDLE": str(other_authority(tmp_path))},
        }
        connectors = {}
        for number, (cause, env) in enumerate(causes.items()):
            folder = tmp_path / str(number)
            folder.mkdir()
            connectors[cause] = Connector(folder, sandbox, env=env)
        processes = {cause: c.start("check") for cause, c in connectors.items()}
        for cause, process in processes.items():
            output, _ = process.communicate(timeout=120)
            status = connectors[cause].finished(process, output).connection_status()
            assert status["status"] == "FAILED"
            assert "The connection to amplitude.com failed" in status["message"]
            assert cause in status["message"]


class TestInThisProcess:
    """Faults that are asked for again and again, so that back-off would take most of a minute."""

    @pytest.fixture(autouse=True)
    def _to_sandbox(
        self, sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch, no_waiting: None
    ) -> None:
        for name, value in sandbox.env.items():
            monkeypatch.setenv(name, value)

    @staticmethod
    def asked(sandbox: Sandbox) -> list[tuple[str, str]]:
        """Start and end of each request that covers the bad hour."""
        asked = [r.params for r in sandbox.requests if r.path == EXPORT]
        return [(p["start"], p["end"]) for p in asked if covers_bad_hour(p)]

    @staticmethod
    def windows(*hours: tuple[int, int]) -> list[tuple[str, str]]:
        """The same for windows counted from the one with the bad hour, which is its third."""
        first = bad_hour() - 2 * HOUR
        return [
            (f"{first + a * HOUR:%Y%m%dT%H}", f"{first + b * HOUR:%Y%m%dT%H}") for a, b in hours
        ]

    def fails(self, sandbox: Sandbox) -> tuple[str, FailureType]:
        settings = sandbox.config(request_time_range=6)
        output = read_stream("events", settings, expected=ExpectedOutcome.EXPECT_EXCEPTION)
        last = first_hour() + 5 * HOUR
        assert final_state(output) == {"server_upload_time": f"{last:%Y%m%dT%H}"}
        return first_error(output)

    def test_given_a_body_that_is_never_an_archive_when_read_then_it_is_described_and_not_quoted(
        self, sandbox: Sandbox
    ) -> None:
        page = f"<html>{sandbox.secret_key} maintenance</html>".encode()
        sandbox.inject(Fault(EXPORT, times=None, body=page, when=covers_bad_hour))
        message, failure_type = self.fails(sandbox)
        assert failure_type == FailureType.transient_error
        assert f"it is {described(page, 'a page')}." in message

    def test_given_a_member_that_stays_damaged_when_read_then_window_and_member_are_named(
        self, sandbox: Sandbox
    ) -> None:
        sandbox.inject(Fault(EXPORT, times=None, transform=damage_members, when=covers_bad_hour))
        message, failure_type = self.fails(sandbox)
        bad = bad_hour()
        assert failure_type == FailureType.system_error
        assert f"in the export of {bad:%Y%m%dT%H} to {bad:%Y%m%dT%H}" in message
        assert f"{bad:%Y-%m-%d}_{bad.hour}#0.json.gz can't be unp" in message

    def test_given_a_connection_that_always_breaks_when_read_then_smaller_windows_are_tried(
        self, sandbox: Sandbox
    ) -> None:
        sandbox.inject(Fault(EXPORT, times=None, drop_after=2_000, when=covers_bad_hour))
        message, failure_type = self.fails(sandbox)
        assert failure_type == FailureType.transient_error
        assert (
            f"The connection to amplitude.com broke or stayed silent in the export of "
            f"{bad_hour():%Y%m%dT%H} to {bad_hour():%Y%m%dT%H} (Chunked"
        ) in message
        assert "lower Hours per Export Request" in message
        assert self.asked(sandbox) == self.windows(
            *[(0, 5)] * 3, *[(0, 2)] * 3, *[(1, 2)] * 3, *[(2, 2)] * 6
        )

    def test_given_a_silent_server_when_read_then_halves_are_tried_and_nothing_is_lost(
        self, sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        send = requests.Session.send

        def send_impatiently(*args: Any, **options: Any) -> requests.Response:
            return send(*args, **{**options, "timeout": 0.5})

        monkeypatch.setattr(requests.Session, "send", send_impatiently)
        sandbox.inject(Fault(EXPORT, times=3, delay=60, when=covers_bad_hour))
        output = read_stream("events", sandbox.config(request_time_range=6))
        assert by("uuid", [dict(r) for r in records(output)]) == by("uuid", events_of(sandbox))
        assert self.asked(sandbox) == self.windows(*[(0, 5)] * 3, (0, 2))

    def test_given_a_redirect_to_another_page_when_read_then_its_host_is_named(
        self, sandbox: Sandbox
    ) -> None:
        elsewhere = {"Location": "https://analytics.eu.amplitude.com/login?token=1"}
        fault = Fault(EXPORT, times=None, status=302, headers=elsewhere, when=covers_bad_hour)
        sandbox.inject(fault)
        message, failure_type = self.fails(sandbox)
        assert failure_type == FailureType.transient_error
        assert "(HTTP 403) is no intact zip archive: " in message
        assert "It came from analytics.eu.amplitude.com, to which the export was redir" in message
        assert "token" not in message
        assert self.asked(sandbox) == self.windows(*[(0, 5)] * 6)


def other_authority(folder: Path) -> Path:
    import trustme

    path = folder / "other.pem"
    trustme.CA().cert_pem.write_to_path(path)
    return path


def test_given_a_redirect_to_another_host_when_read_then_no_credentials_are_sent_there(
    sandbox: Sandbox, connector: Connector
) -> None:
    elsewhere = "https://analytics.eu.amplitude.com/api/3/cohorts"
    sandbox.inject(Fault("/api/3/cohorts", status=302, headers={"Location": elsewhere}))
    connector.read("cohorts")
    asked = {r.host: r.has_credentials for r in sandbox.requests if r.path == "/api/3/cohorts"}
    assert asked == {"amplitude.com": True, "analytics.eu.amplitude.com": False}


def test_given_answers_that_can_not_be_right_when_read_then_each_is_named_and_the_rest_arrives(
    sandbox: Sandbox, connector: Connector
) -> None:
    sandbox.inject(Fault("/api/2/users", body=b'{"data":[]}', when=lambda params: "g" in params))
    # For cohorts and the parent of cohort_members, whichever comes first.
    sandbox.inject(
        Fault("/api/3/cohorts", times=None, body=b'{"cohorts":[{"id":"a"},{},{"id":"b"}]}')
    )
    sandbox.inject(Fault("/api/3/annotations", body=b'{"data":null}'))
    run = connector.read()
    assert run.exit_code == 1
    assert by("uuid", run.records("events")) == by("uuid", events_of(sandbox))
    assert len(run.records("events_list")) == len(sandbox.project.events_list())
    for stream in ("active_users", "cohorts", "annotations"):
        assert run.records(stream) == []
    said = [m["trace"]["error"]["message"] for m in run.messages if "error" in m.get("trace", {})]
    for found in (
        "data.series is missing where a list should be",
        "element 2 of cohorts is an empty object where a record should be",
        "data is null where a list should be",
    ):
        assert any(f"can't be read without guessing: {found}. Noth" in text for text in said), said


def test_given_plans_that_are_missing_when_read_then_each_ends_its_own_streams_and_is_named(
    tmp_path: Path,
) -> None:
    moment = now()
    project = Project(events_per_hour=5, first_hour=first_hour())
    plans = frozenset(MISSING_PLANS)
    with Sandbox(project, clock=lambda: moment, missing_plans=plans) as sandbox:
        run = Connector(tmp_path, sandbox).read()
        expected = truth(sandbox)
    taxonomy = ["event_categories", "event_types", "event_properties", "user_properties"]
    named = {
        **dict.fromkeys(
            [*taxonomy, "group_properties"],
            "HTTP 404 (Taxonomy API access requires an Enterprise plan). Amplitude answers like "
            "this when the project's plan has no Taxonomy API, which is part of Enterprise.",
        ),
        **dict.fromkeys(
            ["cohorts", "cohort_members"],
            "this project may not read cohorts: that takes the Behavioral Cohorts add-on, and "
            "members take a Growth or Enterprise plan. Have it added to the plan, or deselect the "
            "streams cohorts and cohort_members.",
        ),
        "session_replays": "Amplitude answers like this when the project has no Session Replay. "
        "Have it added to the plan, or deselect the stream session_replays.",
    }
    errors = run.errors()
    assert run.exit_code == 1
    assert sorted(errors) == sorted(named)
    for stream, text in named.items():
        assert text in errors[stream]["message"]
        assert errors[stream]["failure_type"] == "config_error"
        assert run.records(stream) == []
    complete = {
        message["trace"]["stream_status"]["stream_descriptor"]["name"]
        for message in run.messages
        if message.get("trace", {}).get("stream_status", {}).get("status") == "COMPLETE"
    }
    assert complete == expected.keys() - named.keys()
    for stream in complete:
        assert_delivered(run.records(stream), expected[stream], stream)


class TestListsInThisProcess:
    """What is wrong with taxonomy, replays, lookup tables and deletions, and what is not."""

    @pytest.fixture(autouse=True)
    def _to_sandbox(self, sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
        moment = now()
        sandbox.clock = lambda: moment
        for name, value in sandbox.env.items():
            monkeypatch.setenv(name, value)

    @pytest.mark.parametrize(
        ("stream", "said"),
        [
            ("session_replays", ["HTTP 401", "Invalid API credentials", REFUSED]),
            ("deletion_jobs", ["HTTP 403", INVALID, REFUSED]),
            ("user_properties", ["HTTP 403", INVALID, REFUSED]),
            # It may as well be the plan.
            ("lookup_tables", ["HTTP 403", INVALID, "If not, copy both keys anew"]),
        ],
    )
    def test_given_a_wrong_key_when_read_then_it_is_said_to_be_refused(
        self, sandbox: Sandbox, stream: str, said: list[str]
    ) -> None:
        settings = sandbox.config(secret_key="0" * 32)
        mode = SyncMode.full_refresh
        output = read_stream(
            stream, settings, sync_mode=mode, expected=ExpectedOutcome.EXPECT_EXCEPTION
        )
        message, failure_type = first_error(output)
        assert failure_type == FailureType.config_error
        for text in said:
            assert text in message
        assert len(sandbox.requests) == 1

    def test_given_429_once_when_read_then_it_is_waited_for_and_nothing_is_lost(
        self, sandbox: Sandbox
    ) -> None:
        paths = {
            "user_properties": "/api/2/taxonomy/user-property",
            "session_replays": "/api/1/session-replays",
            "lookup_tables": "/api/3/lookup_table",
            "lookup_table_rows": "/api/3/lookup_table/skuToProduct/csv",
            "deletion_jobs": "/api/2/deletions/users",
        }
        for path in paths.values():
            sandbox.inject(Fault(path, status=429, headers={"Retry-After": "1"}))
        first, *others = paths
        settings = sandbox.config(num_workers=5)
        output = read_stream(first, settings, sync_mode=SyncMode.full_refresh, beside=others)
        found, expected = records_by_stream(output), truth(sandbox)
        for stream, path in paths.items():
            assert_delivered(found.get(stream, []), expected[stream], stream)
            statuses = [r.status for r in sandbox.requests if r.path == path]
            assert statuses[0] == 429
            assert set(statuses[1:]) == {200}

    @pytest.mark.parametrize("content_length", [False, True], ids=["chunked", "with-length"])
    def test_given_a_table_that_breaks_off_when_read_then_it_is_named_and_the_rest_arrives(
        self, sandbox: Sandbox, content_length: bool
    ) -> None:
        path = "/api/3/lookup_table/skuToProduct/csv"
        fault = Fault(path, times=None, drop_after=70_000, content_length=content_length)
        sandbox.inject(fault)
        output = read_stream(
            "lookup_table_rows",
            sandbox.config(),
            sync_mode=SyncMode.full_refresh,
            expected=ExpectedOutcome.EXPECT_EXCEPTION,
            beside=["lookup_tables", "cohorts"],
        )
        message, failure_type = first_error(output)
        assert failure_type == FailureType.transient_error
        found, expected = records_by_stream(output), truth(sandbox)
        rows = [row for row in found["lookup_table_rows"] if row["table"] == "skuToProduct"]
        assert f"The connection broke after row {len(rows)} of {path} (" in message
        table = [r for r in expected["lookup_table_rows"] if r["table"] == "skuToProduct"]
        assert len(rows) < len(table)
        assert_delivered(rows, table[: len(rows)], "lookup_table_rows")
        for stream in ("lookup_tables", "cohorts"):
            assert_delivered(found[stream], expected[stream], stream)


@dataclass(frozen=True)
class LargeTable(plan.LookupTable):
    """A table of as many megabytes as it has blocks, of 500 rows each."""

    blocks: int = 1

    def csv(self) -> Iterator[bytes]:
        yield b"sku,text\r\n"
        block = b"".join(b"SKU-%03d,%s\r\n" % (n, b"x" * 2_000) for n in range(500))
        for _ in range(self.blocks):
            yield block


def test_given_a_table_of_100_mb_when_read_then_it_passes_in_bounded_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    large = LargeTable("large", ("sku", "text"), ("event", "sku"), lambda: [], blocks=100)
    monkeypatch.setattr(plan, "LOOKUP_TABLES", [large])
    # The system knows the largest size of a process itself, whatever started it.
    measured = (
        "import sys; from source_amplitude.run import run\n"
        "try: run()\n"
        "finally: print(open('/proc/self/status').read(), file=sys.stderr)"
    )
    with Sandbox(Project()) as sandbox:
        connector = Connector(tmp_path, sandbox, [sys.executable, "-c", measured])
        process = connector.start("read", *connector.read_options("lookup_table_rows"))
        assert process.stdout
        rows, output = 0, ""
        for line in process.stdout:
            if line.startswith('{"type":"RECORD"'):
                rows += 1
                last = line
            else:
                output += line
        process.wait(timeout=30)
    run = connector.finished(process, output)
    assert run.exit_code == 0, output[-2000:]
    assert rows == 50_000
    assert json.loads(last)["record"]["data"] == {
        "table": "large",
        "key": "SKU-499",
        "row_number": 50_000,
        "row": {"sku": "SKU-499", "text": "x" * 2_000},
    }
    [peak] = re.findall(r"VmHWM:\s+(\d+) kB", output)
    assert int(peak) < 180_000


class TestEnded:
    """A sync that is ended from outside stops at once, says nothing, and leaves nothing."""

    @pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["ctrl-c", "sigterm"])
    def test_given_a_reader_that_waits_when_signalled_then_it_stops(
        self, sandbox: Sandbox, connector: Connector, number: signal.Signals
    ) -> None:
        options = connector.read_options("events")
        sandbox.inject(Fault(EXPORT, times=None, delay=60, when=covers_bad_hour))
        process = connector.start("read", *options)
        assert process.stdout
        output = self.until_first_record(process.stdout)
        assert list((connector.folder / "tmp").rglob("*.json")) == [], "the CDK's copy of the keys"
        for _ in range(3):  # wrappers forward Ctrl-C, so that it comes twice
            process.send_signal(number)
        output += process.stdout.read()
        assert process.wait(timeout=30) == -number
        lines = connector.finished(process, output).output.splitlines()
        assert [line for line in lines if not line.startswith('{"type":')] == []
        assert os.listdir(connector.folder / "tmp") == []

    def test_given_a_destination_that_closes_the_pipe_when_read_then_it_stops(
        self, tmp_path: Path
    ) -> None:
        with Sandbox(Project(events_per_hour=400, first_hour=first_hour())) as sandbox:
            connector = Connector(tmp_path, sandbox)
            process = connector.start("read", *connector.read_options("events"))
            assert process.stdout
            self.until_first_record(process.stdout)
            process.stdout.close()
            assert process.wait(timeout=30) == -signal.SIGPIPE
            assert os.listdir(tmp_path / "tmp") == []

    def test_given_an_end_when_another_signal_follows_then_it_changes_nothing(self) -> None:
        numbers = (signal.SIGINT, signal.SIGTERM)
        before = [signal.getsignal(number) for number in numbers]
        try:
            with pytest.raises(KeyboardInterrupt):
                run._end(signal.SIGINT, None)
            assert [signal.getsignal(number) for number in numbers] == [signal.SIG_IGN] * 2
        finally:
            for number, handler in zip(numbers, before, strict=True):
                signal.signal(number, handler)

    def test_given_an_output_that_is_full_when_read_then_it_stops_and_says_so(
        self, tmp_path: Path
    ) -> None:
        with Sandbox(Project(events_per_hour=2_000, first_hour=first_hour())) as sandbox:
            connector = Connector(tmp_path, sandbox, request_time_range=1, num_workers=5)
            arguments = ["read", "--config", str(tmp_path / "config.json")]
            (tmp_path / "config.json").write_text(json.dumps(connector.config))
            # No file may grow beyond half of what the events need.
            limit = (
                f'ulimit -f 5000; exec {shlex.join(connector.command)} "$@" > {tmp_path / "out"}'
            )
            done = subprocess.run(
                ["bash", "-c", limit, "sh", *arguments, *connector.read_options("events")],
                env=connector.env,
                capture_output=True,
                text=True,
                timeout=60,
            )
        assert done.stderr == "Standard output can't be written: File too large.\n"
        assert done.returncode == 1

    @staticmethod
    def until_first_record(lines: IO[str]) -> str:
        output = ""
        while '"RECORD"' not in output:
            output += lines.readline()
        return output


@pytest.mark.parametrize("status", [400, 403])
def test_given_answers_that_echo_the_keys_when_read_then_no_form_of_them_is_printed(
    tmp_path: Path, status: int
) -> None:
    with Sandbox(Project(events_per_hour=1, first_hour=first_hour())) as sandbox:
        sandbox.api_key, sandbox.secret_key = "quo\"te'd\\key /+ü", "ß&secret%20key"
        keys = [sandbox.api_key, sandbox.secret_key]
        header = base64.b64encode(":".join(keys).encode()).decode()
        echo = " | ".join(form for text in (*keys, header) for form in forms_of(text))
        sandbox.inject(Fault("/api/3/cohorts", times=None, status=status, body=echo.encode()))
        connector = Connector(tmp_path, sandbox)
        result = connector.run("read", "--debug", *connector.read_options("cohorts"))
    assert "****" in result.output


class TestCheck:
    PATH = "/api/2/events/list"

    def test_given_a_rate_limit_when_checked_then_the_keys_are_good_and_it_is_asked_once(
        self, sandbox: Sandbox, connector: Connector
    ) -> None:
        sandbox.inject(Fault(self.PATH, times=None, status=429))
        result = connector.check()
        assert result.connection_status() == {"status": "SUCCEEDED"}
        assert "The connection works. Something else is spending the rate limit" in result.output
        assert len(sandbox.requests) == 1

    def test_given_a_failure_when_checked_then_it_is_said_at_once_and_without_quotes(
        self, sandbox: Sandbox, connector: Connector
    ) -> None:
        sandbox.inject(Fault(self.PATH, times=None, status=503, body=b'{"message": "It\'s down"}'))
        status = connector.check().connection_status()
        assert status["status"] == "FAILED"
        assert "Amplitude answered HTTP 503 (It's down)" in status["message"]
        assert status["message"][0] not in "'\""
        assert len(sandbox.requests) == 1

    def test_when_checked_then_a_silent_server_is_waited_for_for_a_minute(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        waited = []

        def send(*_: Any, timeout: Any, **__: Any) -> requests.Response:
            waited.append(timeout)
            raise requests.ReadTimeout("silence")

        monkeypatch.setattr(requests.Session, "send", send)
        source = SourceAmplitude(config=config(), limits=TestLimits())
        source.check(logging.getLogger("airbyte"), config())
        assert waited == [(30, 60)]


def test_given_nothing_to_print_for_long_when_read_then_a_line_says_so(
    sandbox: Sandbox, tmp_path: Path
) -> None:
    impatient = "import source_amplitude.run as r; r._SILENCE_SECONDS = 0.5; r.run()"
    connector = Connector(tmp_path, sandbox, [sys.executable, "-c", impatient])
    options = Connector(tmp_path, sandbox).read_options("cohorts")
    sandbox.inject(Fault("/api/3/cohorts", delay=2))
    run = connector.run("read", *options)
    assert run.exit_code == 0
    assert "Still at work" in run.output
