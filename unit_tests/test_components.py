"""The custom components with real bytes: zips of gzips of lines, answers of Amplitude's shapes."""

import gzip
import io
import json
import re
import socket
import struct
import threading
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import date
from http.client import BadStatusLine
from itertools import islice
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
from urllib3.exceptions import MaxRetryError, ProtocolError

from source_amplitude import components, delivery
from source_amplitude.components import (
    AmplitudeErrorHandler,
    AnnotationTimes,
    CohortMembersExtractor,
    CsvRowsExtractor,
    DashboardSeriesExtractor,
    ExportArchiveExtractor,
    ExportErrorHandler,
    LifetimeValueExtractor,
    ListExtractor,
    RetentionExtractor,
    RetryAfterBackoffStrategy,
    SecretiveBasicHttpAuthenticator,
    shape,
)
from unit_tests.helpers import archive, days, described, json_lines

MEMBER = "187520/187520_2024-01-01_7#0.json.gz"
FIELDS = ["server_upload_time", "event_time"]
EVENT_LIKE = b'{"message":"a","user_id":"b"}'
NOT_FOUND = b"<html><body>Not found here</body></html>"


def response(
    body: bytes,
    status: int = 200,
    url: str = "https://amplitude.com/api/2/export?start=20240101T07&end=20240101T08",
) -> requests.Response:
    answer = requests.Response()
    answer.status_code, answer.url = status, url
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

    @pytest.mark.parametrize("gunzip", [gzip.GzipFile, delivery.GzipFile])
    def test_given_a_stretch_of_blank_lines_when_extracted_then_it_is_passed_in_chunks(
        self, gunzip: Callable[..., Any]
    ) -> None:
        blank = b"\n \t\r\n" * 600_000
        body = archive({MEMBER: b'{"a":1}\n' + blank + b'  {"a":2}\n\n  \n{"a":3}' + b" " * 10**6})
        window = "20240101T07 to 20240101T08"
        with components._Archive(io.BytesIO(body)) as zipped:
            [member] = zipped.infolist()
            lines = list(components._lines(gunzip, zipped, member, window))
        assert [(number, line.strip()) for number, line, is_blank in lines if not is_blank] == [
            (1, b'{"a":1}'),
            (1_200_002, b'{"a":2}'),
            (1_200_005, b'{"a":3}'),
        ]
        assert len(lines) < 30
        assert extract(body) == [{"a": 1}, {"a": 2}, {"a": 3}]

    def test_given_blank_lines_before_what_is_no_event_when_extracted_then_they_are_counted(
        self,
    ) -> None:
        with pytest.raises(AirbyteTracedException, match=f"line 1000002 of member {MEMBER}"):
            extract_lines(b'{"a":1}\n' + b"\n" * 10**6 + b"no event\n")

    @pytest.mark.parametrize("extractor", [ExportArchiveExtractor, delivery.BatchingExtractor])
    @pytest.mark.parametrize("members", [1, 10])
    def test_given_members_that_inflate_beyond_measure_when_extracted_then_they_are_damage(
        self,
        monkeypatch: pytest.MonkeyPatch,
        extractor: type[ExportArchiveExtractor],
        members: int,
    ) -> None:
        monkeypatch.setattr(components, "_INFLATED_BYTES", 900_000)
        monkeypatch.setattr(components, "_INFLATED_TIMES", 100)
        monkeypatch.setattr(delivery, "ROOM", delivery.Room(10**9))
        blank = b"\n" * (1_000_000 // members)
        body = archive({f"{MEMBER}{number}": blank for number in range(members)})
        said = "can't be unpacked .the archive would inflate to more than 900,000 bytes"
        with pytest.raises(RequestWindowSplitRequiredException, match=said):
            extract(body, extractor)
        url = "https://amplitude.com/api/2/export?start=20240101T07&end=20240101T07"
        with pytest.raises(DefaultBackoffException, match=said):
            ExportErrorHandler(parameters={}, config={}).interpret_response(response(body, url=url))
        monkeypatch.setattr(components, "_INFLATED_TIMES", 100_000)
        assert extract(body, extractor) == []

    def test_given_a_zip_that_itself_inflates_beyond_measure_then_it_is_not_inflated(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(components, "_INFLATED_BYTES", 900_000)
        monkeypatch.setattr(components, "_INFLATED_TIMES", 100)
        packed = io.BytesIO()
        with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as zipped:
            zipped.writestr(MEMBER, gzip.compress(b"", mtime=0) * 50_000)
        body = packed.getvalue()
        monkeypatch.setattr(zipfile.ZipFile, "open", None)  # what reads a member
        with pytest.raises(DefaultBackoffException, match="would inflate to more than 900,000"):
            ExportErrorHandler(parameters={}, config={}).interpret_response(response(body))

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
        ("body", "kind"),
        [
            (b"", ""),
            (b"<html>try again</html>", "a page"),
            (b'{"error": {"http_code": 429, "message": "Too Many Requests"}}', "JSON"),
            (b'{"user_id": "jane", "server_upload_time": "2024-01-01 07:00:00.000000"}\n', "JSON"),
            (archive({MEMBER: b"{}\n" * 99})[:-30], "a zip"),
            (gzip.compress(b'{"user_id": "jane"}', mtime=0), "a gzip"),
            (b"Please wait", "a text"),
            (b"\0\1", "binary data"),
        ],
        ids=["empty", "page", "rate message", "event", "cut-off", "gzip", "text", "binary"],
    )
    def test_given_a_body_that_is_no_archive_then_it_is_asked_for_again(
        self, body: bytes, kind: str
    ) -> None:
        with pytest.raises(DefaultBackoffException) as failure:
            self.handler.interpret_response(response(body))
        said = described(body, kind) if body else "an empty body"
        assert str(failure.value).endswith(
            f"is no intact zip archive: File is not a zip file; it is {said}."
        )
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
            (6, 1, "File ... is encrypted, password required for extraction"),
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

    def test_given_a_member_with_a_name_of_its_own_then_the_name_is_in_no_message(self) -> None:
        name = "jane@example.com"
        packed = archive({name: b"{}\n"})
        url = "https://amplitude.com/api/2/export?start=20240101T07&end=20240101T07"
        header = packed.index(b"PK\3\4") + 30
        renamed = packed[:header] + b"joan" + packed[header + 4 :]
        no_gzip = io.BytesIO()
        with zipfile.ZipFile(no_gzip, "w") as zipped:
            zipped.writestr(name, b"@@ jane")
        for body in (renamed, no_gzip.getvalue()):
            with pytest.raises(DefaultBackoffException) as failure:
                self.handler.interpret_response(response(body, url=url))
            assert "jane" not in str(failure.value)
            assert "@@" not in str(failure.value)
            assert failure.value.__suppress_context__ or failure.value.__context__ is None
        answer = response(archive({name: b"no event"}))
        self.handler.interpret_response(answer)
        with pytest.raises(AirbyteTracedException, match="member with a name of 16 characters of"):
            list(ExportArchiveExtractor(FIELDS, "server_upload_time").extract_records(answer))

    @pytest.mark.parametrize("handler_class", [ExportErrorHandler, AmplitudeErrorHandler])
    def test_given_what_is_no_http_then_it_is_not_quoted(
        self, handler_class: type[AmplitudeErrorHandler]
    ) -> None:
        request = response(b"").request
        cause = ProtocolError("Connection aborted.", BadStatusLine('{"user_id": "jane"}'))
        error = requests.ConnectionError(cause, request=request)
        handler = handler_class(parameters={}, config={})
        try:
            said = handler.interpret_response(error).error_message or ""
        except DefaultBackoffException as failure:
            said = str(failure)
        assert "('Connection aborted.', BadStatusLine)" in said

    def test_given_a_flipped_byte_then_it_is_asked_for_again(self) -> None:
        body = bytearray(archive({MEMBER: b"{}\n"}))
        body[len(MEMBER) + 45] ^= 1
        with pytest.raises(DefaultBackoffException, match="the checksum of"):
            self.handler.interpret_response(response(bytes(body)))

    @pytest.mark.parametrize("is_flipped", [True, False], ids=["checksum", "gzip"])
    def test_given_a_member_of_a_strange_name_then_it_is_not_quoted(self, is_flipped: bool) -> None:
        strange = "a\nb\x1b[31m\u202e" + "x" * 300
        packed = io.BytesIO()
        with zipfile.ZipFile(packed, "w") as zipped:
            zipped.writestr(strange, b"not a gzip")
        body = bytearray(packed.getvalue())
        body[body.index(b"not a gzip")] ^= is_flipped
        url = "https://amplitude.com/api/2/export?start=20240101T07&end=20240101T07"
        with pytest.raises(DefaultBackoffException) as failure:
            self.handler.interpret_response(response(bytes(body), url=url))
        assert "ember with a name of 309 characters " in str(failure.value)
        assert "xx" not in str(failure.value)

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

    @pytest.mark.parametrize(
        ("body", "said"),
        [
            (
                b'{"error": {"http_code": 404, "type": "unspecified", "message": "Unspecified '
                b'Error", "metadata": {"details": "Raw data files were not found."}}}',
                "Unspecified Error: Raw data files were not found.",
            ),
            (
                b'{"error": {"message": "Raw data files were not found", "metadata": null}}',
                "Raw data files were not found",
            ),
            (b"Raw data files were not found.\n", "Raw data files were not found."),
        ],
        ids=["recorded", "message", "plain"],
    )
    def test_given_no_data_then_the_window_is_named_in_the_log(
        self, body: bytes, said: str
    ) -> None:
        resolution = self.handler.interpret_response(response(body, status=404))
        assert resolution.response_action is ResponseAction.IGNORE
        assert resolution.error_message == (
            f"Export of 20240101T07 to 20240101T08: no events (HTTP 404: {said})"
        )

    @pytest.mark.parametrize(
        ("body", "said"),
        [
            (NOT_FOUND, described(NOT_FOUND, "a page").encode()),
            (b'{"error": {"message": "Not found here"}}', b"Not found here"),
            (
                b'{"error": {"message": "Unknown", "metadata": {"details": "No files."}}}',
                b"Unknown: No files.",
            ),
            (b'{"error": {"metadata": {"details": ["Raw data files were not found."]}}}', b""),
            (b'"Raw data files were not found."', b""),
            (
                b"Raw data files were not found. Try again.",
                b"Raw data files were not found. Try again.",
            ),
            (b"The raw data file was not found here.", b"The raw data file was not found here."),
            (b"404 page not found", b"a text of 18 bytes"),
            (b"null", b""),
            (b"", b"an empty body"),
        ],
    )
    def test_given_a_404_that_is_not_amplitudes_own_sentence_then_it_is_asked_for_again(
        self, body: bytes, said: bytes
    ) -> None:
        with pytest.raises(DefaultBackoffException, match="so nothing was skipped") as failure:
            self.handler.interpret_response(response(body, 404))
        assert f"(HTTP 404: {said.decode()}" in str(failure.value)
        assert failure.value.failure_type is FailureType.transient_error

    def test_given_a_code_for_too_much_then_it_is_left_to_the_next_handler(self) -> None:
        handler = ExportErrorHandler(parameters={}, config={}, too_much=[413])
        resolution = handler.interpret_response(response(b"Too large", 413))
        assert resolution.response_action is ResponseAction.FAIL
        assert resolution.error_message is None

    def test_given_a_refusal_then_it_is_raised(self) -> None:
        said = b'{"error": {"message": "Invalid API Key"}}'
        with pytest.raises(AirbyteTracedException, match=r"HTTP 403 \(Invalid API Key\)"):
            self.handler.interpret_response(response(said, 403))

    @pytest.mark.parametrize("status", [200, 403, 404])
    def test_given_a_redirect_to_a_page_then_it_is_asked_for_again(self, status: int) -> None:
        with pytest.raises(DefaultBackoffException) as failure:
            self.handler.interpret_response(redirected(response(b"Please sign in", status)))
        assert str(failure.value) == (
            f"The answer to the export of 20240101T07 to 20240101T08 (HTTP {status}) is no intact "
            "zip archive: File is not a zip file; it is a text of 14 bytes with the checksum "
            "95467e21. It came from login.example, to which the export was redirected (HTTP 302): "
            "look for a proxy or a sign-in page between this machine and Amplitude, then try again."
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
            (b'{"error":{"http_code":400}}', " (JSON of 27 bytes with the checksum 0d19e7c4)"),
            (b'{"success":false,"errors":[{"message":"A"},{"message":"B"}]}', " (A)"),
            (b'{"errors":["A"]}', " (A)"),
            (b'{"errors":[]}', " (JSON of 13 bytes with the checksum 317cc35c)"),
            (EVENT_LIKE, f" ({described(EVENT_LIKE, 'JSON')})"),
            (b'["errors"]', " (JSON of 10 bytes with the checksum 95e44910)"),
            (b"<p>\n  Bad gateway </p>", " (a page of 22 bytes with the checksum f884223f)"),
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
            (b"<html>Please wait</html>", "a page of 24 bytes with the checksum 451ccc85"),
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

    def test_given_a_stream_that_is_refused_then_what_it_is_is_said_all_the_same(self) -> None:
        handler = AmplitudeErrorHandler(parameters={}, config={}, is_streamed=True)
        with pytest.raises(AirbyteTracedException) as failure:
            handler.interpret_response(response(b"No such table", status=400))
        assert str(failure.value.message).startswith("Amplitude answered HTTP 400 (No such table)")

    @pytest.mark.parametrize(
        "body",
        [
            b'{"user_id": "ada", "event_type": "signup"}',
            b'{"user_id": "ada"}\n{"user_id": "bob"}',
            b"amplitude_id,user_id\n1,ada\n",
            b'1;"ada"',
            b"<html>ada</html>",
            b"ada " * 60,
        ],
    )
    def test_given_a_refusal_that_is_no_sentence_then_nothing_of_it_is_quoted(
        self, body: bytes
    ) -> None:
        with pytest.raises(AirbyteTracedException) as failure:
            self.handler.interpret_response(response(body, status=400))
        assert "with the checksum" in str(failure.value.message)
        assert "ada" not in str(failure.value.message)

    def test_given_several_days_of_which_one_is_before_the_history_then_it_is_refused(self) -> None:
        """Its last days may be there: they must not be taken for empty ones."""
        said = b'{"error": {"http_code": 403, "metadata": {"details": "Date too far back"}}}'
        url = "https://amplitude.com/api/2/composition?p=country&start=20240101&end=20240102"
        with pytest.raises(AirbyteTracedException) as failure:
            self.handler.interpret_response(response(said, 403, url))
        assert failure.value.message == (
            "Amplitude answered HTTP 403 (Date too far back) to /api/2/composition for 20240101 to "
            "20240102: the project's plan keeps no history as old as that. Set Start Date "
            "(start_date) to a later day."
        )
        assert failure.value.failure_type is FailureType.config_error

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
        "stored. Try again later; if it stays like this, report it to the connector's maintainers."
    )


def told(failure: pytest.ExceptionInfo[AirbyteTracedException]) -> str:
    """The message of a failure, without the shape of the answer with which it ends."""
    message, mark, _ = (failure.value.message or "").partition(" Shape of the answer, without its")
    assert mark
    return message


class TestShape:
    @pytest.mark.parametrize(
        ("value", "expected"),
        [
            (None, "null"),
            (True, "boolean"),
            (7, "integer"),
            (7.5, "number"),
            ("", "text(0)"),
            ("Jane", "text(4)"),
            ([], "[]"),
            ({}, "{}"),
            ([1, 2, 2.5, None], "[2 * integer, 1 * number, 1 * null]"),
            (["US", "Germany", "2024-01-01"], "[2 * text, 1 * date 0000-00-00]"),
            ([[5, 6], [7, 8]], "[2 * [2 * integer]]"),
            ({"a": {"b": [{"c": 1}, {"c": 2}]}}, "{a: {b: [2 * {c: integer}]}}"),
            ({"a": 1, "b": "x", "c": 2}, "{a, c: integer, b: text(1)}"),
            (
                {
                    "data": {"series": [[1, 2]], "seriesLabels": [0], "xValues": ["2026-09-20"]},
                    "wasCached": False,
                },
                "{data: {series: [1 * [2 * integer]], seriesLabels: [1 * integer], xValues: "
                "[1 * date 0000-00-00]}, wasCached: boolean}",
            ),
        ],
        ids=str,
    )
    def test_given_a_value_then_names_kinds_and_lengths_are_shown(
        self, value: Any, expected: str
    ) -> None:
        assert shape(value) == expected

    @pytest.mark.parametrize(
        ("date", "form"),
        [
            ("2026-09-17", "0000-00-00"),
            ("2026-09-17T05:00:00", "0000-00-00T00:00:00"),
            ("2026-09-17T05:00:00.594Z", "0000-00-00T00:00:00.000Z"),
            ("2026-09-17 05:00:00+02:00", "0000-00-00 00:00:00+00:00"),
            ("20260917", "00000000"),
            ("09/17/26", "00/00/00"),
            ("Sep 17, 2026", "Mon 00, 0000"),
            ("September 9", "Mon 0"),
        ],
    )
    def test_given_a_date_then_its_form_is_shown_as_a_value_and_as_a_name(
        self, date: str, form: str
    ) -> None:
        assert shape({"dates": [date], "values": {date: 5}}) == (
            f"{{dates: [1 * date {form}], values: {{{form}: integer}}}}"
        )

    @pytest.mark.parametrize(
        ("name", "shown"),
        [
            ("_$r1Day", "_$r1Day"),
            ("a" * 40, "a" * 40),
            ("a" * 41, "text(41)"),
            ("jane@doe.example", "text(16)"),
            ("Jane Doe", "text(8)"),
            ("gp:plan", "text(7)"),
            ("4915112345678", "text(13)"),
            ("Grün", "text(4)"),
            ("", "text(0)"),
        ],
    )
    def test_given_a_name_that_no_field_has_then_its_length_is_shown(
        self, name: str, shown: str
    ) -> None:
        assert shape({name: None}) == f"{{{shown}: null}}"

    @pytest.mark.parametrize(
        "secret",
        ["jane@doe.example", "Jane Doe", "Zanzibar-7", "4915112345678", 4915112345678, 31.4159],
    )
    @pytest.mark.parametrize(
        "holding",
        [
            lambda v: v,
            lambda v: [[v]],
            lambda v: {"data": {"seriesLabels": [[0, v], v]}},
            lambda v: {"data": [{"events": [v], str(v): {"values": {str(v): [v]}}}]},
        ],
        ids=["alone", "in lists", "as labels", "as names"],
    )
    def test_given_what_a_customer_entered_then_nothing_of_it_is_shown(
        self, secret: Any, holding: Callable[[Any], Any]
    ) -> None:
        shown = shape(holding(secret))
        parts = re.findall(r"\w{4,}", str(secret))
        assert parts
        assert not [part for part in parts if part in shown]

    @pytest.mark.parametrize(
        "value",
        [
            {f"field_{n}": [n] * n for n in range(500)},
            [{f"f{n}": n} for n in range(5_000)],
            ["x" * 100_000] * 5_000,
        ],
        ids=["fields", "forms", "texts"],
    )
    def test_given_a_large_answer_then_its_shape_has_at_most_2000_characters(
        self, value: Any
    ) -> None:
        assert len(shape(value)) <= 2_000
        assert len(shape({"kept": True, "more": value})) <= 2_000

    def test_given_more_than_is_looked_at_then_it_is_counted_and_depth_ends(self) -> None:
        assert shape([1] * 1_005) == "[1000 * integer, 5 more]"
        assert shape({f"f{n:02}": n for n in range(13)}) == (
            "{f00, f01, f02, f03, f04, f05, f06, f07, f08, f09, f10, f11, ...: integer}"
        )
        deep: Any = "x"
        for _ in range(400):
            deep = [deep]
        assert shape(deep) == "[1 * " * 8 + "[...]" + "]" * 8

    def test_given_an_answer_that_can_not_be_read_then_the_message_ends_with_its_shape(
        self,
    ) -> None:
        body = b'{"data": {"series": [["Jane"], [1, 2]], "xValues": ["2024-01-01"]}, "novaCost": 5}'
        url = "https://amplitude.com/api/2/users?start=20240101&end=20240101"
        extractor = DashboardSeriesExtractor(parameters={"value_field": "value"})
        for sent, shown in (
            (
                body,
                "{data: {series: [1 * [1 * text], 1 * [2 * integer]], xValues: [1 * date "
                "0000-00-00]}, novaCost: integer}",
            ),
            (b"Jane Doe", "text(8)"),
        ):
            with pytest.raises(AirbyteTracedException) as failure:
                extractor.extract_records(response(sent, url=url))
            assert failure.value.message == failure.value.internal_message
            assert (failure.value.message or "").endswith(
                f"maintainers. Shape of the answer, without its values: {shown}"
            )
            assert "Jane" not in (failure.value.message or "")


class TestDashboardSeries:
    """All answers are to the window of the first two days of 2024."""

    DAYS = ("2024-01-01", "2024-01-02")

    @staticmethod
    def extract(data: Any, query: str = "", **parameters: Any) -> list[Any]:
        window = "start=20240101&end=20240102"
        url = f"https://amplitude.com/api/2/users?{window}{query}"
        answer = response(json.dumps({"data": data}).encode(), url=url)
        extractor = DashboardSeriesExtractor(parameters={"value_field": "value", **parameters})
        return list(extractor.extract_records(answer))

    def assert_fails(self, data: Any, found: str, query: str = "", **parameters: Any) -> None:
        with pytest.raises(AirbyteTracedException) as failure:
            self.extract(data, query, **parameters)
        path = "/api/2/users for 20240101 to 20240102"
        assert told(failure) == unreadable(path, found)
        assert failure.value.internal_message == failure.value.message
        assert failure.value.failure_type is FailureType.system_error

    @pytest.mark.parametrize(
        "labels",
        [
            {"seriesLabels": ["United States", "(none)"]},
            {"seriesLabels": [[0, "United States"], [0, "(none)"]]},
            {"seriesLabels": [["United States"], ["(none)"]]},
            {"seriesMeta": ["United States", "(none)"]},
            {"seriesLabels": [], "seriesMeta": ["United States", "(none)"]},
            {"seriesLabels": None, "seriesMeta": ["United States", "(none)"]},
        ],
    )
    def test_given_labels_of_any_shape_when_extracted_then_each_count_stands_under_its_label(
        self, labels: dict[str, Any]
    ) -> None:
        data = {"xValues": self.DAYS, "series": [[7, 8], [1, 0]], **labels}
        assert self.extract(data, "&g=country", labelled=True) == [
            {"date": "2024-01-01", "value": {"United States": 7, "(none)": 1}},
            {"date": "2024-01-02", "value": {"United States": 8, "(none)": 0}},
        ]

    def test_given_a_label_field_when_extracted_then_each_number_is_a_record_with_its_label(
        self,
    ) -> None:
        labels = [["US", "iOS"], [0, "FR", "web"]]
        data = {"xValues": self.DAYS, "series": [[7, 8], [1, 0]], "seriesLabels": labels}
        assert self.extract(data, "&g=gp:plan", label_field="segment") == [
            {"date": "2024-01-01", "segment": "US; iOS", "value": 7},
            {"date": "2024-01-02", "segment": "US; iOS", "value": 8},
            {"date": "2024-01-01", "segment": "FR; web", "value": 1},
            {"date": "2024-01-02", "segment": "FR; web", "value": 0},
        ]

    @pytest.mark.parametrize(
        "labels",
        [
            {"seriesLabels": [0]},
            {"seriesMeta": [{"segmentIndex": 0, "sessionIndex": 0}]},
            {},
            {"seriesLabels": None, "seriesMeta": []},
            {"seriesLabels": ["All", "more"], "seriesMeta": "text"},
        ],
    )
    def test_given_no_group_when_extracted_then_labels_are_not_looked_at(
        self, labels: dict[str, Any]
    ) -> None:
        data = {"xValues": self.DAYS, "series": [[61, 0]], **labels}
        first, second = self.DAYS
        assert self.extract(data) == [
            {"date": first, "value": 61},
            {"date": second, "value": 0},
        ]
        assert self.extract(data, label_field="segment") == [
            {"date": first, "segment": "(all)", "value": 61},
            {"date": second, "segment": "(all)", "value": 0},
        ]
        assert self.extract(data, labelled=True) == [
            {"date": first, "value": {"0": 61}},
            {"date": second, "value": {"0": 0}},
        ]

    @pytest.mark.parametrize("labels", [{"seriesLabels": []}, {"seriesLabels": [0]}, {}])
    @pytest.mark.parametrize("series", [[], [[None, None]]], ids=str)
    def test_given_nothing_when_extracted_then_an_ungrouped_day_is_0_and_a_grouped_one_no_record(
        self, labels: dict[str, Any], series: list[Any]
    ) -> None:
        data = {"xValues": self.DAYS, "series": series, **labels}
        assert self.extract(data) == [{"date": day, "value": 0} for day in self.DAYS]
        labelled = [{"date": day, "value": {"0": 0}} for day in self.DAYS]
        assert self.extract(data, labelled=True) == labelled
        assert self.extract({**data, "xValues": []}) == []
        assert self.extract({**data, "xValues": None}) == []
        assert self.extract({"series": series, **labels}) == []

    @pytest.mark.parametrize("labels", [{"seriesLabels": []}, {"seriesMeta": []}, {}])
    def test_given_groups_without_any_user_when_extracted_then_there_are_no_records(
        self, labels: dict[str, Any]
    ) -> None:
        data = {"xValues": self.DAYS, "series": [], **labels}
        assert self.extract(data, "&g=country", labelled=True) == []
        nulls = {"xValues": self.DAYS, "series": [[None, None]], "seriesLabels": ["US"]}
        assert self.extract(nulls, "&g=country", label_field="segment") == []

    @pytest.mark.parametrize(
        "form",
        [
            "%Y-%m-%d",
            "%Y-%m-%dT00:00:00",
            "%Y-%m-%d 00:00",
            "%Y-%m-%dT00:00:00.000Z",
            "%Y-%m-%dT00:00:00-08:00",
            "%b %d, %Y",
            "%b %d",
            "%b. %d %Y",
            "%B %d",
            " %d ",
        ],
    )
    def test_given_days_in_any_form_and_order_when_extracted_then_each_has_its_own_number(
        self, form: str
    ) -> None:
        """Over a leap day, and with one digit where the day has no more."""
        asked = days("2024-02-05", "2024-03-20")
        named = [date.fromisoformat(day).strftime(form) for day in asked]
        if form == " %d ":
            named = [f" {date.fromisoformat(day):%b} {int(day[8:])} ".upper() for day in asked]
        data = {"xValues": named[::-1], "series": [[*range(45)]]}
        answer = response(
            json.dumps({"data": data}).encode(),
            url="https://amplitude.com/api/2/users?start=20240205&end=20240320",
        )
        extractor = DashboardSeriesExtractor(parameters={"value_field": "value"})
        assert list(extractor.extract_records(answer)) == [
            {"date": day, "value": n} for n, day in enumerate(asked[::-1])
        ]

    @pytest.mark.parametrize(
        ("x_values", "found"),
        [
            ("2024-01-01", "data.xValues is a text where a list should be"),
            (["2024-01-01"], "1 of 2 dates are missing: 2024-01-02"),
            (["Jan 2"], "1 of 2 dates are missing: 2024-01-01"),
            ([*DAYS, "2024-01-03"], 'date 3 is "2024-01-03", which was not asked for'),
            (["2023-12-31", "2024-01-01"], 'date 1 is "2023-12-31", which was not asked for'),
            (["2024-01-01", "Jan 2, 2023"], 'date 2 is "Jan 2, 2023", which was not asked for'),
            (["2024-01-01"] * 2, "a date stands twice"),
            (["2024-01-01", "2024-01-02", "Jan 2"], "a date stands twice"),
            ([20240101, 20240102], "date 1 is a number, which was not asked for"),
            (["2024-01-01", None], "date 2 is null, which was not asked for"),
            (["2024-01-01", "20240102"], 'date 2 is "20240102", which was not asked for'),
            (["2024-01-01", "01/02/2024"], 'date 2 is "01/02/2024", which was not asked for'),
            (["2024-01-01", "Jan"], 'date 2 is "Jan", which was not asked for'),
            (["2024-01-01", "Ju 2"], 'date 2 is "Ju 2", which was not asked for'),
            (["2024-01-01", "2024-02-30"], 'date 2 is "2024-02-30", which was not asked for'),
            (
                ["2024-01-01", "2024-01-02T05:00:00"],
                'date 2 is "2024-01-02T05:00:00", which was not asked for',
            ),
        ],
        ids=str,
    )
    @pytest.mark.parametrize("series", [[[5, 6]], []], ids=["one-series", "no-series"])
    def test_given_other_days_than_asked_for_when_extracted_then_it_fails_and_says_which(
        self, x_values: Any, found: str, series: list[Any]
    ) -> None:
        self.assert_fails({"xValues": x_values, "series": series}, found)

    def test_given_a_day_without_a_year_that_two_years_have_when_extracted_then_it_fails(
        self,
    ) -> None:
        asked = days("2024-01-01", "2025-01-01")
        xs = [f"{date.fromisoformat(day):%b %d}" for day in asked]
        answer = response(
            json.dumps({"data": {"xValues": xs, "series": []}}).encode(),
            url="https://amplitude.com/api/2/users?start=20240101&end=20250101",
        )
        with pytest.raises(AirbyteTracedException) as failure:
            DashboardSeriesExtractor(parameters={"value_field": "value"}).extract_records(answer)
        assert 'date 1 is "Jan 01", which was not asked for' in told(failure)

    @pytest.mark.parametrize(
        ("interval", "end", "xs", "found"),
        [
            ("7", "20240114", ["2024-01-01", "2024-01-08"], None),
            ("7", "20240110", ["Jan 08", "Jan 01"], None),
            ("7", "20240114", ["2024-01-01"], "1 of 2 dates are missing: 2024-01-08"),
            (
                "7",
                "20240114",
                ["2023-12-31", "2024-01-07"],
                'date 1 is "2023-12-31", which was not asked for',
            ),
            (
                "7",
                "20240114",
                ["2024-01-01", "2024-01-09"],
                'date 2 is "2024-01-09", which was not asked for',
            ),
            ("30", "20240131", ["2024-01-01"], None),
            ("30", "20240115", ["2024-01-01T00:00:00"], None),
            ("30", "20240131", ["2024-01-31"], 'date 1 is "2024-01-31", which was not asked for'),
            (
                "30",
                "20240131",
                ["2024-01-01", "2024-02-01"],
                'date 2 is "2024-02-01", which was not asked for',
            ),
        ],
    )
    def test_given_weeks_or_months_when_extracted_then_their_first_days_are_expected(
        self, interval: str, end: str, xs: list[str], found: str | None
    ) -> None:
        answer = response(
            json.dumps({"data": {"xValues": xs, "series": [[*range(len(xs))]]}}).encode(),
            url=f"https://amplitude.com/api/2/users?start=20240101&end={end}&i={interval}",
        )
        extractor = DashboardSeriesExtractor(parameters={"value_field": "value"})
        if found is None:
            by_date = {r["date"]: r["value"] for r in extractor.extract_records(answer)}
            firsts = ["2024-01-01", "2024-01-08"][: len(xs)]
            in_order = sorted(range(len(xs)), key=lambda n: xs[n])
            assert sorted(by_date.items()) == [*zip(firsts, in_order, strict=True)]
            return
        with pytest.raises(AirbyteTracedException) as failure:
            extractor.extract_records(answer)
        assert told(failure) == unreadable(f"/api/2/users for 20240101 to {end}", found)

    def test_given_an_x_field_when_extracted_then_any_texts_or_numbers_but_two_alike_will_do(
        self,
    ) -> None:
        def extract(xs: list[Any]) -> list[Any]:
            return self.extract({"xValues": xs, "series": [[5] * len(xs)]}, x_field="bucket")

        assert extract(["0s-60s", "", 7, 1.5, True]) == [
            {"bucket": bucket, "value": 5} for bucket in ("0s-60s", "", "7", "1.5", "true")
        ]
        assert extract([]) == []
        for xs, found in (
            (["a", "a"], "an x value stands twice"),
            ([7, "7"], "an x value stands twice"),
            (["a", None], "x value 2 is null"),
            ([["a"]], "x value 1 is a list"),
            ([{"a": 1}], "x value 1 is an object"),
        ):
            data = {"xValues": xs, "series": [[5] * len(xs)]}
            self.assert_fails(data, found, x_field="bucket")

    def test_given_a_redirect_when_extracted_then_the_days_are_those_first_asked_for(self) -> None:
        body = json.dumps({"data": {"xValues": self.DAYS, "series": [[7, 8]]}}).encode()
        answer = response(body, url="https://amplitude.com/elsewhere")
        url = "https://amplitude.com/api/2/users?start=20240101&end=20240102"
        answer.history = [response(b"", status=302, url=url)]
        extractor = DashboardSeriesExtractor(parameters={"value_field": "value"})
        assert [record["value"] for record in extractor.extract_records(answer)] == [7, 8]

    @pytest.mark.parametrize(
        ("labels", "found"),
        [
            ({"seriesLabels": "ab"}, "seriesLabels is a text where a list should be"),
            ({"seriesLabels": ""}, "seriesLabels is an empty text where a list should be"),
            ({"seriesLabels": {"a": 1}}, "seriesLabels is an object where a list should be"),
            ({"seriesMeta": "ab"}, "seriesMeta is a text where a list should be"),
            ({"seriesLabels": ["a", None]}, "label 2 is null, not the text of a group"),
            ({"seriesLabels": ["a", True]}, "label 2 is a boolean, not the text of a group"),
            ({"seriesLabels": [0, "a"]}, "label 1 is a number, not the text of a group"),
            ({"seriesLabels": [[], "b"]}, "label 1 is an empty list, not the text of a group"),
            ({"seriesLabels": [[0], "b"]}, "label 1 is a list, not the text of a group"),
            ({"seriesLabels": [[0, None], "b"]}, "label 1 is a list, not the text of a group"),
            ({"seriesLabels": [[0, 0, "a"], "b"]}, "label 1 is a list, not the text of a group"),
            ({"seriesLabels": [["a", 0], "b"]}, "label 1 is a list, not the text of a group"),
            ({"seriesMeta": [{"segmentIndex": 0}] * 2}, "label 1 is an object, not the text of a "),
            ({"seriesLabels": ["x", "x"]}, "2 series, two of which have the same label"),
            (
                {"seriesLabels": [["x", "y"], "x; y"]},
                "2 series, two of which have the same label",
            ),
            ({"seriesLabels": ["x"]}, "2 series but 1 seriesLabels"),
            ({"seriesMeta": ["x", "y", "z"]}, "2 series but 3 seriesMeta"),
            ({}, "2 series but no labels"),
        ],
    )
    def test_given_groups_that_are_not_named_when_extracted_then_it_fails_and_says_which(
        self, labels: dict[str, Any], found: str
    ) -> None:
        data = {"xValues": self.DAYS, "series": [[5, 6], [7, 8]], **labels}
        with pytest.raises(AirbyteTracedException) as failure:
            self.extract(data, "&g=country", labelled=True)
        begin, _, _ = unreadable("/api/2/users for 20240101 to 20240102", found).partition(". No")
        assert told(failure).startswith(begin)

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
            ([[5, 99.5]], "a value of series 1 is not 0, 1, 2 or so on, as a count should be"),
            ([[-1, 5]], "a value of series 1 is not 0, 1, 2 or so on, as a count should be"),
            ([[1e300, 5]], "a value of series 1 is not 0, 1, 2 or so on, as a count should be"),
            ([[5, 6], [7, 8]], "2 series, two of which have the same label"),
            ([[5, 6], [None, None]], "2 series, two of which have the same label"),
        ],
        ids=str,
    )
    def test_given_series_that_are_none_when_extracted_then_it_fails_and_says_where(
        self, series: Any, found: str
    ) -> None:
        data = {"xValues": self.DAYS, "series": series}
        self.assert_fails({k: v for k, v in data.items() if v is not ...}, found)

    def test_given_counts_as_floats_when_extracted_then_they_are_whole_numbers(self) -> None:
        found = self.extract({"xValues": self.DAYS, "series": [[99.0, 0.0]]})
        assert [(type(r["value"]), r["value"]) for r in found] == [(int, 99), (int, 0)]

    def test_given_averages_when_extracted_then_they_come_as_they_are(self) -> None:
        found = self.extract({"xValues": self.DAYS, "series": [[99.5, 0]]}, averages=True)
        assert [r["value"] for r in found] == [99.5, 0]

    @pytest.mark.parametrize("xs", [{}, {"xValues": None}, {"xValues": []}], ids=str)
    def test_given_numbers_without_days_when_extracted_then_it_fails(
        self, xs: dict[str, Any]
    ) -> None:
        self.assert_fails({"series": [[5, 6]], **xs}, "0 x values but 2 values in series 1")

    @pytest.mark.parametrize("data", [None, [], [[5, 6]], {}, "text", 5], ids=str)
    def test_given_no_data_at_all_when_extracted_then_it_fails(self, data: Any) -> None:
        self.assert_fails(data, "data.series is missing where a list should be")


