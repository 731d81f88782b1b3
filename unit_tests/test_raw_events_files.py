"""Members of archives handed over as files: whole ones in their hour's folder, or an error."""

import errno
import gzip
import io
import json
import os
import shutil
import signal
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterator
from contextlib import suppress
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

STREAM = "raw_events_files"
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


def window_of(first: int, last: int | None = None) -> HttpRequest:
    """Of hours of 2024-01-03."""
    start, end = (f"20240103T{hour:02}" for hour in (first, first if last is None else last))
    return HttpRequest(EXPORT, {"start": start, "end": end}, AUTHORIZATION)


def exported(body: bytes) -> HttpResponse:
    return HttpResponse(body, 200, {"Content-Type": "application/zip"})


def member(hour: int, number: int = 0) -> str:
    return f"187520_2024-01-03_{hour}#{number}.json.gz"


def path_of(hour: int, number: int = 0) -> str:
    return f"events/date=2024-01-03/hour={hour:02}/{member(hour, number)}"


def packed(*uuids: str) -> bytes:
    return gzip.compress(json_lines([{"uuid": uuid} for uuid in uuids]), mtime=0)


def archive_of(hours: dict[int, str]) -> bytes:
    """An archive with a member for each letter of an hour, which is its event's uuid."""
    return zip_of(
        {
            f"187520/{member(hour, n)}": packed(uuid)
            for hour, uuids in hours.items()
            for n, uuid in enumerate(uuids)
        }
    )


def zip_of(members: dict[str, bytes]) -> bytes:
    body = io.BytesIO()
    with zipfile.ZipFile(body, "w") as zipped:
        for name, content in members.items():
            zipped.writestr(zipfile.ZipInfo(name), content)
    return body.getvalue()


def files_of(hours: dict[int, str]) -> dict[str, bytes]:
    """What is handed over of such an archive."""
    return {
        path_of(hour, n): packed(uuid)
        for hour, uuids in hours.items()
        for n, uuid in enumerate(uuids)
    }


def flip_a_byte(body: bytes) -> bytes:
    return body[:90] + bytes([body[90] ^ 255]) + body[91:]


def cut_off(body: bytes) -> bytes:
    return body[:-30]


def members_that_are_no_gzips(body: bytes) -> bytes:
    return of_each_member(body, lambda content: b"<html>%s" % content)


def members_cut_off(body: bytes) -> bytes:
    """What a look at the beginnings does not find."""
    return of_each_member(body, lambda content: content[:-9])


def members_of_another_checksum(body: bytes) -> bytes:
    return of_each_member(body, lambda content: content[:-8] + b"\0\0\0\0" + content[-4:])


def of_each_member(body: bytes, damage: Callable[[bytes], bytes]) -> bytes:
    with zipfile.ZipFile(io.BytesIO(body)) as sound:
        return zip_of({name: damage(sound.read(name)) for name in sound.namelist()})


DAMAGES = [
    flip_a_byte,
    cut_off,
    members_that_are_no_gzips,
    members_cut_off,
    members_of_another_checksum,
    lambda _: b"<html>Try again</html>",
    lambda _: b'{"error": {"http_code": 429, "message": "Too Many Requests: Exceeded rate limit"}}',
]


