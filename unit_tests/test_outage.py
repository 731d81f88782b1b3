"""Nobody answers: a stream ends with one error after three requests in a row that were given up."""

import io
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import freezegun
import pytest
import requests
import requests_mock
from airbyte_cdk.models import AirbyteStreamStatus, FailureType, SyncMode
from airbyte_cdk.test.catalog_builder import CatalogBuilder
from airbyte_cdk.test.entrypoint_wrapper import EntrypointOutput, read
from airbyte_cdk.test.models.outcome import ExpectedOutcome

from source_amplitude import SourceAmplitude
from source_amplitude.delivery import BatchingSource
from unit_tests.helpers import archive, config, final_state, json_lines, records

HOST = "https://amplitude.com"
BUSY = {"error": {"http_code": 429, "message": "Unspecified Error", "metadata": {"details": "No"}}}


def failing(error: type[requests.RequestException]) -> Any:
    def fail(request: Any, _: object) -> str:
        raise error("no answer", request=request._request)

    return fail


OUTAGES: dict[str, dict[str, Any]] = {
    "rate": {"status_code": 429, "json": BUSY},
    "long-wait": {"status_code": 429, "json": BUSY, "headers": {"Retry-After": "7200"}},
    "waits": {"status_code": 429, "json": BUSY, "headers": {"Retry-After": "3000"}},
    "server": {"status_code": 503, "json": {"message": "Down"}},
    "page": {"text": "<html>Sign in</html>", "headers": {"Content-Type": "text/html"}},
    "silence": {"text": failing(requests.ReadTimeout)},
    "connection": {"text": failing(requests.ConnectTimeout)},
}
REPORTS: list[dict[str, Any]] = [
    {"name": "shares", "query": {"kind": "composition", "property": "country"}},
    {"name": "steps", "query": {"kind": "funnel", "events": ["A", "B"]}},
]
STREAMS = [
    *("active_users", "daily_user_counts", "weekly_user_counts", "average_session_length"),
    *("session_lengths", "event_counts", "retention", "revenue_ltv", "raw_events_files"),
    *("session_replays", "lookup_table_rows", "deletion_jobs", "report_shares", "report_steps"),
]

pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


@pytest.fixture(autouse=True)
def _in_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The clock goes on by what is slept only, and there is a staging folder."""
    monkeypatch.setenv("AIRBYTE_STAGING_DIRECTORY", str(tmp_path))
    with freezegun.freeze_time("2024-01-03T23:30:00Z") as clock:
        monkeypatch.setattr("time.sleep", lambda seconds: clock.tick(seconds + 0.001))
        yield


def sync(
    stream: str, settings: Mapping[str, Any], in_package: bool = True, *beside: str
) -> EntrypointOutput:
    catalog = CatalogBuilder()
    for name in (stream, *beside):
        catalog = catalog.with_stream(name, SyncMode.incremental)
    source = SourceAmplitude(catalog=catalog.build(), config=settings)
    if in_package:
        source._concurrent_source.__class__ = BatchingSource
    expected = ExpectedOutcome.EXPECT_EXCEPTION
    return read(source, settings, catalog.build(), expected_outcome=expected)


def errors_of(output: EntrypointOutput, stream: str) -> list[tuple[str, FailureType]]:
    """Those of a stream: the CDK's summary at the end is of none."""
    errors = [(m.trace.error, m.trace.error.stream_descriptor) for m in output.errors]  # type: ignore[union-attr]
    return [(e.message, e.failure_type) for e, of in errors if of and of.name == stream]


def windows(http: requests_mock.Mocker, path: str) -> list[str]:
    """The first days of the windows that were asked for, in order and once each."""
    asked = [r for r in http.request_history if urlsplit(r.url).path == path]
    starts = [dict(parse_qsl(urlsplit(r.url).query))["start"][:8] for r in asked]
    return list(dict.fromkeys(starts))


def an_event(request: Any, _: object) -> bytes:
    start = request.qs["start"][0]
    return exported(f"{start[:4]}-{start[4:6]}-{start[6:8]}")


def one_value(request: Any, _: object) -> Any:
    start = request.qs["start"][0]
    day = f"{start[:4]}-{start[4:6]}-{start[6:8]}"
    return {"data": {"xValues": [day], "series": [[7]]}}


def exported(day: str) -> bytes:
    event = {"uuid": day, "server_upload_time": f"{day} 07:00:00.000000", "event_type": "A"}
    return archive({"1/1_2024-01-01_7#0.json.gz": json_lines([event])})


