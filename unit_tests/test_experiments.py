"""The streams of Amplitude Experiment, their key, and streams that are selected but not there.

Requests are matched exactly, and states asserted literally; it is noon of 2024-01-03 in UTC.
"""

import io
import json
import logging
import re
from collections.abc import Callable, Iterable, Mapping
from copy import deepcopy
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any, ClassVar

import pytest
from airbyte_cdk.logger import AirbyteLogFormatter
from airbyte_cdk.models import FailureType, SyncMode
from airbyte_cdk.sources.declarative.concurrent_declarative_source import (
    ConcurrentDeclarativeSource,
)
from airbyte_cdk.test.catalog_builder import CatalogBuilder
from airbyte_cdk.test.entrypoint_wrapper import EntrypointOutput, read
from airbyte_cdk.test.mock_http import HttpMocker, HttpRequest, HttpResponse
from airbyte_cdk.test.models.outcome import ExpectedOutcome
from airbyte_cdk.utils.airbyte_secrets_utils import filter_secrets
from airbyte_cdk.utils.traced_exception import AirbyteTracedException

from sandbox import Fault, Project, Sandbox, experiments
from source_amplitude import SourceAmplitude
from source_amplitude.components import (
    SecretiveBearerAuthenticator,
    SecretiveErrorHandler,
)
from unit_tests.helpers import (
    AUTHORIZATION,
    answer,
    config,
    final_state,
    first_error,
    logged,
    read_stream,
    records,
)
from unit_tests.installed import Connector, configured, discovered_streams, forms_of
from unit_tests.test_components import response
from unit_tests.test_manifest import MANIFEST

HOST = "https://experiment.amplitude.com"
KEY = "mgmt-0123456789abcdef"
TODAY = "2024-01-03T00:00:00Z"
ANNOTATIONS = "https://amplitude.com/api/3/annotations"
# Of each stream: its path, its parameters and the name of its list.
LISTS: dict[str, tuple[str, dict[str, str], str]] = {
    "experiments": ("/api/1/experiments", {"includeArchived": "true"}, "experiments"),
    "flags": ("/api/1/flags", {"includeArchived": "true"}, "flags"),
    "flag_versions": (
        "/api/1/versions",
        {"start": "2024-01-03T00:00:00.000Z", "end": "2024-01-03T12:00:00.001Z"},
        "versions",
    ),
    "deployments": ("/api/1/deployments", {}, "deployments"),
    "mutexes": ("/api/1/mutexes", {}, "mutexes"),
    "holdouts": ("/api/1/holdouts", {}, "holdouts"),
}


def get(
    http: HttpMocker, stream: str, *answers: HttpResponse, host: str = HOST, **params: str
) -> None:
    """An answer for each time that a stream's list is asked for, with further parameters."""
    path, own, _ = LISTS[stream]
    asked = {**own, "limit": "1000", **params}
    http.get(HttpRequest(host + path, asked, {"Authorization": f"Bearer {KEY}"}), list(answers))


def listed(stream: str, *elements: Any, **more: Any) -> HttpResponse:
    return HttpResponse(json.dumps({LISTS[stream][2]: elements, **more}))


def with_key(**settings: Any) -> dict[str, Any]:
    return config(**{"start_date": TODAY, "management_api_key": KEY, **settings})


def full(stream: str, **settings: Any) -> EntrypointOutput:
    return read_stream(stream, with_key(**settings), sync_mode=SyncMode.full_refresh)


def failed(stream: str, *beside: str, **settings: Any) -> EntrypointOutput:
    return read_stream(
        stream,
        with_key(**settings),
        sync_mode=SyncMode.full_refresh,
        expected=ExpectedOutcome.EXPECT_EXCEPTION,
        beside=beside,
    )


def version(number: int, created: str = "2024-01-03T01:00:00.594Z", **flag: Any) -> dict[str, Any]:
    return {
        "createdAt": created,
        "version": number,
        "flagConfig": {"id": 21190, "key": "new-player", **flag},
    }


def element(stream: str, number: int) -> dict[str, Any]:
    """The least that a list may hold."""
    return version(number) if stream == "flag_versions" else {"id": number}


