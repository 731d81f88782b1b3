"""The streams of things, besides those of test_streams.py: tracking plan, replays, lookup tables,
deletions.

Requests are matched exactly, and states asserted literally; it is noon of 2024-01-03 in UTC.
"""

import gzip
import json
from collections import Counter
from collections.abc import Mapping
from datetime import date, timedelta
from typing import Any
from urllib.parse import urlsplit

import pytest
import requests_mock
from airbyte_cdk.models import FailureType, SyncMode
from airbyte_cdk.test.entrypoint_wrapper import EntrypointOutput
from airbyte_cdk.test.mock_http import HttpMocker, HttpRequest, HttpResponse
from airbyte_cdk.test.models.outcome import ExpectedOutcome

from unit_tests.helpers import (
    AUTHORIZATION,
    answer,
    config,
    days,
    final_state,
    first_error,
    read_stream,
    records,
    refusal,
)

HOST = "https://amplitude.com"
LOOKUP = "https://data-api.amplitude.com/api/3/lookup_table"
TODAY = "2024-01-03T00:00:00Z"
DELETED_TOO = {"showDeleted": "true"}
TOO_MANY = HttpResponse("", 429)

pytestmark = pytest.mark.usefixtures("standing_clock")


def get(http: HttpMocker, url: str, params: Mapping[str, str], *answers: HttpResponse) -> None:
    """An answer for each time that this very request is made."""
    http.get(HttpRequest(url, params, AUTHORIZATION), list(answers))


def full(stream: str, **settings: Any) -> EntrypointOutput:
    return read_stream(stream, config(**settings), sync_mode=SyncMode.full_refresh)


def failed(stream: str, *beside: str, **settings: Any) -> EntrypointOutput:
    return read_stream(
        stream,
        config(**settings),
        sync_mode=SyncMode.full_refresh,
        expected=ExpectedOutcome.EXPECT_EXCEPTION,
        beside=beside,
    )


def in_plan(*elements: Any) -> HttpResponse:
    return HttpResponse(json.dumps({"success": True, "data": elements}))


def replays(*elements: Any, token: object = None) -> HttpResponse:
    return HttpResponse(json.dumps({"session_replays": elements, "next_page_token": token}))


def bare(*elements: Any) -> HttpResponse:
    return HttpResponse(json.dumps(elements))


REPLAYED_TODAY = {
    "start_time": "2024-01-03T00:00:00Z",
    "end_time": "2024-01-03T12:00:01Z",
    "sort_order": "asc",
    "page_size": "200",
}
DELETED_SINCE_TODAY = {"start_day": "2024-01-03", "end_day": "2024-02-02"}
PLAN = f"{HOST}/api/2/taxonomy"
# Of each stream: its URL, its parameters and the path of its list.
LISTS = {
    "annotation_categories": (f"{HOST}/api/3/annotation-categories", {}, "data"),
    "channel_classifiers": (f"{HOST}/api/2/channel-classifiers", {}, "channelClassifiers"),
    "event_categories": (f"{PLAN}/category", {}, "data"),
    "event_types": (f"{PLAN}/event", DELETED_TOO, "data"),
    "event_properties": (f"{PLAN}/event-property", {}, "data"),
    "user_properties": (f"{PLAN}/user-property", DELETED_TOO, "data"),
    "group_properties": (f"{PLAN}/group-property", {}, "data"),
    "session_replays": (f"{HOST}/api/1/session-replays", REPLAYED_TODAY, "session_replays"),
    "lookup_tables": (LOOKUP, {}, ""),
    "deletion_jobs": (f"{HOST}/api/2/deletions/users", DELETED_SINCE_TODAY, ""),
    "deleted_users": (f"{HOST}/api/2/deletions/users", DELETED_SINCE_TODAY, ""),
}


def listed(stream: str, elements: Any) -> HttpResponse:
    *_, root_key = LISTS[stream]
    return HttpResponse(json.dumps({root_key: elements} if root_key else elements))


# All that any of them needs
ELEMENT = {
    "id": 1,
    "name": "007",
    "category": "007",
    "event_type": "Sign Up",
    "event_property": "plan",
    "user_property": "plan",
    "replay_id": "device/1",
    "group_type": "company",
    "group_property": "seats",
    "day": "2024-01-03",
    "app": 5,
    "amplitude_ids": [{"amplitude_id": 1}],
}


@pytest.mark.parametrize("stream", LISTS)
class TestAll:
    def test_given_objects_when_read_then_they_arrive_as_they_are(self, stream: str) -> None:
        url, params, _ = LISTS[stream]
        sent: dict[str, Any] = {**ELEMENT, "unknown": [None, {}]}
        with HttpMocker() as http:
            get(http, url, params, listed(stream, [sent]))
            output = full(stream, start_date=TODAY)
        if stream == "deleted_users":
            [user] = sent.pop("amplitude_ids")
            sent |= user
        assert records(output) == [sent]
        assert output.errors == []

    def test_given_a_project_name_when_read_then_every_record_carries_it_as_it_is(
        self, stream: str
    ) -> None:
        name = "{{ 1 + 1 }} 'x' \\ “Ünïted”"
        url, params, _ = LISTS[stream]
        with HttpMocker() as http:
            get(http, url, params, listed(stream, [ELEMENT, ELEMENT]))
            output = full(stream, start_date=TODAY, project_name=name)
        assert [record["project_name"] for record in records(output)] == [name, name]

    def test_given_an_empty_list_when_read_then_there_are_no_records_and_nothing_fails(
        self, stream: str
    ) -> None:
        url, params, _ = LISTS[stream]
        with HttpMocker() as http:
            get(http, url, params, listed(stream, []))
            output = full(stream, start_date=TODAY)
        assert records(output) == []
        assert output.errors == []

    def test_given_too_many_requests_when_read_then_the_same_is_asked_for_again(
        self, stream: str
    ) -> None:
        url, params, _ = LISTS[stream]
        with HttpMocker() as http:
            get(http, url, params, TOO_MANY, HttpResponse("<html>"), listed(stream, []))
            output = full(stream, start_date=TODAY)
        assert output.errors == []

    @pytest.mark.parametrize(
        ("elements", "found"),
        [
            (None, "{name} is null where a list should be"),
            ({"id": 1}, "{name} is an object where a list should be"),
            ([ELEMENT, {}], "element 2 of {name} is an empty object"),
            (["a"], "element 1 of {name} is a text where a record should be"),
        ],
        ids=["null", "object", "empty element", "text"],
    )
    def test_given_no_list_of_records_when_read_then_it_fails_before_anything_is_delivered(
        self, stream: str, elements: Any, found: str
    ) -> None:
        url, params, root_key = LISTS[stream]
        if elements is None and not root_key:
            return  # no answer at all: it is asked for again
        with HttpMocker() as http:
            get(http, url, params, listed(stream, elements))
            get(http, f"{HOST}/api/3/annotations", {}, answer([{"id": 1}]))
            output = failed(stream, "annotations", start_date=TODAY)
        assert [m.record.stream for m in output.records if m.record] == ["annotations"]
        message, failure_type = first_error(output)
        assert message.startswith(f"Amplitude's answer to {url.split('.com')[1]} can't be read")
        assert found.format(name=root_key or "the answer") in message
        assert failure_type is FailureType.system_error


