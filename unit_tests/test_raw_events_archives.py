"""Archives handed over as files: whole ones under their hour's name, or an error and none."""

import gzip
import io
import json
import os
import resource
import shutil
import signal
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import freezegun
import pytest
import requests
import requests_mock
import yaml
from airbyte_cdk.models import FailureType, SyncMode
from airbyte_cdk.test.catalog_builder import CatalogBuilder
from airbyte_cdk.test.entrypoint_wrapper import EntrypointOutput, read
from airbyte_cdk.test.mock_http import HttpMocker, HttpRequest, HttpResponse
from airbyte_cdk.test.models.outcome import ExpectedOutcome

from sandbox import Fault, Project, Sandbox
from source_amplitude import SourceAmplitude
from unit_tests.helpers import (
    AUTHORIZATION,
    archive,
    config,
    final_state,
    first_error,
    json_lines,
    logged,
    read_stream,
    records,
    refusal,
)
from unit_tests.installed import Connector, discovered_streams

STREAM = "raw_events_archives"
EXPORT = "https://amplitude.com/api/2/export"
NO_DATA = refusal(
    404,
    type="unspecified",
    message="Unspecified Error",
    metadata={"details": "Raw data files were not found."},
)
# The last hour that can be exported is that of 20:00.
NOW = "2024-01-03T23:30:00Z"
HOUR = timedelta(hours=1)


@pytest.fixture(autouse=True)
def staging(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "staging"
    folder.mkdir()
    monkeypatch.setenv("AIRBYTE_STAGING_DIRECTORY", str(folder))
    return folder


def files(folder: Path) -> dict[str, bytes]:
    """What lies in a folder, by path."""
    found = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(found)}


def hour_of(hour: str) -> HttpRequest:
    return HttpRequest(EXPORT, {"start": hour, "end": hour}, AUTHORIZATION)


def exported(body: bytes) -> HttpResponse:
    return HttpResponse(body, 200, {"Content-Type": "application/zip"})


def archive_of(*uuids: str) -> bytes:
    """An archive with a member for each event."""
    return archive(
        {
            f"187520/187520_2024-01-03_19#{n}.json.gz": json_lines([{"uuid": uuid}])
            for n, uuid in enumerate(uuids)
        }
    )


def flip_a_byte(body: bytes) -> bytes:
    return body[:90] + bytes([body[90] ^ 255]) + body[91:]


def cut_off(body: bytes) -> bytes:
    return body[:-30]


def members_that_are_no_gzips(body: bytes) -> bytes:
    damaged = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(body)) as sound, zipfile.ZipFile(damaged, "w") as zipped:
        for name in sound.namelist():
            zipped.writestr(name, b"<html>%s" % sound.read(name))
    return damaged.getvalue()


DAMAGES = [
    flip_a_byte,
    cut_off,
    members_that_are_no_gzips,
    lambda _: b"<html>Try again</html>",
    lambda _: b'{"error": {"http_code": 429, "message": "Too Many Requests: Exceeded rate limit"}}',
]