@pytest.mark.usefixtures("no_waiting")
class TestRead:
    @pytest.fixture(autouse=True)
    def _frozen_time(self) -> Iterator[None]:
        with freezegun.freeze_time(NOW):
            yield

    def test_given_hours_when_read_then_each_member_is_a_file_and_a_record_that_refers_to_it(
        self, staging: Path
    ) -> None:
        hours = {18: "ab", 20: "c"}
        with HttpMocker() as http:
            http.get(window_of(18, 20), exported(archive_of(hours)))
            output = read_stream(STREAM, config(start_date="2024-01-03T18:00:00Z"))
        assert output.errors == []
        assert files(staging) == files_of(hours)
        assert [message.record.data for message in output.records if message.record] == [
            {
                "hour": f"2024-01-03T{hour}:00:00+00:00",
                "path": f"events/date=2024-01-03/hour={hour}/187520_2024-01-03_{hour}#{n}.json.gz",
                "file": f"187520_2024-01-03_{hour}#{n}.json.gz",
                "bytes": len(packed("a")),
            }
            for hour, n in ((18, 0), (18, 1), (20, 0))
        ]
        references = [m.record.file_reference for m in output.records if m.record]
        assert [vars(reference) for reference in references if reference] == [
            {
                "staging_file_url": f"{staging}/{path}",
                "source_file_relative_path": path,
                "file_size_bytes": len(packed("a")),
            }
            for path in files_of(hours)
        ]
        assert final_state(output) == {"hour": "20240103T20"}
        assert [line for line in logged(output) if line.startswith("Export of ")] == [
            f"Export of 20240103T18 to 20240103T20: 3 files of {3 * len(packed('a'))} bytes handed "
            "over."
        ]

    def test_given_a_range_without_events_when_read_then_there_is_nothing_and_the_log_says_why(
        self, staging: Path
    ) -> None:
        with HttpMocker() as http:
            http.get(window_of(18, 20), NO_DATA)
            output = read_stream(STREAM, config(start_date="2024-01-03T18:00:00Z"))
        assert (output.errors, records(output), files(staging)) == ([], [], {})
        assert final_state(output) == {"hour": "20240103T17"}
        assert "Export of 20240103T18 to 20240103T20: no events (HTTP 404" in " ".join(
            logged(output)
        )

    def test_given_an_hour_of_one_digit_when_read_then_its_folder_has_two(
        self, staging: Path
    ) -> None:
        settings = config(start_date="2024-01-03T07:00:00Z", end_date="2024-01-03T08:00:00Z")
        with HttpMocker() as http:
            http.get(window_of(7), exported(archive_of({7: "a"})))
            output = read_stream(STREAM, settings)
        assert output.errors == []
        assert list(files(staging)) == [
            "events/date=2024-01-03/hour=07/187520_2024-01-03_7#0.json.gz"
        ]

    @pytest.mark.parametrize(
        ("project", "folder"),
        [
            ("Shop", "project=Shop"),
            ("Shop Ä", "project=Shop Ä"),
            ("../a/b=c", "project=..%2Fa%2Fb%3Dc"),
            ("100%\t#1?", "project=100%25%09%231%3F"),
        ],
    )
    def test_given_a_project_name_when_read_then_it_is_a_folder_as_hive_writes_it(
        self, staging: Path, project: str, folder: str
    ) -> None:
        settings = config(start_date="2024-01-03T20:00:00Z", project_name=project)
        with HttpMocker() as http:
            http.get(window_of(20), exported(archive_of({20: "a"})))
            output = read_stream(STREAM, settings)
        path = path_of(20).replace("events/", f"events/{folder}/")
        assert files(staging) == {path: packed("a")}
        [record] = records(output)
        assert (record["path"], record["project_name"]) == (path, project)

    def test_given_hours_per_export_request_when_read_then_windows_have_as_many(
        self, staging: Path
    ) -> None:
        hours = {16: "a", 17: "b", 18: "c", 19: "d", 20: "e"}
        with HttpMocker() as http:
            for first, last in ((16, 17), (18, 20)):  # the CDK's last one may have an hour more
                body = archive_of({hour: hours[hour] for hour in range(first, last + 1)})
                http.get(window_of(first, last), exported(body))
            output = read_stream(
                STREAM, config(start_date="2024-01-03T16:00:00Z", request_time_range=2)
            )
        assert output.errors == []
        assert files(staging) == files_of(hours)
        assert final_state(output) == {"hour": "20240103T20"}

    @pytest.mark.parametrize(
        ("look_back", "state", "windows"),
        [
            (6, "20240103T18", [(19, 20), (13, 18)]),
            (1, "20240103T18", [(19, 20), (18, 18)]),
            (0, "20240103T18", [(19, 20)]),
            (0, "20240103T19", [(20, 20)]),
            (1, "20990101T00", [(20, 20)]),
            (3, "20990101T00", [(18, 20)]),
        ],
    )
    def test_given_a_state_when_read_then_the_look_back_is_handed_over_again_apart_from_what_is_new(
        self, staging: Path, look_back: int, state: str, windows: list[tuple[int, int]]
    ) -> None:
        hours = {hour: "a" for first, last in windows for hour in range(first, last + 1)}
        with HttpMocker() as http:
            for first, last in windows:
                body = archive_of(dict.fromkeys(range(first, last + 1), "a"))
                http.get(window_of(first, last), exported(body))
            output = read_stream(STREAM, config(lookback_window_hours=look_back), {"hour": state})
        assert output.errors == []
        assert files(staging) == dict(sorted(files_of(hours).items()))
        assert list(files(staging)) == sorted(record["path"] for record in records(output))
        assert final_state(output) == {"hour": "20240103T20"}

    def test_given_a_look_back_that_fails_when_read_then_the_state_has_the_new_hours_beyond_the_gap(
        self, staging: Path
    ) -> None:
        with HttpMocker() as http:
            http.get(window_of(17, 18), HttpResponse("<html>No such page</html>", 404))
            http.get(window_of(19, 20), exported(archive_of({19: "a", 20: "b"})))
            output = read_stream(
                STREAM,
                config(lookback_window_hours=2),
                {"hour": "20240103T18"},
                expected=ExpectedOutcome.EXPECT_EXCEPTION,
            )
        assert files(staging) == files_of({19: "a", 20: "b"})
        assert final_state(output) == {
            "hour": "20240103T18",
            "newest": "20240103T20",
            "later": [{"from": "20240103T19", "to": "20240103T20"}],
        }

    @pytest.mark.parametrize(
        ("look_back", "windows"),
        [
            # What is to be read again goes by the newest hour, so that of others nothing is.
            (2, [(17, 20), (11, 12), (15, 16)]),
            (0, [(17, 20)]),
            (5, [(17, 20), (13, 16), (8, 12)]),
        ],
    )
    def test_given_hours_beyond_a_gap_when_read_again_then_the_gap_and_the_look_back_come_last(
        self, staging: Path, look_back: int, windows: list[tuple[int, int]]
    ) -> None:
        state = {
            "hour": "20240103T12",
            "newest": "20240103T16",
            "later": [{"from": "20240103T13", "to": "20240103T16"}],
        }
        with HttpMocker() as http:
            for first, last in windows:
                body = archive_of(dict.fromkeys(range(first, last + 1), "a"))
                http.get(window_of(first, last), exported(body))
            output = read_stream(STREAM, config(lookback_window_hours=look_back), state)
        assert output.errors == []
        assert len(records(output)) == sum(last - first + 1 for first, last in windows)
        assert final_state(output) == {"hour": "20240103T20"}

    @pytest.mark.parametrize(
        "saved",
        [
            {"newest": "20240103T16", "later": [{"from": "20240103T13"}]},
            {"newest": "20240103T16", "later": [{"from": "noon", "to": "20240103T16"}]},
            {"newest": "20240103T16", "later": None},
            {"newest": None, "later": []},
        ],
    )
    def test_given_hours_beyond_a_gap_that_cannot_be_read_then_the_state_is_refused(
        self, saved: dict[str, Any]
    ) -> None:
        with requests_mock.Mocker() as http:
            output = read_stream(
                STREAM,
                config(),
                {"hour": "20240103T12", **saved},
                expected=ExpectedOutcome.EXPECT_EXCEPTION,
            )
            assert http.call_count == 0
        message, failure_type = first_error(output)
        assert "The saved state of the stream raw_events_files can't be read" in message
        assert failure_type == FailureType.config_error

    def test_given_an_hour_that_has_grown_when_read_again_then_files_are_replaced_and_added(
        self, staging: Path
    ) -> None:
        settings = config(start_date="2024-01-03T20:00:00Z")
        state = None
        with HttpMocker() as http:
            http.get(window_of(20), exported(archive_of({20: "ab"})))
            state = final_state(read_stream(STREAM, settings, state))
        with (staging / path_of(20)).open("rb") as held, HttpMocker() as http:
            http.get(window_of(20), exported(archive_of({20: "xbc"})))
            read_stream(STREAM, settings, state)
            assert held.read() == packed("a"), "a reader of the earlier file can go on"
        assert files(staging) == files_of({20: "xbc"})

    @pytest.mark.parametrize("damage", DAMAGES)
    def test_given_a_damaged_archive_when_read_then_it_is_asked_for_again(
        self, staging: Path, damage: Callable[[bytes], bytes]
    ) -> None:
        sound, request = archive_of({20: "ab"}), window_of(20)
        with HttpMocker() as http:
            http.get(request, [exported(damage(sound)), exported(sound)])
            output = read_stream(STREAM, config(start_date="2024-01-03T20:00:00Z"))
            http.assert_number_of_calls(request, 2)
        assert output.errors == []
        assert files(staging) == files_of({20: "ab"})
        assert len(records(output)) == 2

    @pytest.mark.parametrize(
        ("answer", "said"),
        [
            (exported(flip_a_byte(archive_of({18: "a"}))), "HTTP 200) is no intact zip archive: "),
            (exported(cut_off(archive_of({18: "a"}))), "HTTP 200) is no intact zip archive: "),
            (
                exported(members_that_are_no_gzips(archive_of({18: "a"}))),
                "Member 187520/187520_2024-01-03_18#0.json.gz can't be unpacked (Not a gzipped",
            ),
            (
                exported(members_cut_off(archive_of({18: "ab"}))),
                "Member 187520/187520_2024-01-03_18#0.json.gz can't be unpacked (Compressed file",
            ),
            (
                HttpResponse("<html>No such page</html>", 404),
                "(HTTP 404: a page of 25 bytes with the checksum b8d9d369) is not "
                "Amplitude's own sentence for a range",
            ),
        ],
        ids=["checksum", "cut-off", "no-gzips", "half-gzips", "404"],
    )
    def test_given_an_hour_that_fails_each_time_when_read_then_it_has_no_file_and_holds_the_state(
        self, staging: Path, answer: HttpResponse, said: str
    ) -> None:
        request = window_of(18)
        with HttpMocker() as http:
            http.get(window_of(17), exported(archive_of({17: "a"})))
            http.get(request, answer)
            http.get(window_of(19, 20), exported(archive_of({19: "a", 20: "a"})))
            output = read_stream(
                STREAM,
                config(start_date="2024-01-03T17:00:00Z", request_time_range=1),
                expected=ExpectedOutcome.EXPECT_EXCEPTION,
            )
            http.assert_number_of_calls(request, 6)
        assert said in first_error(output)[0]
        assert files(staging).items() <= files_of({17: "a", 19: "a", 20: "a"}).items()
        assert files(staging)[path_of(17)] == packed("a")
        assert final_state(output)["hour"] == "20240103T17"

    def test_given_a_member_damaged_in_a_long_window_when_read_then_the_other_hours_arrive(
        self, staging: Path
    ) -> None:
        """A file is nobody's to read later on: all are unpacked before the first is there."""
        damaged = zip_of({member(18): packed("a"), member(20): packed("c")[:-9]})
        with HttpMocker() as http:
            http.get(window_of(18, 20), exported(damaged))
            http.get(window_of(18), exported(archive_of({18: "a"})))
            http.get(window_of(19, 20), exported(damaged))
            http.get(window_of(19), NO_DATA)
            http.get(window_of(20), exported(zip_of({member(20): packed("c")[:-9]})))
            output = read_stream(
                STREAM,
                config(start_date="2024-01-03T18:00:00Z"),
                expected=ExpectedOutcome.EXPECT_EXCEPTION,
            )
        assert "_2024-01-03_20#0.json.gz can't be unpacked (Comp" in first_error(output)[0]
        assert files(staging) == files_of({18: "a"})
        assert final_state(output) == {"hour": "20240103T17"}

    @pytest.mark.parametrize("status", [400, 413, 504])
    def test_given_too_much_at_once_when_read_then_halves_are_asked_for(
        self, staging: Path, status: int
    ) -> None:
        with HttpMocker() as http:
            http.get(window_of(18, 20), HttpResponse("", status))
            http.get(window_of(18), exported(archive_of({18: "a"})))
            http.get(window_of(19, 20), exported(archive_of({19: "b", 20: "c"})))
            output = read_stream(STREAM, config(start_date="2024-01-03T18:00:00Z"))
        assert output.errors == []
        assert files(staging) == files_of({18: "a", 19: "b", 20: "c"})
        assert final_state(output) == {"hour": "20240103T20"}

    @pytest.mark.parametrize("status", [400, 413, 504])
    def test_given_an_hour_over_the_limit_when_read_then_the_s3_export_is_named(
        self, staging: Path, status: int
    ) -> None:
        request = window_of(20)
        with HttpMocker() as http:
            http.get(request, HttpResponse("", status))
            output = read_stream(
                STREAM,
                config(start_date="2024-01-03T20:00:00Z"),
                expected=ExpectedOutcome.EXPECT_EXCEPTION,
            )
            http.assert_number_of_calls(request, 1)
        message, failure_type = first_error(output)
        assert "Amplitude cannot export more than 4 GB" in message
        assert "Amazon S3 destination" in message
        assert failure_type == FailureType.transient_error
        assert files(staging) == {}

    def test_given_wrong_keys_when_read_then_they_are_named(self, staging: Path) -> None:
        with HttpMocker() as http:
            http.get(window_of(20), HttpResponse("Forbidden", 403))
            output = read_stream(
                STREAM,
                config(start_date="2024-01-03T20:00:00Z"),
                expected=ExpectedOutcome.EXPECT_EXCEPTION,
            )
        message, failure_type = first_error(output)
        assert "The API Key and the Secret Key were refused" in message
        assert failure_type == FailureType.config_error

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
        assert failure_type == FailureType.transient_error
        assert files(staging) == {}

    def test_given_members_without_bytes_when_read_then_there_is_no_file_and_the_state_stays(
        self, staging: Path
    ) -> None:
        empty = zip_of({"187520/": b"", f"187520/{member(20)}": b""})
        with HttpMocker() as http:
            http.get(window_of(18), exported(archive_of({18: "a"})))
            http.get(window_of(19, 20), exported(empty))
            output = read_stream(
                STREAM, config(start_date="2024-01-03T18:00:00Z", request_time_range=1)
            )
        assert output.errors == []
        assert files(staging) == files_of({18: "a"})
        assert final_state(output) == {"hour": "20240103T18"}
        assert "Export of 20240103T19 to 20240103T20: 0 files of 0 bytes handed over." in logged(
            output
        )

    def test_given_names_without_an_hour_when_read_then_hours_are_asked_for_one_by_one(
        self, staging: Path
    ) -> None:
        """Of one hour, it is known which it is; of several, it is never guessed."""
        names = {hour: f"187520-{hour - 15}.json.gz" for hour in (18, 19, 20)}
        with HttpMocker() as http:
            for first, last in ((18, 20), (19, 20)):
                members = {names[hour]: packed("a") for hour in range(first, last + 1)}
                http.get(window_of(first, last), exported(zip_of(members)))
            for hour, name in names.items():
                http.get(window_of(hour), exported(zip_of({name: packed("a")})))
            output = read_stream(STREAM, config(start_date="2024-01-03T18:00:00Z"))
        assert output.errors == []
        assert files(staging) == {
            f"events/date=2024-01-03/hour={hour}/{name}": packed("a")
            for hour, name in names.items()
        }
        assert (
            "Member '187520-3.json.gz' of the export of 20240103T18 to 20240103T20 does not say "
            "its hour. Its hours are asked for one by one."
        ) in logged(output)

    @pytest.mark.parametrize(
        ("name", "said"),
        [
            ("../a_2024-01-03_20#0.json.gz", "'../a_2024-01-03_20#0.json.gz'"),
            ("/a_2024-01-03_20#0.json.gz", "'/a_2024-01-03_20#0.json.gz'"),
            ("1/./a_2024-01-03_20#0.json.gz", "'1/./a_2024-01-03_20#0.json.gz'"),
            ("1/..", "'1/..'"),
            ("1\\..\\a_2024-01-03_20#0.json.gz", "'1\\\\..\\\\a_2024-01-03_20#0.json.gz'"),
            ("a\n_2024-01-03_20#0.json.gz", "'a\\n_2024-01-03_20#0.json.gz'"),
            (".a_2024-01-03_20#0.json.gz", "'.a_2024-01-03_20#0.json.gz'"),
            ("_a_2024-01-03_20#0.json.gz", "'_a_2024-01-03_20#0.json.gz'"),
            ("a_2024-01-03_20#0.json", "'a_2024-01-03_20#0.json'"),
            ("é" * 200, repr("\\xe9" * 100).replace("\\\\", "\\")),
        ],
    )
    def test_given_a_name_that_could_leave_the_folder_or_hide_when_read_then_it_is_refused_by_name(
        self, staging: Path, name: str, said: str
    ) -> None:
        with HttpMocker() as http:
            body = zip_of({member(20): packed("a"), name: packed("b")})
            http.get(window_of(20), exported(body))
            output = read_stream(
                STREAM,
                config(start_date="2024-01-03T20:00:00Z"),
                expected=ExpectedOutcome.EXPECT_EXCEPTION,
            )
        assert first_error(output)[0] == (
            "A member of the export of 20240103T20 to 20240103T20 has a name that can't be a "
            f"file's here: {said}. None of its files was handed over. Report the window to "
            "Amplitude's support; the stream events reads it."
        )
        assert (records(output), files(staging)) == ([], {})
        assert files(staging.parent) == {}
        assert final_state(output) == {"hour": "20240103T19"}

    @pytest.mark.parametrize(
        ("members", "said"),
        [
            (
                {member(20): packed("a"), member(17): packed("b")},
                "Member '187520_2024-01-03_17#0.json.gz' of the export of 20240103T19 to "
                "20240103T20 is of another hour.",
            ),
            (
                {f"1/{member(20)}": packed("a"), f"2/{member(20)}": packed("b")},
                "Two members of the export of 20240103T19 to 20240103T20 have one name.",
            ),
        ],
    )
    def test_given_names_that_contradict_when_read_then_nothing_of_the_window_is_handed_over(
        self, staging: Path, members: dict[str, bytes], said: str
    ) -> None:
        with HttpMocker() as http:
            http.get(window_of(19, 20), exported(zip_of(members)))
            output = read_stream(
                STREAM,
                config(start_date="2024-01-03T19:00:00Z"),
                expected=ExpectedOutcome.EXPECT_EXCEPTION,
            )
        assert said in first_error(output)[0]
        assert (records(output), files(staging)) == ([], {})
        assert final_state(output) == {"hour": "20240103T18"}

    def test_given_filter_events_when_read_then_one_warning_says_that_files_are_whole(
        self, staging: Path
    ) -> None:
        settings = config(
            start_date="2024-01-03T18:00:00Z", request_time_range=1, drop_properties=["email"]
        )
        with HttpMocker() as http:
            http.get(window_of(18), exported(archive_of({18: "a"})))
            http.get(window_of(19, 20), exported(archive_of({19: "a", 20: "a"})))
            output = read_stream(STREAM, settings)
        assert files(staging) == files_of({18: "a", 19: "a", 20: "a"})
        said = [line for line in logged(output) if "Filter Events" in line]
        assert said == [
            "Filter Events does not apply to the stream raw_events_files: its files hold all "
            "events as Amplitude has them, with all their properties. Deselect it if that must "
            "not be."
        ]


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
            http.get(window_of(20), exported(body))
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

    def test_given_a_file_that_the_disk_refuses_when_read_then_the_folder_is_named_and_empty(
        self, staging: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def refuse(*_: Any) -> None:
            raise OSError(errno.EIO, "Input/output error")

        monkeypatch.setattr(shutil, "copyfileobj", refuse)
        output = self.reads(archive_of({20: "a"}))
        message, failure_type = first_error(output)
        assert message == (
            f"A file of {len(packed('a'))} bytes could not be stored in {staging}: Input/output "
            "error. Files stay there until the destination has taken them. Make room; the next "
            "sync goes on where this one ended."
        )
        assert failure_type == FailureType.system_error
        assert "There is no room" not in " ".join(logged(output))
        assert files(staging) == {}

    def test_given_a_system_without_nameless_files_when_read_then_the_file_is_copied_whole(
        self, staging: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(os, "O_TMPFILE", 0)  # a folder can't be opened for writing
        monkeypatch.setattr(tempfile, "_O_TMPFILE_WORKS", False)
        self.reads(archive_of({20: "a"}), ExpectedOutcome.EXPECT_SUCCESS)
        assert files(staging) == files_of({20: "a"})

        def copy_half(source: Any, target: Any, *_: Any) -> None:
            target.write(source.read(10))
            if str(target.name).endswith(".part"):
                raise OSError(errno.EIO, "Input/output error")

        monkeypatch.setattr(shutil, "copyfileobj", copy_half)
        output = self.reads(archive_of({20: "x"}))
        assert f"stored in {staging}: Input/output error." in first_error(output)[0]
        assert files(staging) == files_of({20: "a"})

    def test_given_a_member_that_holds_something_when_handed_over_then_others_may_read_the_file(
        self, staging: Path
    ) -> None:
        self.reads(archive_of({20: "a"}), ExpectedOutcome.EXPECT_SUCCESS)
        assert (staging / path_of(20)).stat().st_mode & 0o444 == 0o444

    def test_given_a_mover_that_removes_empty_folders_when_read_then_they_are_made_anew(
        self, staging: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        link, removals = os.link, list[Path]()

        def remove_and_link(source: Any, target: Path, **options: Any) -> None:
            if len(removals) < 3:
                removals.append(target)
                target.parent.rmdir()
                target.parent.parent.rmdir()
            link(source, target, **options)

        monkeypatch.setattr(os, "link", remove_and_link)
        output = self.reads(archive_of({20: "ab"}), ExpectedOutcome.EXPECT_SUCCESS)
        assert output.errors == []
        assert len(removals) == 3
        assert files(staging) == files_of({20: "ab"})
        assert "There is no room" not in " ".join(logged(output))

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


class SmallFolder:
    """A staging folder that has room for some files, and a destination that may take them."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch, room: int) -> None:
        self.folder, self.room, self.taken = folder, room, dict[str, bytes]()
        copy = shutil.copyfileobj

        def copy_if_there_is_room(source: Any, target: Any, *sizes: Any) -> None:
            if len(files(folder)) >= self.room:
                target.write(source.read(5))
                raise OSError(errno.ENOSPC, "No space left on device")
            copy(source, target, *sizes)

        monkeypatch.setattr(shutil, "copyfileobj", copy_if_there_is_room)

    def take_all(self) -> None:
        self.taken |= files(self.folder)
        shutil.rmtree(self.folder)
        self.folder.mkdir()


class TestRoom:
    """On a clock that goes on by what is slept only: noon, when the last hour is that of 09:00."""

    @pytest.mark.usefixtures("standing_clock")
    def test_given_a_full_folder_when_the_destination_makes_room_then_the_stream_has_waited(
        self, staging: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        small, sleep, waits = SmallFolder(staging, monkeypatch, room=2), time.sleep, list[float]()

        def take_after_a_while(seconds: float) -> None:
            sleep(seconds)
            waits.append(seconds)
            if len(waits) % 100 == 0:
                small.take_all()

        monkeypatch.setattr(time, "sleep", take_after_a_while)
        with HttpMocker() as http:
            http.get(window_of(7, 9), exported(archive_of({7: "abc", 9: "de"})))
            output = read_stream(STREAM, config(start_date="2024-01-03T07:00:00Z"))
        assert output.errors == []
        small.take_all()
        assert small.taken == files_of({7: "abc", 9: "de"})
        assert final_state(output) == {"hour": "20240103T09"}
        said = [line for line in logged(output) if "no room" in line]
        assert said == 2 * [
            f"There is no room in {staging} for a file of {len(packed('a'))} bytes. The stream "
            "waits until the destination has taken others, for 10 minutes at most."
        ]

    @pytest.mark.usefixtures("standing_clock")
    def test_given_a_folder_smaller_than_the_look_back_when_synced_again_then_new_hours_get_through(
        self, staging: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """With a destination that takes the files when a sync is over."""
        small = SmallFolder(staging, monkeypatch, room=4)
        state: dict[str, Any] = {"hour": "20240102T23"}
        settings = config(request_time_range=1, lookback_window_hours=6, num_workers=2)
        # Who comes first when there is no room for both is up to the workers.
        for _ in range(6):
            with (
                freezegun.freeze_time("2024-01-03T12:00:00Z") as clock,
                requests_mock.Mocker() as http,
            ):
                monkeypatch.setattr(time, "sleep", lambda seconds: clock.tick(seconds + 0.001))
                http.get(EXPORT, content=an_event_in_each_hour)
                output = read_stream(STREAM, settings, state, expected=ExpectedOutcome.ALLOW_ANY)
            small.take_all()
            state = final_state(output)
            assert state["hour"] == "20240102T23"
        new_hours = {f"events/date=2024-01-03/hour={hour:02}" for hour in range(10)}
        assert new_hours <= {path.rpartition("/")[0] for path in small.taken}
        assert state["newest"] == "20240103T09"
        small.room = 100
        with requests_mock.Mocker() as http:
            http.get(EXPORT, content=an_event_in_each_hour)
            output = read_stream(STREAM, settings, state)
        assert output.errors == []
        assert final_state(output) == {"hour": "20240103T09"}

    @pytest.mark.usefixtures("standing_clock")
    def test_given_a_folder_smaller_than_the_look_back_when_there_is_a_gap_then_it_is_read_before(
        self, staging: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        small = SmallFolder(staging, monkeypatch, room=4)
        state = {
            "hour": "20240102T23",
            "newest": "20240103T09",
            "later": [{"from": "20240103T03", "to": "20240103T09"}],
        }
        with (
            freezegun.freeze_time("2024-01-03T12:00:00Z") as clock,
            requests_mock.Mocker() as http,
        ):
            monkeypatch.setattr(time, "sleep", lambda seconds: clock.tick(seconds + 0.001))
            http.get(EXPORT, content=an_event_in_each_hour)
            read_stream(
                STREAM,
                config(request_time_range=1, num_workers=1),
                state,
                expected=ExpectedOutcome.EXPECT_EXCEPTION,
            )
        small.take_all()
        # Look-backs are the four hours from 04 on, and the six up to 23.
        assert {path.rpartition("/")[0] for path in small.taken} == {
            f"events/date=2024-01-03/hour={hour:02}" for hour in (0, 1, 2, 4)
        }

    def test_given_a_folder_that_stays_full_when_read_then_it_ends_after_ten_minutes_once_for_all(
        self, staging: Path, monkeypatch: pytest.MonkeyPatch, standing_clock: Any
    ) -> None:
        SmallFolder(staging, monkeypatch, room=1)
        began = datetime.now()
        with requests_mock.Mocker() as http:
            http.get(EXPORT, content=an_event_in_each_hour)
            output = read_stream(
                STREAM,
                config(start_date="2024-01-01T00:00:00Z", request_time_range=1, num_workers=2),
                expected=ExpectedOutcome.EXPECT_EXCEPTION,
            )
            # Those that were on their way; of the days that are left, none.
            assert http.call_count <= 5
        assert timedelta(minutes=10) <= datetime.now() - began < timedelta(minutes=30)
        message, failure_type = first_error(output)
        assert f"could not be stored in {staging}: No space left on device. Files" in message
        assert failure_type == FailureType.system_error
        assert len(files(staging)) == 1
        assert final_state(output)["hour"] in ("20231231T23", "20240101T00")


def an_event_in_each_hour(request: Any, _: Any) -> bytes:
    start, end = (
        datetime.strptime(request.qs[name][0].upper(), "%Y%m%dT%H") for name in ("start", "end")
    )
    hours = (start + n * HOUR for n in range((end - start) // HOUR + 1))
    return zip_of({f"187520_{h:%Y-%m-%d}_{h.hour}#0.json.gz": packed(str(h)) for h in hours})


def test_when_discovered_then_the_stream_alone_has_files_and_is_not_suggested() -> None:
    [stream] = [stream for stream in discovered_streams() if stream["is_file_based"]]
    assert stream["name"] == STREAM
    assert stream["supported_sync_modes"] == ["full_refresh", "incremental"]
    assert stream["source_defined_primary_key"] == [["path"]]
    assert stream["default_cursor_field"] == ["hour"]
    metadata = yaml.safe_load(Path(__file__).parents[1].joinpath("metadata.yaml").read_text())
    assert metadata["data"]["supportsFileTransfer"] is True
    assert STREAM not in metadata["data"]["suggestedStreams"]["streams"]


@pytest.mark.usefixtures("within_an_hour")
def test_given_a_death_between_windows_when_resumed_then_a_destination_has_all_files_as_they_are(
    tmp_path: Path, staging: Path
) -> None:
    now = datetime.now(timezone.utc).replace(minute=0, second=0, microsecond=0)
    start = now - 15 * HOUR
    quiet, slow = start + 3 * HOUR, start + 6 * HOUR
    destination: dict[str, bytes] = {}

    def take(line: str) -> None:
        """What a destination does at each record: it moves the file away, and empty folders."""
        message = json.loads(line)
        if message["type"] == "RECORD":
            reference = message["record"]["file_reference"]
            file = Path(reference["staging_file_url"])
            content = file.read_bytes()
            file.unlink()
            with suppress(OSError):  # another file may lie there already
                file.parent.rmdir()
                file.parent.parent.rmdir()
            assert (
                len(content) == reference["file_size_bytes"] == message["record"]["data"]["bytes"]
            )
            destination[reference["source_file_relative_path"]] = content

    project = Project(events_per_hour=40, first_hour=start, empty_hours=frozenset([quiet]))
    with Sandbox(project) as sandbox:
        connector = Connector(tmp_path, sandbox, lookback_window_hours=1, request_time_range=2)
        sandbox.inject(
            Fault(
                "/api/2/export",
                delay=60,
                when=lambda params: params["start"] == f"{slow:%Y%m%dT%H}",
            )
        )
        process = connector.start("read", *connector.read_options(STREAM))
        assert process.stdout
        exportable = sandbox.exportable_hours(start, now)
        truth = {
            f"events/date={hour:%Y-%m-%d}/hour={hour:%H}/{name.rpartition('/')[2]}": content
            for hour in exportable
            for name, content in project.members(hour)
        }
        hours_of_slow = tuple(f"hour={slow + n * HOUR:%H}/" for n in range(2))
        others = {path for path in truth if not any(hour in path for hour in hours_of_slow)}
        output = ""
        said = [f'"{slow + n * HOUR:%Y%m%dT%H}"' for n in (-1, 2)]
        for line in process.stdout:
            output += line
            take(line)
            # All hours but those, and the state that says so.
            if set(destination) == others and all(hour in output for hour in said):
                process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=30) == -signal.SIGTERM
        dead = connector.finished(process, output)
        assert dead.state(STREAM)["hour"] == f"{slow - HOUR:%Y%m%dT%H}"
        assert dead.state(STREAM)["later"][0]["from"] == f"{slow + 2 * HOUR:%Y%m%dT%H}"
        assert files(staging) == {}
        asked_before = len(sandbox.requests)
        second = connector.read(STREAM, state=dead.states())
        asked = [(r.params["start"], r.params["end"]) for r in sandbox.requests]
        for line in second.output.splitlines():
            take(line)
    assert second.exit_code == 0
    # From the state's own hour on, as the look-back says, but for what is done beyond the gap.
    again = sorted(asked[asked_before:])
    assert again[:3] == [
        (f"{slow + a * HOUR:%Y%m%dT%H}", f"{slow + b * HOUR:%Y%m%dT%H}")
        for a, b in ((-1, -1), (0, 0), (1, 1))
    ]
    assert all(start >= f"{slow + 3 * HOUR:%Y%m%dT%H}" for start, _ in again[3:])
    assert second.state(STREAM) == {"hour": f"{now - 3 * HOUR:%Y%m%dT%H}"}
    assert quiet not in exportable
    assert destination == truth
    assert files(staging) == {}
