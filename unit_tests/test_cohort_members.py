"""The members of cohorts: which are downloaded, how, and what is left of the project's quota.

Requests are matched exactly, and states asserted literally; it is noon of 2024-01-03 in UTC.
"""

import copy
import gzip
import io
import json
import logging
import re
import sqlite3
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict
from errno import ENOSPC
from http.client import IncompleteRead
from itertools import pairwise
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest
import requests
import requests_mock
from airbyte_cdk.logger import AirbyteLogFormatter
from airbyte_cdk.manifest_server.command_processor.processor import ManifestCommandProcessor
from airbyte_cdk.manifest_server.command_processor.utils import build_catalog, build_source
from airbyte_cdk.models import FailureType, SyncMode
from airbyte_cdk.test.catalog_builder import CatalogBuilder
from airbyte_cdk.test.entrypoint_wrapper import EntrypointOutput
from airbyte_cdk.test.entrypoint_wrapper import read as read_source
from airbyte_cdk.test.mock_http import HttpMocker, HttpRequest, HttpResponse
from airbyte_cdk.test.models.outcome import ExpectedOutcome
from airbyte_cdk.utils.traced_exception import AirbyteTracedException

from source_amplitude import SourceAmplitude
from source_amplitude.components import CohortFileErrorHandler, CohortMembersExtractor
from unit_tests.helpers import (
    AUTHORIZATION,
    config,
    final_state,
    first_error,
    logged,
    partition_states,
    read_stream,
    records,
    refusal,
)
from unit_tests.test_manifest import MANIFEST

HOST = "https://amplitude.com"
STORAGE = "https://exports.s3.us-west-2.amazonaws.com/exports/a.csv"
FILE = f"{HOST}/api/5/cohorts/request/r-a/file"
SIGNED = f"{STORAGE}?X-Amz-Signature=abcdef0123"
LED: dict[str, Any] = {"status_code": 302, "headers": {"Location": SIGNED}}
# In epoch seconds, and as they are delivered.
T1, AT_T1 = 1704103200, "2024-01-01T10:00:00Z"
T2, AT_T2 = 1704193200, "2024-01-02T11:00:00Z"
T3, AT_T3 = 1704276000, "2024-01-03T10:00:00Z"
NEVER = "1970-01-01T00:00:00Z"
ONE = "amplitude_id,user_id\n1,a\n"
NO_PROPERTIES = {"props": "0"}
PENDING = HttpResponse('{"async_status":"JOB INPROGRESS","cohort_id":"a"}', 202)
DONE = HttpResponse('{"async_status":"JOB COMPLETED"}')
FAILED = HttpResponse('{"async_status":"JOB FAILED"}')
UNKNOWN_USAGE = HttpResponse("Not Found", 404)

pytestmark = pytest.mark.usefixtures("standing_clock")


def cohort(cohort_id: str, computed: object = T2, size: object = 1, **more: Any) -> dict[str, Any]:
    return {"id": cohort_id, "size": size, "lastComputed": computed, "archived": False, **more}


def csv(body: str | bytes, **headers: str) -> HttpResponse:
    encoded = body.encode() if isinstance(body, str) else body
    return HttpResponse(encoded, 200, {"Content-Type": "text/csv", **headers})


def created(cohort_id: str) -> HttpResponse:
    made = {"request_id": f"r-{cohort_id}", "cohort_id": cohort_id}
    return HttpResponse(json.dumps(made), 202)


def usage(used: int, limit: int = 500) -> HttpResponse:
    counts = {"limit": limit, "usage": used, "resets_at": "2024-02-01T00:00:00Z"}
    return HttpResponse(json.dumps({"rest_download": counts}))


def get(http: HttpMocker, path: str, params: Mapping[str, Any], *answers: HttpResponse) -> None:
    """An answer for each time that this very request is made."""
    http.get(HttpRequest(HOST + path, params, AUTHORIZATION), list(answers))


def assert_times(http: HttpMocker, count: int, path: str) -> None:
    """The mocker itself asks for no more than that each answer was used."""
    asked = [urlsplit(request.url).path for request in http._mocker.request_history]
    assert asked.count(path) == count


def lists(
    http: HttpMocker, *cohorts: Mapping[str, Any], used: HttpResponse | None = UNKNOWN_USAGE
) -> None:
    listed = HttpResponse(json.dumps({"cohorts": cohorts}))
    get(http, "/api/3/cohorts", {"includeSyncInfo": "true"}, listed)
    if used:
        get(http, "/api/3/cohorts/usage", {}, used)


def downloads(
    http: HttpMocker,
    cohort_id: str,
    *files: HttpResponse,
    params: Mapping[str, Any] = NO_PROPERTIES,
    statuses: Sequence[HttpResponse] = (DONE,),
    creations: Sequence[HttpResponse] | None = None,
) -> None:
    """What Amplitude answers to one download of a cohort."""
    creations = creations or [created(cohort_id)]
    get(http, f"/api/5/cohorts/request/{cohort_id}", params, *creations)
    if statuses:
        get(http, f"/api/5/cohorts/request-status/r-{cohort_id}", {}, *statuses)
    if files:
        get(http, f"/api/5/cohorts/request/r-{cohort_id}/file", {}, *files)


def state_of(**computed: str) -> dict[str, Any]:
    """A state as versions before 0.12 wrote it: when the members of each cohort were computed."""
    states = [
        {
            "partition": {"cohort_id": cohort_id, "parent_slice": {}},
            "cursor": {"computed_at": computed_at},
        }
        for cohort_id, computed_at in computed.items()
    ]
    return {"use_global_cursor": False, "states": states, "lookback_window": 0, "parent_state": {}}


def read(state: Mapping[str, Any] | None = None, **settings: Any) -> EntrypointOutput:
    output = read_stream("cohort_members", config(**settings), state)
    assert output.errors == []  # the CDK lets a stream fail where it is told to expect success
    return output


def failed(state: Mapping[str, Any] | None = None, **settings: Any) -> EntrypointOutput:
    return read_stream(
        "cohort_members", config(**settings), state, expected=ExpectedOutcome.EXPECT_EXCEPTION
    )


def tried(state: Mapping[str, Any] | None = None, **settings: Any) -> EntrypointOutput:
    """A sync that may fail."""
    return read_stream(
        "cohort_members", config(**settings), state, expected=ExpectedOutcome.ALLOW_ANY
    )


def saved(output: EntrypointOutput) -> dict[str, str]:
    states = partition_states(output)
    assert all(partition["parent_slice"] == {} for partition, _ in states)
    return {partition["cohort_id"]: cursor["computed_at"] for partition, cursor in states}


def cursor_of(cohort_id: str, output: EntrypointOutput) -> dict[str, Any]:
    """All that the last state says of a cohort."""
    [cursor] = [
        cursor for part, cursor in partition_states(output) if part["cohort_id"] == cohort_id
    ]
    return dict(cursor)


def said(output: EntrypointOutput, part: str) -> list[str]:
    return [message for message in logged(output) if part in message]


class FakeAmplitude:
    """Answers all jobs of all cohorts, and knows what was asked for when.

    ``statuses`` are those of each job, the last of them for ever.
    """

    def __init__(self, *cohorts: Mapping[str, Any], statuses: Sequence[HttpResponse] = (DONE,)):
        self.requests: list[tuple[float, str]] = []
        self.hosts: set[str] = set()
        self.cohorts = cohorts
        self._asked: Counter[str] = Counter()
        self._statuses = statuses

    def get(self, url: str | re.Pattern[str], *answers: dict[str, Any]) -> Any:
        """Answer one address otherwise, the last of the answers for ever."""
        return self._http.get(url, list(answers))

    def __enter__(self) -> "FakeAmplitude":
        self._http = requests_mock.Mocker()
        self._http.__enter__()
        self._http.get(requests_mock.ANY, text=self._answer)
        return self

    def __exit__(self, *exception: object) -> None:
        self._http.__exit__(*exception)

    def times(self, part: str) -> list[float]:
        return [at for at, path in self.requests if part in path]

    def made(self) -> list[str]:
        """The cohorts whose jobs were made, in order."""
        paths = [path.split("/") for _, path in self.requests]
        return [parts[-1] for parts in paths if parts[-2] == "request"]

    def _answer(self, request: Any, context: Any) -> str:
        path = urlsplit(request.url).path
        self.hosts.add(request.hostname)
        self.requests.append((time.time(), path))
        *_, kind, last = path.split("/")
        if kind == "request-status":
            asked, self._asked[last] = self._asked[last], self._asked[last] + 1
            answer = self._statuses[min(asked, len(self._statuses) - 1)]
            context.status_code = answer.status_code
            return str(answer.body)
        if kind == "request":
            context.status_code = 202
            return str(created(last).body)
        if last == "cohorts":
            return json.dumps({"cohorts": self.cohorts})
        context.status_code = 404 if last == "usage" else 200
        return "" if last == "usage" else ONE


def spooled(body: bytes) -> requests.Response:
    """A body as the extractor is given it."""
    answer = requests.Response()
    answer.status_code, answer.url, answer.raw = 200, FILE, io.BytesIO(body)
    answer.request = requests.Request("GET", FILE).prepare()
    CohortFileErrorHandler(config={}, parameters={}).interpret_response(answer)
    return answer