def everything_shown(stream: str, **more: Any) -> str:
    """All that a sync prints with ``--debug``, and all that it logs, as one text."""
    catalog = CatalogBuilder().with_stream(stream, SyncMode.full_refresh).build()
    log = io.StringIO()
    handler = logging.StreamHandler(log)
    handler.setFormatter(AirbyteLogFormatter())
    logger = logging.getLogger("airbyte")
    logger.addHandler(handler)
    try:
        source = SourceAmplitude(catalog=catalog, config=with_key(), state=[], **more)
        outcome = ExpectedOutcome.ALLOW_ANY
        output = read(source, with_key(), catalog, [], expected_outcome=outcome, debug=True)
    finally:
        logger.removeHandler(handler)
        logger.setLevel(logging.INFO)
    return log.getvalue() + "".join(
        # As a line has it, whose records no mask is laid over.
        str(message.record or message.log or message.trace)
        for message in (*output.records, *output.logs, *output.errors)
    )


def read_all(
    answers: Callable[[HttpMocker, str], None],
    expected: ExpectedOutcome = ExpectedOutcome.EXPECT_SUCCESS,
    streams: Iterable[str] = LISTS,
) -> EntrypointOutput:
    """Sync the six, with ``answers`` to each, and one stream of the project's keys beside them."""
    with HttpMocker() as http:
        for stream in streams:
            answers(http, stream)
        http.get(HttpRequest(ANNOTATIONS, {}, AUTHORIZATION), answer([{"id": 9}]))
        return read_stream(
            "annotations",
            with_key(),
            sync_mode=SyncMode.full_refresh,
            expected=expected,
            beside=[*streams],
        )


def numbers(output: EntrypointOutput) -> dict[str, list[int]]:
    """The ids of each stream, or numbers of versions, in the order in which they came."""
    found: dict[str, list[int]] = {stream: [] for stream in ("annotations", *LISTS)}
    for message in output.records:
        if message.record:
            data = message.record.data
            found[message.record.stream].append(int(data.get("version") or data["id"]))
    return found


def errors(output: EntrypointOutput) -> dict[str | None, tuple[str | None, FailureType | None]]:
    """Message and kind of each stream's error; None stands for the last, which is of all."""
    found = [message.trace.error for message in output.errors if message.trace]
    return {
        e.stream_descriptor.name if e.stream_descriptor else None: (e.message, e.failure_type)
        for e in found
        if e
    }


