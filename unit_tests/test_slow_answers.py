"""Answers that drip are cut off like broken connections, and asked for again."""

import io
import json
import random
from collections.abc import Iterator
from typing import Any

import freezegun
import pytest
import requests_mock
from airbyte_cdk.models import SyncMode

from unit_tests.helpers import archive, config, json_lines, logged, read_stream, records

HOST = "https://amplitude.com"
COHORTS = json.dumps({"cohorts": [{"id": f"c{n}"} for n in range(99)]}).encode()
EVENT = {"uuid": "a", "server_upload_time": "2024-01-03 20:00:00.000000"}


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    with freezegun.freeze_time("2024-01-03T23:30:00Z") as clock:
        monkeypatch.setattr("time.sleep", lambda seconds: clock.tick(seconds + 0.001))
        yield clock


class Dripping(io.BytesIO):
    """A body of which some bytes come every ten seconds."""

    def __init__(self, body: bytes, clock: Any, size: int = 1) -> None:
        super().__init__(body)
        self._clock, self._size = clock, size

    def read1(self, size: int | None = -1, /) -> bytes:
        self._clock.tick(10)
        return super().read1(min(size or self._size, self._size))


def exported(size: int = 0) -> bytes:
    padding = random.Random(1).randbytes(size).hex()
    return archive({"1/1_2024-01-03_20#0.json.gz": json_lines([{**EVENT, "p": padding}])})


@pytest.mark.parametrize("status", [200, 503])
def test_given_json_that_drips_when_read_then_it_is_cut_off_after_an_hour_and_asked_for_again(
    clock: Any, status: int
) -> None:
    with requests_mock.Mocker() as http:
        drip = {"body": Dripping(COHORTS, clock), "status_code": status}
        http.get(f"{HOST}/api/3/cohorts", [drip, {"content": COHORTS}])
        output = read_stream("cohorts", config(), sync_mode=SyncMode.full_refresh)
    assert output.errors == []
    assert len(records(output)) == 99
    assert len(http.request_history) == 2
    assert any("not all of it had arrived after 3600 seconds" in line for line in logged(output))


def test_given_json_that_takes_a_while_when_read_then_it_is_read(clock: Any) -> None:
    with requests_mock.Mocker() as http:
        http.get(f"{HOST}/api/3/cohorts", body=Dripping(COHORTS, clock, len(COHORTS) // 200))
        output = read_stream("cohorts", config(), sync_mode=SyncMode.full_refresh)
    assert output.errors == []
    assert len(records(output)) == 99
    assert len(http.request_history) == 1


def test_given_an_archive_that_drips_when_read_then_it_is_cut_off_and_asked_for_again(
    clock: Any,
) -> None:
    settings = config(start_date="2024-01-03T20:00:00Z")
    with requests_mock.Mocker() as http:
        drip = {"body": Dripping(exported(), clock)}
        http.get(f"{HOST}/api/2/export", [drip, {"content": exported()}])
        output = read_stream("events", settings)
    assert output.errors == []
    assert [record["uuid"] for record in records(output)] == ["a"]
    assert len(http.request_history) == 2
    said = "broke or stayed silent in the export of 20240103T20 to 20240103T20 (Chunked"
    assert any(said in line and "bytes in 310 seconds" in line for line in logged(output))


def test_given_an_archive_that_comes_slowly_when_read_then_it_is_read(clock: Any) -> None:
    body = exported(3_000_000)
    settings = config(start_date="2024-01-03T20:00:00Z")
    with requests_mock.Mocker() as http:
        http.get(f"{HOST}/api/2/export", body=Dripping(body, clock, 40_000))
        output = read_stream("events", settings)
    assert output.errors == []
    assert [record["uuid"] for record in records(output)] == ["a"]
    assert len(http.request_history) == 1