# Of each stream, the parts of its key that are in an element.
KEYS = {
    **dict.fromkeys(LISTS, ("id",)),
    "event_types": ("event_type",),
    "event_properties": ("event_property",),
    "user_properties": ("user_property",),
    "group_properties": ("group_property",),
    "session_replays": ("replay_id",),
    "lookup_tables": ("name",),
    "deletion_jobs": ("day",),
    "deleted_users": ("amplitude_id", "day"),
}


@pytest.mark.parametrize(
    ("stream", "part"), [(stream, part) for stream, parts in KEYS.items() for part in parts]
)
class TestKeys:
    @staticmethod
    def element(part: str, **change: Any) -> dict[str, Any]:
        if part == "amplitude_id":
            return {**ELEMENT, "amplitude_ids": [{"amplitude_id": 1, **change}]}
        return {**ELEMENT, **change}

    def read(self, stream: str, *elements: Any) -> EntrypointOutput:
        url, params, _ = LISTS[stream]
        with HttpMocker() as http:
            get(http, url, params, listed(stream, elements))
            get(http, f"{HOST}/api/3/annotations", {}, answer([{"id": 1}]))
            return failed(stream, "annotations", start_date=TODAY)

    @pytest.mark.parametrize(
        ("value", "found"),
        [
            (..., "element 2 has no {}"),
            (None, "element 2 has no {}"),
            (True, "the {} of element 2 is a boolean"),
            ([], "the {} of element 2 is an empty list"),
            ({"a": 1}, "the {} of element 2 is an object"),
        ],
        ids=repr,
    )
    def test_given_an_element_without_its_key_when_read_then_nothing_of_the_list_is_delivered(
        self, stream: str, part: str, value: Any, found: str
    ) -> None:
        wrong = self.element(part, **{part: value})
        if value is ...:
            inner = wrong["amplitude_ids"][0] if part == "amplitude_id" else wrong
            del inner[part]
            inner["more"] = "so that it is no empty object"
        output = self.read(stream, ELEMENT, wrong)
        assert [m.record.stream for m in output.records if m.record] == ["annotations"]
        assert f": {found.format(part)}. Nothing of it was stored." in first_error(output)[0]

    def test_given_a_key_twice_when_read_then_it_fails_where_the_elements_differ(
        self, stream: str, part: str
    ) -> None:
        output = self.read(stream, ELEMENT, self.element(part, more="changed"))
        assert [m.record.stream for m in output.records if m.record] == ["annotations"]
        message, failure_type = first_error(output)
        assert ": element 2 has the key of another, and differs. Nothing of it was " in message
        assert failure_type is FailureType.system_error


class TestTrackingPlan:
    @pytest.mark.parametrize("elements", [[], [ELEMENT]], ids=["none", "one"])
    def test_given_an_answer_that_says_it_is_no_success_when_read_then_it_is_no_empty_table(
        self, elements: list[Any]
    ) -> None:
        said = json.dumps({"success": False, "data": elements})
        with HttpMocker() as http:
            get(http, f"{PLAN}/category", {}, HttpResponse(said))
            output = failed("event_categories")
        assert records(output) == []
        message = first_error(output)[0]
        assert "can't be read without guessing: its success is false. Nothing of it" in message

    STREAMS = (
        *("event_categories", "event_types", "event_properties", "user_properties"),
        "group_properties",
    )

    @pytest.mark.parametrize("stream", STREAMS)
    def test_given_a_plan_without_taxonomy_when_read_then_it_is_named_and_others_go_on(
        self, stream: str
    ) -> None:
        url, params, _ = LISTS[stream]
        missing = {"success": False, "errors": [{"message": "Not found"}]}
        with HttpMocker() as http:
            get(http, url, params, HttpResponse(json.dumps(missing), 404))
            get(http, f"{HOST}/api/3/annotations", {}, answer([{"id": 1}]))
            output = failed(stream, "annotations")
        assert [m.record.stream for m in output.records if m.record] == ["annotations"]
        assert first_error(output) == (
            "Amplitude answered HTTP 404 (Not found). Amplitude answers like this when the "
            "project's plan has no Taxonomy API, which is part of Enterprise. Have it added, or "
            "deselect the streams event_types, event_categories, event_properties, "
            "user_properties and group_properties.",
            FailureType.config_error,
        )

    @pytest.mark.parametrize("status", [401, 403])
    def test_given_refused_keys_when_read_then_keys_and_region_are_named(self, status: int) -> None:
        with HttpMocker() as http:
            get(http, f"{PLAN}/category", {}, HttpResponse("Forbidden", status))
            output = failed("event_categories")
        message, failure_type = first_error(output)
        assert "The API Key and the Secret Key were refused" in message
        assert failure_type is FailureType.config_error

    def test_given_the_eu_region_when_read_then_the_eu_host_is_asked(self) -> None:
        with HttpMocker() as http:
            get(http, "https://analytics.eu.amplitude.com/api/2/taxonomy/category", {}, in_plan())
            output = full("event_categories", data_region="EU Residency Server")
        assert output.errors == []

    def test_given_a_project_without_group_properties_when_read_then_amplitudes_words_are_shown(
        self,
    ) -> None:
        errors = [{"message": "Account Properties feature is not enabled."}]
        said = json.dumps({"success": False, "errors": errors})
        with HttpMocker() as http:
            get(http, f"{PLAN}/group-property", {}, HttpResponse(said, 400))
            get(http, f"{HOST}/api/3/annotations", {}, answer([{"id": 1}]))
            output = failed("group_properties", "annotations")
        assert [m.record.stream for m in output.records if m.record] == ["annotations"]
        assert first_error(output)[0].startswith(
            "Amplitude answered HTTP 400 (Account Properties feature is not enabled.)."
        )

    def test_given_properties_when_read_then_one_request_brings_them_and_each_has_its_event_type(
        self,
    ) -> None:
        plan = {"event_property": "plan", "type": "string", "is_required": False}
        sent: list[dict[str, Any]] = [
            {**plan, "event_type": "Sign Up", "classifications": []},
            {**plan, "event_type": None, "classifications": ["PII"]},
            {"event_property": "source", "event_type": ""},
            {"event_property": "seats"},
        ]
        with requests_mock.Mocker() as http:
            http.get(f"{PLAN}/event-property", text=in_plan(*sent).body)
            output = full("event_properties")
        [asked] = http.request_history
        assert (asked.url, asked.text) == (f"{PLAN}/event-property", None)
        assert records(output) == [
            sent[0],
            {**sent[1], "event_type": ""},
            sent[2],
            {"event_property": "seats", "event_type": ""},
        ]
        assert output.errors == []

    def test_given_names_of_any_characters_when_read_then_they_arrive_as_they_are(self) -> None:
        names = [
            *("'quoted'", '"quoted"', "{{ 1 }}", "{'a': 1}", "['a', 'b']", "a&b=c/d+e"),
            *("😀 Ünïcode", "007", "1e3", "True", "None", " "),
        ]
        sent = [{"event_type": name, "event_property": name} for name in names]
        of_groups = [{"group_type": name, "group_property": name} for name in names]
        with HttpMocker() as http:
            get(http, f"{PLAN}/event-property", {}, in_plan(*sent))
            get(http, f"{PLAN}/group-property", {}, in_plan(*of_groups))
            found = records(full("event_properties")), records(full("group_properties"))
        assert found == (sent, of_groups)

    def test_given_group_properties_of_no_type_when_read_then_it_is_empty(self) -> None:
        seats = {"group_property": "seats", "description": "of a company"}
        with HttpMocker() as http:
            page = in_plan({**seats, "group_type": None}, seats, {**seats, "group_type": "org"})
            get(http, f"{PLAN}/group-property", {}, page)
            output = full("group_properties")
        assert records(output) == [{**seats, "group_type": each} for each in ("", "", "org")]
        assert output.errors == []

    @pytest.mark.parametrize("name", ["event_property", "group_property"])
    @pytest.mark.parametrize("missing", [{}, None])
    def test_given_a_property_without_a_name_when_read_then_it_fails(
        self, name: str, missing: object
    ) -> None:
        path, stream = name.replace("_", "-"), name.replace("y", "ies")
        nameless = {"type": "string"} if missing == {} else {name: None}
        with HttpMocker() as http:
            get(http, f"{PLAN}/{path}", {}, in_plan({name: "plan"}, nameless))
            output = failed(stream)
        assert records(output) == []
        assert f"element 2 has no {name}." in first_error(output)[0]


