"""Events in batches: the same output as one by one, within a bound in bytes."""

import io
import json
import sys
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import freezegun
import pytest
import requests_mock
from airbyte_cdk import entrypoint as entrypoint_module
from airbyte_cdk.entrypoint import AirbyteEntrypoint
from airbyte_cdk.models import SyncMode
from airbyte_cdk.test.catalog_builder import CatalogBuilder
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from jsonschema import Draft7Validator

from source_amplitude import SourceAmplitude, components, delivery
from source_amplitude.delivery import (
    BatchingEntrypoint,
    BatchingSource,
    Room,
    components_in_batches,
)
from unit_tests.helpers import archive, config, json_lines, without_beginning
from unit_tests.test_components import MEMBER, response
from unit_tests.test_manifest import SCHEMAS
from unit_tests.test_properties import events as any_events

FIELDS = config(
    start_date="2024-01-03T00:00:00Z", request_time_range=10, num_workers=1, project_name="Shop"
)
WINDOWS = [("20240103T00", "20240103T09"), ("20240103T10", "20240103T20")]
EMPTY = None


def read(
    bodies: Sequence[bytes | None],
    folder: Path,
    in_batches: bool,
    caplog: pytest.LogCaptureFixture,
    **more: Any,
) -> tuple[list[Any], list[str]]:
    """What a sync prints, without its times, and what it logs, without durations."""
    fields = {**FIELDS, **more}
    out = io.TextIOWrapper(io.BytesIO(), encoding="utf-8")
    catalog = CatalogBuilder().with_stream("events", SyncMode.incremental).build()
    (folder / "config.json").write_text(json.dumps(fields))
    (folder / "catalog.json").write_text(
        '{"streams":[{"stream":{"name":"events","json_schema":{},"supported_sync_modes":'
        '["incremental"]},"sync_mode":"incremental","destination_sync_mode":"append"}]}'
    )
    arguments = ["read", *("--config", str(folder / "config.json"))]
    arguments += ["--catalog", str(folder / "catalog.json")]
    caplog.clear()
    entrypoint_module._HAS_LOGGED_FOR_SERIALIZATION_ERROR = False  # it does so once per process
    with pytest.MonkeyPatch.context() as patch, requests_mock.Mocker() as http:
        module = components_in_batches() if in_batches else components
        patch.setitem(sys.modules, "source_declarative_manifest.components", module)
        patch.setattr(sys, "__stdout__", out)
        for (start, end), body in zip(WINDOWS, bodies, strict=True):
            url = f"https://amplitude.com/api/2/export?start={start}&end={end}"
            status = 404 if body is EMPTY else 200
            http.get(url, content=body or b"Raw data files were not found.", status_code=status)
        source = SourceAmplitude(catalog=catalog, config=fields)
        if in_batches:
            source._concurrent_source.__class__ = BatchingSource
        entrypoint = (BatchingEntrypoint if in_batches else AirbyteEntrypoint)(source)
        try:
            for message in entrypoint.run(AirbyteEntrypoint.parse_args(arguments)):
                out.write(f"{message}\n")
                out.flush()
        except Exception as error:
            out.write(json.dumps({"type": "END", "said": str(error)}) + "\n")
            out.flush()
    lines = out.buffer.getvalue().decode().split("\n")
    printed = [json.loads(line) for line in lines if line]
    # Several threads log, each at moments of its own.
    logs = sorted(record.getMessage().partition(", read in")[0] for record in caplog.records)
    return [without_times(m) for m in printed if m["type"] != "LOG"], logs


def without_times(message: dict[str, Any]) -> dict[str, Any]:
    for part in (message.get("record"), message.get("trace")):
        if part:
            del part["emitted_at"]
            part.get("error", {}).pop("stack_trace", None)
    return message