def retained(*counts: float) -> list[dict[str, Any]]:
    """Cells as recorded: the size, day 0, day 1 and so on, the last two being unfinished."""
    last = len(counts) - 2
    ids = {"retainedSetId": None, "dropoffSetId": None}
    return [
        {"count": users, "outof": 9, "incomplete": number >= last, **ids}
        for number, users in enumerate(counts)
    ]


def earned(*revenue: float, **more: Any) -> dict[str, Any]:
    """Cells as recorded: of all days up to the 180th, those to come being 0."""
    revenues = {f"r{n}d": revenue[n - 1] if n <= len(revenue) else 0 for n in range(1, 181)}
    new = {"r1new": 1.5, "r7new": 0, "r180new": 0, "rtotal": 9, "rtotalnew": 9}
    return {**revenues, **new, "paid": 1, "count": 3, "total_amount": 4, **more}


class TestCohorts:
    """Of retention and lifetime value alike; all answers are to the window of 2023-12-31 to
    2024-01-02, and it is noon of 2024-01-03 in UTC."""

    @pytest.fixture(autouse=True)
    def _frozen_time(self) -> Iterator[None]:
        with freezegun.freeze_time("2024-01-03T12:00:00Z"):
            yield

    @staticmethod
    def answer(series: Any, path: str = "retention", query: str = "") -> requests.Response:
        window = "start=20231231&end=20240102"
        url = f"https://amplitude.com/api/2/{path}?{window}{query}"
        return response(json.dumps({"data": {"series": series}}).encode(), url=url)

    def retention(self, values: Any, query: str = "") -> list[Any]:
        answer = self.answer([{"values": values}], query=query)
        return list(RetentionExtractor().extract_records(answer))

    def revenue(self, values: Any) -> list[Any]:
        answer = self.answer([{"values": values}], "revenue/ltv")
        return list(LifetimeValueExtractor().extract_records(answer))

    def assert_fails(self, series: Any, found: str, path: str = "retention") -> None:
        extractor = {"retention": RetentionExtractor, "revenue/ltv": LifetimeValueExtractor}[path]()
        with pytest.raises(AirbyteTracedException) as failure:
            extractor.extract_records(self.answer(series, path))
        assert told(failure) == unreadable(f"/api/2/{path} for 20231231 to 20240102", found)

    @pytest.mark.parametrize(
        ("query", "last"),
        [("", 30), ("&rb=[[0,1],[1,7],[7,30]]", 2)],
        ids=["days", "brackets"],
    )
    def test_given_cells_up_to_today_when_extracted_then_those_read_again_later_are_records(
        self, query: str, last: int
    ) -> None:
        found = self.retention({"2024-01-01": retained(*range(100))}, query)
        expected = [(number, number + 1) for number in range(last + 1)]
        assert [(r["day_number"], r["users"]) for r in found] == expected

    def test_given_cells_without_what_is_not_needed_when_extracted_then_they_are_read(
        self,
    ) -> None:
        cells: list[Any] = [
            None,
            {"count": 5, "outof": 9},
            {"count": None},
            {"count": 4, "incomplete": 1},
        ]
        assert self.retention({"Jan 1": cells}) == [
            {
                "cohort_date": "2024-01-01",
                "day_number": number,
                "users": users,
                "cohort_size": size,
                "is_complete": None,
            }
            for number, users, size in ((0, 5, 9), (2, 4, None))
        ]

    @pytest.mark.parametrize("query", ["", "&rm=rolling"])
    def test_given_a_cohort_when_extracted_then_it_has_a_cell_for_each_day_of_the_window(
        self, query: str
    ) -> None:
        """Of a day that has begun somewhere else only, there may be none."""
        with freezegun.freeze_time("2024-01-02T12:00:00Z"):
            found = self.retention({"Jan 1": retained(9, 8)}, query)
            with pytest.raises(AirbyteTracedException) as failure:
                self.retention({"Dec 31": retained(9, 8)}, query)
            revenue = self.revenue({"Dec 31": {"r1d": 1, "r2d": 2}})
        assert [record["users"] for record in found] == [8]
        assert "the cohort of Dec 31 has 2 cells" in told(failure)
        assert [record["revenue"] for record in revenue] == [1, 2]

    def test_given_brackets_that_have_not_begun_when_extracted_then_no_cell_is_missed(self) -> None:
        found = self.retention({"Dec 31": retained(9, 8)}, "&rb=[[0,1],[1,7]]")
        assert [record["users"] for record in found] == [8]

    def test_given_nothing_but_nulls_and_no_users_when_extracted_then_there_are_no_records(
        self,
    ) -> None:
        assert self.retention({"Jan 2": [{"count": 0}, {"count": None}]}) == []
        assert self.revenue({"Jan 2": {"count": 0, "r1d": None}}) == []

    def test_given_counts_as_floats_when_extracted_then_they_are_whole_numbers(self) -> None:
        [cell] = self.retention({"Jan 2": [{"count": 9.0}, {"count": 8.0, "outof": 9.0}]})
        [cash] = self.revenue({"Jan 2": {"r1d": -2.5, "count": 9.0, "paid": 1.0}})
        counts = cell["users"], cell["cohort_size"], cash["users"], cash["paying_users"]
        assert [(type(count), count) for count in counts] == [(int, n) for n in (8, 9, 9, 1)]
        assert cash["revenue"] == -2.5

    @pytest.mark.parametrize("name", ["Jan 1", "Jan 01", "Jan 01, 2024", "2024-01-01"])
    def test_given_a_date_in_any_form_when_extracted_then_it_is_that_day(self, name: str) -> None:
        found = [*self.retention({name: retained(9, 8, 7)}), *self.revenue({name: earned(5)})]
        assert {record["cohort_date"] for record in found} == {"2024-01-01"}

    @pytest.mark.parametrize("extractor", [RetentionExtractor, LifetimeValueExtractor])
    @pytest.mark.parametrize("series", [[], [{"dates": [], "values": {}}], [{"values": {}}]])
    def test_given_no_cohorts_when_extracted_then_there_are_no_records(
        self, series: list[Any], extractor: type[RetentionExtractor]
    ) -> None:
        assert list(extractor().extract_records(self.answer(series))) == []

    @pytest.mark.parametrize("path", ["retention", "revenue/ltv"])
    @pytest.mark.parametrize(
        ("series", "found"),
        [
            (None, "data.series is null where a list should be"),
            ([{"values": {}}] * 2, "2 series where one was asked for"),
            ([[]], "values is missing where an object should be"),
            ([{"dates": []}], "values is missing where an object should be"),
            ([{"values": []}], "values is an empty list where an object should be"),
            ([{"values": {"Jan 3": []}}], '"Jan 3" was not asked for'),
            ([{"values": {"Feb 30": []}}], '"Feb 30" was not asked for'),
            ([{"values": {"Jan 1, 2023": []}}], '"Jan 1, 2023" was not asked for'),
            ([{"values": {"Jan 1": [], "Jan 01": []}}], "a date stands twice"),
            (
                [{"dates": ["Jan 2", "Jan 1"], "values": {}}],
                "2 dates have no values: 2024-01-01",
            ),
        ],
        ids=str,
    )
    def test_given_series_of_another_form_when_extracted_then_it_fails_and_says_which(
        self, series: Any, found: str, path: str
    ) -> None:
        self.assert_fails(series, found, path)

    @pytest.mark.parametrize(
        ("path", "cells", "found"),
        [
            ("retention", None, "the cohort of Jan 1 is null where a list should be"),
            ("retention", {"r1d": 5}, "the cohort of Jan 1 is an object where a list should be"),
            ("retention", [], "the cohort of Jan 1 has 0 cells"),
            ("retention", retained(9), "the cohort of Jan 1 has 1 cells"),
            ("retention", retained(9, 9), "the cohort of Jan 1 has 2 cells"),
            ("retention", [{}, 5, {}], "cell 1 of the cohort of Jan 1 is a number"),
            ("retention", [{}, [], {}], "cell 1 of the cohort of Jan 1 is an empty list"),
            ("retention", [*retained(9, 9), {}], "cell 2 of the cohort of Jan 1 is without count"),
            (
                "retention",
                [*retained(9, 9), {"outof": 9}],
                "cell 2 of the cohort of Jan 1 is without count",
            ),
            ("retention", [{}, {"count": "1"}, {}], "count of the cohort of Jan 1 is a text"),
            ("retention", [{}, {"count": True}, {}], "count of the cohort of Jan 1 is a boolean"),
            (
                "retention",
                [{}, {"count": 1, "outof": []}, {}],
                "outof of the cohort of Jan 1 is an empty list",
            ),
            (
                "retention",
                retained(9, 99.5, 9),
                "count of the cohort of Jan 1 is not 0, 1, 2 or so on, as a count should be",
            ),
            (
                "retention",
                [{"count": 9}, {"count": None}, {"count": None}],
                "the cohort of Jan 1 has users, but null in all cells",
            ),
            ("revenue/ltv", {"count": 3, "r1d": 5}, "the cohort of Jan 1 has no r2d"),
            (
                "revenue/ltv",
                {"count": 3, "r1d": None, "r2d": None},
                "the cohort of Jan 1 has users, but null on all days",
            ),
            (
                "revenue/ltv",
                earned(1, count=-3),
                "count of the cohort of Jan 1 is not 0, 1, 2 or so on, as a count should be",
            ),
            ("revenue/ltv", None, "the cohort of Jan 1 has no r1d"),
            ("revenue/ltv", [5], "the cohort of Jan 1 has no r1d"),
            ("revenue/ltv", {"count": 3, "r1": 5}, "the cohort of Jan 1 has no r1d"),
            ("revenue/ltv", earned(r1d="5"), "r1d of the cohort of Jan 1 is a text"),
            ("revenue/ltv", earned(r90d={}), "r90d of the cohort of Jan 1 is an empty object"),
            ("revenue/ltv", earned(paid=True), "paid of the cohort of Jan 1 is a boolean"),
        ],
    )
    def test_given_cells_of_another_form_when_extracted_then_their_cohort_is_named(
        self, path: str, cells: Any, found: str
    ) -> None:
        sound = {"retention": retained(9, 9), "revenue/ltv": earned(1)}[path]
        self.assert_fails([{"values": {"Jan 2": sound, "Jan 1": cells}}], found, path)


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
        extractor = ListExtractor(parameters={"primary_key": "value"})
        with pytest.raises(AirbyteTracedException) as failure:
            extractor.extract_records(response(body, url="https://amplitude.com/api/2/events/list"))
        assert told(failure) == unreadable("/api/2/events/list", "element 2 has no value")

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
        assert told(failure) == unreadable("/api/3/cohorts", found)
        assert failure.value.internal_message == failure.value.message
        assert failure.value.failure_type is FailureType.system_error