class TestProjectLists:
    def test_given_categories_in_either_form_when_read_then_they_have_the_name_in_both_fields(
        self,
    ) -> None:
        names = ["Uncategorized", "{{ 1 }}", "007", "'q'"]
        sent: list[dict[str, Any]] = [
            *({"id": n, "category": name} for n, name in enumerate(names)),
            {"id": 10, "name": "Releases"},
            {"id": 11, "name": "Releases", "category": None},
            {"id": 12, "name": "new", "category": "old"},
            {"id": 13},
        ]
        expected: list[dict[str, Any]] = [
            *({"id": n, "category": name, "name": name} for n, name in enumerate(names)),
            {"id": 10, "category": "Releases", "name": "Releases"},
            {"id": 11, "category": "Releases", "name": "Releases"},
            {"id": 12, "name": "new", "category": "old"},
            {"id": 13},
        ]
        with HttpMocker() as http:
            get(http, f"{HOST}/api/3/annotation-categories", {}, answer(sent))
            notes = [{"id": n, "category": each} for n, each in enumerate(sent)]
            others: list[dict[str, Any]] = [{"id": 98, "category": "Releases"}, {"id": 99}]
            get(http, f"{HOST}/api/3/annotations", {}, answer([*notes, *others]))
            categories, annotations = full("annotation_categories"), full("annotations")
        assert records(categories) == expected
        found = [{"id": n, "category": each} for n, each in enumerate(expected)]
        assert records(annotations) == [*found, *others]
        assert categories.errors == annotations.errors == []

    def test_given_an_annotation_as_recorded_when_read_then_it_is_complete(self) -> None:
        sent = {
            "id": 7,
            "label": "Release",
            "details": None,
            "start": "2026-06-16T07:00:00+00:00",
            "end": None,
            "category": {"id": 1, "category": "Uncategorized"},
            "chart_id": None,
        }
        with HttpMocker() as http:
            get(http, f"{HOST}/api/3/annotations", {}, answer([sent]))
            output = full("annotations")
        assert records(output) == [
            {
                "id": 7,
                "label": "Release",
                "start": "2026-06-16T07:00:00+00:00",
                "date": "2026-06-16",
                "category": {"id": 1, "category": "Uncategorized", "name": "Uncategorized"},
            }
        ]

    def test_given_cohorts_as_recorded_when_read_then_no_field_is_lost(self) -> None:
        of_users: dict[str, Any] = {
            "id": "26umsb5",
            "appId": 187520,
            "name": "Recent buyers",
            "size": 111,
            "archived": False,
            "definition": {"version": 3, "countGroup": {"name": "User", "is_computed": False}},
            "lastComputed": 1704193200,
            "cohort_output_type": "UNIQUES",
            "is_generated_content": False,
        }
        nulls = {"per_app_metadata": None, "cohort_definition_type": None}
        # The list has those of groups as well.
        of_groups = {**of_users, "id": "9zzz", "definition": {"countGroup": {"name": "company"}}}
        filled = {"per_app_metadata": {"187520": {}}, "cohort_definition_type": "behavioral"}
        with HttpMocker() as http:
            page = answer([{**of_users, **nulls}, {**of_groups, **filled}], "cohorts")
            get(http, f"{HOST}/api/3/cohorts", {"includeSyncInfo": "true"}, page)
            output = full("cohorts")
        assert records(output) == [of_users, {**of_groups, **filled}]
        assert output.errors == []

    @pytest.mark.parametrize("approved", [None, True, False])
    def test_given_event_types_when_read_then_what_was_let_out_of_the_waiting_room_is_kept(
        self, approved: bool | None
    ) -> None:
        event_type = {"id": 1234567, "name": "Add Friends", "totals": 193167}
        with HttpMocker() as http:
            page = answer([{**event_type, "waitroom_approved": approved}])
            get(http, f"{HOST}/api/2/events/list", {}, page)
            output = full("events_list")
        kept = {} if approved is None else {"waitroom_approved": approved}
        assert records(output) == [{**event_type, **kept}]

    def test_given_channel_classifiers_when_read_then_each_is_a_record(self) -> None:
        sent = {
            "id": "368",
            "name": "default",
            "displayName": "Default Channel Classifier",
            "description": "Channels, as of May\nand later",
            "csvText": 'Channel,utm_source\nPaid,"google, bing"\n',
            "csvDefinition": {"rows": [{"channel": "Paid"}]},
            "lastModified": "2026-05-10T18:09:22.275499",
        }
        least: dict[str, Any] = {"id": "007", "description": None, "csvDefinition": {}}
        with HttpMocker() as http:
            page = answer([sent, least], "channelClassifiers")
            get(http, f"{HOST}/api/2/channel-classifiers", {}, page)
            output = full("channel_classifiers")
        assert records(output) == [sent, {"id": "007", "csvDefinition": {}}]
        assert output.errors == []


def replay(number: int, start: str = "2024-01-03T01:00:00Z") -> dict[str, Any]:
    return {
        "replay_id": f"device/{number}",
        "session_id": "1700000000000",
        "amplitude_id": number,
        "start_time": start,
        "end_time": "2024-01-03T02:00:00Z",
        "retention_in_days": 90,
    }


def in_a_circle(path: str) -> tuple[str, FailureType]:
    return (
        f"The pages of {path} can't be followed to their end: the last one leads to one that was "
        "read before. Try again later; if it stays like this, report it to the connector's "
        "maintainers.",
        FailureType.system_error,
    )