class CutBody(io.BytesIO):
    """A body whose connection ends before its end."""

    def read1(self, *size: Any) -> bytes:
        if part := super().read1(*size):
            return part
        raise IncompleteRead(b"")


class TestWhichAreDownloaded:
    def test_given_a_cohort_when_read_then_its_members_bear_its_id_and_when_it_was_computed(
        self,
    ) -> None:
        with HttpMocker() as http:
            lists(http, cohort("a", T2, 2))
            downloads(http, "a", csv("amplitude_id,user_id\n550106004607,007\n2,\n"))
            output = read()
        assert records(output) == [
            {
                "cohort_id": "a",
                "amplitude_id": 550106004607,
                "user_id": "007",
                "computed_at": AT_T2,
            },
            {"cohort_id": "a", "amplitude_id": 2, "computed_at": AT_T2},
        ]
        assert final_state(output) == {
            "use_global_cursor": False,
            "states": [
                {
                    "partition": {"cohort_id": "a", "parent_slice": {}},
                    "cursor": {"computed_at": AT_T2, "turn": 1},
                }
            ],
            "state": {"computed_at": AT_T2},
            "lookback_window": 1,
            "parent_state": {},
        }
        assert said(output, "Cohort a") == [
            f"Cohort a, computed at {AT_T2}: 2 members, where its size is given as 2; 41 bytes."
        ]

    def test_given_a_state_when_read_then_only_what_was_computed_since_is_downloaded(self) -> None:
        state = state_of(gone=AT_T1, moved=AT_T1, same=AT_T2, back=AT_T3)
        with HttpMocker() as http:
            lists(http, cohort("same", T2), cohort("moved", T2), cohort("back", T2))
            downloads(http, "moved", csv(ONE))
            output = read(state)
        assert [record["cohort_id"] for record in records(output)] == ["moved"]
        assert saved(output) == {"gone": AT_T1, "moved": AT_T2, "same": AT_T2, "back": AT_T3}
        assert said(output, "3 cohorts") == [
            "3 cohorts, 3 of them wanted: 0 of groups, 0 archived, 0 empty, 0 never computed, 2 "
            "unchanged, 1 to be downloaded."
        ]

    def test_given_nothing_new_when_read_then_the_quota_is_not_asked_and_the_state_stays(
        self,
    ) -> None:
        with HttpMocker() as http:
            lists(http, cohort("a", T2), used=None)
            output = read(state_of(a=AT_T2))
        assert records(output) == []
        assert saved(output) == {"a": AT_T2}

    def test_given_archived_empty_or_uncomputed_cohorts_when_read_then_they_are_skipped(
        self,
    ) -> None:
        skipped = [
            cohort("archived", archived=True),
            cohort("empty", size=0),
            cohort("null", None),
            cohort("zero", 0),
            cohort("zero as a float", 0.0),
        ]
        with HttpMocker() as http:
            lists(http, *skipped, used=None)
            output = read()
        assert records(output) == []
        assert said(output, "cohorts") == [
            "5 cohorts, 5 of them wanted: 0 of groups, 1 archived, 1 empty, 3 never computed, 0 "
            "unchanged, 0 to be downloaded."
        ]

    def test_given_cohorts_of_groups_when_read_then_no_download_is_spent_on_them(self) -> None:
        of_groups = [
            cohort("g1", definition={"version": 3, "countGroup": {"name": "company"}}),
            cohort("g2", definition={"countGroup": {"name": "org {{ 1 }}"}}, archived=True),
        ]
        of_users = [
            cohort("a", definition={"countGroup": {"name": "User", "is_computed": False}}),
            cohort("b", definition={"countGroup": None}),
            cohort("c", definition={}, cohort_definition_type=None, cohort_output_type="UNIQUES"),
            cohort("d", definition=None, is_generated_content=True),
            cohort("e", definition={"countGroup": {"name": None}}),
        ]
        with HttpMocker() as http:
            lists(http, *of_groups, *of_users)
            for each in of_users:
                downloads(http, each["id"], csv(ONE))
            output = read()
        assert sorted(record["cohort_id"] for record in records(output)) == [*"abcde"]
        assert saved(output) == dict.fromkeys("abcde", AT_T2)
        assert said(output, "of groups") == [
            "Cohorts of groups have no users as members, and are left out: g1 (company), g2 (org "
            "{{ 1 }}).",
            "7 cohorts, 7 of them wanted: 2 of groups, 0 archived, 0 empty, 0 never computed, 0 "
            "unchanged, 5 to be downloaded.",
        ]

    def test_given_nothing_but_a_cohort_of_groups_when_read_then_the_quota_is_not_asked(
        self,
    ) -> None:
        of_groups = (cohort(c, definition={"countGroup": {"name": "company"}}) for c in "ab")
        with HttpMocker() as http:
            lists(http, *of_groups, cohort("c"), used=None)
            output = read(state_of(a=AT_T1), cohort_ids=["a"])
        assert records(output) == []
        assert saved(output) == {"a": AT_T1}
        assert said(output, "left out") == [
            "Cohorts of groups have no users as members, and are left out: a (company)."
        ]

    def test_given_a_size_that_is_unknown_when_read_then_the_cohort_is_downloaded(self) -> None:
        with HttpMocker() as http:
            lists(http, {"id": "a", "lastComputed": T2}, cohort("b", size=None))
            for cohort_id in "ab":
                downloads(http, cohort_id, csv(ONE))
            output = read()
        assert sorted(record["cohort_id"] for record in records(output)) == ["a", "b"]

    @pytest.mark.parametrize("cohort_ids", [None, []])
    def test_given_no_cohorts_in_the_config_when_read_then_all_are_downloaded(
        self, cohort_ids: list[str] | None
    ) -> None:
        with HttpMocker() as http:
            lists(http, cohort("a"), cohort("b"))
            for cohort_id in "ab":
                downloads(http, cohort_id, csv(ONE))
            output = read(cohort_ids=cohort_ids)
        assert len(records(output)) == 2

    def test_given_cohorts_in_the_config_when_read_then_others_are_not_downloaded(self) -> None:
        with HttpMocker() as http:
            lists(http, cohort("a"), cohort("b"), cohort("c"))
            for cohort_id in "ac":
                downloads(http, cohort_id, csv(ONE))
            output = read(cohort_ids=["c", " a ", "typo", "c"])
        assert sorted(record["cohort_id"] for record in records(output)) == ["a", "c"]
        assert said(output, "Cohorts: blanks") == [
            "Cohorts: blanks at the ends of names are taken off as well: ' a '."
        ]
        assert said(output, "cohort_ids") == [
            "Cohorts (cohort_ids) names what Amplitude does not list: typo."
        ]

    def test_given_ids_of_any_characters_when_read_then_they_are_asked_for_and_kept(self) -> None:
        ids = ["007", "1e10", "a/b?c#d", "id:5", "ä 50%", "{{ 1 }}", "type"]
        with FakeAmplitude(*map(cohort, ids)) as amplitude:
            output = read(num_workers=1)
        assert [record["cohort_id"] for record in records(output)] == ids
        assert saved(output) == dict.fromkeys(ids, AT_T2)
        # Addresses are shown in lower case here.
        assert [unquote(made) for made in amplitude.made()] == [each.lower() for each in ids]

    @pytest.mark.parametrize(
        "computed",
        [
            T2 * 1000,
            f"{T2}",
            f" {T2 * 1000 + 999} ",
            T2 + 0.5,
            "2024-01-02T11:00:00Z",
            "2024-01-02t06:00:00.123456-05:00",
            "2024-01-02 12:00+0100",
        ],
    )
    def test_given_a_time_in_any_form_that_is_certain_when_read_then_it_is_the_same_moment(
        self, computed: object
    ) -> None:
        with FakeAmplitude(cohort("a", computed)) as amplitude:
            first = read()
            second = read(final_state(first))
        assert [record["computed_at"] for record in records(first)] == [AT_T2]
        assert amplitude.made() == ["a"]
        assert records(second) == []

    @pytest.mark.parametrize(
        "computed",
        ["yesterday", [1], {}, True, -5, 19724, 5e11, T2 * 10**6, "2024-01-02T11:00:00", "nan"],
    )
    def test_given_a_time_that_is_none_when_read_then_its_cohort_is_named_and_others_are_read(
        self, computed: object
    ) -> None:
        odd = cohort("b", computed), cohort("archived", computed, archived=True)
        with HttpMocker() as http:
            lists(http, cohort("a"), *odd, cohort("c"), cohort("empty", computed, size=0))
            for cohort_id in "ac":
                downloads(http, cohort_id, csv(ONE))
            output = failed()
        message, failure_type = first_error(output)
        assert message.startswith(
            f"When cohort b was computed can't be read: lastComputed is {json.dumps(computed)}, "
        )
        assert failure_type is FailureType.system_error
        assert sorted(record["cohort_id"] for record in records(output)) == ["a", "c"]
        assert saved(output) == {"a": AT_T2, "b": NEVER, "c": AT_T2}

    def test_given_nothing_but_a_time_that_is_none_when_read_then_the_quota_is_not_asked(
        self,
    ) -> None:
        with HttpMocker() as http:
            lists(http, cohort("a", "soon"), used=None)
            output = failed(state_of(a=AT_T1))
        assert first_error(output)[0].startswith("When cohort a was computed can't be read: ")
        assert saved(output) == {"a": AT_T1}

    def test_given_a_cohort_without_an_id_when_read_then_it_fails_and_nothing_is_downloaded(
        self,
    ) -> None:
        with HttpMocker() as http:
            lists(http, cohort("a"), {"size": 1}, used=None)
            output = failed()
        assert "element 2 has no id" in first_error(output)[0]

    def test_given_names_that_are_long_or_cannot_be_seen_when_read_then_they_are_escaped_and_cut(
        self,
    ) -> None:
        strange = "a\nb\x1b[31m\u202e" + "x" * 300
        shown = "a\\nb\\x1b[31m\\u202e" + "x" * 82
        of_groups = cohort("g", definition={"countGroup": {"name": strange}})
        seen = []
        with FakeAmplitude(cohort(strange), cohort("b", "soon"), of_groups) as amplitude:
            first = failed(cohort_ids=[strange, "g", f"{strange}y"], num_workers=1)
            amplitude.get(
                re.compile("/request-status/"), {"text": json.dumps({"async_status": "FAILED"})}
            )
            second = failed(num_workers=1)
        assert saved(first) == {strange: AT_T2}
        for output in (first, second):
            seen += [line for line in logged(output) if "\\u202e" in line]
            assert not said(output, "x" * 83)
            assert not [line for line in seen if "\u202e" in line]
        messages = [error.trace.error.message or "" for error in second.errors]  # type: ignore[union-attr]
        assert any(text.startswith(f"The members of cohort {shown} could ") for text in messages)
        assert said(first, f"does not list: {shown}.")
        assert said(first, f"left out: g ({shown}).")
        assert said(first, f"Cohort {shown}, computed at ")

    def test_given_the_eu_when_read_then_its_host_is_asked(self) -> None:
        with FakeAmplitude(cohort("a")) as amplitude:
            output = read(data_region="EU Residency Server")
        assert len(records(output)) == 1
        assert amplitude.hosts == {"analytics.eu.amplitude.com"}