class TestCsvRows:
    """Over a socket: what a body of a test double does at its end is not what a connection does."""

    ROWS = b"SKU,Text\r\n" + b"".join(b"%d,%s\r\n" % (n, b"x" * 90) for n in range(1, 3001))

    @staticmethod
    def rows(answer: requests.Response) -> Iterator[Any]:
        """Those below the headings, which are a row for the filter."""
        return islice(CsvRowsExtractor().extract_records(answer), 1, None)

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
            rows = list(self.rows(answer))
        assert [row["row_number"] for row in rows] == list(range(1, 3001))
        assert rows[-1]["row"] == {"SKU": "3000", "Text": "x" * 90}

    @pytest.mark.parametrize("is_zipped", [False, True])
    def test_given_chunks_when_extracted_then_all_rows_come_and_then_the_end(
        self, is_zipped: bool
    ) -> None:
        fields = ["Transfer-Encoding: chunked", *["Content-Encoding: gzip"] * is_zipped]
        body = self.chunked(gzip.compress(self.ROWS) if is_zipped else self.ROWS)
        with self.served(self.head(*fields), body + b"0\r\n\r\n") as answer:
            rows = list(self.rows(answer))
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
            rows = list(self.rows(answer))
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
            rows = [row["row"] for row in list(self.rows(answer))]
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
            rows.extend(self.rows(answer))
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
            first = next(self.rows(answer))
        assert first == {"row_number": 1, "row": {"SKU": "1", "Text": "x" * 90}}