class TestSessionReplays:
    URL = f"{HOST}/api/1/session-replays"

    @pytest.mark.parametrize("token", ["opaque+/=&", "1e3", "007", "1_000", "'quoted'", "True", 5])
    def test_given_pages_when_read_then_each_token_leads_to_the_next_until_there_is_none(
        self, token: object
    ) -> None:
        with HttpMocker() as http:
            get(http, self.URL, REPLAYED_TODAY, replays(replay(1), replay(2), token=token))
            get(
                http,
                self.URL,
                {**REPLAYED_TODAY, "page_token": str(token)},
                replays(replay(3), token="last"),
            )
            get(http, self.URL, {**REPLAYED_TODAY, "page_token": "last"}, replays(replay(4)))
            output = read_stream("session_replays", config(start_date=TODAY))
        assert records(output) == [replay(number) for number in (1, 2, 3, 4)]
        assert final_state(output) == {"start_time": "2024-01-03T01:00:00Z"}

    def test_given_a_page_that_names_itself_as_the_next_when_read_then_it_fails(self) -> None:
        with HttpMocker() as http:
            get(http, self.URL, REPLAYED_TODAY, replays(replay(1), token="a"))
            again = replays(replay(2), token="a")
            get(http, self.URL, {**REPLAYED_TODAY, "page_token": "a"}, again)
            output = failed("session_replays", start_date=TODAY)
        assert first_error(output) == in_a_circle("/api/1/session-replays")

    def test_given_pages_in_a_circle_when_read_then_it_ends_with_an_error_and_the_state_stays(
        self,
    ) -> None:
        with HttpMocker() as http:
            get(http, self.URL, REPLAYED_TODAY, replays(replay(1), token="a"))
            ways = [("a", "b"), ("b", "c"), ("c", "a")]
            for number, (token, following) in enumerate(ways, start=2):
                page = replays(replay(number), token=following)
                get(http, self.URL, {**REPLAYED_TODAY, "page_token": token}, page)
            state = {"start_time": "2024-01-03T00:00:00Z"}
            output = read_stream(
                *("session_replays", config(start_date=TODAY), state),
                expected=ExpectedOutcome.EXPECT_EXCEPTION,
            )
        assert records(output) == [replay(number) for number in (1, 2, 3, 4)]
        assert first_error(output) == in_a_circle("/api/1/session-replays")
        assert final_state(output) == state

    @pytest.mark.parametrize("page_before_the_end", [99, 100])
    def test_given_a_hundred_empty_pages_in_a_row_when_read_then_it_ends_with_an_error(
        self, page_before_the_end: int
    ) -> None:
        def page(request: Any, _: Any) -> str:
            number = int(request.qs.get("page_token", ["0"])[0])
            # One in between, from which is counted anew.
            elements = [replay(number)] if number in (50, 51 + page_before_the_end) else []
            return str(replays(*elements, token=number + 1 if number < 160 else None).body)

        with requests_mock.Mocker() as http:
            http.get(self.URL, text=page)
            output = read_stream(
                *("session_replays", config(start_date=TODAY)), expected=ExpectedOutcome.ALLOW_ANY
            )
        message = "" if not output.errors else first_error(output)[0]
        if page_before_the_end == 99:
            assert [r["replay_id"] for r in records(output)] == ["device/50", "device/150"]
            assert message == ""
        else:
            assert [r["replay_id"] for r in records(output)] == ["device/50"]
            assert "the last one is the 100th without an element in a row" in message

    @pytest.mark.parametrize("token", [True, 1.5, ["a"], {"a": 1}])
    def test_given_a_token_that_is_none_when_read_then_it_fails(self, token: object) -> None:
        with HttpMocker() as http:
            get(http, self.URL, REPLAYED_TODAY, replays(replay(1), token=token))
            output = failed("session_replays", start_date=TODAY)
        assert "for its next_page_token. Try again later" in first_error(output)[0]

    @pytest.mark.parametrize("end", [{}, {"next_page_token": ""}, {"next_page_token": None}])
    def test_given_no_token_in_any_form_when_read_then_the_page_is_the_last(
        self, end: dict[str, Any]
    ) -> None:
        body = json.dumps({"session_replays": [replay(1)], **end})
        with HttpMocker() as http:
            get(http, self.URL, REPLAYED_TODAY, HttpResponse(body))
            output = read_stream("session_replays", config(start_date=TODAY))
        assert len(records(output)) == 1
        assert output.errors == []

    def test_given_an_empty_page_with_a_token_when_read_then_the_next_is_asked_for_all_the_same(
        self,
    ) -> None:
        with HttpMocker() as http:
            get(http, self.URL, REPLAYED_TODAY, replays(token="more"))
            get(http, self.URL, {**REPLAYED_TODAY, "page_token": "more"}, replays(replay(1)))
            output = read_stream("session_replays", config(start_date=TODAY))
        assert len(records(output)) == 1

    def test_given_a_history_when_read_then_windows_have_seven_days_and_meet(self) -> None:
        asked = [
            ("2023-12-20T00:00:00Z", "2023-12-27T00:00:00Z"),
            ("2023-12-27T00:00:00Z", "2024-01-03T00:00:00Z"),
            ("2024-01-03T00:00:00Z", "2024-01-03T12:00:01Z"),
        ]
        with HttpMocker() as http:
            for number, (start, end) in enumerate(asked):
                params = {**REPLAYED_TODAY, "start_time": start, "end_time": end}
                fraction = start.replace("00Z", "00.123456Z")
                get(http, self.URL, params, replays(replay(number, fraction)))
            output = read_stream("session_replays", config(start_date="2023-12-20T00:00:00Z"))
        assert sorted(record["amplitude_id"] for record in records(output)) == [0, 1, 2]
        assert final_state(output) == {"start_time": "2024-01-03T00:00:00Z"}

    def test_given_the_state_of_a_sync_when_read_again_then_a_day_is_and_what_has_changed_arrives(
        self,
    ) -> None:
        settings = config(start_date="2024-01-02T00:00:00Z")
        since_start = {**REPLAYED_TODAY, "start_time": "2024-01-02T00:00:00Z"}
        again = {**REPLAYED_TODAY, "start_time": "2024-01-02T10:30:00Z"}
        with HttpMocker() as http:
            get(http, self.URL, since_start, replays(replay(1, "2024-01-03T10:30:00Z")))
            first = read_stream("session_replays", settings)
        # A day and a second before the state, the latter being what is done itself
        again["start_time"] = "2024-01-02T10:30:01Z"
        ended = {**replay(1, "2024-01-03T10:30:00Z"), "end_time": "2024-01-03T11:00:00Z"}
        with HttpMocker() as http:
            get(http, self.URL, again, replays(ended, replay(2, "2024-01-03T11:30:00.5Z")))
            second = read_stream("session_replays", settings, final_state(first))
        assert final_state(first) == {"start_time": "2024-01-03T10:30:00Z"}
        assert [record["end_time"] for record in records(second)] == [
            "2024-01-03T11:00:00Z",
            "2024-01-03T02:00:00Z",
        ]
        assert final_state(second) == {"start_time": "2024-01-03T11:30:00Z"}

    def test_given_times_without_a_zone_when_read_then_they_are_utc_and_the_next_sync_goes_on(
        self,
    ) -> None:
        written = [
            ("2024-01-03T07:53:10", "2024-01-03T07:53:10Z"),
            ("2024-01-03T08:00:00.25", "2024-01-03T08:00:00.25Z"),
            ("2024-01-03T10:30:00.999999", "2024-01-03T10:30:00.999999Z"),
            ("2024-01-03 09:00:00", "2024-01-03T09:00:00Z"),
            ("2024-01-03T06:00:00Z", "2024-01-03T06:00:00Z"),
        ]
        sent = [{**replay(n, at), "end_time": at} for n, (at, _) in enumerate(written)]
        settings = config(start_date=TODAY)
        with HttpMocker() as http:
            get(http, self.URL, REPLAYED_TODAY, replays(*sent))
            first = read_stream("session_replays", settings)
        assert records(first) == [
            {**replay(n, at), "end_time": at} for n, (_, at) in enumerate(written)
        ]
        assert first.errors == []
        assert final_state(first) == {"start_time": "2024-01-03T10:30:00Z"}
        settings = config(start_date="2024-01-01T00:00:00Z")
        again = {**REPLAYED_TODAY, "start_time": "2024-01-02T10:30:01Z"}
        with HttpMocker() as http:
            get(http, self.URL, again, replays(replay(9, "2024-01-03T11:30:00.5")))
            second = read_stream("session_replays", settings, final_state(first))
        assert records(second) == [replay(9, "2024-01-03T11:30:00.5Z")]
        assert final_state(second) == {"start_time": "2024-01-03T11:30:00Z"}

    @pytest.mark.parametrize(
        ("written", "first", "last"),
        [
            ("2024-01-03T06:00:00.999Z", "2024-01-02T06:00:01Z", "2024-01-03T06:00:00Z"),
            ("2030-01-01T00:00:00Z", "2024-01-02T12:00:01Z", "2024-01-03T12:00:00Z"),
        ],
        ids=["fractions", "future"],
    )
    def test_given_a_state_of_another_form_or_the_future_when_read_then_it_is_the_newest_second(
        self, written: str, first: str, last: str
    ) -> None:
        with HttpMocker() as http:
            get(http, self.URL, {**REPLAYED_TODAY, "start_time": first}, replays())
            output = read_stream("session_replays", config(), {"start_time": written})
        assert final_state(output) == {"start_time": last}

    def test_given_a_page_that_fails_when_read_then_the_state_stays_and_the_window_comes_again(
        self,
    ) -> None:
        state = {"start_time": "2024-01-03T06:00:00Z"}
        window = {**REPLAYED_TODAY, "start_time": "2024-01-02T06:00:01Z"}
        settings = config(start_date="2024-01-01T00:00:00Z")
        wrong = HttpResponse('{"session_replays": null}')
        late = replay(1, "2024-01-03T11:00:00Z")
        with HttpMocker() as http:
            get(http, self.URL, window, replays(late, token="t"))
            get(http, self.URL, {**window, "page_token": "t"}, wrong)
            output = read_stream(
                "session_replays", settings, state, expected=ExpectedOutcome.EXPECT_EXCEPTION
            )
        assert final_state(output) == state
        assert "session_replays is null where a list should be" in first_error(output)[0]
        with HttpMocker() as http:
            get(http, self.URL, window, replays(late, token="t"))
            get(http, self.URL, {**window, "page_token": "t"}, replays(replay(2)))
            output = read_stream("session_replays", settings, final_state(output))
        assert len(records(output)) == 2

    @pytest.mark.parametrize("status", [402, 403, 404])
    def test_given_no_session_replay_when_read_then_it_is_named_and_others_go_on(
        self, status: int
    ) -> None:
        with HttpMocker() as http:
            get(http, self.URL, REPLAYED_TODAY, HttpResponse('{"error":"Not enabled"}', status))
            get(http, f"{HOST}/api/3/annotations", {}, answer([{"id": 1}]))
            output = failed("session_replays", "annotations", start_date=TODAY)
        assert [m.record.stream for m in output.records if m.record] == ["annotations"]
        message, failure_type = first_error(output)
        assert message == (
            f"Amplitude answered HTTP {status} (Not enabled). Amplitude answers like this when the "
            "project has no Session Replay. Have it added to the plan, or deselect the stream "
            "session_replays."
        )
        assert failure_type is FailureType.config_error

    def test_given_refused_keys_when_read_then_they_are_named(self) -> None:
        with HttpMocker() as http:
            get(http, self.URL, REPLAYED_TODAY, HttpResponse('{"error":"Unauthorized"}', 401))
            output = failed("session_replays", start_date=TODAY)
        assert "The API Key and the Secret Key were refused" in first_error(output)[0]