class TestState:
    def test_given_a_state_for_all_cohorts_beside_theirs_when_read_then_it_counts_for_none(
        self,
    ) -> None:
        state = {**state_of(a=AT_T1), "state": {"computed_at": AT_T3}}
        with HttpMocker() as http:
            lists(http, cohort("a", T2), cohort("new", T1))
            for cohort_id in ("a", "new"):
                downloads(http, cohort_id, csv(ONE))
            output = read(state)
        assert saved(output) == {"a": AT_T2, "new": AT_T1}

    def test_given_the_state_of_a_sync_when_read_then_nothing_is_downloaded_again(self) -> None:
        with FakeAmplitude(cohort("a", T1), cohort("b", T2)) as amplitude:
            first = read()
            second = read(final_state(first))
        assert sorted(amplitude.made()) == ["a", "b"]
        assert saved(second) == {"a": AT_T1, "b": AT_T2}

    def test_given_a_state_from_the_future_when_read_then_it_is_set_back_and_named(self) -> None:
        with HttpMocker() as http:
            lists(http, cohort("a", T2), used=None)
            output = read(state_of(a="2042-01-01T00:00:00Z"))
        assert saved(output) == {"a": "2024-01-04T12:00:00Z"}
        assert len(said(output, "lies in the future (2042-01-01T00:00:00Z)")) == 1

    @pytest.mark.parametrize(
        "state",
        [
            {"states": [{"partition": {"cohort_id": "a"}, "cursor": {"computed_at": "monday"}}]},
            {"states": [{"cursor": {"computed_at": AT_T1}}]},
            {"computed_at": AT_T1},
        ],
    )
    def test_given_a_state_that_cannot_be_read_when_read_then_it_is_named(
        self, state: dict[str, Any]
    ) -> None:
        output = failed(state)
        message, failure_type = first_error(output)
        assert message.startswith("The saved state of the stream cohort_members can't be read: ")
        assert failure_type is FailureType.config_error


class TestTurns:
    """Who is downloaded when there are more than a sync may take, and some fail."""

    STATUS = f"{HOST}/api/5/cohorts/request-status/r-"

    @staticmethod
    def moved(number: int, *cohort_ids: str) -> list[dict[str, Any]]:
        """Cohorts that are computed before each sync."""
        return [cohort(cohort_id, T1 + number * 60) for cohort_id in cohort_ids]

    def test_given_a_cohort_that_always_fails_when_synced_again_then_it_waits_for_its_turn(
        self,
    ) -> None:
        state: dict[str, Any] | None = None
        with FakeAmplitude() as amplitude:
            amplitude.get(f"{self.STATUS}a", {"text": str(FAILED.body)})
            for number in range(16):
                amplitude.cohorts = tuple(self.moved(number, *"abcd"))
                output = tried(state, cohort_downloads_per_sync=1)
                state = final_state(output)
                if number == 8:
                    assert cursor_of("a", output) == {
                        "computed_at": NEVER,
                        "turn": 9,
                        "failed": 3,
                    }
                if number == 12:
                    assert said(output, "times in a row") == [
                        "1 of 4 cohorts to be downloaded are left out of this sync, since their "
                        "downloads failed 3 times in a row or more. They are tried once in 5 of "
                        "their turns: a."
                    ]
        assert "".join(amplitude.made()) == "abcdabcdabcdbcdb"
        assert [cursor_of(cohort_id, output) for cohort_id in "abcd"] == [
            {"computed_at": NEVER, "turn": 13, "failed": 3, "passed": 1},
            {"computed_at": "2024-01-01T10:15:00Z", "turn": 16},
            {"computed_at": "2024-01-01T10:13:00Z", "turn": 14},
            {"computed_at": "2024-01-01T10:14:00Z", "turn": 15},
        ]

    def test_given_failures_in_a_row_when_synced_again_then_one_of_five_turns_is_taken(
        self,
    ) -> None:
        state: dict[str, Any] | None = None
        made = []
        with FakeAmplitude(cohort("a")) as amplitude:
            amplitude.get(
                f"{self.STATUS}a", *[{"text": str(FAILED.body)}] * 20, {"text": DONE.body}
            )
            for _ in range(13):
                before = len(amplitude.made())
                output = tried(state)
                state = final_state(output)
                made.append(len(amplitude.made()) - before)
        assert made == [1, 1, 1, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1]
        assert [record["cohort_id"] for record in records(output)] == ["a"]
        assert cursor_of("a", output) == {"computed_at": AT_T2, "turn": 13}

    def test_given_turns_that_are_none_in_a_state_when_read_then_they_are_not_looked_at(
        self,
    ) -> None:
        state = state_of(a=AT_T1, b=NEVER)
        odd = {"turn": True, "failed": "3", "passed": -1, "downloaded": [1], "new": {}}
        state["states"][0]["cursor"] |= odd
        state["states"][1]["cursor"] |= {"turn": 7, "failed": 5, "passed": 4}
        with FakeAmplitude(cohort("b"), cohort("a")) as amplitude:
            output = read(state, num_workers=1)
        assert amplitude.made() == ["a", "b"]
        assert (
            cursor_of("a", output)
            == cursor_of("b", output)
            == {
                "computed_at": AT_T2,
                "turn": 8,
            }
        )

    def test_given_rows_when_they_are_printed_then_the_state_of_their_cohort_follows(self) -> None:
        with FakeAmplitude(*(cohort(cohort_id) for cohort_id in "abc")):
            output = read(num_workers=1)
        printed: list[Any] = []
        for message in output.records_and_state_messages:
            if message.record:
                printed.append(message.record.data["cohort_id"])
            elif message.state and message.state.stream:
                states = vars(message.state.stream.stream_state)["states"]
                done = [s for s in states if s["cursor"]["computed_at"] != NEVER]
                printed.append({s["partition"]["cohort_id"] for s in done})
        # One before each job as well, so that one that never ends has had its turn.
        for number, cohort_id in enumerate("abc", start=1):
            at = printed.index(cohort_id)
            assert printed[at - 1] == {*"abc"[: number - 1]}
            assert printed[at + 1] == {*"abc"[:number]}
        assert len(output.state_messages) == 7

    def test_given_a_time_to_come_when_synced_again_then_it_is_downloaded_once_and_when_it_moves(
        self,
    ) -> None:
        to_come, later = 1735689600, 1704286800
        with FakeAmplitude(cohort("a", to_come)) as amplitude:
            first = read()
            assert cursor_of("a", first) == {
                "computed_at": "2024-01-03T12:00:00Z",
                "turn": 1,
                "downloaded": "2025-01-01T00:00:00Z",
            }
            second = read(final_state(first))
            amplitude.cohorts = (cohort("a", later),)
            third = read(final_state(second))
            fourth = read(final_state(third))
        assert amplitude.made() == ["a", "a"]
        assert [r["computed_at"] for r in records(first)] == ["2024-01-03T12:00:00Z"]
        assert records(second) == records(fourth) == []
        assert cursor_of("a", fourth) == {"computed_at": "2024-01-03T13:00:00Z", "turn": 2}
        assert len(said(first, "is said to be computed at 2025-01-01T00:00:00Z, which is to")) == 1

    def test_given_a_state_that_was_set_back_when_read_then_a_time_to_come_is_downloaded_once(
        self,
    ) -> None:
        with FakeAmplitude(cohort("a", 1735689600)) as amplitude:
            first = read(state_of(a="2025-01-01T00:00:00Z"))
            read(final_state(first))
        assert amplitude.made() == ["a"]

    @pytest.mark.parametrize(
        "refused",
        [
            HttpResponse("No more for you", 429),
            HttpResponse("Pay", 402),
            HttpResponse("Forbidden", 403),
            HttpResponse("Down", 503),
            HttpResponse('{"error":"Monthly quota exceeded"}', 400),
        ],
    )
    def test_given_a_job_that_is_not_made_when_read_then_it_is_the_last_and_others_go_first_next(
        self, refused: HttpResponse
    ) -> None:
        url = f"{HOST}/api/5/cohorts/request/a"
        with FakeAmplitude(*(cohort(cohort_id) for cohort_id in "abc")) as amplitude:
            asked = amplitude.get(
                url, {"text": str(refused.body), "status_code": refused.status_code}
            )
            first = failed(num_workers=1)
            assert amplitude.made() == []
            assert 1 <= asked.call_count <= 4
            again = tried(final_state(first), num_workers=1)
        assert amplitude.made() == ["b", "c"]
        message, _ = first_error(first)
        assert message.endswith(
            "no more downloads are asked for in this sync. The next one goes on."
        )
        assert [line[:36] for line in said(first, "waits for the next sync: no more")] == [
            "Cohort b waits for the next sync: no",
            "Cohort c waits for the next sync: no",
        ]
        assert cursor_of("a", first) == {"computed_at": NEVER, "turn": 1}
        assert cursor_of("b", first) == {"computed_at": NEVER}
        assert saved(again) == {"a": NEVER, "b": AT_T2, "c": AT_T2}

    def test_given_a_month_that_is_used_up_when_read_by_many_workers_then_one_cohort_is_asked_for(
        self,
    ) -> None:
        with FakeAmplitude(*(cohort(f"c{n}") for n in range(10))) as amplitude:
            asked = amplitude.get(
                re.compile("/api/5/cohorts/request/c[0-9][?]"),
                {"text": "No more for you", "status_code": 429},
            )
            output = failed(num_workers=5)
        assert asked.call_count == 4
        assert len({request.path for request in asked.request_history}) == 1
        assert len(said(output, "waits for the next sync: no more downloads")) == 9

    def test_given_two_refusals_of_the_same_words_when_read_then_the_second_is_the_last(
        self,
    ) -> None:
        refused = {"text": "You have no more", "status_code": 400}
        with FakeAmplitude(*(cohort(f"c{n}") for n in range(5))) as amplitude:
            asked = amplitude.get(f"{HOST}/api/5/cohorts/request/c1", refused)
            also = amplitude.get(f"{HOST}/api/5/cohorts/request/c3", refused)
            output = failed(num_workers=1)
        assert asked.call_count == also.call_count == 1
        assert amplitude.made() == ["c0", "c2"]
        assert cursor_of("c1", output) == {"computed_at": NEVER, "turn": 1, "failed": 1}
        assert cursor_of("c4", output) == {"computed_at": NEVER}