@pytest.mark.usefixtures("standing_clock")
class TestAll:
    def test_given_the_eu_region_when_read_then_its_own_host_is_asked_with_the_key_alone(
        self,
    ) -> None:
        def answers(http: HttpMocker, stream: str) -> None:
            eu = "https://experiment.eu.amplitude.com"
            get(http, stream, listed(stream, element(stream, 7)), host=eu)

        with HttpMocker() as http:
            for stream in LISTS:
                answers(http, stream)
            output = read_stream(
                "flags",
                with_key(data_region="EU Residency Server", project_name="Shop"),
                sync_mode=SyncMode.full_refresh,
                beside=[stream for stream in LISTS if stream != "flags"],
            )
        assert numbers(output) == {"annotations": [], **{stream: [7] for stream in LISTS}}
        assert {record["project_name"] for record in records(output)} == {"Shop"}

    @pytest.mark.parametrize(
        ("cursors", "end"),
        [
            ((1000, "2000", 3000), {}),
            (("26397", "1e10", "007"), {"nextCursor": None}),
            (("None", "{{ 1 }}", "a+/=& 'b'"), {"nextCursor": ""}),
        ],
        ids=["documented", "recorded", "of any characters"],
    )
    def test_given_pages_when_read_then_each_leads_to_the_next_until_there_is_none(
        self, cursors: tuple[object, object, object], end: dict[str, Any]
    ) -> None:
        def answers(http: HttpMocker, stream: str) -> None:
            five, four, three, two = (element(stream, n) for n in (5, 4, 3, 2))
            first, second, third = cursors
            get(http, stream, listed(stream, five, four, nextCursor=first))
            # A page without an element is no end.
            get(http, stream, listed(stream, nextCursor=second), cursor=str(first))
            get(http, stream, listed(stream, three, nextCursor=third), cursor=str(second))
            get(http, stream, listed(stream, two, **end), cursor=str(third))

        output = read_all(answers)
        assert numbers(output) == {
            "annotations": [9],
            **{stream: [5, 4, 3, 2] for stream in LISTS},
        }
        assert output.errors == []

    @pytest.mark.parametrize(
        ("cursor", "following"), [("1000", 1000), ("1000", "1000"), ("1e10", "1e10")]
    )
    def test_given_a_page_that_names_itself_as_the_next_when_read_then_it_fails(
        self, cursor: str, following: object
    ) -> None:
        def answers(http: HttpMocker, stream: str) -> None:
            get(http, stream, listed(stream, element(stream, 1), nextCursor=cursor))
            again = listed(stream, element(stream, 2), nextCursor=following)
            get(http, stream, again, cursor=cursor)

        output = read_all(answers, ExpectedOutcome.EXPECT_EXCEPTION)
        found = errors(output)
        assert found.keys() == {*LISTS, None}
        for stream in LISTS:
            assert "the last one leads to one that was read before" in (found[stream][0] or "")
        assert numbers(output)["annotations"] == [9]

    def test_given_pages_in_a_circle_when_read_then_each_is_read_once_and_it_fails(self) -> None:
        def answers(http: HttpMocker, stream: str) -> None:
            get(http, stream, listed(stream, element(stream, 1), nextCursor=5))
            get(http, stream, listed(stream, element(stream, 2), nextCursor=10), cursor="5")
            get(http, stream, listed(stream, element(stream, 3), nextCursor="5"), cursor="10")

        output = read_all(answers, ExpectedOutcome.EXPECT_EXCEPTION)
        assert numbers(output) == {"annotations": [9], **{stream: [1, 2, 3] for stream in LISTS}}
        for stream, (path, _, _) in LISTS.items():
            assert errors(output)[stream] == (
                f"The pages of {path} can't be followed to their end: the last one leads to one "
                "that was read before. Try again later; if it stays like this, report it to the "
                "connector's maintainers.",
                FailureType.system_error,
            )

    @pytest.mark.parametrize(
        ("elements", "found"),
        [
            (None, "is null where a list should be"),
            ({"id": 1}, "is an object where a list should be"),
            (["text"], "element 1 of {name} is a text where a record should be"),
            ([{}], "element 1 of {name} is an empty object where a record should be"),
            # Where a sample in Amplitude's documentation has it
            ([..., {"nextCursor": 1000}], "element 2 has no {needed}"),
        ],
        ids=["null", "object", "text", "empty", "misplaced cursor"],
    )
    def test_given_what_is_no_record_when_read_then_nothing_of_it_is_delivered_and_others_go_on(
        self, elements: Any, found: str
    ) -> None:
        def answers(http: HttpMocker, stream: str) -> None:
            listed_here = elements
            if isinstance(elements, list):
                listed_here = [element(stream, 1) if e is ... else e for e in elements]
            get(http, stream, HttpResponse(json.dumps({LISTS[stream][2]: listed_here})))

        output = read_all(answers, ExpectedOutcome.EXPECT_EXCEPTION)
        assert numbers(output) == {"annotations": [9], **{stream: [] for stream in LISTS}}
        for stream, (_, _, name) in LISTS.items():
            needed = "flagConfig.id" if stream == "flag_versions" else "id"
            message, failure_type = errors(output)[stream]
            assert found.format(name=name, needed=needed) in (message or "")
            assert failure_type is FailureType.system_error

    @pytest.mark.parametrize("status", [401, 403])
    def test_given_a_refused_key_when_read_then_it_is_named_with_the_region_and_others_go_on(
        self, status: int
    ) -> None:
        def answers(http: HttpMocker, stream: str) -> None:
            get(http, stream, HttpResponse('{"error": "Not this key"}', status))

        output = read_all(answers, ExpectedOutcome.EXPECT_EXCEPTION)
        assert numbers(output)["annotations"] == [9]
        refused = (
            f"Amplitude answered HTTP {status} (Not this key). The Management API Key was refused "
            "on the Standard Server. Create another in Amplitude (Experiment > Management API); "
            "neither the API Key nor a deployment's key will do. If it is right, Data Region is "
            "not the region it was created in.",
            FailureType.config_error,
        )
        found = errors(output)
        assert {stream: found[stream] for stream in LISTS} == dict.fromkeys(LISTS, refused)

    def test_given_too_many_requests_when_read_then_the_same_is_asked_for_again(self) -> None:
        def answers(http: HttpMocker, stream: str) -> None:
            busy = HttpResponse("", 429)
            get(http, stream, busy, HttpResponse("<html>"), listed(stream))

        # One by itself: its window would end later once others have waited.
        for streams in (["flag_versions"], [s for s in LISTS if s != "flag_versions"]):
            output = read_all(answers, streams=streams)
            assert numbers(output) == {"annotations": [9], **{stream: [] for stream in LISTS}}
            assert output.errors == []