def table(name: str, key: str = "SKU") -> dict[str, Any]:
    return {"name": name, "keyColumnHeader": key, "columnHeaders": [], "rowCount": 3}


def csv(body: str | bytes, **headers: str) -> HttpResponse:
    encoded = body.encode() if isinstance(body, str) else body
    return HttpResponse(encoded, 200, {"Content-Type": "text/csv", **headers})


class TestLookupTables:
    @pytest.mark.parametrize(
        ("region", "host"),
        [
            ("Standard Server", "https://data-api.amplitude.com"),
            ("EU Residency Server", "https://data-api.eu.amplitude.com"),
        ],
    )
    def test_given_a_region_when_read_then_its_own_data_host_is_asked(
        self, region: str, host: str
    ) -> None:
        url = f"{host}/api/3/lookup_table"
        with HttpMocker() as http:
            get(http, url, {}, bare(table("a")), bare(table("a")))
            get(http, f"{url}/a/csv", {}, csv("SKU,Language\n1,en\n"))
            tables = full("lookup_tables", data_region=region)
            rows = full("lookup_table_rows", data_region=region)
        assert records(tables) == [table("a")]
        assert len(records(rows)) == 1

    def test_given_tables_when_their_rows_are_read_then_all_values_are_texts(self) -> None:
        content = 'Language,SKU\nen,007\n,1e3\nNone,True\n"[1]","{{ 1 }}"\n1_000,None\n'
        with HttpMocker() as http:
            get(http, LOOKUP, {}, bare(table("a"), table("b", "Language")))
            get(http, f"{LOOKUP}/a/csv", {}, csv(content))
            get(http, f"{LOOKUP}/b/csv", {}, csv("Language,SKU\nde,1\n"))
            output = full("lookup_table_rows")
        rows = sorted(map(dict, records(output)), key=lambda r: (r["table"], r["row_number"]))
        assert rows == [
            {"table": "a", "row_number": n, "key": key, "row": {"Language": language, "SKU": key}}
            for n, (language, key) in enumerate(
                [
                    ("en", "007"),
                    ("", "1e3"),
                    ("None", "True"),
                    ("[1]", "{{ 1 }}"),
                    ("1_000", "None"),
                ],
                start=1,
            )
        ] + [{"table": "b", "row_number": 1, "key": "de", "row": {"Language": "de", "SKU": "1"}}]

    @pytest.mark.parametrize("key", ["'a'", '""', "", " ", "a\nb", "😀", 'it\'s \\ "x"', "nan"])
    def test_given_a_key_of_any_characters_when_read_then_it_is_that_of_the_row(
        self, key: str
    ) -> None:
        quoted = '"' + key.replace('"', '""') + '"'
        with HttpMocker() as http:
            get(http, LOOKUP, {}, bare(table("a")))
            get(http, f"{LOOKUP}/a/csv", {}, csv(f"SKU,Language\r\n{quoted},en\r\n"))
            output = full("lookup_table_rows")
        assert records(output) == [
            {"table": "a", "row_number": 1, "key": key, "row": {"SKU": key, "Language": "en"}}
        ]

    @pytest.mark.parametrize(
        "more",
        [
            {},
            {"keyColumnHeader": None, "columnHeaders": None},
            {"keyColumnHeader": 5, "columnHeaders": {"a": "b"}},
        ],
    )
    def test_given_a_table_that_names_no_columns_when_read_then_the_key_is_left_out(
        self, more: dict[str, Any]
    ) -> None:
        with HttpMocker() as http:
            get(http, LOOKUP, {}, bare({"name": "a", **more}))
            get(http, f"{LOOKUP}/a/csv", {}, csv("SKU\n1\n"))
            output = full("lookup_table_rows")
        assert records(output) == [{"table": "a", "row_number": 1, "row": {"SKU": "1"}}]
        assert output.errors == []

    @pytest.mark.parametrize(
        ("body", "column"),
        [
            ("upstream connect error or disconnect/reset before headers", "SKU"),
            ("upstream connect error\nor disconnect\n", "SKU"),
            ("sku,Language,Extra\n1,en,x\n", "SKU"),
            ("SKU,Extra\n1,x\n", "Language"),
            ("SKU\n", "Language"),
        ],
    )
    def test_given_a_csv_without_the_columns_of_its_table_when_read_then_nothing_is_stored(
        self, body: str, column: str
    ) -> None:
        with HttpMocker() as http:
            bad = {**table("bad's"), "columnHeaders": ["Language"]}
            get(http, LOOKUP, {}, bare(bad, table("good")))
            get(http, f"{LOOKUP}/bad%27s/csv", {}, csv(body))
            get(http, f"{LOOKUP}/good/csv", {}, csv("SKU,Extra\n1,x\n"))
            output = failed("lookup_table_rows")
        assert [record["table"] for record in records(output)] == ["good"]
        assert first_error(output) == (
            f"The CSV of the lookup table \"bad's\" has no column '{column}', which Amplitude "
            "lists for it. Nothing of it was stored. Run it again: the table may have changed "
            "meanwhile.",
            FailureType.system_error,
        )

    @pytest.mark.parametrize(
        ("name", "path"),
        [
            ("my table/2024", "my%20table%2F2024"),
            ("50%", "50%25"),
            ("a?b#c&d", "a%3Fb%23c%26d"),
            ("Größe", "Gr%C3%B6%C3%9Fe"),
            ("'quoted'", "%27quoted%27"),
            ("1e3", "1e3"),
            ("{{ 1 }}", "%7B%7B%201%20%7D%7D"),
        ],
    )
    def test_given_a_table_of_any_name_when_read_then_it_is_encoded_in_the_path_and_kept_in_the_row(
        self, name: str, path: str
    ) -> None:
        with requests_mock.Mocker() as http:
            http.get(requests_mock.ANY, content=b"SKU\n1\n")
            http.get(LOOKUP, text=bare(table(name)).body)
            output = full("lookup_table_rows")
        asked = http.request_history[-1].url
        assert asked.replace("'", "%27") == f"{LOOKUP}/{path}/csv"
        assert [record["table"] for record in records(output)] == [name]

    @pytest.mark.parametrize(
        "body",
        [
            "SKU,Text\n1,a\n2,b\n",
            "SKU,Text\r\n1,a\r\n2,b",
            "\ufeffSKU,Text\n1,a\n2,b\n",
            'SKU,"Text"\n"1",a\n\n2,"b"\n\n',
        ],
        ids=["plain", "crlf", "byte-order-mark", "quotes and blank lines"],
    )
    @pytest.mark.parametrize("is_zipped", [False, True])
    def test_given_a_csv_in_any_dress_when_read_then_its_rows_are_the_same(
        self, body: str, is_zipped: bool
    ) -> None:
        packed = csv(gzip.compress(body.encode()), **{"Content-Encoding": "gzip"})
        with HttpMocker() as http:
            get(http, LOOKUP, {}, bare(table("a")))
            get(http, f"{LOOKUP}/a/csv", {}, packed if is_zipped else csv(body))
            output = full("lookup_table_rows")
        assert [(r["row_number"], r["key"], r["row"]) for r in records(output)] == [
            (1, "1", {"SKU": "1", "Text": "a"}),
            (2, "2", {"SKU": "2", "Text": "b"}),
        ]

    def test_given_line_ends_commas_and_quotes_in_a_cell_when_read_then_they_stay(self) -> None:
        body = 'SKU,Text\n1,"two\nlines, ""quoted"""\n2,"cr\r\nlf"\n'
        with HttpMocker() as http:
            get(http, LOOKUP, {}, bare(table("a")))
            get(http, f"{LOOKUP}/a/csv", {}, csv(body))
            output = full("lookup_table_rows")
        texts = [record["row"]["Text"] for record in records(output)]
        assert texts == ['two\nlines, "quoted"', "cr\r\nlf"]

    @pytest.mark.parametrize(
        ("body", "found"),
        [
            ("SKU,Text\n1,a\n2\n3,c\n", "Row 2 of {path} has 1 cells under 2 headings."),
            ("SKU,Text\n1,a\n2,b,c\n", "Row 2 of {path} has 3 cells under 2 headings."),
            (
                'SKU,Text\n1,a\n2,"b"x\n',
                "What follows row 1 of {path} can't be read: ',' expected after '\"'.",
            ),
            (
                'SKU,Text\n1,a\n2,"b\n',
                "What follows row 1 of {path} can't be read: unexpected end of data.",
            ),
            (
                b"SKU,Text\n1,a\n2,\xff\n",
                "What follows row 0 of {path} can't be read: 'utf-8' codec can't decode byte 0xff "
                "in position 15: invalid start byte.",
            ),
            ("SKU,Text,SKU\n1,a,2\n", "Two columns of {path} have the same heading."),
            ("", "The answer to {path} is no CSV with headings."),
            (" <html>\nPlease wait\n", "The answer to {path} is no CSV with headings."),
            ('{"message":"Busy"}', "The answer to {path} is no CSV with headings."),
        ],
        ids=[
            "short",
            "long",
            "quotes",
            "open quotes",
            "no utf-8",
            "two of a name",
            "nothing",
            "page",
            "json",
        ],
    )
    def test_given_a_row_that_does_not_fit_when_read_then_it_is_named_and_other_tables_go_on(
        self, body: str | bytes, found: str
    ) -> None:
        with HttpMocker() as http:
            get(http, LOOKUP, {}, bare(table("bad"), table("good")))
            get(http, f"{LOOKUP}/bad/csv", {}, csv(body))
            get(http, f"{LOOKUP}/good/csv", {}, csv("SKU\n1\n"))
            output = failed("lookup_table_rows")
        path = "/api/3/lookup_table/bad/csv"
        assert first_error(output) == (found.format(path=path), FailureType.system_error)
        assert Counter(record["table"] for record in records(output))["good"] == 1

    @pytest.mark.parametrize(
        ("body", "key"),
        [
            ("SKU,Text\n", "SKU"),
            ("[Amplitude] City,Text", "[Amplitude] City"),
            ("{SKU}\n\n", "{SKU}"),
        ],
    )
    def test_given_a_table_without_rows_when_read_then_there_are_no_records(
        self, body: str, key: str
    ) -> None:
        with HttpMocker() as http:
            get(http, LOOKUP, {}, bare(table("a", key)))
            get(http, f"{LOOKUP}/a/csv", {}, csv(body))
            output = full("lookup_table_rows")
        assert records(output) == []
        assert output.errors == []

    def test_given_a_passing_failure_when_a_table_is_read_then_it_is_asked_for_again(self) -> None:
        page = HttpResponse("<html>Please wait</html>", 200, {"Content-Type": "text/html"})
        with HttpMocker() as http:
            get(http, LOOKUP, {}, HttpResponse("", 502), bare(table("a")))
            unavailable = HttpResponse("", 503)
            get(http, f"{LOOKUP}/a/csv", {}, TOO_MANY, unavailable, page, csv("SKU\n1\n"))
            output = full("lookup_table_rows")
        assert [record["key"] for record in records(output)] == ["1"]

    def test_given_a_deleted_table_when_rows_are_read_then_it_is_not_asked_for(self) -> None:
        with HttpMocker() as http:
            tables = [{**table("old"), "isDeleted": True}, {**table("a"), "isDeleted": False}]
            get(http, LOOKUP, {}, bare(*tables))
            get(http, f"{LOOKUP}/a/csv", {}, csv("SKU\n1\n"))
            output = full("lookup_table_rows")
        assert [record["table"] for record in records(output)] == ["a"]

    def test_given_a_refusal_when_read_then_keys_and_plan_are_named(self) -> None:
        with HttpMocker() as http:
            get(http, LOOKUP, {}, HttpResponse('{"message":"Forbidden"}', 403))
            output = failed("lookup_tables")
        message, failure_type = first_error(output)
        assert failure_type is FailureType.config_error
        assert "no Lookup Table API, which is part of Growth and Enterprise with" in message
        assert "copy both keys anew" in message

    def test_given_a_table_that_is_gone_when_read_then_amplitudes_words_are_shown(self) -> None:
        gone = (
            '{"statusCode":400,"message":"No such table","errorCode":"LOOKUP_TABLE_DOES_NOT_EXIST"}'
        )
        with HttpMocker() as http:
            get(http, LOOKUP, {}, bare(table("a")))
            get(http, f"{LOOKUP}/a/csv", {}, HttpResponse(gone, 400))
            output = failed("lookup_table_rows")
        assert first_error(output)[0].startswith("Amplitude answered HTTP 400 (No such table). ")