class TestQuota:
    def test_given_more_than_a_sync_may_take_when_read_then_those_not_downloaded_come_first_next(
        self,
    ) -> None:
        state = state_of(b=AT_T2, c=AT_T1)
        cohorts = [cohort("b", T3), cohort("c", T3), cohort("d", T1), cohort("e", T1)]
        with FakeAmplitude(*cohorts) as amplitude:
            first = read(state, cohort_downloads_per_sync=3, num_workers=1)
            assert amplitude.made() == ["d", "e", "c"]
            moved = [{**each, "lastComputed": T3 + 60} for each in cohorts]
            amplitude.cohorts = (*moved, cohort("f", T1))
            second = read(final_state(first), cohort_downloads_per_sync=3, num_workers=1)
        assert said(first, "wait for the next sync") == [
            "1 of 4 cohorts to be downloaded wait for the next sync, where they come first, since "
            "Cohort Downloads per Sync is 3: b."
        ]
        assert saved(first)["b"] == AT_T2
        assert amplitude.made()[3:] == ["f", "b", "d"]
        assert said(second, "wait for the next sync")[0].endswith("is 3: e, c.")

    def test_given_no_limit_in_the_config_when_read_then_ten_are_downloaded(self) -> None:
        with FakeAmplitude(*(cohort(f"c{n}") for n in range(12))) as amplitude:
            output = read(num_workers=1)
        assert amplitude.made() == [f"c{n}" for n in range(10)]
        assert said(output, "wait for")[0].endswith("Cohort Downloads per Sync is 10: c10, c11.")

    def test_given_very_many_when_read_then_a_hundred_are_named_and_the_others_counted(
        self,
    ) -> None:
        with FakeAmplitude(*(cohort(f"c{n}") for n in range(105))):
            output = read(cohort_downloads_per_sync=1)
        [line] = said(output, "wait for")
        assert line.startswith("104 of 105 cohorts to be downloaded wait")
        assert line.endswith(", c99, c100 and 4 more.")

    @pytest.mark.parametrize(
        ("used", "whole", "count"),
        [
            (397, False, 3),
            (398, False, 2),
            (400, False, 0),
            (512, False, 0),
            (400, True, 3),
            (498, True, 2),
            (500, True, 0),
        ],
    )
    def test_given_what_is_left_of_the_month_when_read_then_its_last_fifth_is_not_touched(
        self, used: int, whole: bool, count: int
    ) -> None:
        cohorts = [cohort(cohort_id) for cohort_id in "abcd"]
        with HttpMocker() as http:
            lists(http, *cohorts, used=usage(used))
            for each in cohorts[:count]:
                downloads(http, each["id"], csv(ONE))
            output = read(cohort_downloads_per_sync=3, use_whole_cohort_quota=whole)
        assert len(records(output)) == count
        left, kept = max(0, 500 - used), 0 if whole else 100
        assert said(output, "Cohort downloads of this month") == [
            "Cohort downloads of this month, by all clients of the project: "
            f"{left} of 500 left, {kept} of which are not touched (resets_at: "
            "2024-02-01T00:00:00Z)."
        ]
        [line] = said(output, "wait for")
        names = ", ".join("abcd"[count:])
        reason = f"since {left} of 500 downloads of this month are left"
        if not whole:
            reason += ", and Use the Whole Quota is off, which keeps 100 for others"
        if count == 3:
            reason = "since Cohort Downloads per Sync is 3"
        assert line.endswith(f"{reason}: {names}.")

    @pytest.mark.parametrize(
        "body",
        [
            '{"rest_download":{"limit":10,"usage":7}}',
            '{"limit":10,"count":7}',
            '{"limit":10,"usage":7,"other":{}}',
        ],
    )
    def test_given_another_form_of_what_is_left_when_read_then_it_counts(self, body: str) -> None:
        with HttpMocker() as http:
            lists(http, cohort("a"), cohort("b"), used=HttpResponse(body))
            downloads(http, "a", csv(ONE))
            output = read()
        assert len(said(output, "3 of 10 left, 2 of which are not touched (resets_at: unk")) == 1

    def test_given_a_limit_of_minus_1_when_read_then_there_is_none(self) -> None:
        cohorts = [cohort(cohort_id) for cohort_id in "abc"]
        with HttpMocker() as http:
            lists(http, *cohorts, used=usage(7, -1))
            for each in cohorts[:2]:
                downloads(http, each["id"], csv(ONE))
            output = read(cohort_downloads_per_sync=2)
        assert len(records(output)) == 2
        assert said(output, "Cohort downloads of this month") == [
            "Cohort downloads of this month have no limit (resets_at: 2024-02-01T00:00:00Z)."
        ]

    @pytest.mark.parametrize(
        "body",
        [
            "{}",
            "[7]",
            '"7"',
            '{"rest_download":7}',
            '{"rest_download":{"limit":"500","usage":1}}',
            '{"rest_download":{"limit":500,"usage":null}}',
        ],
    )
    def test_given_an_unknown_form_of_what_is_left_when_read_then_the_log_says_so_and_it_goes_on(
        self, body: str
    ) -> None:
        with HttpMocker() as http:
            lists(http, cohort("a"), cohort("b"), used=HttpResponse(body))
            downloads(http, "a", csv(ONE))
            output = read(cohort_downloads_per_sync=1)
        assert len(records(output)) == 1
        [line] = said(output, "How many cohort downloads of this month are left is not known")
        assert line.endswith("This sync takes at most 1.")

    def test_given_less_than_what_is_kept_when_read_then_nothing_is_downloaded(self) -> None:
        with HttpMocker() as http:
            lists(http, cohort("a"), cohort("b"), used=usage(5, 5))
            output = read()
        assert records(output) == []

    @pytest.mark.parametrize("status", [403, 404])
    def test_given_nobody_who_knows_what_is_left_when_read_then_it_goes_on(
        self, status: int
    ) -> None:
        with HttpMocker() as http:
            lists(http, cohort("a"), used=HttpResponse("", status))
            downloads(http, "a", csv(ONE))
            output = read()
        assert len(records(output)) == 1
        assert len(said(output, "are left is not known")) == 1
        assert not said(output, "refused")

    def test_given_a_failure_to_say_what_is_left_when_read_then_it_is_asked_again_and_goes_on(
        self,
    ) -> None:
        down = HttpResponse('{"error":"Down"}', 500)
        with HttpMocker() as http:
            lists(http, cohort("a"), used=None)
            get(http, "/api/3/cohorts/usage", {}, down, down, down)
            downloads(http, "a", csv(ONE))
            output = read()
            assert_times(http, 3, "/api/3/cohorts/usage")
        assert len(records(output)) == 1
        assert len(said(output, "attempts. Exception: Amplitude answered HTTP 500 (Down).")) == 1
        assert len(said(output, "are left is not known")) == 1