@pytest.mark.usefixtures("standing_clock")
class TestIds:
    @pytest.mark.parametrize("made", [int, str])
    def test_given_numbers_or_texts_when_read_then_ids_are_texts_and_all_else_stays(
        self, made: type
    ) -> None:
        one, two = made(1), made(2)
        untouched: dict[str, Any] = {
            "percentage": 5,
            "variants": [{"key": "on", "payload": {"id": 9}}],
        }
        sent: dict[str, dict[str, Any]] = {
            "flags": {"id": one, "projectId": two, "deployments": [one, two], "createdBy": two},
            "mutexes": {
                "id": one,
                "slots": [{"index": 1, "experiments": [one], "holdouts": [two]}],
            },
            "holdouts": {"id": one, "experiments": [one, two], "lastModifiedBy": one},
        }
        expected: dict[str, dict[str, Any]] = {
            "flags": {"id": "1", "projectId": "2", "deployments": ["1", "2"], "createdBy": "2"},
            "mutexes": {
                "id": "1",
                "slots": [{"index": 1, "experiments": ["1"], "holdouts": ["2"]}],
            },
            "holdouts": {"id": "1", "experiments": ["1", "2"], "lastModifiedBy": "1"},
        }
        for stream, fields in sent.items():
            with HttpMocker() as http:
                get(http, stream, listed(stream, {**fields, **untouched}))
                assert records(full(stream)) == [{**expected[stream], **untouched}]

    def test_given_what_was_recorded_of_experiments_and_flags_when_read_then_it_arrives_as_it_is(
        self,
    ) -> None:
        """Those of 2024 said neither who made them nor when."""
        experiment = {
            "id": "21190",
            "projectId": "187520",
            "key": "new-player",
            "name": "New player",
            "description": "Lyrics\nbeside the player.\r\n\n- 50:50",
            "enabled": True,
            "evaluationMode": "remote",
            "deployments": ["7001"],
            "bucketingKey": "amplitude_id",
            "startDate": "2024-02-13",
            "endDate": None,
            "variants": [{"key": "on", "name": "", "payload": {}, "rolloutWeight": 1}],
            "rolloutWeights": {},
            "stickyBucketing": False,
            "decision": None,
            "rolledOutVariant": None,
        }
        made = {
            "createdAt": "2026-02-20T23:49:54.927Z",
            "createdBy": "dev@shop.example",
            "lastModifiedAt": "2026-02-20T23:49:54.927Z",
            "lastModifiedBy": "dev@shop.example",
        }
        flag = {**experiment, **made, "id": "21191", "rolloutWeights": {"on": 1}}
        for stream in ("experiments", "flags"):
            with HttpMocker() as http:
                page = listed(stream, experiment, nextCursor="26397")
                get(http, stream, page)
                get(http, stream, listed(stream, flag, nextCursor=None), cursor="26397")
                output = full(stream)
            assert records(output) == [
                {name: value for name, value in sent.items() if value is not None}
                for sent in (experiment, flag)
            ]
            assert output.errors == []

    def test_given_no_ids_or_others_when_read_then_they_stay_as_they_are(self) -> None:
        slots = ["x", {"experiments": 5}]
        sent: dict[str, Any] = {"id": "a", "deployments": None, "slots": slots, "createdBy": {}}
        with HttpMocker() as http:
            get(http, "flags", listed("flags", sent))
            [record] = records(full("flags"))
        # What is null is left out by the CDK.
        assert record == {
            "id": "a",
            "slots": ["x", {"experiments": 5}],
            "createdBy": {},
        }