class _Endless(io.RawIOBase):
    """A body that begins with ``first`` and goes on with ``rest`` for ever."""

    def __init__(self, first: bytes, rest: bytes) -> None:
        self._next, self._rest, self.served = first, rest, 0

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        part, self._next = self._next, self._rest * (size // len(self._rest))
        self.served += len(part)
        return part

    read1 = read


class TestLongRows:
    """Of both kinds of CSVs: tables as they arrive, members out of a file."""

    URL = "https://amplitude.com/api/3/lookup_table/a/csv"
    EXTRACTORS = (CsvRowsExtractor, CohortMembersExtractor)
    HEADINGS = b"amplitude_id,user_id,bio\n"

    @staticmethod
    def is_row(record: dict[str, Any]) -> bool:
        return record.get("row_number") != 0  # the headings of a table

    def extract(self, extractor: Any, answer: requests.Response) -> list[Any]:
        return [row for row in extractor().extract_records(answer) if self.is_row(row)]

    @pytest.mark.parametrize("extractor", EXTRACTORS)
    @pytest.mark.parametrize("text", ["x" * 131_073, "ä\n" * 3_000_000], ids=["line", "lines"])
    def test_given_a_cell_that_is_longer_than_csv_allows_when_extracted_then_it_is_whole(
        self, extractor: Any, text: str
    ) -> None:
        body = self.HEADINGS + f'1,a,"{text}"\n2,b,c\n'.encode()
        found = self.extract(extractor, response(body, url=self.URL))
        cells = [row.get("row", row.get("properties"))["bio"] for row in found]
        assert cells == [text, "c"]

    @pytest.mark.parametrize("extractor", EXTRACTORS)
    def test_given_a_nul_when_extracted_then_it_stays(self, extractor: Any) -> None:
        body = self.HEADINGS + b'1,a\0b,"c\0\n\0"\n2,"d",e\n'
        found = self.extract(extractor, response(body, url=self.URL))
        cells = [row.get("row", row) for row in found]
        bios = [row.get("row", row.get("properties"))["bio"] for row in found]
        assert [cell["user_id"] for cell in cells] == ["a\0b", "d"]
        assert bios == ["c\0\n\0", "e"]

    @pytest.mark.parametrize("extractor", EXTRACTORS)
    @pytest.mark.parametrize("rest", [b"x", b"xxx\n"], ids=["line", "lines"])
    def test_given_a_row_without_an_end_when_extracted_then_it_is_refused_while_it_is_read(
        self, extractor: Any, rest: bytes
    ) -> None:
        answer = response(b"", url=self.URL)
        endless = _Endless(self.HEADINGS + b'1,a,b\n2,b,"', rest)
        answer.raw = endless
        found: list[Any] = []
        with pytest.raises(AirbyteTracedException) as failure:
            found.extend(row for row in extractor().extract_records(answer) if self.is_row(row))
        assert failure.value.message == (
            "What follows row 1 of /api/3/lookup_table/a/csv is a row of more than 16,777,216 "
            "characters."
        )
        assert len(found) == 1
        assert endless.served < 18_000_000


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