class TestJob:
    def test_given_a_job_that_takes_its_time_when_asked_then_the_pauses_grow_up_to_a_minute(
        self,
    ) -> None:
        with FakeAmplitude(cohort("a"), statuses=[PENDING] * 7 + [DONE]) as amplitude:
            output = read()
        times = amplitude.times("request-status")
        pauses = [round(after - before) for before, after in pairwise(times)]
        # The CDK adds a second.
        assert pauses == [6, 11, 21, 41, 61, 61, 61]
        assert len(records(output)) == 1
        assert amplitude.made() == ["a"]
        assert len(said(output, 'Amplitude says "JOB INPROGRESS" of the job.')) == 7

    def test_given_a_job_that_is_never_done_when_asked_for_an_hour_then_it_fails_and_others_go_on(
        self,
    ) -> None:
        with FakeAmplitude(cohort("a"), statuses=[PENDING]) as amplitude:
            output = failed()
        times = amplitude.times("request-status")
        assert 3600 <= times[-1] - times[0] <= 3700
        assert amplitude.made() == ["a"]
        message, failure_type = first_error(output)
        assert message.startswith("The members of cohort a could not be read. Exhausted")
        assert 'Amplitude says "JOB INPROGRESS" of the job.' in message
        assert failure_type is FailureType.transient_error
        assert saved(output) == {"a": NEVER}

    @pytest.mark.parametrize(
        ("answer", "found"),
        [
            (FAILED, 'Amplitude says "JOB FAILED" of the job.'),
            (HttpResponse('{"request_id":"r-a"}', 202), "Amplitude says null of the job."),
            (HttpResponse("[]"), "Amplitude says null of the job."),
            (HttpResponse('{"error":"Down"}', 503), "Amplitude answered HTTP 503 (Down)."),
            (
                HttpResponse('{"error":"Slow down"}', 429),
                "Amplitude answered HTTP 429 (Slow down).",
            ),
            (
                HttpResponse("<html>"),
                "Amplitude answered HTTP 200 (a page of 6 bytes with the checksum c7430c41), which "
                "is no answer. ",
            ),
        ],
    )
    def test_given_a_status_that_is_none_when_asked_five_times_then_it_fails_and_others_go_on(
        self, answer: HttpResponse, found: str
    ) -> None:
        with HttpMocker() as http:
            lists(http, cohort("a"), cohort("b"), cohort("c"))
            downloads(http, "a", statuses=[PENDING, *[answer] * 5])
            for cohort_id in "bc":
                downloads(http, cohort_id, csv(ONE))
            output = failed(state_of(a=AT_T1))
            assert_times(http, 1, "/api/5/cohorts/request/a")
            assert_times(http, 6, "/api/5/cohorts/request-status/r-a")
        message, failure_type = first_error(output)
        assert message.startswith(f"The members of cohort a could not be read. {found}")
        assert message.endswith("To go without it, name the others under Cohorts (cohort_ids).")
        assert failure_type is FailureType.transient_error
        assert sorted(record["cohort_id"] for record in records(output)) == ["b", "c"]
        assert saved(output) == {"a": AT_T1, "b": AT_T2, "c": AT_T2}

    def test_given_a_status_that_is_none_for_a_while_when_asked_then_the_job_is_not_made_again(
        self,
    ) -> None:
        strange = [FAILED, HttpResponse("", 500), HttpResponse("", 429), HttpResponse("<html>")]
        with HttpMocker() as http:
            lists(http, cohort("a"))
            downloads(http, "a", csv(ONE), statuses=[*strange, PENDING, PENDING, DONE])
            output = read()
            assert_times(http, 1, "/api/5/cohorts/request/a")
        assert len(records(output)) == 1

    def test_given_a_job_that_failed_when_read_again_then_it_is_made_once_more(self) -> None:
        with FakeAmplitude(cohort("a"), statuses=[FAILED] * 5 + [DONE]) as amplitude:
            first = failed()
            second = read(final_state(first))
        assert amplitude.made() == ["a", "a"]
        assert saved(first) == {"a": NEVER}
        assert saved(second) == {"a": AT_T2}

    def test_given_many_cohorts_when_read_then_at_most_four_jobs_a_minute_are_made(self) -> None:
        with FakeAmplitude(*(cohort(f"c{n}") for n in range(70))) as amplitude:
            output = read(cohort_downloads_per_sync=70, num_workers=1)
        made = [at for at, path in amplitude.requests if path.split("/")[-2] == "request"]
        assert len(made) == len(records(output)) == 70
        # Amplitude counts from when requests get there.
        for limit, seconds in ((4, 74), (60, 600)):
            assert all(later - at > seconds for at, later in zip(made, made[limit:], strict=False))
        assert made[-1] - made[0] < 70 / 4 * 76

    @pytest.mark.parametrize("passing", [HttpResponse("", 429), HttpResponse("", 503)])
    def test_given_a_passing_refusal_when_a_job_is_made_then_it_is_asked_for_again(
        self, passing: HttpResponse
    ) -> None:
        with HttpMocker() as http:
            lists(http, cohort("a"))
            downloads(http, "a", csv(ONE), creations=[passing, created("a")])
            output = read()
        assert len(records(output)) == 1

    def test_given_a_refusal_that_stays_when_a_job_is_made_then_what_amplitude_said_is_shown(
        self,
    ) -> None:
        refused = refusal(429, metadata={"details": "Exceeded the limit"})
        with HttpMocker() as http:
            lists(http, cohort("a"))
            downloads(http, "a", creations=[refused] * 4, statuses=())
            output = failed()
            assert_times(http, 4, "/api/5/cohorts/request/a")
        message, failure_type = first_error(output)
        assert message.startswith("The members of cohort a could not be read. ")
        assert "Amplitude answered HTTP 429 (Exceeded the limit)." in message
        assert failure_type is FailureType.transient_error

    @pytest.mark.parametrize(
        "refused",
        [
            refusal(429, metadata={"details": "Exceeded 500 requests per Month"}),
            HttpResponse('{"error":"Monthly quota exceeded"}', 429),
            HttpResponse('{"message":"Monthly quota exceeded"}', 429),
        ],
    )
    def test_given_a_month_that_is_used_up_when_a_job_is_made_then_it_is_not_asked_for_again(
        self, refused: HttpResponse
    ) -> None:
        with HttpMocker() as http:
            lists(http, cohort("a"))
            downloads(http, "a", creations=[refused], statuses=())
            output = failed()
            assert_times(http, 1, "/api/5/cohorts/request/a")
        message, failure_type = first_error(output)
        assert "The project's cohort downloads of this month seem to be used up" in message
        assert failure_type is FailureType.transient_error

    @pytest.mark.parametrize(
        ("body", "found"),
        [
            ("{}", "null"),
            ("[]", "null"),
            ('{"request_id":""}', "an empty text"),
            ('{"request_id":{"id":1}}', "an object"),
        ],
    )
    def test_given_no_id_of_the_job_when_it_is_made_then_it_fails_and_others_go_on(
        self, body: str, found: str
    ) -> None:
        with HttpMocker() as http:
            lists(http, cohort("a"), cohort("b"))
            downloads(http, "a", creations=[HttpResponse(body, 202)], statuses=())
            downloads(http, "b", csv(ONE))
            output = failed()
        assert first_error(output)[0].startswith(
            "The members of cohort a could not be read. Amplitude's answer to "
            f"/api/5/cohorts/request/a can't be read without guessing: request_id is {found}."
        )
        assert [record["cohort_id"] for record in records(output)] == ["b"]

    def test_given_a_cohort_that_is_refused_when_a_job_is_made_then_it_is_named_and_others_go_on(
        self,
    ) -> None:
        refused = refusal(400, message="Cohort has more than 2000000 users")
        with HttpMocker() as http:
            lists(http, cohort("a"), cohort("b"))
            downloads(http, "a", creations=[refused], statuses=())
            downloads(http, "b", csv(ONE))
            output = failed()
        assert first_error(output)[0].startswith(
            "The members of cohort a could not be read. Amplitude answered HTTP 400 (Cohort has "
            "more than 2000000 users)."
        )
        assert [record["cohort_id"] for record in records(output)] == ["b"]