@pytest.mark.usefixtures("standing_clock")
class TestFlagVersions:
    def window(self, http: HttpMocker, start: str, end: str, *versions: Any) -> None:
        get(http, "flag_versions", listed("flag_versions", *versions), start=start, end=end)

    def test_given_a_version_when_read_then_its_flag_is_named_and_its_ids_are_texts(self) -> None:
        sent = version(3, projectId=5, deployments=[7], enabled=True)
        with HttpMocker() as http:
            get(http, "flag_versions", listed("flag_versions", {**sent, "createdBy": 11}))
            output = full("flag_versions")
        flag = {
            "id": "21190",
            "key": "new-player",
            "projectId": "5",
            "deployments": ["7"],
            "enabled": True,
        }
        assert records(output) == [
            {
                **sent,
                "createdBy": "11",
                "flagConfig": flag,
                "flag_id": "21190",
                "flag_key": "new-player",
            }
        ]

    def test_given_flags_of_any_characters_when_read_then_ids_and_keys_stay_as_they_are(
        self,
    ) -> None:
        texts = ["007", "1e10", "{{ 1 }}", "{'a': 1}", "'q'", "None", "lyrics-🎤"]
        with HttpMocker() as http:
            versions = [version(1, id=text, key=text) for text in texts]
            get(http, "flag_versions", listed("flag_versions", *versions))
            output = full("flag_versions")
        assert [(r["flag_id"], r["flag_key"]) for r in records(output)] == [(t, t) for t in texts]

    def test_given_a_flag_without_a_key_when_read_then_it_is_read_all_the_same(self) -> None:
        without: dict[str, Any] = {**version(1), "flagConfig": {"id": "21190"}}
        with HttpMocker() as http:
            page = listed("flag_versions", without, version(2, key=None))
            get(http, "flag_versions", page)
            output = full("flag_versions")
        assert [(r["version"], r["flag_id"], r.get("flag_key")) for r in records(output)] == [
            (1, "21190", None),
            (2, "21190", None),
        ]
        assert output.errors == []

    @pytest.mark.parametrize(
        ("wrong", "missing"),
        [
            ({**version(1), "version": None}, "version"),
            ({"createdAt": "2024-01-03T01:00:00.594Z", "version": 1}, "flagConfig.id"),
            ({**version(1), "flagConfig": "21190"}, "flagConfig.id"),
            (version(1, id=None), "flagConfig.id"),
        ],
        ids=["no version", "no flag", "text", "no id"],
    )
    def test_given_a_version_without_its_keys_when_read_then_it_fails(
        self, wrong: dict[str, Any], missing: str
    ) -> None:
        with HttpMocker() as http:
            get(http, "flag_versions", listed("flag_versions", version(2), wrong))
            output = failed("flag_versions")
        assert records(output) == []
        assert f"element 2 has no {missing}" in first_error(output)[0]

    def test_given_a_history_when_read_then_windows_meet_and_pages_are_the_windows_own(
        self,
    ) -> None:
        meet = ["2023-11-01T00:00:00.000Z", "2023-12-01T00:00:00.000Z", "2023-12-31T00:00:00.000Z"]
        last = "2023-11-30T23:59:59.999Z"
        with HttpMocker() as http:
            page = listed("flag_versions", version(4, last), version(3, last), nextCursor=1000)
            get(http, "flag_versions", page, start=meet[0], end=meet[1])
            more = listed("flag_versions", version(2, meet[0]))
            get(http, "flag_versions", more, start=meet[0], end=meet[1], cursor="1000")
            self.window(http, meet[1], meet[2], version(5, meet[1]))
            self.window(http, meet[2], "2024-01-03T12:00:00.001Z")
            output = read_stream("flag_versions", with_key(start_date="2023-11-01T00:00:00Z"))
        assert sorted(record["version"] for record in records(output)) == [2, 3, 4, 5]
        assert final_state(output) == {"createdAt": "2023-12-01T00:00:00.000Z"}

    def test_given_the_state_of_a_sync_when_read_again_then_it_goes_on_an_hour_before_it(
        self,
    ) -> None:
        end = "2024-01-03T12:00:00.001Z"
        with HttpMocker() as http:
            newest = version(2, "2024-01-03T10:30:00.594Z")
            self.window(http, TODAY.replace("Z", ".000Z"), end, newest, version(1))
            first = read_stream("flag_versions", with_key())
        with HttpMocker() as http:
            # A millisecond after what is done
            self.window(http, "2024-01-03T09:30:00.595Z", end, version(3, "2024-01-03T11:00:00Z"))
            second = read_stream("flag_versions", with_key(), final_state(first))
        assert final_state(first) == {"createdAt": "2024-01-03T10:30:00.594Z"}
        assert final_state(second) == {"createdAt": "2024-01-03T11:00:00.000Z"}

    @pytest.mark.parametrize(
        ("written", "start", "left"),
        [
            ("2024-01-03T06:00:00Z", "2024-01-03T05:00:00.001Z", "2024-01-03T06:00:00.000Z"),
            ("2024-01-03T06:00:00.5941Z", "2024-01-03T05:00:00.595Z", "2024-01-03T06:00:00.594Z"),
            ("2030-01-01T00:00:00.000Z", "2024-01-03T11:00:00.001Z", "2024-01-03T12:00:00.000Z"),
        ],
        ids=["seconds", "more digits", "future"],
    )
    def test_given_a_state_of_another_form_or_the_future_when_read_then_it_is_understood(
        self, written: str, start: str, left: str
    ) -> None:
        with HttpMocker() as http:
            self.window(http, start, "2024-01-03T12:00:00.001Z")
            output = read_stream("flag_versions", with_key(), {"createdAt": written})
        assert final_state(output) == {"createdAt": left}
        set_back = [line for line in logged(output) if "set back to" in line]
        assert len(set_back) == written.startswith("2030")
        assert all("2024-01-03T12:00:00.000Z" in line for line in set_back)

    def test_given_a_state_that_is_no_time_when_read_then_it_is_named(self) -> None:
        output = read_stream(
            "flag_versions",
            with_key(),
            {"createdAt": "yesterday"},
            expected=ExpectedOutcome.EXPECT_EXCEPTION,
        )
        assert "such as 2024-01-31T20:00:00.000Z should be" in first_error(output)[0]

    def test_given_a_page_that_fails_when_read_then_the_state_stays(self) -> None:
        state = {"createdAt": "2024-01-03T06:00:00.594Z"}
        window = {"start": "2024-01-03T05:00:00.595Z", "end": "2024-01-03T12:00:00.001Z"}
        with HttpMocker() as http:
            late = version(9, "2024-01-03T11:00:00.000Z")
            get(http, "flag_versions", listed("flag_versions", late, nextCursor=1000), **window)
            wrong = HttpResponse('{"versions": null}')
            get(http, "flag_versions", wrong, **window, cursor="1000")
            output = read_stream(
                "flag_versions", with_key(), state, expected=ExpectedOutcome.EXPECT_EXCEPTION
            )
        assert final_state(output) == state

    def test_given_an_end_date_when_read_then_it_is_the_first_moment_not_to_read(self) -> None:
        with HttpMocker() as http:
            self.window(http, "2024-01-02T00:00:00.000Z", "2024-01-02T06:00:00.000Z")
            settings = {"start_date": "2024-01-02", "end_date": "2024-01-02T06:00:00Z"}
            output = read_stream("flag_versions", with_key(**settings))
        assert output.errors == []