class TestEvents:
    PATH = "/api/2/export"
    SETTINGS = config(start_date="2023-12-01T00:00:00Z", num_workers=1)

    @pytest.mark.parametrize("in_package", [True, False])
    @pytest.mark.parametrize("kind", OUTAGES)
    def test_given_no_answers_from_a_window_on_when_read_then_three_windows_are_tried_and_one_said(
        self, kind: str, in_package: bool
    ) -> None:
        with requests_mock.Mocker() as http:
            http.get(f"{HOST}{self.PATH}", **OUTAGES[kind])
            day = f"{HOST}{self.PATH}?start=20231201T00&end=20231201T23"
            http.get(day, content=exported("2023-12-01"))
            output = sync("events", self.SETTINGS, in_package)
        assert [record["uuid"] for record in records(output)] == ["2023-12-01"]
        assert final_state(output) == {"server_upload_time": "20231201T07"}
        asked = windows(http, self.PATH)
        assert asked == ["20231201", "20231202", "20231203", "20231204"]
        if not in_package:
            return
        messages = errors_of(output, "events")
        message, failure_type = messages[-1]
        assert len(messages) == (4 if kind == "long-wait" else 1)
        assert failure_type is FailureType.transient_error
        assert message.startswith(
            "3 requests in a row were given up after their retries, from /api/2/export for "
            "20231202T00 to 20231202T"
        )
        assert message.endswith(
            "So the stream ends here, and nothing more of it is asked for. What was read is kept: "
            "run it again when Amplitude answers, and it goes on before the gap."
        )
        assert output.get_stream_statuses("events")[-1] is AirbyteStreamStatus.INCOMPLETE

    def test_given_two_failures_between_answers_when_read_then_all_is_asked_for_and_each_is_said(
        self,
    ) -> None:
        with requests_mock.Mocker() as http:
            http.get(f"{HOST}{self.PATH}", content=an_event)
            for day in ("20231202", "20231203", "20231206", "20231207"):
                window = f"{HOST}{self.PATH}?start={day}T00&end={day}T23"
                http.get(window, **OUTAGES["server"])
            output = sync("events", self.SETTINGS)
        assert len(windows(http, self.PATH)) == 34
        assert len(errors_of(output, "events")) == 4
        assert final_state(output) == {"server_upload_time": "20231201T07"}
        assert output.get_stream_statuses("events")[-1] is AirbyteStreamStatus.INCOMPLETE

    def test_given_failures_before_the_outage_when_read_then_they_are_said_as_well(self) -> None:
        with requests_mock.Mocker() as http:
            http.get(f"{HOST}{self.PATH}", **OUTAGES["server"])
            for day in ("20231201", "20231203"):
                window = f"{HOST}{self.PATH}?start={day}T00&end={day}T23"
                http.get(window, content=exported(f"2023-12-{day[-2:]}"))
            output = sync("events", self.SETTINGS)
        messages = [message for message, _ in errors_of(output, "events")]
        assert len(messages) == 2
        assert "from /api/2/export for 20231204T00 to 20231204T23 on" in messages[0]
        assert "Amplitude answered HTTP 503 (Down)" in messages[1]
        assert windows(http, self.PATH)[-1] == "20231206"

    def test_given_an_outage_of_one_stream_when_read_then_the_other_is_read_to_its_end(
        self,
    ) -> None:
        with requests_mock.Mocker() as http:
            http.get(f"{HOST}{self.PATH}", **OUTAGES["server"])
            http.get(f"{HOST}/api/2/sessions/average", json=one_value)
            output = sync("events", self.SETTINGS, True, "average_session_length")
        assert len(errors_of(output, "events")) == 1
        assert errors_of(output, "average_session_length") == []
        assert len(records(output)) == 34

    def test_given_damage_of_its_own_in_many_windows_when_read_then_all_is_asked_for(self) -> None:
        body = archive({"m": json_lines([{"uuid": "a"}])})
        damaged = body.replace(b"\x1f\x8b\x08", b"\x1f\x8b\x09")
        settings = {**self.SETTINGS, "start_date": "2024-01-03T10:00:00Z", "request_time_range": 1}
        with requests_mock.Mocker() as http:
            http.get(f"{HOST}{self.PATH}", content=_with_its_checksum(damaged))
            output = sync("events", settings)
        # The last window has two hours, of which the first is asked for when it can't be unpacked.
        assert len(http.request_history) == 9 * 6 + 1 + 6
        assert all("can't be unpacked" in m for m, _ in errors_of(output, "events"))


@pytest.mark.parametrize("workers", [1, 2, 5])
@pytest.mark.parametrize("stream", STREAMS)
def test_given_no_answers_to_a_stream_when_read_then_it_ends_soon_and_with_one_error(
    stream: str, workers: int
) -> None:
    year = 2023 if stream == "raw_events_files" else 2020
    settings = config(start_date=f"{year}-09-01T00:00:00Z", num_workers=workers, reports=REPORTS)
    with requests_mock.Mocker() as http:
        http.get(requests_mock.ANY, **OUTAGES["server"])
        http.get(
            f"{HOST}/api/2/events/list", json={"data": [{"id": n, "value": f"E{n}"} for n in "abc"]}
        )
        http.get(
            "https://data-api.amplitude.com/api/3/lookup_table",
            json=[{"name": f"t{n}"} for n in range(9)],
        )
        output = sync(stream, settings)
    asked = [r.url for r in http.request_history if "list" not in r.url]
    asked = [url for url in asked if not url.endswith("/lookup_table")]
    # Those that were under way when the third was given up are tried to their end.
    assert len(asked) <= 6 * (3 + workers - 1)
    [(message, failure_type)] = errors_of(output, stream)
    assert failure_type is FailureType.transient_error
    assert message.startswith("3 requests in a row were given up")
    assert output.get_stream_statuses(stream)[-1] is AirbyteStreamStatus.INCOMPLETE
    assert records(output) == []


def _with_its_checksum(body: bytes) -> bytes:
    """A zip whose only member was altered, with the checksum of what it holds now."""
    with zipfile.ZipFile(io.BytesIO(body)) as zipped:
        [member] = zipped.infolist()
        start = member.header_offset + 30 + len(member.filename)
        old = member.CRC.to_bytes(4, "little")
        new = zlib.crc32(body[start : start + member.compress_size]).to_bytes(4, "little")
    return body.replace(old, new)
