"""The custom components with real bytes: zips of gzips of lines, answers of Amplitude's shapes."""

import gzip
import io
import json
import re
import socket
import struct
import threading
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote, quote_plus

import freezegun
import pytest
import requests
from airbyte_cdk.entrypoint import AirbyteEntrypoint
from airbyte_cdk.models import AirbyteMessage, AirbyteRecordMessage, FailureType, Type
from airbyte_cdk.sources.declarative.parsers.custom_code_compiler import (
    register_components_module_from_string,
)
from airbyte_cdk.sources.streams.http.error_handlers import ResponseAction
from airbyte_cdk.sources.streams.http.exceptions import DefaultBackoffException
from airbyte_cdk.sources.streams.http.request_window_split_exception import (
    RequestWindowSplitRequiredException,
)
from airbyte_cdk.utils.airbyte_secrets_utils import filter_secrets, update_secrets
from airbyte_cdk.utils.traced_exception import AirbyteTracedException
from urllib3 import HTTPSConnectionPool
from urllib3.exceptions import MaxRetryError

from source_amplitude import components
from source_amplitude.components import (
    AmplitudeErrorHandler,
    AnnotationTimes,
    CohortSeriesExtractor,
    CsvRowsExtractor,
    DashboardSeriesExtractor,
    ExportArchiveExtractor,
    ExportErrorHandler,
    ListExtractor,
    RetryAfterBackoffStrategy,
    SecretiveBasicHttpAuthenticator,
)
from unit_tests.helpers import archive, days, json_lines

MEMBER = "187520/187520_2024-01-01_7#0.json.gz"
FIELDS = ["server_upload_time", "event_time"]


def response(
    body: bytes,
    status: int = 200,
    url: str = "https://amplitude.com/api/2/export?start=20240101T07&end=20240101T08",
) -> requests.Response:
    answer = requests.Response()
    answer.status_code = status
    answer.raw = io.BytesIO(body)
    answer.request = requests.Request("GET", url).prepare()
    return answer


def extract(
    body: bytes, extractor: type[ExportArchiveExtractor] = ExportArchiveExtractor
) -> list[Any]:
    """The records of an export body, by the way the manifest takes: handler, then extractor."""
    answer = response(body)
    resolution = ExportErrorHandler(parameters={}, config={}).interpret_response(answer)
    assert resolution.response_action is ResponseAction.SUCCESS
    return list(extractor(FIELDS, "server_upload_time").extract_records(answer))


def extract_lines(lines: bytes) -> list[Any]:
    return extract(archive({MEMBER: lines}))