@pytest.mark.usefixtures("standing_clock")
class TestDeployments:
    SECRET = "server-quo\"te'd\\/ü-0123456789abcdefWXYZ"

    def test_given_keys_of_any_length_when_read_then_their_ends_alone_are_shown(self) -> None:
        ends = [
            (self.SECRET, "…WXYZ"),
            ("0123456789abWXYZ", "…WXYZ"),
            ("0123456789aWXYZ", "…XYZ"),
            ("abWXYZ", "…Z"),
            ("XYZ", "…"),
            ("", "…"),
            (1234567890123456, "…"),
            ([self.SECRET], "…"),
        ]
        sent = {"label": "backend", "deleted": False}
        with HttpMocker() as http:
            deployments = [{**sent, "id": n, "key": key} for n, (key, _) in enumerate(ends)]
            get(http, "deployments", listed("deployments", *deployments))
            output = full("deployments")
        assert records(output) == [
            {**sent, "id": str(n), "key": end} for n, (_, end) in enumerate(ends)
        ]

    def test_given_no_key_when_read_then_there_is_none(self) -> None:
        with HttpMocker() as http:
            get(http, "deployments", listed("deployments", {"id": 1, "key": None}, {"id": 2}))
            output = full("deployments")
        assert records(output) == [{"id": "1"}, {"id": "2"}]

    @pytest.mark.parametrize("kind", ["sound", "cut off", "text", "list", "no list", "refusal"])
    def test_given_any_answer_when_read_with_debug_logs_then_no_part_of_a_key_is_shown(
        self, kind: str
    ) -> None:
        sound = json.dumps({"deployments": [{"id": 1, "label": "backend", "key": self.SECRET}]})
        body, status = {
            "sound": (sound, 200),
            "cut off": (sound[:-20], 200),
            "text": (json.dumps(self.SECRET), 200),
            "list": (json.dumps([self.SECRET]), 200),
            "no list": (json.dumps({"deployments": {"key": self.SECRET}}), 200),
            "refusal": (json.dumps({"error": "No", "found": [{"key": self.SECRET}]}), 400),
        }[kind]
        with HttpMocker() as http:
            get(http, "deployments", *[HttpResponse(body, status)] * 6)
            # As the Builder reads: it shows responses as well.
            shown = everything_shown("deployments", emit_connector_builder_messages=True)
        assert "0123456789" not in shown
        assert ("'id': '1'" in shown) == (kind == "sound")
        # What the CDK logs of a response, and what the Builder shows
        for marker in ("Receiving response", '"response": {"body": {"content": '):
            assert (marker in shown.replace("\\", "")) == (kind in ("sound", "no list"))
        if kind in ("cut off", "text", "list"):
            assert "bytes that are no JSON object, and may hold secrets" in shown

    def test_given_a_body_that_nests_too_deep_then_nothing_of_it_is_left(self) -> None:
        received = response(b'{"key": "secret-0123456789", "a": ' + b"[" * 100_000)
        handler = SecretiveErrorHandler(parameters={}, config={}, secret_field="key")
        with pytest.raises(Exception, match="no JSON object"):
            handler.interpret_response(received)
        assert received.content.startswith(b'{"error": "100,0')