@pytest.mark.usefixtures("no_waiting")
class TestRead:
    @pytest.fixture(autouse=True)
    def _frozen_time(self) -> Iterator[None]:
        with freezegun.freeze_time(NOW):
            yield

    def test_given_hours_when_read_then_each_with_data_is_a_file_and_a_record_that_refers_to_it(
        self, staging: Path
    ) -> None:
        bodies = {"19": archive_of("a", "b"), "20": archive_of("c")}
        with HttpMocker() as http:
            http.get(hour_of("20240103T18"), NO_DATA)
            for hour, body in bodies.items():
                http.get(hour_of(f"20240103T{hour}"), exported(body))
            output = read_stream(
                STREAM, config(start_date="2024-01-03T18:00:00Z", project_name="Shop")
            )
        assert files(staging) == {f"events/2024/01/03/{h}.zip": b for h, b in bodies.items()}
        by_hour = sorted(output.records, key=lambda message: str(message.record))
        assert [message.record.data for message in by_hour if message.record] == [
            {
                "hour": f"2024-01-03T{hour}:00:00+00:00",
                "path": f"events/2024/01/03/{hour}.zip",
                "members": members,
                "bytes": len(bodies[hour]),
                "project_name": "Shop",
            }
            for hour, members in (("19", 2), ("20", 1))
        ]
        references = [m.record.file_reference for m in by_hour if m.record]
        assert [vars(reference) for reference in references if reference] == [
            {
                "staging_file_url": str(staging / f"events/2024/01/03/{hour}.zip"),
                "source_file_relative_path": f"events/2024/01/03/{hour}.zip",
                "file_size_bytes": len(body),
            }
            for hour, body in bodies.items()
        ]
        assert final_state(output) == {"hour": "20240103T20"}
        said = [line for line in logged(output) if line.startswith("Export of ")]
        assert sorted(said) == [
            "Export of 20240103T18 to 20240103T18: no events (HTTP 404: Unspecified Error: Raw "
            "data files were not found.)",
            f"Export of 20240103T19 to 20240103T19: 2 files, {len(bodies['19']):,} bytes zipped, "
            "staged as events/2024/01/03/19.zip.",
            f"Export of 20240103T20 to 20240103T20: 1 files, {len(bodies['20']):,} bytes zipped, "
            "staged as events/2024/01/03/20.zip.",
        ]

    @pytest.mark.parametrize(
        ("end_date", "last"),
        [
            ("2024-01-03T19:00:00Z", 18),
            ("2024-01-03T19:30:00Z", 19),
            ("2024-01-03T20:00:00Z", 19),
            ("2024-01-04T00:00:00Z", 20),
        ],
    )
    def test_given_an_end_date_when_read_then_the_last_window_has_one_hour_as_all_others(
        self, end_date: str, last: int
    ) -> None:
        hours = [hour_of(f"20240103T{hour}") for hour in range(18, last + 1)]
        with HttpMocker() as http:
            for request in hours:
                http.get(request, NO_DATA)
            output = read_stream(
                STREAM, config(start_date="2024-01-03T18:00:00Z", end_date=end_date)
            )
            for request in hours:
                http.assert_number_of_calls(request, 1)
        assert output.errors == []

    @pytest.mark.parametrize(
        ("look_back", "state", "first"),
        [
            (6, "20240103T18", 13),
            (1, "20240103T18", 18),
            (0, "20240103T18", 19),
            (0, "20240103T19", 20),
            (1, "20990101T00", 20),
            (3, "20990101T00", 18),
        ],
    )
    def test_given_a_state_when_read_then_the_look_back_is_handed_over_again(
        self, staging: Path, look_back: int, state: str, first: int
    ) -> None:
        with HttpMocker() as http:
            for hour in range(first, 21):
                http.get(hour_of(f"20240103T{hour}"), exported(archive_of("a")))
            output = read_stream(STREAM, config(lookback_window_hours=look_back), {"hour": state})
        expected = [f"events/2024/01/03/{hour}.zip" for hour in range(first, 21)]
        assert list(files(staging)) == sorted(record["path"] for record in records(output))
        assert list(files(staging)) == expected
        assert final_state(output) == {"hour": "20240103T20"}

    def test_given_a_state_from_the_future_when_read_without_look_back_then_no_hour_is_skipped(
        self, staging: Path
    ) -> None:
        settings = config(lookback_window_hours=0)
        with requests_mock.Mocker() as http:
            http.get(EXPORT, status_code=404, text=NO_DATA.body)
            output = read_stream(STREAM, settings, {"hour": "20990101T00"})
            assert [request.qs for request in http.request_history] == []
        assert output.errors == []
        assert "It is set back to 20240103T20." in " ".join(logged(output))
        with freezegun.freeze_time("2024-01-04T00:30:00Z"), HttpMocker() as http:
            http.get(hour_of("20240103T21"), exported(archive_of("a")))
            read_stream(STREAM, settings, final_state(output))
        assert list(files(staging)) == ["events/2024/01/03/21.zip"]

    def test_given_an_hour_that_has_grown_when_read_again_then_its_file_is_replaced_not_rewritten(
        self, staging: Path
    ) -> None:
        settings = config(start_date="2024-01-03T20:00:00Z")
        state, held = None, []
        for body in (archive_of("a"), archive_of("a", "b")):
            with HttpMocker() as http:
                http.get(hour_of("20240103T20"), exported(body))
                output = read_stream(STREAM, settings, state)
            state = final_state(output)
            assert files(staging) == {"events/2024/01/03/20.zip": body}
            held.append((staging / "events/2024/01/03/20.zip").open("rb"))
        assert [file.read() for file in held] == [archive_of("a"), archive_of("a", "b")]
        for file in held:
            file.close()

    @pytest.mark.parametrize("damage", DAMAGES)
    def test_given_a_damaged_archive_when_read_then_it_is_asked_for_again(
        self, staging: Path, damage: Callable[[bytes], bytes]
    ) -> None:
        sound, request = archive_of("a", "b"), hour_of("20240103T20")
        with HttpMocker() as http:
            http.get(request, [exported(damage(sound)), exported(sound)])
            output = read_stream(STREAM, config(start_date="2024-01-03T20:00:00Z"))
            http.assert_number_of_calls(request, 2)
        assert files(staging) == {"events/2024/01/03/20.zip": sound}
        assert len(records(output)) == 1

    @pytest.mark.parametrize(
        ("answer", "said"),
        [
            (exported(flip_a_byte(archive_of("a"))), "HTTP 200) is no intact zip archive: "),
            (exported(cut_off(archive_of("a"))), "HTTP 200) is no intact zip archive: "),
            (
                exported(members_that_are_no_gzips(archive_of("a"))),
                "Member 187520/187520_2024-01-03_19#0.json.gz can't be unpacked (Not a gzipped",
            ),
            (
                HttpResponse("<html>No such page</html>", 404),
                "(HTTP 404: a page of 25 bytes with the checksum b8d9d369) is not "
                "Amplitude's own sentence for a range",
            ),
            (
                HttpResponse('{"error": "Too much"}', 504),
                "HTTP 504 (Too much). Amplitude cannot export more",
            ),
        ],
        ids=["checksum", "cut-off", "no-gzips", "404", "504"],
    )
    def test_given_an_hour_that_fails_each_time_when_read_then_it_has_no_file_and_holds_the_state(
        self, staging: Path, answer: HttpResponse, said: str
    ) -> None:
        request = hour_of("20240103T19")
        with HttpMocker() as http:
            http.get(hour_of("20240103T18"), exported(archive_of("a")))
            http.get(request, answer)
            http.get(hour_of("20240103T20"), exported(archive_of("a")))
            output = read_stream(
                STREAM,
                config(start_date="2024-01-03T18:00:00Z"),
                expected=ExpectedOutcome.EXPECT_EXCEPTION,
            )
            http.assert_number_of_calls(request, 6)
        assert said in first_error(output)[0]
        found = files(staging)
        assert found.pop("events/2024/01/03/20.zip", archive_of("a")) == archive_of("a")
        assert found == {"events/2024/01/03/18.zip": archive_of("a")}
        assert final_state(output) == {"hour": "20240103T18"}

    def test_given_a_member_damaged_far_from_its_beginning_when_read_then_it_is_as_amplitude_has_it(
        self, staging: Path
    ) -> None:
        body = io.BytesIO()
        with zipfile.ZipFile(body, "w") as zipped:
            zipped.writestr("large.gz", gzip.compress(os.urandom(2_000_000))[:-9])
        with HttpMocker() as http:
            http.get(hour_of("20240103T20"), exported(body.getvalue()))
            read_stream(STREAM, config(start_date="2024-01-03T20:00:00Z"))
        assert files(staging) == {"events/2024/01/03/20.zip": body.getvalue()}

    @pytest.mark.parametrize("status", [400, 413])
    def test_given_an_hour_over_the_limit_when_read_then_the_s3_export_is_named(
        self, staging: Path, status: int
    ) -> None:
        request = hour_of("20240103T20")
        with HttpMocker() as http:
            http.get(request, HttpResponse("", status))
            output = read_stream(
                STREAM,
                config(start_date="2024-01-03T20:00:00Z"),
                expected=ExpectedOutcome.EXPECT_EXCEPTION,
            )
            http.assert_number_of_calls(request, 1)
        message, failure_type = first_error(output)
        assert f"HTTP {status} (an empty body). Amplitude cannot export more than 4 GB" in message
        assert "Amazon S3 destination" in message
        assert failure_type == FailureType.transient_error
        assert files(staging) == {}

    def test_given_a_server_that_stays_silent_when_read_then_the_hour_is_asked_for_six_times(
        self, staging: Path
    ) -> None:
        def stay_silent(request: Any, _: Any) -> bytes:
            raise requests.ReadTimeout("silence", request=request)

        with requests_mock.Mocker() as http:
            http.get(EXPORT, content=stay_silent)
            output = read_stream(
                STREAM,
                config(start_date="2024-01-03T20:00:00Z"),
                expected=ExpectedOutcome.EXPECT_EXCEPTION,
            )
            assert http.call_count == 6
        message, failure_type = first_error(output)
        assert "broke or stayed silent in the export of 20240103T20 to 20240103T20 (Read" in message
        assert message.endswith("Try again later.")
        assert failure_type == FailureType.transient_error
        assert files(staging) == {}

    def test_given_a_gateways_504_when_read_then_the_hour_is_asked_for_again(
        self, staging: Path
    ) -> None:
        with HttpMocker() as http:
            answers = [HttpResponse("", 504), exported(archive_of("a"))]
            http.get(hour_of("20240103T20"), answers)
            read_stream(STREAM, config(start_date="2024-01-03T20:00:00Z"))
        assert files(staging) == {"events/2024/01/03/20.zip": archive_of("a")}

    def test_given_an_archive_of_nothing_when_read_then_there_is_no_file_and_the_state_stays(
        self, staging: Path
    ) -> None:
        empty = io.BytesIO()
        with zipfile.ZipFile(empty, "w") as zipped:
            zipped.writestr("187520/", b"")
        with HttpMocker() as http:
            http.get(hour_of("20240103T19"), exported(archive_of("a")))
            http.get(hour_of("20240103T20"), exported(empty.getvalue()))
            output = read_stream(STREAM, config(start_date="2024-01-03T19:00:00Z"))
        assert list(files(staging)) == ["events/2024/01/03/19.zip"]
        assert final_state(output) == {"hour": "20240103T19"}
        said = f"0 files, {len(empty.getvalue())} bytes zipped, nothing to stage."
        assert said in " ".join(logged(output))