def job(day: str, *users: int, **more: Any) -> dict[str, Any]:
    ids = [
        {"amplitude_id": n, "requested_on_day": "2024-01-01", "requester": "a@b.c"} for n in users
    ]
    return {"day": day, "status": "staging", "amplitude_ids": ids, **more}


class TestDeletions:
    URL = f"{HOST}/api/2/deletions/users"
    WINDOW = {"start_day": "2024-01-01", "end_day": "2024-02-02"}  # noqa: RUF012

    def test_given_jobs_when_read_then_the_project_is_a_number_and_0_where_none_is_named(
        self,
    ) -> None:
        apps: list[Any] = [
            {"app": "829528"},
            {"app": 187520},
            {"app": None},
            {},
            {"app": ""},
            {"app": "0"},
        ]
        numbers = [829528, 187520, 0, 0, 0, 0]
        jobs = [job(f"2024-01-0{n}", n, **app) for n, app in enumerate(apps, start=1)]
        done = {"active_scrub_done_date": "2024-02-03"}
        last = {**job("2024-02-02", app="829528"), **done}
        with HttpMocker() as http:
            get(http, self.URL, self.WINDOW, bare(*jobs, last))
            output = read_stream("deletion_jobs", config())
        expected = [{**each, "app": n} for each, n in zip(jobs, numbers, strict=True)]
        assert records(output) == [*expected, {**last, "app": 829528}]
        assert {type(record["app"]) for record in records(output)} == {int}
        assert output.errors == []
        assert final_state(output) == {"day": "2024-02-02"}

    def test_given_jobs_when_their_users_are_read_then_each_is_a_record_with_the_jobs_fields(
        self,
    ) -> None:
        with HttpMocker() as http:
            jobs = [job("2024-01-02", 1, 2), job("2024-02-01", 3, app="187520"), job("2024-02-02")]
            get(http, self.URL, self.WINDOW, bare(*jobs))
            output = read_stream("deleted_users", config())
        assert records(output) == [
            {
                "amplitude_id": n,
                "day": day,
                "status": "staging",
                "requested_on_day": "2024-01-01",
                "requester": "a@b.c",
                "app": app,
            }
            for n, day, app in (
                (1, "2024-01-02", 0),
                (2, "2024-01-02", 0),
                (3, "2024-02-01", 187520),
            )
        ]
        assert final_state(output) == {"day": "2024-02-01"}

    @pytest.mark.parametrize("stream", ["deletion_jobs", "deleted_users"])
    def test_given_an_empty_list_that_calls_itself_a_page_when_read_then_there_are_no_records(
        self, stream: str
    ) -> None:
        kind = {"Content-Type": "text/html; charset=utf-8"}
        with HttpMocker() as http:
            get(http, self.URL, self.WINDOW, HttpResponse("[]", 200, kind))
            output = read_stream(stream, config())
        assert records(output) == []
        assert output.errors == []
        assert final_state(output) == {"day": "2023-12-31"}

    @pytest.mark.parametrize(
        ("ids", "found"),
        [
            (None, "amplitude_ids is null where a list should be"),
            ([{}], "element 1 of amplitude_ids is an empty object where a record should be"),
            ([1], "element 1 of amplitude_ids is a number where a record should be"),
        ],
    )
    def test_given_a_job_without_users_that_can_be_read_when_read_then_nothing_is_delivered(
        self, ids: Any, found: str
    ) -> None:
        with HttpMocker() as http:
            jobs = [job("2024-01-02", 1), {**job("2024-01-03"), "amplitude_ids": ids}]
            get(http, self.URL, self.WINDOW, bare(*jobs))
            output = read_stream(
                "deleted_users", config(), expected=ExpectedOutcome.EXPECT_EXCEPTION
            )
        assert records(output) == []
        assert found in first_error(output)[0]

    @pytest.mark.parametrize("stream", ["deletion_jobs", "deleted_users"])
    def test_given_a_state_when_read_then_60_days_before_it_come_again_with_what_has_changed(
        self, stream: str
    ) -> None:
        asked = {"start_day": "2023-12-04", "end_day": "2024-02-02"}
        settings = config(start_date="2023-01-01T00:00:00Z")
        done = {**job("2024-01-02", 1), "status": "done"}
        with HttpMocker() as http:
            get(http, self.URL, asked, bare(done, job("2024-02-01", 2)))
            output = read_stream(stream, settings, {"day": "2024-02-01"})
        assert [record["status"] for record in records(output)] == ["done", "staging"]
        assert final_state(output) == {"day": "2024-02-01"}

    def test_given_a_state_beyond_30_days_when_read_then_it_is_set_back_to_them(self) -> None:
        settings = config(start_date="2023-01-01T00:00:00Z")
        with HttpMocker() as http:
            window = {"start_day": "2023-12-05", "end_day": "2024-02-02"}
            get(http, self.URL, window, bare())
            output = read_stream("deletion_jobs", settings, {"day": "2024-03-01"})
        assert final_state(output) == {"day": "2024-02-02"}

    @pytest.mark.parametrize("first", ["2022-09-01", *days("2023-02-02", "2023-02-10")])
    def test_given_a_history_when_read_then_windows_meet_and_none_is_longer_than_six_months(
        self, first: str
    ) -> None:
        with requests_mock.Mocker() as http:
            http.get(self.URL, text="[]")
            read_stream("deletion_jobs", config(start_date=f"{first}T00:00:00Z"))
        windows = sorted(
            [date.fromisoformat(request.qs[name][0]) for name in ("start_day", "end_day")]
            for request in http.request_history
        )
        assert windows[0][0] == date.fromisoformat(first)
        assert windows[-1][1] == date(2024, 2, 2)
        assert [end + timedelta(days=1) for _, end in windows[:-1]] == [
            start for start, _ in windows[1:]
        ]
        # From the end of August to that of February
        assert max(end - start for start, end in windows) <= timedelta(days=181)

    def test_given_an_end_date_when_read_then_it_is_the_last_window_that_ends_there(self) -> None:
        window = {"start_day": "2024-01-01", "end_day": "2024-01-09"}
        with HttpMocker() as http:
            get(http, self.URL, window, bare())
            output = read_stream("deletion_jobs", config(end_date="2024-01-10T00:00:00Z"))
        assert output.errors == []

    def test_given_a_window_that_fails_when_read_then_the_state_stays_before_it(self) -> None:
        early = {"start_day": "2023-07-01", "end_day": "2023-12-27"}
        late = {"start_day": "2023-12-28", "end_day": "2024-02-02"}
        with HttpMocker() as http:
            get(http, self.URL, early, bare(job("2023-12-01", 1)))
            get(http, self.URL, late, refusal(400, message="Too long"))
            output = read_stream(
                "deletion_jobs",
                config(start_date="2023-07-01T00:00:00Z"),
                expected=ExpectedOutcome.EXPECT_EXCEPTION,
            )
        assert final_state(output) == {"day": "2023-12-01"}
        assert first_error(output)[0].startswith("Amplitude answered HTTP 400 (Too long). ")