UNSENDABLE = (
    "Management API Key (management_api_key) is not valid: it has a blank in between or a "
    "character that is not ASCII."
)


def _two_files(**given: Any) -> ConcurrentDeclarativeSource:
    return ConcurrentDeclarativeSource(source_config=deepcopy(MANIFEST), **given)


class TestKey:
    @pytest.mark.parametrize(
        "absent", [{}, {"management_api_key": None}, {"management_api_key": ""}]
    )
    def test_given_no_key_when_discovered_then_its_streams_are_not_there(
        self, absent: dict[str, Any]
    ) -> None:
        settings = config(**absent)
        found = [stream.name for stream in SourceAmplitude(config=settings).streams(settings)]
        assert not LISTS.keys() & set(found)
        assert "events" in found

    @pytest.mark.parametrize("key", [KEY, "0", "False", "None", "[]", "{{1}}", "1e10"])
    def test_given_a_key_of_any_characters_when_discovered_then_its_streams_are_there_too(
        self, key: str
    ) -> None:
        settings, without = with_key(management_api_key=key), config()
        found = [stream.name for stream in SourceAmplitude(config=settings).streams(settings)]
        others = [stream.name for stream in SourceAmplitude(config=without).streams(without)]
        assert found == [*others, *LISTS]

    def test_given_a_pasted_key_when_authenticated_then_blanks_around_it_are_left_out(self) -> None:
        keys = {"key": f" {KEY}\n"}
        assert SecretiveBearerAuthenticator(keys, "key").get_auth_header() == {
            "Authorization": f"Bearer {KEY}"
        }

    def test_given_a_key_of_any_characters_when_authenticated_then_every_form_is_masked(
        self,
    ) -> None:
        key = "quo\"te'd\\key/+&%20"
        SecretiveBearerAuthenticator({"key": key}, "key")
        for form in forms_of(key):
            assert filter_secrets(f"<{form}>") == "<****>"

    @pytest.mark.parametrize("key", ["a b", "two words", "line\nbreak", "schlüssel", "“quoted”"])
    @pytest.mark.parametrize("door", [SourceAmplitude, _two_files])
    def test_given_a_key_that_no_header_can_hold_when_read_then_only_its_own_streams_end(
        self, key: str, door: Callable[..., Any]
    ) -> None:
        settings = with_key(management_api_key=key)
        builder = CatalogBuilder().with_stream("flags", SyncMode.full_refresh)
        catalog = builder.with_stream("events_list", SyncMode.full_refresh).build()
        source = door(catalog=catalog, config=settings, state=[])
        with HttpMocker() as http:
            http.get(HttpRequest("https://amplitude.com/api/2/events/list"), answer([{"id": 1}]))
            output = read(
                source, settings, catalog, [], expected_outcome=ExpectedOutcome.EXPECT_EXCEPTION
            )
        assert records(output) == [{"id": 1}]
        error = output.errors[0].trace.error  # type: ignore[union-attr]
        assert error
        assert error.stream_descriptor
        assert error.stream_descriptor.name == "flags"
        assert first_error(output) == (UNSENDABLE, FailureType.config_error)

    def test_given_a_key_that_no_header_can_hold_when_checked_then_it_is_said(self) -> None:
        settings = with_key(management_api_key="two words")
        source = SourceAmplitude(config=settings)
        with pytest.raises(AirbyteTracedException, match=re.escape(UNSENDABLE)) as failure:
            source.check(logging.getLogger("airbyte"), settings)
        assert failure.value.failure_type is FailureType.config_error

    def test_given_answers_that_echo_the_key_when_read_then_no_form_of_it_is_printed(
        self, tmp_path: Path
    ) -> None:
        with Sandbox(Project(events_per_hour=1)) as sandbox:
            sandbox.management_key = "quo\"te'd\\key/+&%20"
            echo = json.dumps({"error": " | ".join(forms_of(sandbox.management_key))}).encode()
            sandbox.inject(Fault("/api/1/flags", times=None, status=400, body=echo))
            connector = Connector(tmp_path, sandbox, management_api_key=sandbox.management_key)
            result = connector.run("read", "--debug", *connector.read_options("flags", "mutexes"))
        assert "HTTP 400 (****" in result.errors()["flags"]["message"]
        assert "Bearer ****" in result.output
        assert len(result.records("mutexes")) == 2


def needs_the_key(stream: str) -> str:
    return (
        f"The stream {stream} needs the Management API Key (management_api_key), which is not set. "
        "Enter it, or deselect the stream."
    )


