"""Answers of all streams with a part that is something else: what can't be read is said in words of
ours, never by a bare error of Python, and never quoted. `make fuzz` looks for longer."""

import json
from typing import Any

import pytest
import requests_mock
from airbyte_cdk.models import SyncMode
from airbyte_cdk.test.entrypoint_wrapper import EntrypointOutput
from airbyte_cdk.test.models.outcome import ExpectedOutcome
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from unit_tests.helpers import config, read_stream, records
from unit_tests.test_list_streams import ELEMENT
from unit_tests.test_properties import FUZZES

SECRET = "of-a-customer"
ID = {**ELEMENT, "id": 1, "value": "Sign Up", "note": SECRET, "lastComputed": 1704200000, "size": 5}
COUNTS = {"xValues": ["2024-01-03"], "series": [[5]], "seriesLabels": ["US"]}
CELL = {"count": 5, "outof": 9, "incomplete": True}
EARNED = {"count": 5, "paid": 1, "total_amount": 4.5, **{f"r{n}d": n for n in range(1, 5)}}
FUNNEL = {
    "events": ["a", "b"],
    "groupValue": "",
    "dayFunnels": {"xValues": ["2024-01-03"], "series": [[5, 3]]},
    "dayMedianTransTimes": {"xValues": ["2024-01-03"], "series": [[0, 1500]]},
}
VERSION = {
    "createdAt": "2024-01-03T01:00:00.000Z",
    "version": 1,
    "flagConfig": {"id": 1, "key": "a"},
}
REPLAY = {**ID, "start_time": "2024-01-03T01:00:00Z"}
REPORTS = [
    {"name": "seg", "query": {"kind": "segmentation", "events": ["a", "b"]}},
    {"name": "fun", "query": {"kind": "funnel", "events": ["a", "b"]}},
    {"name": "ret", "query": {"kind": "retention"}},
    {"name": "com", "query": {"kind": "composition", "property": "platform"}},
    {"name": "cha", "query": {"kind": "chart", "chart_id": "abc123"}},
]
RETAINED: Any = {"data": {"series": [{"values": {"Jan 03, 2024": [CELL, CELL]}}]}}
# Of each stream an answer that can be read, to all that it asks for.
SOUND: dict[str, Any] = {
    **{key: {"data": COUNTS} for key in ("active_users", "daily_user_counts", "event_counts")},
    **{key: {"data": COUNTS} for key in ("average_session_length", "sessions_per_user")},
    "session_lengths": {"data": {"xValues": ["0s-60s"], "series": [[5]]}},
    "retention": RETAINED,
    "revenue_ltv": {"data": {"series": [{"values": {"Jan 03": EARNED}}]}},
    **{key: {"data": [ID]} for key in ("annotations", "annotation_categories", "events_list")},
    "cohorts": {"cohorts": [ID]},
    "channel_classifiers": {"channelClassifiers": [ID]},
    **{key: {"data": [ID]} for key in ("event_categories", "event_types", "event_properties")},
    **{key: {"success": True, "data": [ID]} for key in ("user_properties", "group_properties")},
    "session_replays": {"session_replays": [REPLAY], "next_page_token": None},
    **{key: [ID] for key in ("lookup_tables", "deletion_jobs", "deleted_users")},
    **{
        name: {name: [{"id": 1, "slots": [{"experiments": [1]}]}], "nextCursor": None}
        for name in ("experiments", "flags", "deployments", "mutexes", "holdouts")
    },
    "flag_versions": {"versions": [VERSION], "nextCursor": None},
    "report_seg": {"data": {**COUNTS, "series": [[5], [6]], "seriesLabels": [0, 1]}},
    "report_fun": {"data": [FUNNEL]},
    "report_ret": RETAINED,
    "report_com": {"data": {"xValues": ["web"], "series": [[5]]}},
    "report_cha": {"data": "x,2024-01-03\r\na,1\r\n"},
}

odd = st.sampled_from(
    [
        *(None, True, False, 0, -2.5, 99.5, 1e300, float("nan"), 10**30, int("9" * 4_000), ""),
        *("text", "\ud800", "{{ 1 / 0 }}", "\0", "9" * 5_000, "2024-99-99", [], {}, [[]]),
        *({"": None}, {"\ud800": "\udfff"}, [None], json.loads("[" * 600 + "]" * 600)),
    ]
)


@st.composite
def changed(draw: st.DrawFn, value: Any) -> Any:
    """The value with something odd in one of its places."""
    if not isinstance(value, dict | list) or not value or not draw(st.integers(0, 5)):
        return draw(odd)
    if isinstance(value, list):
        number = draw(st.integers(0, len(value)))
        if number == len(value):
            return [*value, draw(odd)]
        return [*value[:number], draw(changed(value[number])), *value[number + 1 :]]
    name = draw(st.sampled_from([*value, "\ud800"]))
    return {**value, name: draw(changed(value.get(name)))}


def read(stream: str, body: str) -> EntrypointOutput:
    everything = config(start_date="2024-01-03", management_api_key="a-key", reports=REPORTS)
    with requests_mock.Mocker() as http:
        http.get(requests_mock.ANY, text=body)
        if stream == "event_counts":
            http.get("https://amplitude.com/api/2/events/list", text=json.dumps({"data": [ID]}))
        return read_stream(
            *(stream, everything),
            sync_mode=SyncMode.full_refresh,
            expected=ExpectedOutcome.ALLOW_ANY,
        )


def errors(output: EntrypointOutput) -> list[str]:
    return [str(m.trace.error.message) for m in output.errors if m.trace and m.trace.error]


@pytest.mark.parametrize("stream", SOUND)
def test_given_an_answer_as_it_should_be_when_read_then_nothing_fails(
    standing_clock: Any, stream: str
) -> None:
    output = read(stream, json.dumps(SOUND[stream]))
    assert errors(output) == []
    assert records(output) != []


@given(data=st.data())
@settings(
    max_examples=3_000 if FUZZES else 25,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
def test_given_an_odd_answer_of_any_stream_when_read_then_no_error_is_a_bare_one_of_python(
    standing_clock: Any, data: st.DataObject
) -> None:
    standing_clock.move_to("2024-01-03T12:00:00Z")
    stream = data.draw(st.sampled_from([*SOUND]))
    answer = data.draw(changed(SOUND[stream]))
    output = read(stream, json.dumps(answer))
    for text in errors(output):
        for bare in ("nobody has foreseen", "unexpected error", "Something went wrong", SECRET):
            assert bare not in text