@pytest.mark.parametrize("stream", ["events", "annotations", "lookup_tables", "experiments"])
class TestRedirects:
    """Of streams with each kind of requester."""

    @staticmethod
    def read(stream: str, location: str) -> tuple[list[Any], list[str], EntrypointOutput]:
        settings = {"start_date": TODAY, "management_api_key": "a-key"}
        with requests_mock.Mocker() as http:
            http.get(requests_mock.ANY, status_code=302, headers={"Location": location})
            http.get(f"{HOST}/api/3/annotations-elsewhere", text='{"data":[{"id":1}]}')
            output = failed(stream, **settings)
        return records(output), [urlsplit(r.url).scheme for r in http.request_history], output

    def test_given_one_to_http_when_read_then_it_is_not_followed(self, stream: str) -> None:
        found, schemes, output = self.read(stream, "http://elsewhere.example/login?token=abc")
        assert found == []
        assert {*schemes} == {"https"}
        message, failure_type = first_error(output)
        assert message.startswith("Amplitude answered HTTP 302, a redirect of ")
        assert (
            "amplitude.com to an address without encryption (http), which is not followed. Look "
            "for a proxy or a firewall between this machine and Amplitude, then try again."
        ) in message
        assert failure_type is FailureType.transient_error
        assert "token=abc" not in str(output.errors) + str(output.logs)

    @pytest.mark.parametrize(
        "location",
        [
            "https://amplitude.com:99999/login?token=abc",
            "https://[::1/login?token=abc",
            f"https://{'a' * 64}.example/login?token=abc",
            "https://\xff\xfe.example/login?token=abc",
        ],
        ids=["port", "brackets", "long label", "bytes"],
    )
    def test_given_one_to_what_is_no_address_when_read_then_it_is_said_so(
        self, stream: str, location: str
    ) -> None:
        found, _, output = self.read(stream, location)
        assert found == []
        message, failure_type = first_error(output)
        assert message.startswith("Amplitude answered HTTP 302, a redirect of ")
        assert "to what is no address, which is not followed." in message
        assert failure_type is FailureType.transient_error
        assert "token=abc" not in str(output.errors) + str(output.logs)