class TestRefusals:
    PLAN = refusal(403, metadata={"details": "Not part of this plan"})
    KEYS = refusal(403, metadata={"details": "Invalid API Key"})

    @pytest.mark.parametrize(
        ("step", "refused", "advice"),
        [
            ("list", PLAN, "deselect the streams cohorts and cohort_members."),
            ("list", KEYS, "The API Key and the Secret Key were refused on the Standard Server."),
            ("creation", PLAN, "deselect the streams cohorts and cohort_members."),
            ("creation", HttpResponse("Pay", 402), "deselect the streams cohorts and cohort_mem"),
            ("creation", KEYS, "The API Key and the Secret Key were refused on the Standard Ser"),
            ("creation", HttpResponse("Forbidden", 403), "The API Key and the Secret Key were re"),
            ("status", KEYS, "The API Key and the Secret Key were refused on the Standard Server."),
            ("file", KEYS, "The API Key and the Secret Key were refused on the Standard Server."),
        ],
    )
    def test_given_a_refusal_at_any_step_when_read_then_plan_or_keys_are_named(
        self, step: str, refused: HttpResponse, advice: str
    ) -> None:
        with HttpMocker() as http:
            if step == "list":
                get(http, "/api/3/cohorts", {"includeSyncInfo": "true"}, refused)
            else:
                lists(http, cohort("a"))
                downloads(
                    http,
                    "a",
                    *([refused] if step == "file" else []),
                    creations=[refused] if step == "creation" else None,
                    statuses={"creation": [], "status": [refused], "file": [DONE]}[step],
                )
            output = failed()
        message, failure_type = first_error(output)
        assert advice in message
        assert failure_type is FailureType.config_error