class TestExportArchive:
    def test_given_several_members_when_extracted_then_all_lines_come_in_order(self) -> None:
        events = [{"uuid": str(number), "event_properties": {"n": [number]}} for number in range(9)]
        body = archive(
            {
                "187520/187520_2024-01-01_7#0.json.gz": json_lines(events[:4]),
                "187520/187520_2024-01-01_7#1.json.gz": b"",
                "187520/187520_2024-01-01_8#0.json.gz": json_lines(events[4:]),
            }
        )
        assert extract(body) == events

    def test_given_an_archive_without_members_when_extracted_then_there_are_no_records(
        self,
    ) -> None:
        assert extract(archive({})) == []

    def test_given_a_folder_entry_when_extracted_then_it_is_passed_over(self) -> None:
        packed = io.BytesIO()
        with zipfile.ZipFile(packed, "w") as zipped:
            zipped.writestr("187520/", b"")
            zipped.writestr(MEMBER, gzip.compress(b'{"uuid":"a"}\n'))
        assert extract(packed.getvalue()) == [{"uuid": "a"}]

    def test_given_several_gzips_in_one_member_when_extracted_then_all_are_read(self) -> None:
        packed = io.BytesIO()
        with zipfile.ZipFile(packed, "w") as zipped:
            zipped.writestr(MEMBER, gzip.compress(b'{"n":1}\n') + gzip.compress(b'{"n":2}\n'))
        assert extract(packed.getvalue()) == [{"n": 1}, {"n": 2}]

    @pytest.mark.parametrize(
        "lines",
        [
            b'{"a":1}\n{"a":2}\n',
            b'{"a":1}\n{"a":2}',
            b'{"a":1}\r\n{"a":2}\r\n',
            b'\xef\xbb\xbf{"a":1}\n{"a":2}\n',
            b'\n{"a":1}\n \n\n{"a":2}\n\n',
        ],
        ids=["plain", "no-last-newline", "crlf", "byte-order-mark", "blank-lines"],
    )
    def test_given_any_line_ends_when_extracted_then_each_object_is_a_record(
        self, lines: bytes
    ) -> None:
        assert extract_lines(lines) == [{"a": 1}, {"a": 2}]

    @pytest.mark.parametrize(
        ("line", "expected"),
        [
            ('{"a":"\u2028\u2029\x85"}'.encode(), {"a": "\u2028\u2029\x85"}),
            (b'{"a":"\\u0000"}', {"a": "\x00"}),
            (b'{"a":"\\ud83d\\ude00"}', {"a": "😀"}),
            (b'{"a":"x\\ud83dy"}', {"a": "x?y"}),
            (b'{"a":"x\xffy"}', {"a": "x\ufffdy"}),
            (b'{"a":[NaN,Infinity,-Infinity,1e999,1.5]}', {"a": [None, None, None, None, 1.5]}),
            (b'{"a":123456789012345678901}', {"a": 123456789012345680000.0}),
        ],
    )
    def test_given_what_strict_parsers_refuse_when_extracted_then_it_arrives_as_documented(
        self, line: bytes, expected: dict[str, Any]
    ) -> None:
        assert extract_lines(line) == [expected]

    def test_given_whole_numbers_on_the_lenient_way_then_those_of_64_bits_stay_exact(self) -> None:
        bounds = [2**64 - 1, -(2**63), 2**64, -(2**63) - 1]
        line = f'{{"lenient":NaN,"a":{bounds},"b":{"9" * 5000}}}'
        # As text, because 2**64 and the double of it are equal.
        assert json.dumps(extract_lines(line.encode())) == (
            '[{"lenient": null, "a": [18446744073709551615, -9223372036854775808, '
            '1.8446744073709552e+19, -9.223372036854776e+18], "b": null}]'
        )

    @pytest.mark.parametrize(
        ("exported", "expected"),
        [
            ("2024-01-01 05:00:00.123456", "2024-01-01T05:00:00.123456+00:00"),
            ("2024-01-01 05:00:00", "2024-01-01T05:00:00+00:00"),
            ("2022:05:27 05:59:45.471635", "2022-05-27T05:59:45.471635+00:00"),
            ("2024-01-01T05:00:00.123456+00:00", "2024-01-01T05:00:00.123456+00:00"),
            ("2024-01-01T05:00:00.123456Z", "2024-01-01T05:00:00.123456Z"),
            ("2024-01-01T05:00:00.123456", "2024-01-01T05:00:00.123456"),
            ("26 characters with a spac", "26 characters with a spac"),
            ("(none)", "(none)"),
            ("", ""),
            (None, None),
            (1704085200000, 1704085200000),
        ],
    )
    def test_given_a_timestamp_when_extracted_then_it_is_rewritten_only_where_certain(
        self, exported: object, expected: object
    ) -> None:
        line = json.dumps({"event_time": exported, "city": exported}).encode()
        assert extract_lines(line) == [{"event_time": expected, "city": exported}]

    @pytest.mark.parametrize(
        "line",
        [
            b"Jane Doe, jane@doe.example",
            b"[1]",
            b'"text"',
            b'{"a":',
            b"{}",
            b'{"a":' + b"[" * 500 + b"1" + b"]" * 500 + b"}",
            b'{"a":' * 501 + b"1" + b"}" * 501,
            b'{"a":NaN,"b":' + b"[" * 700 + b"1" + b"]" * 700 + b"}",
            b'{"a":' + b"[" * 1_000 + b"1" + b"]" * 1_000 + b"}",
            b'{"a":' + b"[" * 100_000 + b"1" + b"]" * 100_000 + b"}",
        ],
        ids=lambda line: f"{line[:20].decode()} ({len(line)} bytes)",
    )
    def test_given_a_line_that_is_no_event_when_extracted_then_the_error_names_it_without_quoting(
        self, line: bytes
    ) -> None:
        with pytest.raises(AirbyteTracedException) as failure:
            extract_lines(b'{"a":1}\n' + line + b'\n{"a":2}\n')
        assert failure.value.message == (
            f"Amplitude sent something that is no event: line 2 of member {MEMBER} of the export "
            "of 20240101T07 to 20240101T08. Nothing after it was read. Report the window to "
            "Amplitude's support."
        )
        assert failure.value.failure_type == FailureType.system_error
        assert failure.value.__cause__ is None

    def test_given_an_event_as_deep_as_can_be_when_extracted_then_it_can_be_printed(self) -> None:
        [event] = extract_lines(b'{"a":' + b"[{}," * 499 + b"1" + b"]" * 499 + b"}")
        message = AirbyteMessage(
            type=Type.RECORD, record=AirbyteRecordMessage(stream="events", data=event, emitted_at=1)
        )
        printed = json.loads(AirbyteEntrypoint.airbyte_message_to_string(message))
        assert json.dumps(printed["record"]["data"]) == json.dumps(event)

    def test_given_a_truncated_gzip_when_extracted_then_its_window_is_to_be_split(self) -> None:
        records = iter(self.start(damaged_archive()))
        assert next(records) == {"a": 1}
        with pytest.raises(RequestWindowSplitRequiredException, match="can't be unpacked"):
            list(records)

    @staticmethod
    def start(body: bytes) -> Any:
        answer = response(body)
        ExportErrorHandler(parameters={}, config={}).interpret_response(answer)
        return ExportArchiveExtractor(FIELDS, "server_upload_time").extract_records(answer)

    def test_given_a_line_without_end_when_extracted_then_memory_stays_bounded(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(components, "_LINE_BYTES", 1000)
        with pytest.raises(AirbyteTracedException, match=f"line 1 of member {MEMBER}"):
            extract_lines(b'{"a":"' + b"x" * 10**6 + b'"}')

    @pytest.mark.parametrize("name", ["/etc/passwd", "../../outside.gz", "C:\\x.gz"])
    def test_given_an_unusual_name_when_extracted_then_nothing_is_written_anywhere(
        self, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(tmp_path)
        assert extract(archive({name: b'{"a":1}\n'})) == [{"a": 1}]
        assert list(tmp_path.rglob("*")) == []

    def test_given_ten_thousand_members_when_extracted_then_all_are_read(self) -> None:
        members = {f"187520/{number}.json.gz": b'{"a":%d}\n' % number for number in range(10_000)}
        assert [event["a"] for event in extract(archive(members))] == list(range(10_000))

    @pytest.mark.parametrize("masks", [False, True], ids=["own-fields", "masked-fields"])
    @pytest.mark.parametrize("names", [[], [MEMBER], [MEMBER, "187520/b.json.gz"]])
    def test_given_zip64_records_when_extracted_then_they_count_the_members(
        self, names: list[str], masks: bool
    ) -> None:
        body = zip64(dict.fromkeys(names, b'{"a":1}\n'), masks)
        assert extract(body) == [{"a": 1}] * len(names)

    def test_given_more_members_than_fit_without_zip64_when_extracted_then_all_are_read(
        self,
    ) -> None:
        packed, line = io.BytesIO(), gzip.compress(b'{"a":1}\n')
        with zipfile.ZipFile(packed, "w") as zipped:
            for number in range(70_000):
                zipped.writestr(str(number), line)
        assert extract(packed.getvalue()) == [{"a": 1}] * 70_000

    def test_given_only_blank_lines_for_long_when_extracted_then_the_log_says_so(
        self, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(components, "_REPORT_SECONDS", -1)
        caplog.set_level("INFO", "airbyte")
        assert extract_lines(b"\n" * 200_000 + b'{"a":1}\n') == [{"a": 1}]
        assert (
            "Export of 20240101T07 to 20240101T08: 0 events so far, of 0 of 1 files."
        ) in caplog.messages

    def test_given_a_long_download_then_the_log_says_so_meanwhile(
        self, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(components, "_REPORT_SECONDS", -1)
        caplog.set_level("INFO", "airbyte")
        body = archive({MEMBER: b'{"a":1}\n'})
        extract(body)
        said = f"Export of 20240101T07 to 20240101T08: {len(body):,} bytes received so far."
        assert caplog.messages[0] == said

    def test_when_extracted_then_one_line_of_the_log_counts_files_events_and_bytes(
        self, caplog: pytest.LogCaptureFixture
    ) -> None:
        caplog.set_level("INFO", "airbyte")
        extract(archive({MEMBER: b'{"a":1}\n{"a":2}\n', "187520/b.json.gz": b'{"a":3}\n'}))
        [line] = caplog.messages
        assert re.fullmatch(
            r"Export of 20240101T07 to 20240101T08: 2 files, 3 events, \d\d bytes zipped, "
            r"read in 0\.\d s\.",
            line,
        )


def damaged_archive() -> bytes:
    """An intact zip of a gzip that was cut off."""
    packed = io.BytesIO()
    lines = b'{"a":1}\n' * 100_000
    with zipfile.ZipFile(packed, "w") as zipped:
        zipped.writestr(MEMBER, gzip.compress(lines)[:-9])
    return packed.getvalue()


class _Sink(io.RawIOBase):
    """Takes bytes as a network connection does: it can't seek."""

    def __init__(self) -> None:
        self.taken = b""

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        self.taken += bytes(data)
        return len(data)


def zip64(members: dict[str, bytes], masks: bool) -> bytes:
    """An archive as of a writer that streams, and writes zip64 records whatever the size is.

    The fields of the old record hold what the new ones do or, with `masks`, refer to them.
    """
    sink = _Sink()
    with (
        pytest.MonkeyPatch.context() as patch,
        zipfile.ZipFile(sink, "w") as zipped,
    ):
        patch.setattr(zipfile, "ZIP_FILECOUNT_LIMIT", -1)
        for name, content in members.items():
            with zipped.open(name, "w", force_zip64=True) as member:
                member.write(gzip.compress(content, mtime=0))
        zipped.close()
    end = sink.taken.rindex(b"PK\5\6") + 8
    assert sink.taken[end - 28 : end - 24] == b"PK\6\7"
    return sink.taken[:end] + b"\xff" * 12 + b"\0\0" if masks else sink.taken


def hide_second_member(body: bytes) -> bytes:
    """The same archive with a directory whose first entry has the second one for a comment."""
    hidden = bytearray(body)
    first = hidden.index(b"PK\1\2")
    second = hidden.index(b"PK\1\2", first + 4)
    length = hidden.index(b"PK", second + 4) - second
    hidden[first + 32 : first + 34] = length.to_bytes(2, "little")
    return bytes(hidden)


class TestExportErrorHandler:
    handler = ExportErrorHandler(parameters={}, config={})

    @pytest.mark.parametrize(
        ("body", "begins"),
        [
            (b"", "b''"),
            (b"<html>try again</html>", "b'<html>try again</html>'"),
            (archive({MEMBER: b"{}\n" * 99})[:-30], "b'PK"),
        ],
        ids=["empty", "page", "cut-off"],
    )
    def test_given_a_body_that_is_no_archive_then_it_is_asked_for_again(
        self, body: bytes, begins: str
    ) -> None:
        with pytest.raises(DefaultBackoffException) as failure:
            self.handler.interpret_response(response(body))
        assert f"it begins with {begins}" in str(failure.value)
        assert failure.value.failure_type is FailureType.transient_error
        assert failure.value.response is None, "the CDK would log its body"

    @pytest.mark.parametrize(
        "body",
        [
            archive({MEMBER: b"{}\n", "b": b"{}\n"}),
            zip64({MEMBER: b"{}\n", "b": b"{}\n"}, masks=False),
            zip64({MEMBER: b"{}\n", "b": b"{}\n"}, masks=True),
        ],
        ids=["zip", "zip64", "zip64-masked"],
    )
    def test_given_a_directory_that_hides_a_member_then_it_is_asked_for_again(
        self, body: bytes
    ) -> None:
        with pytest.raises(DefaultBackoffException, match="its directory is incomplete"):
            self.handler.interpret_response(response(hide_second_member(body)))

    @pytest.mark.parametrize(("first", "length"), [(20, 8), (24, 4)], ids=["both", "unpacked"])
    def test_given_a_member_whose_size_was_lost_then_it_is_asked_for_again(
        self, first: int, length: int
    ) -> None:
        body = bytearray(archive({MEMBER: b"{}\n"}))
        size = body.rindex(b"PK\1\2") + first
        body[size : size + length] = bytes(length)
        with pytest.raises(DefaultBackoffException, match="a member has lost its size"):
            self.handler.interpret_response(response(bytes(body)))

    @pytest.mark.parametrize(
        ("field", "value", "reason"),
        [
            (6, 1, f"File '{MEMBER}' is encrypted, password required for extraction"),
            (8, 99, "That compression method is not supported"),
        ],
        ids=["encrypted", "method"],
    )
    def test_given_a_member_that_python_can_not_unzip_then_it_is_asked_for_again(
        self, field: int, value: int, reason: str
    ) -> None:
        body = bytearray(archive({MEMBER: b"{}\n"}))
        for header in (body.index(b"PK\3\4"), body.rindex(b"PK\1\2") + 2):
            body[header + field] = value
        with pytest.raises(DefaultBackoffException, match=f"no intact zip archive: {reason}"):
            self.handler.interpret_response(response(bytes(body)))

    def test_given_a_flipped_byte_then_it_is_asked_for_again(self) -> None:
        body = bytearray(archive({MEMBER: b"{}\n"}))
        body[len(MEMBER) + 45] ^= 1
        with pytest.raises(DefaultBackoffException, match="the checksum of"):
            self.handler.interpret_response(response(bytes(body)))

    def test_given_a_folder_that_can_not_be_written_then_the_error_names_tmpdir(
        self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "missing"))
        with pytest.raises(AirbyteTracedException, match="TMPDIR"):
            self.handler.interpret_response(response(archive({})))

    def test_given_one_hour_that_can_not_be_unpacked_then_it_is_asked_for_again(self) -> None:
        url = "https://amplitude.com/api/2/export?start=20240101T07&end=20240101T07"
        with pytest.raises(DefaultBackoffException) as failure:
            self.handler.interpret_response(response(damaged_archive(), url=url))
        assert str(failure.value) == (
            f"Member {MEMBER} can't be unpacked (Compressed file ended before the end-of-stream "
            "marker was reached) in the export of 20240101T07 to 20240101T07."
        )
        assert failure.value.failure_type is FailureType.system_error

    def test_given_no_data_then_the_window_is_named_in_the_log(self) -> None:
        answer = response(b"Raw data files were not found.", status=404)
        resolution = self.handler.interpret_response(answer)
        assert resolution.response_action is ResponseAction.IGNORE
        assert resolution.error_message == (
            "Export of 20240101T07 to 20240101T08: no events (Raw data files were not found. "
            "HTTP 404)."
        )

    @pytest.mark.parametrize(
        "body",
        [
            b"<html><body>Not found here</body></html>",
            b'{"error": {"message": "Not found here"}}',
            b'"Not found here"',
            b"404 page not found",
            b"default backend - 404",
            b"No such file: <events>",
            b"null",
            b" \n ",
            b"",
        ],
    )
    def test_given_a_404_that_is_not_in_plain_words_then_it_is_asked_for_again(
        self, body: bytes
    ) -> None:
        with pytest.raises(DefaultBackoffException, match="nothing was skipped") as failure:
            self.handler.interpret_response(response(body, 404))
        assert failure.value.failure_type is FailureType.transient_error

    def test_given_a_refusal_then_it_is_left_to_the_next_handler(self) -> None:
        resolution = self.handler.interpret_response(response(b"Invalid API Key", 403))
        assert resolution.response_action is ResponseAction.FAIL
        assert resolution.error_message is None

    @pytest.mark.parametrize("status", [200, 403, 404])
    def test_given_a_redirect_to_a_page_then_it_is_asked_for_again(self, status: int) -> None:
        with pytest.raises(DefaultBackoffException) as failure:
            self.handler.interpret_response(redirected(response(b"Please sign in", status)))
        assert str(failure.value) == (
            f"The answer to the export of 20240101T07 to 20240101T08 (HTTP {status}) is no intact "
            "zip archive: File is not a zip file; it begins with b'Please sign in'. It came from "
            "login.example, to which the export was redirected (HTTP 302): look for a proxy or a "
            "sign-in page between this machine and Amplitude, then try again."
        )
        assert failure.value.failure_type is FailureType.transient_error
        assert failure.value.response is None, "the CDK would log its body"

    def test_given_a_redirect_to_an_archive_then_it_is_read(self) -> None:
        answer = redirected(response(archive({MEMBER: b'{"a":1}\n'})))
        resolution = self.handler.interpret_response(answer)
        assert resolution.response_action is ResponseAction.SUCCESS
        extractor = ExportArchiveExtractor(FIELDS, "server_upload_time")
        assert list(extractor.extract_records(answer)) == [{"a": 1}]


def redirected(answer: requests.Response) -> requests.Response:
    answer.history = [response(b"", 302)]
    answer.url = "https://login.example/?token=1"
    answer.request = requests.Request("GET", answer.url).prepare()
    return answer


class TestBrokenConnections:
    """Errors as `requests` raises them, of a server that does what the test says."""

    @pytest.fixture(params=["hangs-up", "resets", "is-silent", "breaks-off"])
    def server(self, request: pytest.FixtureRequest) -> Iterator[str]:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            held = []

            def serve() -> None:
                while True:
                    try:
                        connection, _ = listener.accept()
                    except OSError:
                        return
                    connection.recv(1024)
                    if request.param == "resets":
                        linger = struct.pack("ii", 1, 0)
                        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
                    if request.param == "breaks-off":
                        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nPK")
                    if request.param == "is-silent":
                        held.append(connection)
                    else:
                        connection.close()

            threading.Thread(target=serve, daemon=True).start()
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"  # ignore-https-check
            listener.shutdown(socket.SHUT_RDWR)
        for connection in held:
            connection.close()

    @staticmethod
    def ask(handler: ExportErrorHandler, request: requests.PreparedRequest) -> Any:
        try:
            answer: Any = requests.Session().send(request, stream=True, timeout=0.1)
        except requests.RequestException as error:
            answer = error
        return handler.interpret_response(answer)

    def test_given_a_long_window_then_it_is_halved_after_two_retries(self, server: str) -> None:
        handler = ExportErrorHandler(parameters={}, config={})
        for end in ("08", "09"):
            query = f"?start=20240101T07&end=20240101T{end}"
            request = requests.Request("GET", server + query).prepare()
            for _ in range(2):
                with pytest.raises(DefaultBackoffException):
                    self.ask(handler, request)
            resolution = self.ask(handler, request)
            assert resolution.response_action is ResponseAction.SPLIT_REQUEST_WINDOW

    def test_given_one_hour_then_it_is_asked_for_again_and_the_field_is_named(
        self, server: str
    ) -> None:
        handler = ExportErrorHandler(parameters={}, config={})
        query = "?start=20240101T07&end=20240101T07"
        request = requests.Request("GET", server + query).prepare()
        for _ in range(4):
            with pytest.raises(DefaultBackoffException) as failure:
                self.ask(handler, request)
            assert failure.value.failure_type is FailureType.transient_error
            assert re.fullmatch(
                r"The connection to 127\.0\.0\.1 broke or stayed silent in the export of "
                r"20240101T07 to 20240101T07 \(\w+: .+\)\. Try again later; if that does not "
                r"help, lower Hours per Export Request, so that Amplitude has less to send at "
                r"once\.",
                str(failure.value),
            )

    @pytest.mark.parametrize(
        "url",
        [
            "http://127.0.0.1:9",  # ignore-https-check
            "http://nowhere.invalid",  # ignore-https-check
        ],
        ids=["refused", "no-such-host"],
    )
    def test_given_a_connection_that_never_stood_then_it_is_never_halved(self, url: str) -> None:
        handler = ExportErrorHandler(parameters={}, config={})
        request = requests.Request("GET", f"{url}?start=20240101T07&end=20240101T08").prepare()
        for _ in range(4):
            resolution = self.ask(handler, request)
            assert resolution.response_action is ResponseAction.RETRY
            assert "firewall" in resolution.error_message

    @pytest.mark.parametrize(
        "error",
        [requests.ConnectTimeout, requests.exceptions.ProxyError, requests.exceptions.SSLError],
    )
    def test_given_another_failure_to_connect_then_it_is_never_halved(
        self, error: type[requests.RequestException]
    ) -> None:
        cause = MaxRetryError(HTTPSConnectionPool("amplitude.com"), "/")
        failed = error(cause, request=response(b"").request)
        handler = ExportErrorHandler(parameters={}, config={})
        for _ in range(4):
            assert handler.interpret_response(failed).response_action is ResponseAction.RETRY


class TestRetryAfter:
    strategy = RetryAfterBackoffStrategy(max_seconds=3600, rate_limited_seconds=60)

    @pytest.mark.parametrize(
        ("header", "seconds"),
        [
            ("1", 1),
            ("3599", 3599),
            (" 60 ", 60),
            ("0", None),
            ("-5", None),
            ("nan", None),
            ("inf", None),
            ("1.5", None),
            ("", None),
            ("soon", None),
            ("9" * 5000, None),
            ("01 Jan 99999999999999 00:00:00 +9999999", None),
            ("Mon, 01 Jan 2024 00:01:00 GMT", 60),
            ("Monday, 01-Jan-24 00:01:00 GMT", 60),
            ("Mon Jan  1 00:01:00 2024", 60),
            ("Sun, 31 Dec 2023 23:59:00 GMT", None),
            ("Mon, 01 Foo 2024 00:01:00 GMT", None),
            (None, None),
        ],
    )
    @freezegun.freeze_time("2024-01-01T00:00:00Z")
    def test_given_a_header_then_the_wait_is_what_it_names_or_none(
        self, header: str | None, seconds: float | None
    ) -> None:
        answer = response(b"", 503)
        if header is not None:
            answer.headers["Retry-After"] = header
        assert self.strategy.backoff_time(answer, 1) == seconds

    @pytest.mark.parametrize(("header", "seconds"), [(None, 60), ("soon", 60), ("0", 60), ("7", 7)])
    def test_given_a_rate_limit_then_the_wait_is_a_minute_unless_it_is_named(
        self, header: str | None, seconds: int
    ) -> None:
        answer = response(b"", 429)
        answer.headers.update({"Retry-After": header} if header else {})
        assert self.strategy.backoff_time(answer, 1) == seconds

    @pytest.mark.parametrize("header", ["3600", "Mon, 01 Jan 2024 01:00:00 GMT"])
    @freezegun.freeze_time("2024-01-01T00:00:00Z")
    def test_given_a_wait_too_long_then_the_stream_ends_and_says_so(self, header: str) -> None:
        answer = response(b"", 503)
        answer.headers["Retry-After"] = header
        with pytest.raises(AirbyteTracedException) as failure:
            self.strategy.backoff_time(answer, 1)
        assert (
            failure.value.message
            == failure.value.internal_message
            == (
                "Amplitude answered HTTP 503 and asks to wait for longer than a sync should "
                f"(Retry-After: {header}). Run it again after that."
            )
        )
        assert failure.value.failure_type is FailureType.transient_error

    def test_given_no_answer_then_there_is_no_wait(self) -> None:
        assert self.strategy.backoff_time(requests.ReadTimeout(), 1) is None


def test_given_keys_of_any_characters_when_authenticated_then_every_form_is_masked() -> None:
    keys = {"api_key": "quo\"te'd\\key /+ü", "secret_key": "ß&secret%20key"}
    authenticator = SecretiveBasicHttpAuthenticator(keys, "api_key", "secret_key")
    header = authenticator.token.removeprefix("Basic ")
    try:
        for key in (*keys.values(), header):
            for form in (
                key,
                json.dumps(key)[1:-1],
                json.dumps(key, ensure_ascii=False)[1:-1],
                repr(key)[1:-1],
                quote(key),
                quote(key, safe=""),
                quote_plus(key),
            ):
                assert filter_secrets(f"<{form}>") == "<****>"
    finally:
        update_secrets([])


class TestAmplitudeErrorHandler:
    handler = AmplitudeErrorHandler(parameters={}, config={})

    @pytest.mark.parametrize(
        ("body", "said"),
        [
            (b'{"error":{"message":"A","metadata":{"details":"B"}}}', " (A: B)"),
            (b'{"error":{"http_code":403,"metadata":{"details":"B"}}}', " (B)"),
            (b'{"error":"plain"}', " (plain)"),
            (b'{"statusCode":400,"message":"plain"}', " (plain)"),
            (b'{"error":{"http_code":400}}', ' ({"error":{"http_code":400}})'),
            (b'{"success":false,"errors":[{"message":"A"},{"message":"B"}]}', " (A)"),
            (b'{"errors":["A"]}', " (A)"),
            (b'{"errors":[]}', ' ({"errors":[]})'),
            (b'["errors"]', ' (["errors"])'),
            (b"<p>\n  Bad gateway </p>", " (<p> Bad gateway </p>)"),
            (b"", " (an empty body)"),
        ],
    )
    def test_given_an_error_body_then_the_message_begins_with_what_it_says(
        self, body: bytes, said: str
    ) -> None:
        resolution = self.handler.interpret_response(response(body, status=502))
        assert (resolution.error_message or "").startswith(f"Amplitude answered HTTP 502{said}. ")

    @pytest.mark.parametrize(
        ("body", "said"),
        [
            (b"<html>Please wait</html>", "<html>Please wait</html>"),
            (b"", "an empty body"),
            (b'{"error":{"metadata":{"details":"Too busy"}}}', "Too busy"),
        ],
    )
    def test_given_a_success_that_is_no_answer_then_it_is_asked_for_again(
        self, body: bytes, said: str
    ) -> None:
        with pytest.raises(DefaultBackoffException) as failure:
            self.handler.interpret_response(response(body))
        assert str(failure.value) == (
            f"Amplitude answered HTTP 200 ({said}), which is no answer. Try again later."
        )
        assert failure.value.response is None, "the CDK would log its body"

    def test_given_a_refusal_then_it_is_raised_with_nothing_beside_its_message(self) -> None:
        """The CDK would quote the body, which may echo a key, in the internal message."""
        with pytest.raises(AirbyteTracedException) as failure:
            self.handler.interpret_response(response(b'{"error":{"message":"No"}}', status=404))
        assert str(failure.value.message).startswith("Amplitude answered HTTP 404 (No). ")
        assert failure.value.internal_message == failure.value.message
        assert failure.value.failure_type is FailureType.system_error

    @pytest.mark.parametrize("body", [b'{"data":[]}', b"[]", b'[{"name":"a"}]'])
    def test_given_an_answer_then_it_is_a_success(self, body: bytes) -> None:
        resolution = self.handler.interpret_response(response(body))
        assert resolution.response_action is ResponseAction.SUCCESS

    @pytest.mark.parametrize(
        ("kind", "is_taken"),
        [("text/csv", True), ("application/json", True), (None, True), ("text/html", False)],
    )
    def test_given_a_stream_then_its_body_is_left_alone_unless_it_is_a_page(
        self, kind: str | None, is_taken: bool
    ) -> None:
        handler = AmplitudeErrorHandler(parameters={}, config={}, is_streamed=True)
        answer = response(b"SKU,Language")
        if kind:
            answer.headers["Content-Type"] = kind
        if is_taken:
            resolution = handler.interpret_response(answer)
            assert resolution.response_action is ResponseAction.SUCCESS
            assert answer.raw.read() == b"SKU,Language"
        else:
            with pytest.raises(DefaultBackoffException):
                handler.interpret_response(answer)

    def test_given_a_stream_that_is_refused_then_what_it_says_is_shown_all_the_same(self) -> None:
        handler = AmplitudeErrorHandler(parameters={}, config={}, is_streamed=True)
        with pytest.raises(AirbyteTracedException) as failure:
            handler.interpret_response(response(b"No such table", status=400))
        assert str(failure.value.message).startswith("Amplitude answered HTTP 400 (No such table).")

    def test_given_an_unreachable_host_then_the_message_names_it_and_what_to_check(self) -> None:
        request = requests.Request("GET", "https://amplitude.com/api/2/events/list").prepare()
        error = requests.ConnectionError("no route", request=request)
        resolution = self.handler.interpret_response(error)
        assert resolution.response_action is ResponseAction.RETRY
        assert resolution.error_message == (
            "The connection to amplitude.com failed (ConnectionError: no route). Check that this "
            "machine may reach it over HTTPS (name lookup, firewall, proxy), then try again."
        )


def unreadable(asked: str, found: str) -> str:
    return (
        f"Amplitude's answer to {asked} can't be read without guessing: {found}. Nothing of it was "
        "stored. Try again later; if it stays like this, report it to Amplitude's support."
    )


class TestDashboardSeries:
    """All answers are to the window of the first two days of 2024."""

    DAYS = ("2024-01-01", "2024-01-02")

    @staticmethod
    def extract(answered: Any, labelled: bool = True) -> list[Any]:
        answer = response(
            json.dumps(answered).encode(),
            url="https://amplitude.com/api/2/users?start=20240101&end=20240102",
        )
        parameters = {"value_field": "value", "labelled": labelled}
        return list(DashboardSeriesExtractor(parameters=parameters).extract_records(answer))

    @pytest.mark.parametrize(
        "labels",
        [
            {"seriesLabels": ["United States", "(none)"]},
            {"seriesLabels": [[0, "United States"], [0, "(none)"]]},
            {"seriesMeta": ["United States", "(none)"]},
            {"seriesLabels": [], "seriesMeta": ["United States", "(none)"]},
            {"seriesLabels": None, "seriesMeta": ["United States", "(none)"]},
        ],
    )
    def test_given_labels_of_any_shape_when_extracted_then_each_count_stands_under_its_label(
        self, labels: dict[str, Any]
    ) -> None:
        data = {"xValues": self.DAYS, "series": [[7, 8], [1, 0]], **labels}
        assert self.extract({"data": data}) == [
            {"date": "2024-01-01", "value": {"United States": 7, "(none)": 1}},
            {"date": "2024-01-02", "value": {"United States": 8, "(none)": 0}},
        ]

    @pytest.mark.parametrize(
        "labels",
        [{"seriesLabels": [0]}, {"seriesMeta": [{"segmentIndex": 0}]}, {}],
    )
    def test_given_one_unnamed_segment_when_extracted_then_its_label_is_its_index(
        self, labels: dict[str, Any]
    ) -> None:
        data = {"xValues": self.DAYS, "series": [[7, 8]], **labels}
        assert self.extract({"data": data}) == [
            {"date": "2024-01-01", "value": {"0": 7}},
            {"date": "2024-01-02", "value": {"0": 8}},
        ]

    @pytest.mark.parametrize("labels", [{"seriesMeta": [{"segmentIndex": 0}]}, {}])
    def test_given_a_single_series_when_extracted_then_its_value_stands_alone(
        self, labels: dict[str, Any]
    ) -> None:
        data = {"xValues": self.DAYS, "series": [[61.5, 0]], **labels}
        assert self.extract({"data": data}, labelled=False) == [
            {"date": "2024-01-01", "value": 61.5},
            {"date": "2024-01-02", "value": 0},
        ]

    @pytest.mark.parametrize("labels", [{"seriesLabels": []}, {"seriesMeta": []}, {}])
    def test_given_groups_without_any_user_when_extracted_then_there_are_no_records(
        self, labels: dict[str, Any]
    ) -> None:
        assert self.extract({"data": {"xValues": self.DAYS, "series": [], **labels}}) == []

    def test_given_a_label_field_when_extracted_then_each_number_is_a_record_with_its_label(
        self,
    ) -> None:
        data = {"xValues": self.DAYS, "series": [[7, 8], [1, 0]], "seriesLabels": ["pro", "(none)"]}
        grouped = response(
            json.dumps({"data": data}).encode(),
            url="https://amplitude.com/api/2/users?start=20240101&end=20240102&g=gp:plan",
        )
        parameters = {"value_field": "value", "label_field": "segment"}
        extractor = DashboardSeriesExtractor(parameters=parameters)
        assert list(extractor.extract_records(grouped)) == [
            {"date": "2024-01-01", "segment": "pro", "value": 7},
            {"date": "2024-01-02", "segment": "pro", "value": 8},
            {"date": "2024-01-01", "segment": "(none)", "value": 1},
            {"date": "2024-01-02", "segment": "(none)", "value": 0},
        ]

    def test_given_a_label_field_and_no_group_when_extracted_then_the_label_is_all(self) -> None:
        data = {"xValues": self.DAYS, "series": [[7, 8]], "seriesLabels": [0]}
        ungrouped = response(
            json.dumps({"data": data}).encode(),
            url="https://amplitude.com/api/2/users?start=20240101&end=20240102",
        )
        parameters = {"value_field": "value", "label_field": "segment"}
        extractor = DashboardSeriesExtractor(parameters=parameters)
        assert [r["segment"] for r in extractor.extract_records(ungrouped)] == ["(all)"] * 2

    @pytest.mark.parametrize(
        ("interval", "xs", "found"),
        [
            ("7", ["2023-12-26", "2024-01-02"], None),
            ("7", ["2024-01-01"], None),
            ("7", ["2024-01-01", "2024-01-08"], None),
            ("7", ["2024-01-03", "2024-01-09"], None),
            ("7", ["2023-12-24", "2023-12-31"], "2023-12-24, 2023-12-31 do not cover"),
            ("7", ["2023-12-27", "2024-01-04"], "2023-12-27, 2024-01-04 do not cover"),
            ("7", ["2024-01-01"] * 2, "2024-01-01, 2024-01-01 do not cover"),
            ("7", ["2024-01-02", "2024-01-10"], "2024-01-02, 2024-01-10 do not cover"),
            ("7", [], "no dates do not cover"),
            ("30", ["2023-12-01", "2024-01-01"], None),
            ("30", ["2023-11-30", "2023-12-31"], "2023-11-30, 2023-12-31 do not cover"),
            ("30", ["2023-12-02", "2024-01-31"], "2023-12-02, 2024-01-31 do not cover"),
        ],
    )
    def test_given_dates_of_weeks_or_months_when_extracted_then_none_may_be_left_out(
        self, interval: str, xs: list[str], found: str | None
    ) -> None:
        """Whatever the day is by which they are named; those asked for are 1 and 2 January."""
        answer = response(
            json.dumps({"data": {"xValues": xs, "series": [[5] * len(xs)]}}).encode(),
            url=f"https://amplitude.com/api/2/users?start=20240101&end=20240102&i={interval}",
        )
        extractor = DashboardSeriesExtractor(parameters={"value_field": "value"})
        if found is None:
            assert [r["date"] for r in extractor.extract_records(answer)] == xs
            return
        with pytest.raises(AirbyteTracedException) as failure:
            extractor.extract_records(answer)
        asked = "/api/2/users for 20240101 to 20240102"
        assert failure.value.message == unreadable(asked, f"{found} 2024-01-01 to 2024-01-02")

    def test_given_an_x_field_when_extracted_then_any_texts_but_two_alike_will_do(self) -> None:
        def extract(xs: list[Any]) -> list[Any]:
            answer = response(
                json.dumps({"data": {"xValues": xs, "series": [[5] * len(xs)]}}).encode(),
                url="https://amplitude.com/api/2/sessions/length?start=20240101&end=20240101",
            )
            parameters = {"value_field": "value", "x_field": "bucket"}
            return list(DashboardSeriesExtractor(parameters=parameters).extract_records(answer))

        assert extract(["0s-60s", ""]) == [
            {"bucket": "0s-60s", "value": 5},
            {"bucket": "", "value": 5},
        ]
        assert extract([]) == []
        asked = "/api/2/sessions/length for 20240101 to 20240101"
        for xs, found in (
            (["a", "a"], "an x value stands twice"),
            (["a", None], "x value 2 is null where a text should be"),
            ([0], "x value 1 is a number where a text should be"),
            ([["a"]], "x value 1 is a list where a text should be"),
        ):
            with pytest.raises(AirbyteTracedException) as failure:
                extract(xs)
            assert failure.value.message == unreadable(asked, found)

    def test_given_a_window_over_a_leap_day_when_extracted_then_all_of_its_days_are_expected(
        self,
    ) -> None:
        asked = days("2024-02-10", "2024-03-20")
        answer = response(
            json.dumps({"data": {"xValues": asked, "series": [[*range(40)]]}}).encode(),
            url="https://amplitude.com/api/2/users?start=20240210&end=20240320",
        )
        extractor = DashboardSeriesExtractor(parameters={"value_field": "value"})
        assert list(extractor.extract_records(answer)) == [
            {"date": day, "value": n} for n, day in enumerate(asked)
        ]

    def test_given_a_redirect_when_extracted_then_the_days_are_those_first_asked_for(self) -> None:
        body = json.dumps({"data": {"xValues": self.DAYS, "series": [[7, 8]]}}).encode()
        answer = response(body, url="https://amplitude.com/elsewhere")
        url = "https://amplitude.com/api/2/users?start=20240101&end=20240102"
        answer.history = [response(b"", status=302, url=url)]
        extractor = DashboardSeriesExtractor(parameters={"value_field": "value"})
        assert [record["value"] for record in extractor.extract_records(answer)] == [7, 8]

    @pytest.mark.parametrize(
        ("x_values", "found"),
        [
            (..., "data.xValues is missing where a list should be"),
            (None, "data.xValues is null where a list should be"),
            ("2024-01-01", "data.xValues is a text where a list should be"),
            ([], "0 days where 2 were asked for"),
            (["2024-01-01"], "1 days where 2 were asked for"),
            ([*DAYS, "2024-01-03"], "3 days where 2 were asked for"),
            (["2023-12-31", "2024-01-01"], 'day 1 is "2023-12-31" where 2024-01-01 should be'),
            (["2024-01-02", "2024-01-03"], 'day 1 is "2024-01-02" where 2024-01-01 should be'),
            (["2024-01-02", "2024-01-01"], 'day 1 is "2024-01-02" where 2024-01-01 should be'),
            (["2024-01-01"] * 2, 'day 2 is "2024-01-01" where 2024-01-02 should be'),
            ([20240101, 20240102], "day 1 is 20240101 where 2024-01-01 should be"),
            (["Jan 1", "Jan 2"], 'day 1 is "Jan 1" where 2024-01-01 should be'),
            (["2024-01-01", None], "day 2 is null where 2024-01-02 should be"),
            (
                ["2024-01-01", "2024-01-02T00:00:00"],
                'day 2 is "2024-01-02T00:00:00" where 2024-01-02 should be',
            ),
        ],
    )
    @pytest.mark.parametrize("series", [[[5, 6]], []], ids=["one-series", "no-series"])
    def test_given_other_days_than_asked_for_when_extracted_then_it_fails_and_says_which(
        self, x_values: Any, found: str, series: list[Any]
    ) -> None:
        data = {"xValues": x_values, "series": series}
        self.assert_fails({k: v for k, v in data.items() if v is not ...}, True, found)

    @pytest.mark.parametrize(
        ("labels", "found"),
        [
            ({"seriesLabels": "ab"}, "seriesLabels is a text where a list should be"),
            ({"seriesLabels": ""}, "seriesLabels is an empty text where a list should be"),
            ({"seriesLabels": {"a": 1}}, "seriesLabels is an object where a list should be"),
            ({"seriesMeta": "ab"}, "seriesMeta is a text where a list should be"),
            ({"seriesLabels": ["a", None]}, "label 2 is null"),
            ({"seriesLabels": ["a", True]}, "label 2 is a boolean"),
            ({"seriesLabels": ["a", 1.5]}, "label 2 is a number"),
            ({"seriesLabels": [[], "b"]}, "label 1 is an empty list"),
            ({"seriesLabels": [["a"], "b"]}, "label 1 is a list"),
            ({"seriesLabels": [[0, None], "b"]}, "label 1 is a list"),
            ({"seriesLabels": [["a", "b"], "b"]}, "label 1 is a list"),
            ({"seriesLabels": [[0, 0, "a"], "b"]}, "label 1 is a list"),
            ({"seriesMeta": [{"segmentIndex": 0}, {}]}, "label 2 is an empty object"),
            ({"seriesMeta": [{"segmentIndex": 0}, {"eventIndex": 1}]}, "label 2 is an object"),
            ({"seriesMeta": [{"segmentIndex": None}] * 2}, "label 1 is an object"),
            ({"seriesMeta": [{"segmentIndex": True}] * 2}, "label 1 is an object"),
            ({"seriesLabels": ["x", "x"]}, "2 series but the labels ['x', 'x']"),
            ({"seriesLabels": [0, "0"]}, "2 series but the labels ['0', '0']"),
            ({"seriesLabels": ["x"]}, "2 series but the labels ['x']"),
            ({"seriesLabels": ["x", "y", "z"]}, "2 series but the labels ['x', 'y', 'z']"),
            ({}, "2 series but the labels []"),
        ],
    )
    def test_given_labels_that_name_nothing_when_extracted_then_it_fails_and_says_which(
        self, labels: dict[str, Any], found: str
    ) -> None:
        data = {"xValues": self.DAYS, "series": [[5, 6], [7, 8]], **labels}
        self.assert_fails(data, True, found)

    @pytest.mark.parametrize(
        ("series", "found"),
        [
            (..., "data.series is missing where a list should be"),
            (None, "data.series is null where a list should be"),
            ({"a": [5, 6]}, "data.series is an object where a list should be"),
            ([None], "series 1 is null where a list should be"),
            ([5, 6], "series 1 is a number where a list should be"),
            (["56"], "series 1 is a text where a list should be"),
            ([[5]], "2 x values but 1 values in series 1"),
            ([[5, 6, 7]], "2 x values but 3 values in series 1"),
            ([[5, None]], "value 2 of series 1 is null"),
            ([["5", 6]], "value 1 of series 1 is a text"),
            ([[5, True]], "value 2 of series 1 is a boolean"),
            ([[5, float("nan")]], "value 2 of series 1 is null"),
            ([[{"value": 5}, 6]], "value 1 of series 1 is an object"),
        ],
    )
    @pytest.mark.parametrize("labelled", [True, False])
    def test_given_series_that_are_none_when_extracted_then_it_fails_and_says_where(
        self, series: Any, found: str, labelled: bool
    ) -> None:
        data = {"xValues": self.DAYS, "series": series}
        self.assert_fails({k: v for k, v in data.items() if v is not ...}, labelled, found)

    @pytest.mark.parametrize(
        ("series", "found"),
        [
            ([], "0 series but the labels ['(all)']"),
            ([[5, 6], [7, 8]], "2 series but the labels ['(all)']"),
        ],
    )
    def test_given_not_one_series_where_one_value_is_wanted_when_extracted_then_it_fails(
        self, series: list[Any], found: str
    ) -> None:
        self.assert_fails({"xValues": self.DAYS, "series": series}, False, found)

    @pytest.mark.parametrize("data", [None, [], [[5, 6]], {}, "text", 5])
    def test_given_no_data_at_all_when_extracted_then_it_fails(self, data: Any) -> None:
        self.assert_fails(data, True, "data.xValues is missing where a list should be")

    def assert_fails(self, data: Any, labelled: bool, found: str) -> None:
        with pytest.raises(AirbyteTracedException) as failure:
            self.extract({"data": data}, labelled)
        message = unreadable("/api/2/users for 20240101 to 20240102", found)
        assert failure.value.message == failure.value.internal_message == message
        assert failure.value.failure_type is FailureType.system_error

    def test_given_very_many_labels_when_they_do_not_pair_then_the_message_stays_short(
        self,
    ) -> None:
        data = {"xValues": self.DAYS, "series": [[5, 6]], "seriesLabels": ["x" * 100] * 100}
        with pytest.raises(AirbyteTracedException) as failure:
            self.extract({"data": data})
        assert len(failure.value.message or "") < 600


def retained(*counts: int) -> list[dict[str, Any]]:
    return [{"count": n, "outof": 9, "incomplete": n == counts[-1]} for n in counts]


class TestCohortSeries:
    """All answers are to the window of the last day of 2023 and the first two of 2024."""

    @staticmethod
    def extract(answered: Any) -> list[Any]:
        answer = response(
            json.dumps(answered).encode(),
            url="https://amplitude.com/api/2/retention?start=20231231&end=20240102",
        )
        return list(CohortSeriesExtractor().extract_records(answer))

    def test_given_retention_when_extracted_then_the_first_cell_is_the_cohorts_size_only(
        self,
    ) -> None:
        values = {"Jan 1": retained(9, 8, 5), "Dec 31": retained(9)}
        series = [{"dates": ["Jan 1", "Dec 31"], "values": values, "combined": [{}]}]
        assert self.extract({"data": {"series": series, "seriesMeta": [{}]}}) == [
            {
                "cohort_date": "2024-01-01",
                "day_number": number,
                "users": users,
                "cohort_size": 9,
                "is_complete": is_complete,
            }
            for number, users, is_complete in ((0, 8, True), (1, 5, False))
        ]

    def test_given_revenue_when_extracted_then_only_keys_of_days_are_rows(self) -> None:
        cells = {"r1d": 1.5, "r10d": 2, "count": 3, "paid": 1, "total_amount": 4, "r": 0, "r1": 0}
        series = [{"dates": ["2024-01-02"], "values": {"2024-01-02": {**cells, "xr1d": 0}}}]
        assert self.extract({"data": {"series": series}}) == [
            {
                "cohort_date": "2024-01-02",
                "day_number": number,
                "revenue": revenue,
                "users": 3,
                "paying_users": 1,
                "total_amount": 4,
            }
            for number, revenue in ((1, 1.5), (10, 2))
        ]

    @pytest.mark.parametrize("name", ["Jan 1", "Jan 01", "2024-01-01"])
    def test_given_a_date_in_any_form_when_extracted_then_it_is_that_day(self, name: str) -> None:
        series = [{"dates": [name], "values": {name: retained(9, 8)}}]
        assert [r["cohort_date"] for r in self.extract({"data": {"series": series}})] == [
            "2024-01-01"
        ]

    @pytest.mark.parametrize("series", [[], [{"dates": [], "values": {}}]])
    def test_given_no_cohorts_when_extracted_then_there_are_no_records(
        self, series: list[Any]
    ) -> None:
        assert self.extract({"data": {"series": series}}) == []

    @pytest.mark.parametrize(
        ("series", "found"),
        [
            (None, "data.series is null where a list should be"),
            ([{"dates": [], "values": {}}] * 2, "2 series where one was asked for"),
            ([[]], "dates is missing where a list should be"),
            ([{"values": {}}], "dates is missing where a list should be"),
            ([{"dates": "Jan 1", "values": {}}], "dates is a text where a list should be"),
            ([{"dates": []}], "values are not those of its dates"),
            ([{"dates": [], "values": []}], "values are not those of its dates"),
            ([{"dates": ["Jan 1"], "values": {}}], "values are not those of its dates"),
            ([{"dates": [], "values": {"Jan 1": []}}], "values are not those of its dates"),
            (
                [{"dates": ["Jan 1", "Jan 1"], "values": {"Jan 1": []}}],
                "values are not those of its dates",
            ),
            (
                [{"dates": [None, "Jan 1"], "values": {"Jan 1": [], "Jan 2": []}}],
                "values are not those of its dates",
            ),
            ([{"dates": ["Jan 3"], "values": {"Jan 3": []}}], '"Jan 3" was not asked for'),
            (
                [{"dates": ["Jan 1", "Jan 01"], "values": {"Jan 1": [], "Jan 01": []}}],
                "a date stands twice",
            ),
            ([{"dates": ["Feb 29"], "values": {"Feb 29": []}}], '"Feb 29" was not asked for'),
        ],
    )
    def test_given_series_of_another_form_when_extracted_then_it_fails_and_says_which(
        self, series: Any, found: str
    ) -> None:
        self.assert_fails(series, found)

    @pytest.mark.parametrize(
        ("cells", "reason"),
        [
            (None, "AttributeError"),
            ("text", "AttributeError"),
            ([None, None], "TypeError"),
            ([{}, {"count": 1, "outof": 1}], "KeyError"),
            ([{}, 5], "TypeError"),
            ({"r1d": 5, "count": 1, "paid": 1}, "KeyError"),
            ([{}, {"count": 1, "outof": 1, "incomplete": "false"}], "KeyError"),
        ],
    )
    def test_given_cells_of_another_form_when_extracted_then_their_cohort_is_named(
        self, cells: Any, reason: str
    ) -> None:
        series = [
            {"dates": ["Jan 2", "Jan 1"], "values": {"Jan 2": retained(9, 9), "Jan 1": cells}}
        ]
        self.assert_fails(series, f"the cohort of Jan 1 is of another form ({reason}: ")

    @pytest.mark.parametrize(
        "cells",
        [
            [{}, {"count": "1", "outof": 1, "incomplete": False}],
            {"r1d": None, "count": 1, "paid": 1, "total_amount": 1},
        ],
    )
    def test_given_cells_that_are_no_numbers_when_extracted_then_their_cohort_is_named(
        self, cells: Any
    ) -> None:
        series = [{"dates": ["Jan 1"], "values": {"Jan 1": cells}}]
        self.assert_fails(series, "the cohort of Jan 1 holds no numbers")

    def assert_fails(self, series: Any, found: str) -> None:
        with pytest.raises(AirbyteTracedException) as failure:
            self.extract({"data": {"series": series}})
        begin, end = unreadable("/api/2/retention for 20231231 to 20240102", "|").split("|")
        assert failure.value.message
        assert failure.value.message.startswith(begin + found)
        assert failure.value.message.endswith(end)


class TestList:
    @staticmethod
    def extract(body: bytes) -> list[Any]:
        answer = response(body, url="https://amplitude.com/api/3/cohorts?includeSyncInfo=true")
        extractor = ListExtractor(parameters={"list_path": ["found", "cohorts"]})
        return list(extractor.extract_records(answer))

    @pytest.mark.parametrize("elements", [[], [{"id": "b"}, {"id": None}, {"id": "a", "x": [{}]}]])
    def test_given_a_list_of_objects_when_extracted_then_they_come_as_they_are(
        self, elements: list[Any]
    ) -> None:
        assert self.extract(json.dumps({"found": {"cohorts": elements}}).encode()) == elements

    @pytest.mark.parametrize(
        ("sent", "expected"),
        [
            (rb'"x\ud83d"', "x?"),
            (b"[NaN,1e999]", [None, None]),
            (b"123456789012345678901", 123456789012345680000.0),
        ],
    )
    def test_given_what_strict_parsers_refuse_when_extracted_then_it_arrives_as_in_events(
        self, sent: bytes, expected: object
    ) -> None:
        body = b'{"found":{"cohorts":[{"name":%s}]}}' % sent
        assert self.extract(body) == [{"name": expected}]

    def test_given_no_path_when_extracted_then_the_list_is_data(self) -> None:
        answer = response(b'{"data":[{"id":1}]}', url="https://amplitude.com/api/3/annotations")
        assert list(ListExtractor(parameters={}).extract_records(answer)) == [{"id": 1}]

    @pytest.mark.parametrize("element", [{"id": 1}, {"id": 1, "value": None}])
    def test_given_an_object_without_a_field_that_is_needed_when_extracted_then_it_is_named(
        self, element: dict[str, Any]
    ) -> None:
        body = json.dumps({"data": [{"value": ""}, element]}).encode()
        extractor = ListExtractor(parameters={"needed": "value"})
        with pytest.raises(AirbyteTracedException) as failure:
            extractor.extract_records(response(body, url="https://amplitude.com/api/2/events/list"))
        assert failure.value.message == unreadable("/api/2/events/list", "element 2 has no value")

    def test_given_a_bare_list_when_extracted_then_it_is_the_answer_itself(self) -> None:
        def extract(body: bytes) -> list[Any]:
            answer = response(body, url="https://amplitude.com/api/3/lookup_table")
            extractor = ListExtractor(parameters={"is_bare_list": True})
            return list(extractor.extract_records(answer))

        assert extract(b'[{"id":1}]') == [{"id": 1}]
        assert extract(b"[]") == []
        for body, found in (
            (b'{"data":[]}', "the answer is an object where a list should be"),
            (b"null", "the answer is null where a list should be"),
            (
                b'[{"id":1},{}]',
                "element 2 of the answer is an empty object where a record should be",
            ),
            (b"<html>", "it is no JSON"),
        ):
            with pytest.raises(AirbyteTracedException) as failure:
                extract(body)
            assert found in (failure.value.message or "")

    def test_given_a_list_to_expand_when_extracted_then_its_elements_take_the_rest_along(
        self,
    ) -> None:
        def extract(*jobs: Any) -> list[Any]:
            answer = response(
                json.dumps(jobs).encode(), url="https://amplitude.com/api/2/deletions"
            )
            parameters = {"is_bare_list": True, "expand": "ids"}
            return list(ListExtractor(parameters=parameters).extract_records(answer))

        assert extract(
            {"day": "a", "n": 0, "ids": [{"id": 1}, {"id": 2, "n": 5}]}, {"ids": []}
        ) == [
            {"day": "a", "n": 0, "id": 1},
            {"day": "a", "n": 5, "id": 2},
        ]
        for ids, found in (
            ({}, "ids is missing where a list should be"),
            ({"ids": None}, "ids is null where a list should be"),
            ({"ids": [{"id": 1}, {}]}, "element 2 of ids is an empty object"),
        ):
            with pytest.raises(AirbyteTracedException) as failure:
                extract({"day": "a", "ids": [{"id": 1}]}, {"day": "b", **ids})
            assert found in (failure.value.message or "")

    @pytest.mark.parametrize(
        ("body", "found"),
        [
            ({"found": {}}, "found.cohorts is missing"),
            ({"found": []}, "found.cohorts is missing"),
            ({"data": []}, "found.cohorts is missing"),
            ({"found": {"cohorts": None}}, "found.cohorts is null"),
            ({"found": {"cohorts": "a"}}, "found.cohorts is a text"),
            ({"found": {"cohorts": {}}}, "found.cohorts is an empty object"),
            ({"found": {"cohorts": {"id": "a"}}}, "found.cohorts is an object"),
            ({"found": {"cohorts": 0}}, "found.cohorts is a number"),
            ({"found": {"cohorts": False}}, "found.cohorts is a boolean"),
        ],
    )
    def test_given_no_list_when_extracted_then_the_error_says_what_was_found(
        self, body: Any, found: str
    ) -> None:
        self.assert_fails(json.dumps(body).encode(), f"{found} where a list should be")

    @pytest.mark.parametrize(
        ("element", "found"),
        [
            (b"{}", "an empty object"),
            (b"[]", "an empty list"),
            (b'""', "an empty text"),
            (b"null", "null"),
            (b"0", "a number"),
            (b"true", "a boolean"),
            (b'[{"id":"c"}]', "a list"),
            (b'"Jane Doe"', "a text"),
        ],
    )
    def test_given_an_element_that_is_no_record_when_extracted_then_nothing_is_and_it_is_named(
        self, element: bytes, found: str
    ) -> None:
        self.assert_fails(
            b'{"found":{"cohorts":[{"id":"a"},%s,{"id":"b"}]}}' % element,
            f"element 2 of found.cohorts is {found} where a record should be",
        )

    def test_given_an_empty_answer_when_extracted_then_it_fails(self) -> None:
        self.assert_fails(b"{}", "found.cohorts is missing where a list should be")

    def assert_fails(self, body: bytes, found: str) -> None:
        answer = response(body, url="https://amplitude.com/api/3/cohorts?includeSyncInfo=true")
        extractor = ListExtractor(parameters={"list_path": ["found", "cohorts"]})
        with pytest.raises(AirbyteTracedException) as failure:
            next(iter(extractor.extract_records(answer)))
        message = unreadable("/api/3/cohorts", found)
        assert failure.value.message == failure.value.internal_message == message
        assert failure.value.failure_type is FailureType.system_error


class TestCsvRows:
    """Over a socket: what a body of a test double does at its end is not what a connection does."""

    ROWS = b"SKU,Text\r\n" + b"".join(b"%d,%s\r\n" % (n, b"x" * 90) for n in range(1, 3001))

    @staticmethod
    @contextmanager
    def served(*parts: bytes) -> Iterator[requests.Response]:
        """The answer of a server that sends all of ``parts`` and hangs up."""

        def serve() -> None:
            connection, _ = listener.accept()
            connection.recv(4096)
            for part in parts:
                connection.sendall(part)
            connection.close()

        with socket.create_server(("127.0.0.1", 0)) as listener:
            threading.Thread(target=serve, daemon=True).start()
            host = f"http://127.0.0.1:{listener.getsockname()[1]}"  # ignore-https-check
            url = f"{host}/api/3/lookup_table/a/csv"
            with requests.get(url, stream=True, timeout=5) as answer:
                yield answer

    @staticmethod
    def head(*fields: str) -> bytes:
        return "".join(f"{line}\r\n" for line in ("HTTP/1.1 200 OK", *fields, "")).encode()

    @staticmethod
    def chunked(body: bytes) -> bytes:
        parts = [body[n : n + 5000] for n in range(0, len(body), 5000)]
        return b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in parts)

    def test_given_a_length_when_extracted_then_all_rows_come_and_then_the_end(self) -> None:
        with self.served(self.head(f"Content-Length: {len(self.ROWS)}"), self.ROWS) as answer:
            rows = list(CsvRowsExtractor().extract_records(answer))
        assert [row["row_number"] for row in rows] == list(range(1, 3001))
        assert rows[-1]["row"] == {"SKU": "3000", "Text": "x" * 90}

    @pytest.mark.parametrize("is_zipped", [False, True])
    def test_given_chunks_when_extracted_then_all_rows_come_and_then_the_end(
        self, is_zipped: bool
    ) -> None:
        fields = ["Transfer-Encoding: chunked", *["Content-Encoding: gzip"] * is_zipped]
        body = self.chunked(gzip.compress(self.ROWS) if is_zipped else self.ROWS)
        with self.served(self.head(*fields), body + b"0\r\n\r\n") as answer:
            rows = list(CsvRowsExtractor().extract_records(answer))
        assert [row["row"]["SKU"] for row in rows] == [str(n) for n in range(1, 3001)]

    @pytest.mark.parametrize("is_zipped", [False, True])
    def test_given_a_body_that_was_read_before_when_extracted_then_all_rows_come_all_the_same(
        self, is_zipped: bool
    ) -> None:
        """The Builder shows the body beside its records."""
        body = gzip.compress(self.ROWS) if is_zipped else self.ROWS
        fields = [f"Content-Length: {len(body)}", *["Content-Encoding: gzip"] * is_zipped]
        with self.served(self.head(*fields), body) as answer:
            assert answer.content == self.ROWS
            rows = list(CsvRowsExtractor().extract_records(answer))
        assert [row["row"]["SKU"] for row in rows] == [str(n) for n in range(1, 3001)]

    @pytest.mark.parametrize("size", [1, 2, 3, 7])
    def test_given_pieces_of_any_size_when_extracted_then_rows_and_letters_are_put_together(
        self, size: int
    ) -> None:
        body = '\ufeffSKU,Text\r\n1,"ä\r\n\n😀 ""x"""\r\n\r\n2,ü'.encode()
        pieces = [body[n : n + size] for n in range(0, len(body), size)]
        chunks = b"".join(b"%x\r\n%s\r\n" % (len(piece), piece) for piece in pieces)
        head = self.head("Transfer-Encoding: chunked")
        with self.served(head, chunks + b"0\r\n\r\n") as answer:
            rows = [row["row"] for row in CsvRowsExtractor().extract_records(answer)]
        assert rows == [{"SKU": "1", "Text": 'ä\r\n\n😀 "x"'}, {"SKU": "2", "Text": "ü"}]

    @pytest.mark.parametrize("framing", ["Content-Length: 300000", "Transfer-Encoding: chunked"])
    def test_given_a_connection_that_breaks_when_extracted_then_it_fails_and_names_the_last_row(
        self, framing: str
    ) -> None:
        part = self.ROWS[:280_000]
        body = self.chunked(part) if "chunked" in framing else part
        rows: list[Any] = []
        with (
            self.served(self.head(framing), body) as answer,
            pytest.raises(AirbyteTracedException) as failure,
        ):
            rows.extend(CsvRowsExtractor().extract_records(answer))
        assert 0 < len(rows) < 3000
        assert re.fullmatch(
            rf"The connection broke after row {len(rows)} of /api/3/lookup_table/a/csv \(\w+\)\. "
            r"Run it again\.",
            failure.value.message or "",
        )
        assert failure.value.failure_type is FailureType.transient_error

    def test_given_a_row_when_it_has_arrived_then_it_is_passed_on_before_the_next_ones_have(
        self,
    ) -> None:
        """A table may have 100 MB."""
        with self.served(self.head("Content-Length: 300000000"), self.ROWS) as answer:
            first = next(iter(CsvRowsExtractor().extract_records(answer)))
        assert first == {"row_number": 1, "row": {"SKU": "1", "Text": "x" * 90}}


class TestAnnotationTimes:
    @staticmethod
    def transformed(**annotation: Any) -> dict[str, Any]:
        AnnotationTimes().transform(annotation)
        return annotation

    @pytest.mark.parametrize(
        ("written", "utc", "day"),
        [
            ("2025-11-01T23:30:00-08:00", "2025-11-02T07:30:00+00:00", "2025-11-01"),
            ("2025-11-01T00:30:00+01:00", "2025-10-31T23:30:00+00:00", "2025-11-01"),
            ("2024-03-01T00:00:00+05:45", "2024-02-29T18:15:00+00:00", "2024-03-01"),
            ("2025-11-01T07:00:00+00:00", "2025-11-01T07:00:00+00:00", "2025-11-01"),
            ("2025-11-01T07:00:00Z", "2025-11-01T07:00:00+00:00", "2025-11-01"),
            ("2025-11-01t07:00:00z", "2025-11-01T07:00:00+00:00", "2025-11-01"),
            ("2025-01-01T00:00:00.5+01:00", "2024-12-31T23:00:00.5+00:00", "2025-01-01"),
            (
                "2025-01-01T00:00:00.123456789+01:00",
                "2024-12-31T23:00:00.123456789+00:00",
                "2025-01-01",
            ),
        ],
    )
    def test_given_times_with_offsets_then_they_become_utc_and_the_local_day_of_start_stays(
        self, written: str, utc: str, day: str
    ) -> None:
        assert self.transformed(id=1, start=written, end=written) == {
            "id": 1,
            "start": utc,
            "end": utc,
            "date": day,
        }

    @pytest.mark.parametrize(
        ("written", "day"),
        [
            ("2025-11-01", "2025-11-01"),
            ("2025-11-01T07:00:00", "2025-11-01"),
            ("2025-11-01T07:00+01:00", "2025-11-01"),
            ("2025-11-01 07:00:00", "2025-11-01"),
            ("2025-11-01T24:30:00+01:00", "2025-11-01"),
            ("2025-11-01T07:00:60Z", "2025-11-01"),
            ("2025-11-01T07:00:00+99:00", "2025-11-01"),
            ("0001-01-01T00:00:00+01:00", "0001-01-01"),
            ("9999-12-31T23:59:59-01:00", "9999-12-31"),
            ("2025-02-30T07:00:00+00:00", None),
            ("2025-11-01 or later", None),
            ("\u0662\u0660\u0662\u0665-11-01T07:00:00Z", None),
            ("Sometime next week", None),
            ("", None),
            (None, None),
            (1761980400, None),
            (["2025-11-01T07:00:00+00:00"], None),
            ({"at": "2025-11-01T07:00:00+00:00"}, None),
            (True, None),
        ],
    )
    def test_given_what_is_no_time_with_an_offset_then_it_stays_as_it_came_and_no_day_is_guessed(
        self, written: object, day: str | None
    ) -> None:
        assert self.transformed(start=written, end=written) == {
            "start": written,
            "end": written,
            **({"date": day} if day else {}),
        }

    def test_given_neither_start_nor_end_then_none_are_added(self) -> None:
        assert self.transformed(id=1) == {"id": 1}


def test_given_the_file_as_text_when_injected_as_the_builder_does_then_its_classes_load() -> None:
    import hashlib
    import sys

    text = Path(components.__file__).read_text()
    names = ("components", "source_declarative_manifest.components")
    before = {name: sys.modules.get(name) for name in names}
    try:
        checksums = {"sha256": hashlib.sha256(text.encode()).hexdigest()}
        module = register_components_module_from_string(text, checksums)
        assert module.ExportArchiveExtractor([], "server_upload_time").timestamp_fields == []
    finally:
        for name, loaded in before.items():
            if loaded is None:
                sys.modules.pop(name, None)
            else:
                sys.modules[name] = loaded