@pytest.mark.usefixtures("standing_clock")
class TestAbsentStreams:
    REASONS: ClassVar[dict[str, str]] = {
        **{stream: needs_the_key(stream) for stream in LISTS},
        "report_sales": (
            "The report of the stream report_sales is not in the field Reports (reports), or not "
            "any more. Add it again, or deselect the stream."
        ),
        "users": (
            "The stream users is not one of this connector's: it was selected with another "
            "version. Refresh the source's schema, and deselect the stream."
        ),
    }

    def read(self, *names: str) -> EntrypointOutput:
        return read_stream(
            "annotations",
            config(),
            sync_mode=SyncMode.full_refresh,
            expected=ExpectedOutcome.EXPECT_EXCEPTION,
            beside=names,
        )

    def test_when_read_then_each_is_named_once_and_the_others_are_read(self) -> None:
        with HttpMocker() as http:
            http.get(HttpRequest(ANNOTATIONS, {}, AUTHORIZATION), answer([{"id": 1}]))
            output = self.read(*self.REASONS)
        found, kind = errors(output), FailureType.config_error
        names = ", ".join(self.REASONS)
        assert found.pop(None) == (f"Streams that could not be read: {names}.", kind)
        assert found == {name: (reason, kind) for name, reason in self.REASONS.items()}
        assert len(output.errors) == len(self.REASONS) + 1
        assert records(output) == [{"id": 1}]
        assert output.most_recent_state.stream_descriptor.name == "annotations"  # type: ignore[union-attr]
        assert [s.name for s in output.get_stream_statuses("annotations")][-1] == "COMPLETE"

    def test_given_others_that_fail_as_well_when_read_then_each_is_named(self) -> None:
        with HttpMocker() as http:
            http.get(HttpRequest(ANNOTATIONS, {}, AUTHORIZATION), HttpResponse("{}", 400))
            output = self.read("flags", "flag_versions")
        assert [*errors(output)] == ["flags", "flag_versions", "annotations", None]


def test_given_all_that_are_selected_when_read_then_each_is_named_and_it_ends_with_an_error(
    tmp_path: Path,
) -> None:
    with Sandbox(Project(events_per_hour=1)) as sandbox:
        connector = Connector(tmp_path, sandbox)
        streams = [s for s in discovered_streams(has_management_key=True) if s["name"] in LISTS]
        options = connector._write("catalog.json", configured(streams), "--catalog")
        run = connector.run("read", *options)
        assert sandbox.requests == []
    assert {name: error["message"] for name, error in run.errors().items()} == {
        name: needs_the_key(name) for name in LISTS
    }
    assert {error["failure_type"] for error in run.errors().values()} == {"config_error"}
    assert run.exit_code == 1


@pytest.mark.usefixtures("within_an_hour")
def test_given_a_sandbox_with_short_pages_when_read_then_all_that_it_holds_arrives_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = datetime.now(timezone.utc)
    start = now.replace(hour=0, minute=0, second=0, microsecond=0) - timedelta(days=100)
    with Sandbox(Project(events_per_hour=1), clock=lambda: now, experiment_page=3) as sandbox:
        for name, value in sandbox.env.items():
            monkeypatch.setenv(name, value)
        settings = sandbox.config(
            management_api_key=sandbox.management_key, start_date=f"{start:%Y-%m-%d}"
        )
        catalog = CatalogBuilder()
        for stream in LISTS:
            catalog.with_stream(stream, SyncMode.full_refresh)
        source = SourceAmplitude(catalog=catalog.build(), config=settings)
        output = read(source, settings, catalog.build())
        assert {request.status for request in sandbox.requests} == {200}
        # 101 versions in four windows
        assert sum(r.path == "/api/1/versions" for r in sandbox.requests) > 101 / 3
        truth = {
            stream: [each["id"] for each in getattr(experiments, stream)(sandbox.project, now)]
            for stream in LISTS.keys() - {"flag_versions"}
        }
        saved = experiments.versions(sandbox.project, start, now)
    by_stream: dict[str, list[Mapping[str, Any]]] = {stream: [] for stream in LISTS}
    for message in output.records:
        if message.record:
            by_stream[message.record.stream].append(message.record.data)
    versions = by_stream.pop("flag_versions")
    assert sorted((v["flag_id"], v["version"], v["createdAt"]) for v in versions) == sorted(
        (str(v["flagConfig"]["id"]), v["version"], v["createdAt"]) for v in saved
    )
    for stream, found in by_stream.items():
        assert sorted(record["id"] for record in found) == sorted(map(str, truth[stream]))