upload_times = st.sampled_from(
    [
        "2024-01-03 05:00:00.123456",
        "2024-01-03 07:59:59.999999",
        "2024-01-03T06:00:00.123456Z",
        "2024-01-03T06:00:00+00:00",
        "2024-13-99 05:00:00.123456",
        "20240103T08",
        "2099-01-01 00:00:00.000000",
        "",
        "(none)",
        5,
        None,
    ]
)
timed_events = st.tuples(any_events, st.none() | upload_times).map(
    lambda pair: pair[0] if pair[1] is None else {**pair[0], "server_upload_time": pair[1]}
)
TAILS = [b"", b"no event\n", b'{"a":NaN,"b":123456789012345678901}\n', b'{"a":"\\ud800"}\n']


@pytest.mark.usefixtures("no_waiting")
@settings(
    max_examples=15,
    deadline=None,
    phases=[Phase.generate],  # to shrink a failure takes minutes
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(st.lists(st.lists(timed_events, max_size=12), min_size=1, max_size=2), st.data())
def test_given_any_events_when_read_in_batches_then_output_states_and_counts_are_the_same(
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    members: list[list[Mapping[str, Any]]],
    data: st.DataObject,
) -> None:
    tails = [data.draw(st.sampled_from(TAILS)) for _ in members]
    body = archive({f"{n}{MEMBER}": json_lines(m) + tails[n] for n, m in enumerate(members)})
    bodies: list[bytes | None] = [body, data.draw(st.sampled_from([body, EMPTY]))]
    with freezegun.freeze_time("2024-01-03T23:30:00Z"):
        one_by_one = read(bodies, tmp_path, False, caplog)
        in_batches = read(bodies, tmp_path, True, caplog)
    assert in_batches == one_by_one


# As live projects export: made up, but in the recorded form.
WEB: dict[str, Any] = {
    "$insert_id": "screen/42 opened; 2",
    "$insert_key": "00b1c7#482",
    "$schema": 13,
    "adid": None,
    "amplitude_attribution_ids": None,
    "amplitude_event_type": None,
    "amplitude_id": 550106004607,
    "app": 187520,
    "city": "Ulm",
    "client_event_time": "2024-01-01 14:00:00.594000",
    "client_upload_time": "2024-01-03 05:00:00.100000",
    "country": "Germany",
    "data": {"path": "/2/httpapi", "user_properties_updated": True, "group_ids": {}},
    "data_type": "event",
    "device_id": "b7e1c0de-5e1f",
    "dma": None,
    "event_id": 312,
    "event_properties": {"[Amplitude] Page Path": "/", "price": 9.5},
    "event_time": "2024-01-01 14:00:00.594000",
    # 37 hours before the hour of its file
    "event_type": "session_end",
    "global_user_properties": {},
    "group_properties": {},
    "groups": {},
    "ip_address": "203.0.113.7",
    "is_attribution_event": False,
    "location_lat": 48.4,
    "partner_id": None,
    "paying": None,
    "plan": {},
    "processed_time": "2024-01-03 05:00:02.000000",
    "sample_rate": None,
    "server_received_time": "2024-01-03 05:00:00.500000",
    "server_upload_time": "2024-01-03 05:00:00.504000",
    "session_id": 1704117600594,
    "user_creation_time": "2020-11-24 09:00:00.000000",
    "user_id": None,
    "user_properties": {"plan": "pro"},
    "uuid": "4ab1c0de-0001",
}
MOBILE: dict[str, Any] = {
    **WEB,
    "$insert_key": None,
    "$schema": None,
    "adid": "c37e-ad",
    "amplitude_attribution_ids": ["c37ee0"],
    "data": {"user_properties_updated": True},
    "global_user_properties": None,
    "plan": None,
    "uuid": "4ab1c0de-0002",
}


@pytest.mark.usefixtures("no_waiting")
@pytest.mark.parametrize("in_batches", [False, True])
def test_given_lines_as_recorded_when_read_then_they_are_of_the_schema(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, in_batches: bool
) -> None:
    attributions = {
        '["c37ee0"]': ["c37ee0"],
        '["c37ee0","ü\\"x"]': ["c37ee0", 'ü"x'],
        '["single"]': "single",
        '["a","b"]': '["a","b"]',
        "[]": [],
    }
    others = [
        {"uuid": str(n), "amplitude_attribution_ids": sent}
        for n, sent in enumerate(attributions.values())
    ]
    body = archive(
        {
            "203138/203138_2020-11-24_9#627.json.gz": json_lines([WEB, MOBILE]) + b"\n",
            "203138/203138_2020-11-24_9#628.json.gz": json_lines(others) + b"\n\n",
        }
    )
    with freezegun.freeze_time("2024-01-03T23:30:00Z"):
        printed, logs = read([body, EMPTY], tmp_path, in_batches, caplog)
    found = [m["record"]["data"] for m in printed if m["type"] == "RECORD"]
    times = {
        name: f"{value.replace(' ', 'T')}+00:00"
        for name, value in WEB.items()
        if name.endswith("_time")
    }
    mobile = {**MOBILE, "amplitude_attribution_ids": '["c37ee0"]'}
    web, mobile = (
        {name: value for name, value in {**event, **times}.items() if value is not None}
        for event in (WEB, mobile)
    )
    rest = [
        {"uuid": str(n), "amplitude_attribution_ids": text} for n, text in enumerate(attributions)
    ]
    assert found == [{**event, "project_name": "Shop"} for event in (web, mobile, *rest)]
    validator = Draft7Validator(SCHEMAS["events"])  # type: ignore[arg-type]
    for event in found:
        validator.validate(event)
    assert not [m for m in printed if m["type"] == "TRACE" and m["trace"]["type"] == "ERROR"]
    states = [m["state"]["stream"]["stream_state"] for m in printed if m["type"] == "STATE"]
    assert without_beginning(states[-1]) == {"server_upload_time": "20240103T05"}
    [line] = [line for line in logs if line.startswith("Export of 20240103T00")]
    assert line.startswith("Export of 20240103T00 to 20240103T09: 2 files, 7 events, ")


def test_given_many_events_when_extracted_then_batches_hold_128_kb_each_and_take_room(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    room = Room(16 * 1024 * 1024)
    monkeypatch.setattr(delivery, "ROOM", room)
    time = "2024-01-01 07:%02d:00.000000"
    sent = [{"id": n, "server_upload_time": time % (n % 60), "a": "x" * 1000} for n in range(1000)]
    extractor = delivery.BatchingExtractor(["server_upload_time"], "server_upload_time")
    answer = response(archive({MEMBER: json_lines(sent)}))
    batches = [found[delivery._BATCH] for found in extractor.extract_records(answer)]
    sizes = [len(batch.lines) for batch in batches]
    assert len(sizes) == sum(sizes) // (128 * 1024) + 1
    assert all(128 * 1024 < size < 130 * 1024 for size in sizes[:-1])
    assert room._taken == sum(sizes)
    lines = [json.loads(line) for batch in batches for line in batch.lines.splitlines()]
    assert [line["record"]["data"]["id"] for line in lines] == list(range(1000))
    assert sum(batch.count for batch in batches) == 1000


class TestRoom:
    def test_given_no_room_when_more_is_taken_then_it_waits_until_some_is_freed(self) -> None:
        room = Room(10)
        room.take(8)
        waiting = threading.Thread(target=room.take, args=(5,), daemon=True)
        waiting.start()
        waiting.join(0.2)
        assert waiting.is_alive()
        room.free(8)
        waiting.join(5)
        assert not waiting.is_alive()

    def test_given_more_than_all_the_room_when_nothing_else_is_there_then_it_is_let_in(
        self,
    ) -> None:
        room = Room(10)
        room.take(1_000)
        room.free(1_000)
        room.take(10)