@pytest.mark.usefixtures("no_waiting")
class TestFolder:
    @pytest.fixture(autouse=True)
    def _frozen_time(self) -> Iterator[None]:
        with freezegun.freeze_time(NOW):
            yield

    def reads(
        self, body: bytes, expected: ExpectedOutcome = ExpectedOutcome.EXPECT_EXCEPTION
    ) -> EntrypointOutput:
        with HttpMocker() as http:
            http.get(hour_of("20240103T20"), exported(body))
            settings = config(start_date="2024-01-03T20:00:00Z")
            return read_stream(STREAM, settings, expected=expected)

    @pytest.mark.parametrize("is_file", [False, True], ids=["missing", "file"])
    def test_given_no_staging_folder_when_read_then_it_is_named_and_nothing_is_asked_for(
        self, staging: Path, is_file: bool
    ) -> None:
        staging.rmdir()
        if is_file:
            staging.touch()
        with requests_mock.Mocker() as http:
            output = read_stream(STREAM, config(), expected=ExpectedOutcome.EXPECT_EXCEPTION)
            assert http.call_count == 0
        message, failure_type = first_error(output)
        assert f"Files can't be handed over in {staging}: there is no such folder." in message
        assert "Choose such a destination, or deselect the stream" in message
        assert failure_type == FailureType.config_error
        assert not Path("/tmp/airbyte-file-transfer").exists(), "the CDK's other folder"

    def test_given_no_folder_in_the_environment_when_read_then_airbytes_own_is_meant(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.delenv("AIRBYTE_STAGING_DIRECTORY")
        output = read_stream(STREAM, config(), expected=ExpectedOutcome.EXPECT_EXCEPTION)
        assert "handed over in /staging/files: there is no" in first_error(output)[0]

    def test_given_a_folder_that_is_read_only_when_read_then_it_is_named(
        self, staging: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != staging)
        with requests_mock.Mocker() as http:
            output = read_stream(STREAM, config(), expected=ExpectedOutcome.EXPECT_EXCEPTION)
            assert http.call_count == 0
        assert f"handed over in {staging}: it can't be written to." in first_error(output)[0]

    def test_given_a_full_folder_when_read_then_it_is_named_and_nothing_is_left_in_it(
        self, staging: Path
    ) -> None:
        body = io.BytesIO()
        with zipfile.ZipFile(body, "w") as zipped:
            zipped.writestr("large.gz", os.urandom(200_000))
        with files_no_larger_than(100_000):
            output = self.reads(body.getvalue())
        message, failure_type = first_error(output)
        assert message.startswith(
            f"An export archive could not be stored in {staging}: File too large. Archives stay "
            "there until the destination has taken them."
        )
        assert failure_type == FailureType.system_error
        assert files(staging) == {}

    def test_given_a_system_without_nameless_files_when_read_then_the_archive_is_copied_whole(
        self, staging: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(os, "O_TMPFILE", 0)  # a folder can't be opened for writing
        monkeypatch.setattr(tempfile, "_O_TMPFILE_WORKS", False)
        self.reads(archive_of("a"), ExpectedOutcome.EXPECT_SUCCESS)
        assert files(staging) == {"events/2024/01/03/20.zip": archive_of("a")}

        def copy_half(source: Any, target: Any, *_: Any) -> None:
            target.write(source.read(10))
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(shutil, "copyfileobj", copy_half)
        output = self.reads(archive_of("a", "b"))
        assert f"stored in {staging}: No space left on device." in first_error(output)[0]
        assert files(staging) == {"events/2024/01/03/20.zip": archive_of("a")}

    def test_when_handed_over_then_others_may_read_the_file_and_it_was_not_copied(
        self, staging: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.delattr(shutil, "copyfileobj")
        self.reads(archive_of("a"), ExpectedOutcome.EXPECT_SUCCESS)
        assert (staging / "events/2024/01/03/20.zip").stat().st_mode & 0o444 == 0o444

    def test_given_the_builder_when_read_then_it_says_that_it_carries_no_files(
        self, staging: Path
    ) -> None:
        catalog = CatalogBuilder().with_stream(STREAM, SyncMode.incremental).build()
        source = SourceAmplitude(catalog, config(), [], emit_connector_builder_messages=True)
        with requests_mock.Mocker() as http:
            output = read(
                source, config(), catalog, [], expected_outcome=ExpectedOutcome.EXPECT_EXCEPTION
            )
            assert http.call_count == 0
        message, failure_type = first_error(output)
        assert "The Connector Builder and the manifest server can't hand over files" in message
        assert failure_type == FailureType.config_error
        assert files(staging) == {}


@contextmanager
def files_no_larger_than(size: int) -> Iterator[None]:
    """What a full disk does, for this process alone."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_when_discovered_then_the_stream_is_the_last_has_files_and_is_not_suggested() -> None:
    *others, stream = discovered_streams()
    assert stream["name"] == STREAM
    assert stream["is_file_based"] is True
    assert stream["supported_sync_modes"] == ["full_refresh", "incremental"]
    assert stream["source_defined_primary_key"] == [["hour"]]
    assert stream["default_cursor_field"] == ["hour"]
    assert not any(other["is_file_based"] for other in others)
    metadata = yaml.safe_load(Path(__file__).parents[1].joinpath("metadata.yaml").read_text())
    assert metadata["data"]["supportsFileTransfer"] is True
    assert STREAM not in metadata["data"]["suggestedStreams"]["streams"]


@pytest.mark.usefixtures("within_an_hour")
def test_given_a_death_between_two_hours_when_resumed_then_a_destination_has_all_files_as_they_are(
    tmp_path: Path, staging: Path
) -> None:
    now = datetime.now(timezone.utc).replace(minute=0, second=0, microsecond=0)
    start = now - 14 * HOUR
    quiet, slow = start + 3 * HOUR, start + 5 * HOUR
    destination: dict[str, bytes] = {}

    def take(line: str) -> None:
        """What a destination does at each record: it moves the file away."""
        message = json.loads(line)
        if message["type"] == "RECORD":
            reference = message["record"]["file_reference"]
            file = Path(reference["staging_file_url"])
            content = file.read_bytes()
            file.unlink()
            assert (
                len(content) == reference["file_size_bytes"] == message["record"]["data"]["bytes"]
            )
            destination[reference["source_file_relative_path"]] = content

    project = Project(events_per_hour=40, first_hour=start, empty_hours=frozenset([quiet]))
    with Sandbox(project) as sandbox:
        connector = Connector(tmp_path, sandbox, lookback_window_hours=1)
        sandbox.inject(
            Fault(
                "/api/2/export",
                delay=60,
                when=lambda params: params["start"] == f"{slow:%Y%m%dT%H}",
            )
        )
        process = connector.start("read", *connector.read_options(STREAM))
        assert process.stdout
        output = ""
        for line in process.stdout:
            output += line
            take(line)
            # All hours but that one, and the state that says so.
            if len(destination) == 10 and f'"{slow - HOUR:%Y%m%dT%H}"' in output:
                process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=30) == -signal.SIGTERM
        dead = connector.finished(process, output)
        assert dead.state(STREAM) == {"hour": f"{slow - HOUR:%Y%m%dT%H}"}
        assert files(staging) == {}
        second = connector.read(STREAM, state=dead.states())
        asked = [r.params["start"] for r in sandbox.requests]
        for line in second.output.splitlines():
            take(line)
        exportable = sandbox.exportable_hours(start, now)
        truth = {f"events/{hour:%Y/%m/%d/%H}.zip": project.events(hour) for hour in exportable}
    assert second.exit_code == 0
    # From the state's own hour on, as the look-back says.
    again = [slow + n * HOUR for n in range(-1, 7)]
    assert sorted(asked[-8:]) == [f"{hour:%Y%m%dT%H}" for hour in again]
    assert second.state(STREAM) == {"hour": f"{now - 3 * HOUR:%Y%m%dT%H}"}
    assert {path: events_in(content) for path, content in destination.items()} == {
        path: sorted(events, key=str) for path, events in truth.items()
    }
    assert quiet not in exportable
    assert files(staging) == {}


def events_in(body: bytes) -> list[dict[str, Any]]:
    with zipfile.ZipFile(io.BytesIO(body)) as archived:
        lines = [
            line
            for name in archived.namelist()
            for line in gzip.decompress(archived.read(name)).splitlines()
            if line
        ]
    return sorted(map(json.loads, lines), key=str)