def test_given_a_redirect_over_https_when_read_then_it_is_followed() -> None:
    with requests_mock.Mocker() as http:
        elsewhere = {"Location": "https://amplitude.com/elsewhere"}
        http.get(f"{HOST}/api/3/annotations", status_code=302, headers=elsewhere)
        http.get(f"{HOST}/elsewhere", text='{"data":[{"id":1}]}')
        output = full("annotations")
    assert records(output) == [{"id": 1}]


class TestErrors:
    @pytest.mark.parametrize("status", [429, 503])
    def test_given_a_parent_that_fails_when_read_then_the_error_is_that_of_the_selected_stream(
        self, status: int
    ) -> None:
        with requests_mock.Mocker() as http:
            http.get(LOOKUP, status_code=status)
            http.get(f"{HOST}/api/2/events/list", status_code=status)
            output = failed("lookup_table_rows", "event_counts")
        errors = [m.trace.error for m in output.errors[:-1] if m.trace and m.trace.error]
        named = [e.stream_descriptor.name for e in errors if e.stream_descriptor]
        assert sorted(named) == ["event_counts", "lookup_table_rows"]

    @pytest.mark.parametrize(
        "body",
        [
            "[" * 100_000 + "]" * 100_000,
            '{"error":' * 100_000 + "1" + "}" * 100_000,
            '{"data":[{"id":' + "9" * 10_000 + "}]}",
            '{"error":' + "9" * 10_000 + "}",
        ],
        ids=["lists", "objects", "integer", "integer in an error"],
    )
    @pytest.mark.parametrize("status", [200, 400, 403, 404])
    def test_given_an_answer_that_python_fails_at_when_read_then_stream_and_endpoint_are_named(
        self, body: str, status: int
    ) -> None:
        with requests_mock.Mocker() as http:
            http.get(f"{PLAN}/category", text=body, status_code=status)
            output = read_stream(
                *("event_categories", config()),
                sync_mode=SyncMode.full_refresh,
                expected=ExpectedOutcome.ALLOW_ANY,
            )
        said = str(output.errors) + str(output.logs)
        for name in ("RecursionError:", "ValueError:", "unexpected error"):
            assert name not in said
        for message in output.errors[:-1]:
            error = message.trace.error  # type: ignore[union-attr]
            assert error
            assert error.stream_descriptor
            assert error.stream_descriptor.name == "event_categories"
            if status in (403, 404):
                assert (error.message or "").startswith(
                    "The stream event_categories failed at the answer to /api/2/taxonomy/category "
                    "in a way that nobody has foreseen ("
                )