class TestFile:
    def test_given_properties_in_the_config_when_read_then_they_are_asked_for_and_are_texts(
        self,
    ) -> None:
        keys = ["plan", "my key & more", "user_id", "gp:x"]
        body = (
            "amplitude_id,user_id,plan,my key & more,user_id,amplitude_id\r\n"
            '1,a,007,"jazz, ""new""\nwave",crm-1,\r\n'
            "2,,,1e3,,9\r\n"
        )
        with HttpMocker() as http:
            lists(http, cohort("a"))
            downloads(http, "a", csv(body), params={"props": "1", "propKeys": keys})
            output = read(cohort_member_properties=keys)
        assert [
            (r["amplitude_id"], r.get("user_id"), r["properties"]) for r in records(output)
        ] == [
            (
                1,
                "a",
                {
                    "plan": "007",
                    "my key & more": 'jazz, "new"\nwave',
                    "user_id": "crm-1",
                    "amplitude_id": None,
                },
            ),
            (
                2,
                None,
                {"plan": None, "my key & more": "1e3", "user_id": None, "amplitude_id": "9"},
            ),
        ]

    @pytest.mark.parametrize("keys", [None, []])
    def test_given_no_properties_in_the_config_when_read_then_none_are_asked_for(
        self, keys: list[str] | None
    ) -> None:
        with HttpMocker() as http:
            lists(http, cohort("a"))
            downloads(http, "a", csv(ONE), params={"props": "0"})
            output = read(cohort_member_properties=keys)
        assert "properties" not in records(output)[0]

    def test_given_columns_nobody_asked_for_when_read_then_they_are_not_lost(self) -> None:
        with HttpMocker() as http:
            lists(http, cohort("a"))
            downloads(http, "a", csv("plan,user_id,amplitude_id\npro,u,1\n"))
            output = read()
        [record] = records(output)
        assert record["properties"] == {"plan": "pro"}
        assert (record["amplitude_id"], record["user_id"]) == (1, "u")

    def test_given_user_ids_of_any_form_when_read_then_one_pair_of_stray_quotes_is_taken_off(
        self,
    ) -> None:
        cells = {
            "u": "u",
            "": None,
            '"""u"""': "u",
            '""""""': None,
            '"""""u"""""': '"u"',
            '"""u"': '"u',
            '""""': '"',
            "'u'": "'u'",
            '"u, v"': "u, v",
            '"two\nlines"': "two\nlines",
            " u ": " u ",
            "None": "None",
            "1e10": "1e10",
            "ü😀": "ü😀",
        }
        rows = "".join(f"{n},{cell}\n" for n, cell in enumerate(cells))
        with HttpMocker() as http:
            lists(http, cohort("a"))
            downloads(http, "a", csv(f"amplitude_id,user_id\n{rows}"))
            output = read()
        assert [record.get("user_id") for record in records(output)] == list(cells.values())

    @pytest.mark.parametrize(
        "body",
        [
            "amplitude_id,user_id\r\n1,a\r\n2,b\r\n",
            "\ufeffamplitude_id,user_id\n1,a\n\n2,b\n\n",
            '"amplitude_id","user_id"\n"1","a"\n"""2""","b"\n',
            '"\tamplitude_id","\tuser_id"\r\n"1","\ta"\r\n"\t2","\tb"\r\n',
            "\tamplitude_id,\tuser_id\n1,\ta\n2,b\n",
        ],
        ids=["crlf", "byte-order-mark and blank lines", "quotes", "quotes and tabs", "tabs"],
    )
    def test_given_a_csv_in_any_dress_when_extracted_then_its_members_are_the_same(
        self, body: str
    ) -> None:
        members = list(CohortMembersExtractor().extract_records(spooled(body.encode())))
        assert members == [
            {"amplitude_id": 1, "user_id": "a"},
            {"amplitude_id": 2, "user_id": "b"},
        ]

    @pytest.mark.parametrize(
        ("body", "found"),
        [
            (b"1,a\n2\n", "Row 2 of {file} has 1 cells under 2 headings."),
            (b"1,a,b\n", "Row 1 of {file} has 3 cells under 2 headings."),
            (b",a\n", "Row 1 of {file} has no amplitude_id that is a number."),
            (b"1_0,a\n", "Row 1 of {file} has no amplitude_id that is a number."),
            (b"1.0,a\n", "Row 1 of {file} has no amplitude_id that is a number."),
            ("\u0661,a\n".encode(), "Row 1 of {file} has no amplitude_id that is a number."),
            (b'1,a\n2,"b\n', "What follows row 1 of {file} can't be read: unexpected end of data."),
            (b'1,a\n2,"b"c\n', "What follows row 1 of {file} can't be read: ',' expected after"),
            (b"1,\xff\n", "What follows row 0 of {file} can't be read: 'utf-8' codec can't decode"),
        ],
    )
    def test_given_a_row_that_is_no_member_when_extracted_then_it_fails_and_names_the_row(
        self, body: bytes, found: str
    ) -> None:
        answer = spooled(b"amplitude_id,user_id\n" + body)
        with pytest.raises(AirbyteTracedException) as failure:
            list(CohortMembersExtractor().extract_records(answer))
        assert failure.value.message
        assert failure.value.message.startswith(found.format(file=urlsplit(FILE).path))
        assert failure.value.failure_type is FailureType.system_error

    def test_given_two_properties_of_a_name_when_extracted_then_it_fails(self) -> None:
        answer = spooled(b"amplitude_id,user_id,x,x\n1,a,b,c\n")
        with pytest.raises(AirbyteTracedException, match="Two properties of /api/5/"):
            list(CohortMembersExtractor().extract_records(answer))

    @pytest.mark.parametrize("is_told", [False, True], ids=["bare", "told"])
    def test_given_a_gzip_as_recorded_when_read_then_its_headings_and_cells_are_what_they_mean(
        self, is_told: bool
    ) -> None:
        """One tab before a text is Amplitude's."""
        text = (
            '"amplitude_id","user_id","amplitude_id","\tname"\n'
            '"550106004607","\t007","","\t=SUM(1)"\n'
            '"2","","\t2","\t\ttwo"\n'
        )
        told = {"Content-Encoding": "gzip"} if is_told else {}
        with HttpMocker() as http:
            lists(http, cohort("a", T2, 2))
            downloads(http, "a", csv(gzip.compress(text.encode()), **told))
            output = read()
        assert records(output) == [
            {
                "cohort_id": "a",
                "computed_at": AT_T2,
                "amplitude_id": 550106004607,
                "user_id": "007",
                "properties": {"amplitude_id": None, "name": "=SUM(1)"},
            },
            {
                "cohort_id": "a",
                "computed_at": AT_T2,
                "amplitude_id": 2,
                "properties": {"amplitude_id": "2", "name": "\ttwo"},
            },
        ]
        assert saved(output) == {"a": AT_T2}

    @pytest.mark.parametrize("damage", ["cut", "cut at its head", "flipped"])
    def test_given_a_bare_gzip_that_is_damaged_when_read_then_it_is_asked_for_again_then_it_fails(
        self, damage: str
    ) -> None:
        rows = b"".join(b"%d,%d\n" % (n, n * n) for n in range(1_000))
        whole = gzip.compress(b"amplitude_id,user_id\n" + rows, mtime=0)
        broken = {
            "cut": whole[:-9],
            "cut at its head": whole[:5],
            "flipped": whole[:999] + bytes([whole[999] ^ 255]) + whole[1_000:],
        }[damage]
        with HttpMocker() as http:
            lists(http, cohort("a"))
            downloads(http, "a", csv(broken), csv(broken), csv(whole))
            output = read()
            assert_times(http, 1, "/api/5/cohorts/request/a")
        assert [r["amplitude_id"] for r in records(output)] == [*range(1_000)]
        with HttpMocker() as http:
            lists(http, cohort("a"))
            downloads(http, "a", *[csv(broken)] * 6)
            output = failed()
            assert_times(http, 1, "/api/5/cohorts/request/a")
            assert_times(http, 6, urlsplit(FILE).path)
        message, failure_type = first_error(output)
        assert "members were to be downloaded, broke off (its gzip is damaged: " in message
        assert failure_type is FailureType.transient_error
        assert records(output) == []
        assert saved(output) == {"a": NEVER}

    def test_given_a_row_that_is_no_member_when_read_then_nothing_of_the_cohort_is_passed_on(
        self,
    ) -> None:
        with HttpMocker() as http:
            lists(http, cohort("a"), cohort("b"))
            downloads(http, "a", csv("amplitude_id,user_id\n1,a\nsecret,b\n"))
            downloads(http, "b", csv(ONE))
            output = failed()
        message, failure_type = first_error(output)
        assert message.startswith(
            "The members of cohort a could not be read. Row 2 of the file of job r-a has no "
            "amplitude_id that is a number. What the destination has of this cohort stays"
        )
        assert failure_type is FailureType.system_error
        assert not said(output, "secret")
        assert [record["cohort_id"] for record in records(output)] == ["b"]
        assert saved(output) == {"a": NEVER, "b": AT_T2}

    def test_given_no_rows_and_no_size_when_read_then_it_is_downloaded_once_for_a_computation(
        self,
    ) -> None:
        with FakeAmplitude(cohort("a", size=None)) as amplitude:
            amplitude.get(FILE, {"text": "amplitude_id,user_id\n"})
            first = read(state_of(a=AT_T1))
            second = read(final_state(first))
            amplitude.cohorts = (cohort("a", T3, size=None),)
            third = read(final_state(second))
        assert amplitude.made() == ["a", "a"]
        assert said(first, "0 members") == [
            f"Cohort a, computed at {AT_T2}: 0 members, where its size is given as None; 21 bytes. "
            "Nothing is stored of it until it is computed anew."
        ]
        cursors = [
            {"computed_at": AT_T1, "turn": n + 1, "downloaded": at}
            for n, at in enumerate((AT_T2, AT_T3))
        ]
        assert cursor_of("a", first) == cursor_of("a", second) == cursors[0]
        assert cursor_of("a", third) == cursors[1]

    def test_given_no_rows_though_it_has_a_size_when_read_then_it_fails_once_for_a_computation(
        self,
    ) -> None:
        with FakeAmplitude(cohort("a", size=5), cohort("b")) as amplitude:
            empty = amplitude.get(FILE, {"text": "amplitude_id,user_id\n"})
            first = failed(state_of(a=AT_T1))
            assert cursor_of("a", first) == {
                "computed_at": AT_T1,
                "turn": 1,
                "failed": 1,
                "downloaded": AT_T2,
            }
            second = read(final_state(first))
            amplitude.cohorts = (cohort("a", T3), cohort("b"))
            amplitude.get(FILE, {"text": ONE})
            third = read(final_state(second))
        assert first_error(first)[0].startswith(
            "The members of cohort a could not be read. The file has 0 members, where its size is "
            "given as 5. That is less than half, and the cohort was not computed anew."
        )
        assert empty.call_count == 2
        assert Counter(amplitude.made()) == {"a": 2, "b": 1}
        assert records(second) == []
        assert cursor_of("a", second) == cursor_of("a", first)
        assert cursor_of("a", third) == {"computed_at": AT_T3, "turn": 2}

    @pytest.mark.parametrize(
        "short",
        [
            {"text": "amplitude_id,user_id\n1,a\n2,"},
            {"text": "amplitude_id,user_id\n1,a\n2"},
            {"text": "amplitude_id,user_id\n1,a\n"},
            {"text": 'amplitude_id,user_id\n1,a\n2,"b\n'},
            {
                "content": gzip.compress(b"amplitude_id,user_id\n1,a\n2,b\n3,c\n", mtime=0)[:-8],
                "headers": {"Content-Encoding": "gzip"},
            },
            {
                "content": gzip.compress(b"amplitude_id,user_id\n1,a\n", mtime=0),
                "headers": {"Content-Encoding": "gzip"},
            },
        ],
        ids=["mid-row", "mid-cell", "half", "mid-quotes", "gzip without its end", "half in gzip"],
    )
    def test_given_a_part_of_a_file_when_read_then_it_is_asked_for_again_without_a_new_job(
        self, short: dict[str, Any]
    ) -> None:
        whole = {"text": "amplitude_id,user_id\n1,a\n2,b\n3,c\n"}
        with FakeAmplitude(cohort("a", size=3)) as amplitude:
            asked = amplitude.get(FILE, short, whole)
            output = read()
            assert amplitude.made() == ["a"]
            assert asked.call_count == 2
            assert [record["amplitude_id"] for record in records(output)] == [1, 2, 3]
            amplitude.get(FILE, short)
            again = failed()
        assert amplitude.made() == ["a", "a"]
        assert re.search(
            "it ends within a line|unexpected end of data|has 1 members, where its size is given "
            "as 3. That is less than half|its gzip is damaged: Compressed file ended before",
            first_error(again)[0],
        )
        assert records(again) == []
        assert cursor_of("a", again) == {"computed_at": NEVER, "turn": 1, "failed": 1}

    def test_given_less_than_half_of_a_cohort_that_moved_when_read_then_it_is_what_there_is(
        self,
    ) -> None:
        class Moved(FakeAmplitude):
            def _answer(self, request: Any, context: Any) -> str:
                if self.made():
                    self.cohorts = (cohort("a", T3),)
                return super()._answer(request, context)

        with Moved(cohort("a", T2, 3)) as amplitude:
            first = read()
            second = read(final_state(first))
        assert amplitude.made() == ["a", "a"]
        assert [record["computed_at"] for record in records(first)] == [AT_T2]
        assert [record["computed_at"] for record in records(second)] == [AT_T3]

    @pytest.mark.parametrize("size", [2, "many", True, 1.5])
    def test_given_half_of_the_size_or_one_that_is_none_when_read_then_the_file_is_whole(
        self, size: object
    ) -> None:
        with FakeAmplitude(cohort("a", size=size)) as amplitude:
            asked = amplitude.get(FILE, {"text": ONE})
            output = read()
        assert len(records(output)) == asked.call_count == 1

    def test_given_a_gzip_in_a_gzip_when_read_then_both_are_unpacked_and_need_no_last_line_end(
        self,
    ) -> None:
        body = gzip.compress(gzip.compress(b"amplitude_id,user_id\n1,a", mtime=0), mtime=0)
        with FakeAmplitude(cohort("a")) as amplitude:
            amplitude.get(FILE, {"content": body, "headers": {"Content-Encoding": "gzip"}})
            output = read()
        assert len(records(output)) == 1

    def test_given_a_file_that_is_none_when_read_then_it_is_asked_for_again_without_a_new_job(
        self,
    ) -> None:
        broken = [
            csv(""),
            csv("<html>Please wait</html>"),
            csv('"\tamplitude_id","\tgroup_value"\n"1","\tAcme"\n'),
            HttpResponse('{"error":"Busy"}', 200, {"Content-Type": "application/json"}),
            HttpResponse("", 503),
            HttpResponse("", 429),
        ]
        with HttpMocker() as http:
            lists(http, cohort("a"), cohort("b"))
            downloads(http, "a", *broken[:3], csv(ONE))
            downloads(http, "b", *broken[3:], csv(ONE))
            output = read()
            for cohort_id in "ab":
                assert_times(http, 1, f"/api/5/cohorts/request/{cohort_id}")
        assert [record["amplitude_id"] for record in records(output)] == [1, 1]

    @pytest.mark.parametrize("part", [b"", b"amplitude", b"amplitude_id,user_id\n1,a\n2,"])
    def test_given_a_file_that_is_cut_when_read_then_it_is_asked_for_again_without_a_new_job(
        self, part: bytes
    ) -> None:
        whole = io.BytesIO(b"amplitude_id,user_id\n1,a\n2,b\n")
        with FakeAmplitude(cohort("a")) as amplitude:
            amplitude.get(FILE, *({"body": body} for body in (CutBody(part), CutBody(part), whole)))
            output = read()
        assert [record["amplitude_id"] for record in records(output)] == [1, 2]
        assert amplitude.made() == ["a"]

    def test_given_a_file_that_is_always_cut_when_read_then_it_fails_after_six_times(self) -> None:
        with FakeAmplitude(cohort("a")) as amplitude:
            cut = amplitude.get(FILE, *({"body": CutBody(ONE.encode())} for _ in range(7)))
            output = failed()
        assert cut.call_count == 6
        assert amplitude.made() == ["a"]
        message, failure_type = first_error(output)
        assert "The answer of amplitude.com, from where a cohort's members were to be" in message
        assert "broke off (ChunkedEncodingError)" in message
        assert failure_type is FailureType.transient_error
        assert records(output) == []
        assert saved(output) == {"a": NEVER}

    def test_given_no_room_when_read_then_the_folder_is_named(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def refuse() -> None:
            raise OSError(ENOSPC, "No space left on device")

        monkeypatch.setattr(tempfile, "TemporaryFile", refuse)
        with HttpMocker() as http:
            lists(http, cohort("a"))
            downloads(http, "a", csv(ONE))
            output = failed()
        folder = tempfile.gettempdir()
        assert (
            f"A cohort's CSV could not be stored in {folder}: No space left on device. It is held "
            "there while it is read. Make room, or point the environment variable TMPDIR to a "
            "folder with more." in first_error(output)[0]
        )

    @pytest.mark.parametrize("packed", [bytes, gzip.compress], ids=["plain", "bare gzip"])
    def test_given_a_long_file_when_extracted_then_it_lies_on_disk_and_is_read_row_by_row(
        self, packed: Callable[[bytes], bytes]
    ) -> None:
        rows = b"".join(b"%d,%s\n" % (n, b"u" * 90) for n in range(50_000))
        answer = spooled(packed(b"amplitude_id,user_id\n" + rows))
        file: Any = answer.raw
        assert not isinstance(file, io.BytesIO)
        members: Iterator[Any] = iter(CohortMembersExtractor().extract_records(answer))
        assert next(members) == {"amplitude_id": 0, "user_id": "u" * 90}
        assert 0 < file.tell() < 100_000
        assert sum(1 for _ in members) == 49_999
        assert file.closed


class TestStorage:
    """A large file is not sent by Amplitude itself, but by a storage to which it leads."""

    def test_given_a_file_in_the_storage_when_read_then_it_is_shown_no_keys(self) -> None:
        with FakeAmplitude(cohort("a")) as amplitude:
            led = amplitude.get(FILE, LED)
            stored = amplitude.get(SIGNED, {"text": ONE})
            output = read()
        assert len(records(output)) == 1
        assert ["Authorization" in asked.headers for asked in led.request_history] == [True]
        assert ["Authorization" in asked.headers for asked in stored.request_history] == [False]

    @pytest.mark.parametrize("status", [400, 403, 404, 500])
    def test_given_an_address_that_has_expired_when_read_then_amplitudes_link_is_asked_again(
        self, status: int
    ) -> None:
        with HttpMocker() as http:
            lists(http, cohort("a"))
            downloads(http, "a", *[HttpResponse("", *LED.values())] * 3)
            expired = HttpResponse("<Error><Code>AccessDenied</Code></Error>", status)
            http.get(HttpRequest(SIGNED), [expired, expired, csv(ONE)])
            output = read()
        assert len(records(output)) == 1

    def test_given_a_file_cut_by_the_storage_when_read_then_amplitudes_link_is_asked_again(
        self,
    ) -> None:
        with FakeAmplitude(cohort("a")) as amplitude:
            led = amplitude.get(FILE, LED)
            bodies = CutBody(ONE.encode()), io.BytesIO(ONE.encode())
            amplitude.get(SIGNED, *({"body": body} for body in bodies))
            output = read()
        assert len(records(output)) == 1
        assert led.call_count == 2
        assert amplitude.made() == ["a"]

    def test_given_a_storage_that_refuses_when_read_then_it_and_not_the_keys_is_named(
        self, capsys: pytest.CaptureFixture[str]
    ) -> None:
        refused = HttpResponse("<Error><Code>AccessDenied</Code></Error>", 403)
        with HttpMocker() as http:
            lists(http, cohort("a"))
            downloads(http, "a", *[HttpResponse("", *LED.values())] * 6)
            http.get(HttpRequest(SIGNED), [refused] * 6)
            output = failed()
            assert_times(http, 6, urlsplit(FILE).path)
            assert_times(http, 1, "/api/5/cohorts/request/a")
        message, failure_type = first_error(output)
        assert (
            "The answer of exports.s3.us-west-2.amazonaws.com, from where a cohort's members were "
            "to be downloaded, is HTTP 403." in message
        )
        assert "API Key" not in message
        assert failure_type is FailureType.transient_error
        self.assert_untold(output, capsys)

    def test_given_a_storage_out_of_reach_when_read_then_it_is_named_without_the_address(
        self, capsys: pytest.CaptureFixture[str]
    ) -> None:
        with FakeAmplitude(cohort("a")) as amplitude:
            amplitude.get(FILE, LED)
            error = requests.ConnectionError(f"Max retries exceeded with url: {SIGNED} (Refused)")
            amplitude.get(SIGNED, {"exc": error})
            output = failed()
        message, failure_type = first_error(output)
        assert "Max retries exceeded with url: https://exports.s3.us-west-2" in message
        assert "a.csv?... (Refused)" in message
        assert failure_type is FailureType.transient_error
        self.assert_untold(output, capsys)

    @pytest.mark.parametrize(
        "address",
        [
            f"{STORAGE}?X-Amz-Credential=AKIA0123456789%2F20240103%2Fs3&X-Amz-Signature={'ab0' * 9}"
            "&X-Amz-Security-Token=IQoJb3JpZ2lu%2F%2Bx%3D%3D01234567",
            f"{STORAGE}/{'ab0' * 9}",
        ],
        ids=["signed", "without a query"],
    )
    def test_given_debug_logs_when_read_then_the_address_of_the_storage_is_in_none(
        self, address: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        logger, lines = logging.getLogger("airbyte"), io.StringIO()
        handler = logging.StreamHandler(lines)
        handler.setFormatter(AirbyteLogFormatter())
        monkeypatch.setattr(logger, "handlers", [*logger.handlers, handler])
        monkeypatch.setattr(logger, "level", logger.level)
        settings = config()
        catalog = CatalogBuilder().with_stream("cohort_members", SyncMode.incremental).build()
        with FakeAmplitude(cohort("a")) as amplitude:
            amplitude.get(FILE, {"status_code": 302, "headers": {"Location": address}})
            stored = amplitude.get(address, {"text": ONE})
            source = SourceAmplitude(catalog=catalog, config=settings, state=[])
            output = read_source(source, settings, catalog, debug=True)
        assert output.errors == []
        assert stored.call_count == len(records(output)) == 1
        logged_lines = lines.getvalue()
        assert "No policies matched for endpoint " in logged_lines
        for secret in ("ab0ab0", "AKIA", "20240103%2Fs3", "IQoJb3JpZ2lu", "01234567"):
            assert secret not in logged_lines

    @staticmethod
    def assert_untold(output: EntrypointOutput, capsys: pytest.CaptureFixture[str]) -> None:
        printed = "".join(capsys.readouterr())
        assert "abcdef0123" not in printed
        assert not said(output, "abcdef0123")
        assert "abcdef0123" not in "".join(
            str(error.trace.error) for error in output.errors if error.trace
        )


class TestDocs:
    def test_given_syncs_when_asked_as_the_docs_say_then_the_members_are_those_of_now(self) -> None:
        docs = (Path(__file__).parents[1] / "docs" / "amplitude.md").read_text()
        [query] = re.findall(r"```sql\n(SELECT m\.\*.*?)```", docs, re.DOTALL)
        with closing(sqlite3.connect(":memory:")) as db:
            db.execute("CREATE TABLE cohorts (id TEXT, size INT, archived BOOL)")
            db.executemany(
                "INSERT INTO cohorts VALUES (?, ?, ?)",
                [
                    ("moved", 2, False),
                    ("waits", 1, None),
                    ("emptied", 0, False),
                    ("archived", 1, True),
                    ("unknown", None, None),
                ],
            )
            db.execute(
                "CREATE TABLE cohort_members (cohort_id TEXT, amplitude_id INT, computed_at TEXT)"
            )
            db.executemany(
                "INSERT INTO cohort_members VALUES (?, ?, ?)",
                [
                    ("moved", 1, AT_T3),
                    ("moved", 2, AT_T2),
                    ("moved", 3, AT_T3),
                    *((cohort_id, 4, AT_T1) for cohort_id in ("waits", "emptied", "archived")),
                    *((cohort_id, 5, AT_T1) for cohort_id in ("gone", "unknown")),
                ],
            )
            found = db.execute(query).fetchall()
        assert sorted(row[:2] for row in found) == [
            ("moved", 1),
            ("moved", 3),
            ("unknown", 5),
            ("waits", 4),
        ]


class TestBuilder:
    def test_given_many_cohorts_when_test_read_then_one_is_downloaded_however_long_it_takes(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("AIRBYTE_ENABLE_UNSAFE_CODE", "true")
        manifest = copy.deepcopy(MANIFEST)
        manifest["concurrency_level"]["default_concurrency"] = 1  # as its server does
        catalog, cohorts = build_catalog("cohort_members"), (cohort(c) for c in "abc")
        with FakeAmplitude(*cohorts, statuses=[PENDING, PENDING, DONE]) as amplitude:
            source = build_source(manifest, catalog, config(), [], 1000, 5, 5)
            answer = ManifestCommandProcessor(source).test_read(config(), catalog, [], 1000, 5, 5)
        assert amplitude.made() == ["a"]
        pages = [page for part in asdict(answer)["slices"] for page in part["pages"]]
        assert [record["cohort_id"] for page in pages for record in page["records"]] == ["a"]
