"""Filter Events: what is left out, dropped or hashed is nowhere, and the state moves."""

import copy
import json
import logging
from collections.abc import Callable, Mapping
from datetime import timedelta
from pathlib import Path
from traceback import format_exception
from typing import Any

import freezegun
import pytest
from airbyte_cdk.utils.airbyte_secrets_utils import filter_secrets
from airbyte_cdk.utils.traced_exception import AirbyteTracedException
from hypothesis import given, settings
from hypothesis import strategies as st

from sandbox import Project, Sandbox
from source_amplitude.components import (
    _COLUMNS_KEPT,
    _COLUMNS_NOT_OF_TEXT,
    EventFilter,
    ExportArchiveExtractor,
    refuse_unusable,
)
from source_amplitude.delivery import ROOM, BatchingExtractor
from source_amplitude.validation import refuse_invalid
from unit_tests.helpers import (
    API_KEY,
    SECRET_KEY,
    archive,
    config,
    json_lines,
    without_beginning,
)
from unit_tests.installed import Connector
from unit_tests.test_batches import EMPTY, read, timed_events
from unit_tests.test_components import FIELDS, MEMBER, response
from unit_tests.test_end_to_end import by, events_of, hour, now
from unit_tests.test_manifest import MANIFEST, SCHEMAS
from unit_tests.test_properties import text, values
from unit_tests.test_validation import complaint, package, two_files

SALT = "pepper-of-our-own-2026"
# blake2b(b"ada@example.com", digest_size=32, key=SALT.encode()).hexdigest(), as in the docs
HASH_OF_ADA = "1d2908dc4a07c8aba1c7550349832f6ced2e754c3d4f21be983eb2ede56dc170"
ADA = "ada@example.com"


def filtered(event: dict[str, Any], **fields: Any) -> dict[str, Any] | None:
    """The event as it is passed on; None if it is left out."""
    event = json.loads(json.dumps(event))
    found = EventFilter.of({"hash_salt": SALT, **fields})
    assert found
    return event if found.passes(event) else None


EVENT = {
    "event_type": "Sign Up",
    "email": ADA,
    "event_properties": {
        "email": ADA,
        "address": {"street": "Main St. 1", "city": "Ulm", "home": {"street": "Side St. 2"}},
        "street": "Elm St. 3",
        "contacts": [{"email": ADA, "n": 1}, [{"email": ADA}], 7],
        "[Amplitude] Page.Path": "/",
        "address.street": "Oak St. 4",
    },
    "user_properties": {"email": ADA, "contact": {"email": ADA}, "$set": {"email": ADA}},
    "global_user_properties": {"email": ADA},
    "group_properties": {"company": {"Acme": {"email": ADA, "seats": 3}}},
    "groups": {"company": ["Acme"]},
    "data": {"first_event": {"email": ADA}},
    "plan": {"version": "12"},
}


def without(*paths: str) -> dict[str, Any]:
    event = copy.deepcopy(EVENT)
    for path in paths:
        *way, last = path.split("/")
        container: Any = event
        for key in way:
            container = container[int(key)] if isinstance(container, list) else container[key]
        del container[last]
    return event


class TestNames:
    @pytest.mark.parametrize(
        ("name", "paths"),
        [
            (
                "email",
                [
                    "email",
                    "event_properties/email",
                    "event_properties/contacts/0/email",
                    "event_properties/contacts/1/0/email",
                    "user_properties/email",
                    "user_properties/contact/email",
                    "user_properties/$set/email",
                    "global_user_properties/email",
                    "group_properties/company/Acme/email",
                    "data/first_event/email",
                ],
            ),
            (
                "user_properties.email",
                [f"user_properties/{way}email" for way in ("", "contact/", "$set/")],
            ),
            ("user_properties.contact.email", ["user_properties/contact/email"]),
            ("contact.email", ["user_properties/contact/email"]),
            ("global_user_properties.email", ["global_user_properties/email"]),
            ("group_properties.email", ["group_properties/company/Acme/email"]),
            ("group_properties.seats", ["group_properties/company/Acme/seats"]),
            ("Acme.seats", ["group_properties/company/Acme/seats"]),
            (
                "address.street",
                ["event_properties/address/street", "event_properties/address.street"],
            ),
            (
                "street",
                [f"event_properties/{way}street" for way in ("", "address/", "address/home/")],
            ),
            ("home.street", ["event_properties/address/home/street"]),
            ("contacts.n", ["event_properties/contacts/0/n"]),
            ("[Amplitude] Page.Path", ["event_properties/[Amplitude] Page.Path"]),
            (
                "event_properties.[Amplitude] Page.Path",
                ["event_properties/[Amplitude] Page.Path"],
            ),
            ("company", ["group_properties/company", "groups/company"]),
            ("groups.company", ["groups/company"]),
            ("plan.version", ["plan/version"]),
            ("user_properties", ["user_properties"]),
            ("Email", []),
            ("mail", []),
            ("event_properties.seats", []),
            ("user_properties.", []),
            ("dress.street", []),
            (".", []),
        ],
    )
    def test_given_a_name_to_drop_then_exactly_this_is_gone(
        self, name: str, paths: list[str]
    ) -> None:
        assert filtered(EVENT, drop_properties=[name]) == without(*paths)

    @pytest.mark.parametrize("value", [ADA, "", 0, False, [], {}, [ADA], {"a": {"b": ADA}}, None])
    def test_given_a_value_of_any_type_when_dropped_then_it_is_gone_as_a_whole(
        self, value: object
    ) -> None:
        event = {"a": value, "event_properties": {"a": value, "b": 1}}
        assert filtered(event, drop_properties=["a"]) == {"event_properties": {"b": 1}}

    def test_given_the_same_value_to_hash_and_to_drop_then_it_is_dropped(self) -> None:
        event = {"user_properties": {"b": ADA, "a": {"b": ADA}}, "event_properties": {"b": ADA}}
        found = filtered(event, hash_properties=["b"], drop_properties=["user_properties.b"])
        assert found == {"user_properties": {"a": {}}, "event_properties": {"b": HASH_OF_ADA}}
        found = filtered(event, hash_properties=["a.b"], drop_properties=["b"])
        assert found == {"user_properties": {"a": {}}, "event_properties": {}}
        names = ["b", "user_properties.a.b"]
        found = filtered(event, hash_properties=names, drop_properties=["a.b", "x.b"])
        assert found == {
            "user_properties": {"b": HASH_OF_ADA, "a": {}},
            "event_properties": {"b": HASH_OF_ADA},
        }

    def test_given_that_all_of_an_event_is_dropped_then_it_is_left_out(self) -> None:
        """The CDK would take an empty record for the end of the sync."""
        sent = body({"a": 1}, {"a": 1, "b": 2})
        for kind in (ExportArchiveExtractor, BatchingExtractor):
            extracted = extract(kind, sent, {"drop_properties": ["a"]})
            events = events_in(extracted) if kind is BatchingExtractor else extracted
            assert events == [{"b": 2}]

    def test_given_several_names_for_a_value_when_hashed_then_it_is_hashed_once(self) -> None:
        event = {"user_properties": {"a": {"b": ADA}}}
        names = ["b", "a.b", "user_properties.b", "user_properties.a.b"]
        hashed = {"user_properties": {"a": {"b": HASH_OF_ADA}}}
        assert filtered(event, hash_properties=names) == hashed

    def test_given_what_lies_500_deep_then_it_is_found(self) -> None:
        deep: dict[str, Any] = {"email": ADA}
        for _ in range(249):
            deep = {"a": [deep]}
        event = {"event_properties": deep}
        for fields in ({"drop_properties": ["email"]}, {"hash_properties": ["a"]}):
            assert ADA not in json.dumps(filtered(event, **fields))

    @settings(max_examples=50)
    @given(st.dictionaries(text, values, max_size=5), st.sampled_from(["drop", "hash"]))
    def test_given_any_event_then_no_value_of_the_name_is_anywhere_in_it(
        self, properties: dict[str, Any], how: str
    ) -> None:
        def hidden(value: Any) -> Any:
            if isinstance(value, dict):
                return {**{k: hidden(v) for k, v in value.items()}, "secret": [{"x": ADA}]}
            return [hidden(v) for v in value] if isinstance(value, list) else value

        event = hidden({"event_properties": properties, "user_properties": [properties]})
        found = filtered(event, **{f"{how}_properties": ["secret"]})
        assert ADA not in json.dumps(found)


class TestBlanks:
    def test_given_blanks_at_the_ends_of_names_then_both_forms_are_meant_and_the_log_says_so(
        self, caplog: pytest.LogCaptureFixture
    ) -> None:
        names = {"drop_properties": ["email ", " b"], "without_event_types": ["Play\n"]}
        event = {"event_type": "a", "email": 1, "email ": 2, "b": 3, " b": 4, "c": 5}
        assert filtered(event, **names) == {"event_type": "a", "c": 5}
        assert filtered({"event_type": "Play"}, **names) is None
        assert filtered({"event_type": "Play\n"}, **names) is None
        said = (
            "Filter Events: blanks at the ends of names are taken off as well: ' b', 'Play\\n', "
            "'email '."
        )
        assert {record.getMessage() for record in caplog.records} == {said}

    def test_given_blanks_at_the_ends_of_names_then_only_what_is_unseen_without_them_is_named(
        self, caplog: pytest.LogCaptureFixture
    ) -> None:
        found = EventFilter({"drop_properties": ["email ", "b "]})
        assert found.passes({"event_type": "a", "email": 1})
        found.log_unseen()
        assert "no property 'b'. Check" in caplog.text
        assert "no property 'email" not in caplog.text

    @pytest.mark.parametrize("door", [package, two_files])
    def test_given_a_name_that_is_refused_then_blanks_do_not_help(
        self, door: Callable[[dict[str, Any]], None]
    ) -> None:
        assert "the column uuid is the primary key" in complaint(
            config(drop_properties=["uuid "]), door
        )

    @pytest.mark.parametrize("edit", ["drop_properties", "hash_properties"])
    @pytest.mark.parametrize("value", [{"email": 1}, {"b": 1}, [{"email": 1}], {"x": {"email": 1}}])
    def test_given_what_is_edited_as_a_whole_then_names_within_it_are_not_missed(
        self, edit: str, value: Any, caplog: pytest.LogCaptureFixture
    ) -> None:
        names = ["a", "a.email", "event_properties.a.x.email", "c.email"]
        found = EventFilter({edit: names, "hash_salt": SALT})
        assert found.passes({"event_type": "x", "event_properties": {"a": value}})
        found.log_unseen()
        assert "had no property 'c.email'. Check" in caplog.text


class TestHash:
    @pytest.mark.parametrize(
        ("value", "expected"),
        [
            (ADA, HASH_OF_ADA),
            ("Zoë", "28512dd13a91476c87a73ad113f472e2ce711b699b72402def60831166db9c1b"),
            ("", "3731de41d58f50223516884cba9c51fccd27af5ce85d07c3cf6813b25ce67580"),
            (
                {"b": None, "a": [1, 2.5, "ü"]},
                "7472e4c65a8c282c43de8d5649ba8bd26a960b8d86dba8f98d57b1106798af32",
            ),
            (42, "acd2eb13916d7e33afa35398bf4bc598365a31fb122777e13cf370791062cb57"),
            ("42", "acd2eb13916d7e33afa35398bf4bc598365a31fb122777e13cf370791062cb57"),
            (True, "a2a8316a109a841f3d88b56622e3f60f7c5d3daad8247010361df262ac5c8c62"),
            (None, None),
        ],
    )
    def test_given_a_value_when_hashed_then_it_is_what_the_docs_let_a_warehouse_compute(
        self, value: object, expected: object
    ) -> None:
        event = {"user_id": value, "user_properties": {"user_id": value, "n": value}}
        assert filtered(event, hash_properties=["user_id"]) == {
            "user_id": expected,
            "user_properties": {"user_id": expected, "n": value},
        }

    def test_given_another_salt_then_hashes_are_others_and_blanks_around_it_do_not_count(
        self,
    ) -> None:
        event = {"user_id": ADA}
        fields = {"hash_properties": ["user_id"]}
        assert filtered(event, hash_salt=f" {SALT}\n", **fields) == {"user_id": HASH_OF_ADA}
        assert filtered(event, hash_salt=f"{SALT}!", **fields) != {"user_id": HASH_OF_ADA}
        assert filtered(event, hash_salt="x" * 64, **fields) != {"user_id": HASH_OF_ADA}

    def test_given_a_salt_then_the_log_hides_it_in_every_form(self) -> None:
        salt = "pepper+\"of'our/own\\2026"
        EventFilter.of({"hash_properties": ["a"], "hash_salt": f"{salt}\n"})
        for form in (salt, json.dumps(salt), repr(salt), "pepper%2B%22of%27our%2Fown%5C2026"):
            assert "own" not in filter_secrets(f"it is {form}"), form

    def test_given_a_list_that_arrives_as_a_text_when_hashed_then_it_is_the_hash_of_the_text(
        self,
    ) -> None:
        name = "amplitude_attribution_ids"
        fields = {"hash_properties": [name], "hash_salt": SALT}
        sent = body({name: ["c37ee0"]}, {name: "c37ee0"}, {name: None, "n": 1})
        hashed = "50ed66c67b262bfd16dded245e22f44640baeb2679e74928d35b77c342b806fc"
        for kind in (ExportArchiveExtractor, BatchingExtractor):
            extractor = kind(FIELDS, "server_upload_time", fields, [name])
            extracted = list(extractor.extract_records(response(sent)))
            events = events_in(extracted) if kind is BatchingExtractor else extracted
            assert [event.get(name) for event in events] == [hashed, hashed, None]

    def test_the_docs_show_the_hash_of_their_example(self) -> None:
        docs = (Path(__file__).parents[1] / "docs" / "amplitude.md").read_text()
        for part in (SALT, ADA, HASH_OF_ADA):
            assert part in docs
        [code] = [line for line in docs.splitlines() if line.startswith("python3 -c '")]
        assert code.startswith("python3 -c 'from hashlib import blake2b; print(")
        expression = code.partition("print(")[2].removesuffix(")'")
        from hashlib import blake2b

        assert eval(expression, {"blake2b": blake2b}) == HASH_OF_ADA


class TestEventTypes:
    @pytest.mark.parametrize(
        ("fields", "passed"),
        [
            ({"only_event_types": ["a"]}, ["a"]),
            ({"only_event_types": ["a", "b", "c"]}, ["a", "b"]),
            ({"only_event_types": ["A"]}, []),
            ({"without_event_types": ["a"]}, ["b", None, 5, [], ""]),
            ({"only_event_types": ["a"], "without_event_types": ["b"]}, ["a"]),
            ({"only_event_types": [], "without_event_types": ["c"]}, ["a", "b", None, 5, [], ""]),
        ],
    )
    def test_given_event_types_then_exactly_their_events_are_passed_on(
        self, fields: dict[str, Any], passed: list[Any]
    ) -> None:
        types: list[Any] = ["a", "b", None, 5, [], ""]
        assert [t for t in types if filtered({"event_type": t}, **fields)] == passed

    def test_given_the_type_is_dropped_or_hashed_then_it_has_been_compared_before(self) -> None:
        event = {"event_type": ADA, "n": 1}
        fields = {"only_event_types": [ADA]}
        assert filtered(event, drop_properties=["event_type"], **fields) == {"n": 1}
        found = filtered(event, hash_properties=["event_type"], **fields)
        assert found == {"event_type": HASH_OF_ADA, "n": 1}


@pytest.mark.parametrize(
    "fields", [{}, {"only_event_types": [], "drop_properties": []}, {"hash_salt": SALT}]
)
def test_given_no_filter_then_there_is_none_to_ask(fields: dict[str, Any]) -> None:
    for kind in (ExportArchiveExtractor, BatchingExtractor):
        assert kind(FIELDS, "server_upload_time", config(**fields))._filter is None


class TestRefusals:
    @pytest.mark.parametrize(
        ("fields", "expected"),
        [
            (
                {"only_event_types": ["a", "b"], "without_event_types": ["b"]},
                "Only These Event Types (only_event_types) and Without These Event Types "
                "(without_event_types) both have 'b'. Take it out of one.",
            ),
            (
                {"drop_properties": ["email"], "hash_properties": ["email"], "hash_salt": SALT},
                "Drop Properties (drop_properties) and Hash Properties (hash_properties) both have "
                "'email'. Take it out of one.",
            ),
            (
                {"drop_properties": ["uuid"]},
                "Drop Properties (drop_properties) is not valid: the column uuid is the primary "
                "key, and can be neither dropped nor hashed. If a property of that name is meant, "
                "say where it is: event_properties.uuid, user_properties.uuid, "
                "group_properties.uuid, global_user_properties.uuid.",
            ),
            (
                {"hash_properties": ["server_upload_time"], "hash_salt": SALT},
                "Hash Properties (hash_properties) is not valid: the column server_upload_time is "
                "the cursor, and can be neither dropped nor hashed. If a property of that name is "
                "meant, say where it is: event_properties.server_upload_time, "
                "user_properties.server_upload_time, group_properties.server_upload_time, "
                "global_user_properties.server_upload_time.",
            ),
            (
                {"hash_properties": ["location_lat"], "hash_salt": SALT},
                "Hash Properties (hash_properties) is not valid: the column location_lat holds "
                "numbers, while a hash is a text: it can be dropped, but not hashed. If a property "
                "of that name is meant, say where it is: event_properties.location_lat, "
                "user_properties.location_lat, group_properties.location_lat, "
                "global_user_properties.location_lat.",
            ),
            (
                {"hash_properties": ["user_id"]},
                "Hash Properties (hash_properties) needs Hash Salt (hash_salt): without a secret, "
                "anybody could find the values by trying.",
            ),
            (
                {"hash_salt": f" {API_KEY}"},
                "Hash Salt (hash_salt) is not valid: it must be a secret of its own, not the API "
                "Key or the Secret Key.",
            ),
            (
                {"hash_salt": SECRET_KEY},
                "Hash Salt (hash_salt) is not valid: it must be a secret of its own, not the API "
                "Key or the Secret Key.",
            ),
        ],
    )
    def test_given_filters_that_can_not_be_then_the_field_is_named(
        self, fields: dict[str, Any], expected: str
    ) -> None:
        assert complaint(config(**fields), refuse_unusable) == expected

    @pytest.mark.parametrize("door", [package, two_files])
    def test_given_filters_that_can_not_be_then_every_door_refuses_them(
        self, door: Callable[[dict[str, Any]], None]
    ) -> None:
        said = complaint(config(hash_properties=["user_id"]), door)
        assert said.startswith("Hash Properties (hash_properties) needs Hash Salt (hash_salt): ")

    @pytest.mark.parametrize("salt", ["x" * 15, "x" * 65, "x" * 15 + " x", "x" * 16 + "é", " ", 5])
    def test_given_a_salt_that_is_too_short_or_no_key_then_it_is_refused_and_not_quoted(
        self, salt: object
    ) -> None:
        assert complaint(config(hash_salt=salt), refuse_unusable) == (
            "Hash Salt (hash_salt) is not valid: it must have 16 to 64 letters, digits or signs of "
            "ASCII, and no blanks."
        )

    def test_given_a_salt_of_16_or_64_signs_then_it_is_accepted(self) -> None:
        for salt in ("~" * 16, "!" * 64):
            refuse_unusable(config(hash_properties=["user_id"], hash_salt=salt))

    @pytest.mark.parametrize("name", ["only_event_types", "without_event_types"])
    @pytest.mark.parametrize(
        ("value", "reason"),
        [
            ("Sign Up", "'Sign Up' is not of type 'array'"),
            ([""], "entry 1: '' should be non-empty"),
            ([5], "entry 1: 5 is not of type 'string'"),
        ],
    )
    def test_given_no_list_of_texts_then_the_field_is_named(
        self, name: str, value: object, reason: str
    ) -> None:
        form = MANIFEST["spec"]["connection_specification"]
        title = f"{form['properties'][name]['title']} ({name})"
        settings = config(**{name: value})
        said = complaint(settings, lambda fields: refuse_invalid(fields, form))
        assert said == f"{title} is not valid: {reason}."
        # Where nobody has checked the form before.
        said = complaint(settings, refuse_unusable)
        assert said == f"{title} is not valid: it must be a list of texts."

    def test_columns_refused_are_those_of_the_schema(self) -> None:
        properties: Mapping[str, Any] = SCHEMAS["events"]["properties"]  # type: ignore[index]
        not_of_text = {
            name
            for name, field in properties.items()
            if "string" not in field["type"] or "format" in field
        }
        assert set(_COLUMNS_NOT_OF_TEXT) | {"server_upload_time"} == not_of_text
        assert [*_COLUMNS_KEPT] == ["uuid", "server_upload_time"]
        for kind, types in {"numbers": {"integer", "number"}, "booleans": {"boolean"}}.items():
            for name in (n for n, why in _COLUMNS_NOT_OF_TEXT.items() if kind in why):
                assert properties[name]["type"][1] in types, name


def at(time: str, event_type: str = "keep", **more: Any) -> dict[str, Any]:
    upload = f"2024-01-03 {time}.000000"
    return {"uuid": time, "event_type": event_type, "server_upload_time": upload, **more}


def body(*events: dict[str, Any], tail: bytes = b"") -> bytes:
    return archive({MEMBER: json_lines(events) + tail})


def records_of(printed: list[Any]) -> list[Any]:
    return [m["record"]["data"] for m in printed if m["type"] == "RECORD"]


def states_of(printed: list[Any]) -> list[Any]:
    return [
        (
            without_beginning(m["state"]["stream"]["stream_state"]),
            m["state"]["sourceStats"]["recordCount"],
        )
        for m in printed
        if m["type"] == "STATE"
    ]


def statuses_of(printed: list[Any]) -> list[str]:
    traces = [m["trace"] for m in printed if m["type"] == "TRACE"]
    return [t["stream_status"]["status"] for t in traces if t["type"] == "STREAM_STATUS"]


ONLY_KEEP = {"only_event_types": ["keep"]}


@pytest.mark.usefixtures("standing_clock")
class TestState:
    @pytest.fixture(autouse=True)
    def _late(self, standing_clock: Any) -> None:
        standing_clock.move_to("2024-01-03T23:30:00Z")

    def test_given_a_window_of_which_all_is_left_out_when_in_batches_then_the_state_moves(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        bodies = [body(at("05:00:00")), body(at("11:00:00", "other"), at("13:00:00", "other"))]
        printed, logs = read(bodies, tmp_path, True, caplog, **ONLY_KEEP)
        assert [r["uuid"] for r in records_of(printed)] == ["05:00:00"]
        assert states_of(printed) == [
            ({"server_upload_time": "20240103T05"}, 1.0),
            ({"server_upload_time": "20240103T13"}, 0.0),
            ({"server_upload_time": "20240103T13"}, 0.0),
        ]
        assert "Read 1 records from events stream" in logs

    def test_given_that_all_of_a_sync_is_left_out_when_in_batches_then_only_the_state_is_printed(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        bodies = [body(at("05:00:00", "x")), body(at("13:00:00", "x"))]
        printed, logs = read(bodies, tmp_path, True, caplog, **ONLY_KEEP)
        assert records_of(printed) == []
        assert states_of(printed)[-1] == ({"server_upload_time": "20240103T13"}, 0.0)
        assert statuses_of(printed) == ["STARTED", "COMPLETE"]
        assert "Read 0 records from events stream" in logs

    def test_given_the_first_window_is_left_out_then_the_stream_is_running_once(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        bodies = [body(at("05:00:00", "x")), body(at("11:00:00", "x"), at("13:00:00"))]
        printed, _ = read(bodies, tmp_path, True, caplog, **ONLY_KEEP)
        assert statuses_of(printed) == ["STARTED", "RUNNING", "COMPLETE"]
        assert states_of(printed)[-1] == ({"server_upload_time": "20240103T13"}, 0.0)

    def test_given_a_window_that_fails_after_events_left_out_then_the_state_does_not_pass_it(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        damaged = body(at("07:00:00", "x"), at("08:00:00", "x"), tail=b"{\n")
        for bodies, state in (
            ([damaged, body(at("13:00:00", "x"))], "20240102T23"),
            ([body(at("05:00:00", "x")), body(at("13:00:00", "x"), tail=b"{\n")], "20240103T05"),
        ):
            printed, _ = read(bodies, tmp_path, True, caplog, **ONLY_KEEP)
            assert states_of(printed)[-1][0] == {"server_upload_time": state}

    def test_given_a_window_of_which_all_is_left_out_when_one_by_one_then_it_is_read_again(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        """As documented: there, the cursor sees only what is printed."""
        bodies = [body(at("05:00:00")), body(at("13:00:00", "other"))]
        printed, _ = read(bodies, tmp_path, False, caplog, **ONLY_KEEP)
        assert states_of(printed)[-1][0] == {"server_upload_time": "20240103T05"}


@settings(max_examples=50)
@given(st.lists(timed_events, max_size=12), st.data())
def test_given_any_events_when_filtered_then_batches_have_the_same_and_the_cursor_sees_the_same(
    events: list[Mapping[str, Any]], data: st.DataObject
) -> None:
    types = [data.draw(st.sampled_from(["keep", "other", None])) for _ in events]
    sent = [{**event, "event_type": t} for event, t in zip(events, types, strict=True)]
    fields = {
        **data.draw(st.sampled_from([{}, ONLY_KEEP, {"without_event_types": ["keep"]}])),
        "drop_properties": data.draw(st.lists(text.filter(_is_no_column), max_size=2)),
        "hash_properties": ["user_id"],
        "hash_salt": SALT,
    }
    one_by_one = extract(ExportArchiveExtractor, body(*sent), fields)
    in_batches = extract(BatchingExtractor, body(*sent), fields)
    # The CDK leaves out what is null.
    present = [{k: v for k, v in event.items() if v is not None} for event in one_by_one]
    assert json.dumps(events_in(in_batches)) == json.dumps(present)
    seen = [
        [batch.get("server_upload_time") for batch in batches]
        for batches in (in_batches, extract(BatchingExtractor, body(*sent), {}))
    ]
    assert seen[0] == seen[1]


def extract(
    kind: type[ExportArchiveExtractor], sent: bytes, fields: Mapping[str, Any]
) -> list[Any]:
    return list(kind(FIELDS, "server_upload_time", fields).extract_records(response(sent)))


def events_in(batches: list[Any]) -> list[Any]:
    lines = b"".join(batch["\0batch"].lines for batch in batches)
    ROOM.free(len(lines))
    return [json.loads(line)["record"]["data"] for line in lines.split(b"\n") if line]


def _is_no_column(name: str) -> bool:
    return bool(name) and name not in {*_COLUMNS_KEPT, "user_id"}


@pytest.mark.usefixtures("no_waiting")
class TestLog:
    """What the log says of filters; `read` cuts off the seconds of a line."""

    FIELDS: Mapping[str, Any] = {
        "only_event_types": ["keep", "Kepp"],
        "drop_properties": ["emial", "a", "user_properties.a"],
        "hash_properties": ["user_id"],
        "hash_salt": SALT,
    }
    UNSEEN = (
        "Filter Events: what this sync has read so far had no {}. Check how it is spelt in "
        "Amplitude, upper and lower case included."
    )

    def logged(
        self,
        tmp_path: Path,
        caplog: pytest.LogCaptureFixture,
        *bodies: bytes | None,
        **fields: Any,
    ) -> list[str]:
        with freezegun.freeze_time("2024-01-03T23:30:00Z"):
            read(bodies, tmp_path, True, caplog, **(fields or self.FIELDS))
        return [r.getMessage() for r in caplog.records if "Filter Events" in r.getMessage()]

    FIRST = body(at("05:00:00"), at("06:00:00", "x", a=1, user_id=1), at("07:00:00", "x"))
    SECOND = body(at("13:00:00", a=None), at("14:00:00", user_id=ADA))

    def test_given_names_that_never_occur_when_in_batches_then_one_line_at_the_end_has_them(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        lines = self.logged(tmp_path, caplog, self.FIRST, self.SECOND)
        window, unseen = lines
        assert window.startswith(
            "Export of 20240103T00 to 20240103T09: 1 files, 3 events (2 of them left out by Filter "
            "Events), "
        )
        assert unseen == self.UNSEEN.format(
            "event type 'Kepp', no property 'emial', no property 'user_properties.a'"
        )
        every = [record.getMessage() for record in caplog.records]
        assert every.index("Marking stream events as STOPPED") < every.index(unseen)

    def test_given_names_that_never_occur_when_one_by_one_then_the_last_line_has_them(
        self, caplog: pytest.LogCaptureFixture
    ) -> None:
        extractor = ExportArchiveExtractor(FIELDS, "server_upload_time", self.FIELDS)
        for sent in (body(), self.FIRST, self.FIRST, self.SECOND, self.SECOND):
            list(extractor.extract_records(response(sent)))
        lines = [record.getMessage() for record in caplog.records]
        assert [line for line in lines if line.startswith("Filter")] == [
            self.UNSEEN.format(
                "event type 'Kepp', no property 'a', no property 'emial', no property "
                "'user_id', no property 'user_properties.a'"
            ),
            self.UNSEEN.format(
                "event type 'Kepp', no property 'emial', no property 'user_properties.a'"
            ),
        ]

    def test_given_no_event_at_all_then_nothing_is_said_of_names(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        assert self.logged(tmp_path, caplog, EMPTY, body()) == []

    def test_given_that_all_events_are_left_out_then_event_types_are_named_but_no_properties(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        fields = {"only_event_types": ["keep"], "drop_properties": ["a"]}
        lines = self.logged(tmp_path, caplog, body(at("05:00:00", "x")), EMPTY, **fields)
        assert lines[-1] == self.UNSEEN.format("event type 'keep'")

    def test_given_that_all_names_occur_then_nothing_is_said_of_them(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        properties = {"[A] b.c": 1, "d": [{"e": None}]}
        names = ["[A] b.c", "d.e", "event_properties.d.e", "event_properties.e"]
        first = body(at("05:00:00", event_properties=properties), at("06:00:00", "x"))
        fields = {"without_event_types": ["x"], "drop_properties": names}
        [window] = self.logged(tmp_path, caplog, first, EMPTY, **fields)
        assert "2 events (1 of them left out by Filter Events), " in window

    def test_given_that_the_last_names_occur_later_then_nothing_more_is_said(
        self, caplog: pytest.LogCaptureFixture
    ) -> None:
        extractor = ExportArchiveExtractor(FIELDS, "server_upload_time", {"drop_properties": ["a"]})
        for sent in (body(at("05:00:00")), body(at("06:00:00", a=1))):
            list(extractor.extract_records(response(sent)))
        lines = [record.getMessage() for record in caplog.records]
        assert [line for line in lines if line.startswith("Filter")] == [
            self.UNSEEN.format("property 'a'")
        ]

    def test_given_a_sync_that_fails_then_names_are_said_all_the_same(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        lines = self.logged(tmp_path, caplog, self.FIRST, body(at("13:00:00", a=1), tail=b"{\n"))
        assert lines[-1] == self.UNSEEN.format(
            "event type 'Kepp', no property 'emial', no property 'user_id', no property "
            "'user_properties.a'"
        )


HIDDEN = "ada.lovelace@example.com"
PERSONAL = at(
    "05:00:00",
    email=HIDDEN,
    user_id=HIDDEN,
    user_properties={"contact": [{"email": HIDDEN}]},
    global_user_properties=None,
    group_properties={"company": {"Acme": {"email": {"of": HIDDEN}}}},
)
HIDING = {"drop_properties": ["email"], "hash_properties": ["user_id"], "hash_salt": SALT}


SOUND_TAILS = [
    b"",
    json.dumps({"email": HIDDEN, "user_id": HIDDEN, "n": float("nan")}).encode(),
    json.dumps({"email": HIDDEN + "\ud800", "user_id": HIDDEN}).encode(),
    json.dumps({"event_type": "x", "email": HIDDEN}).encode(),
]


@pytest.mark.parametrize(
    "tail",
    [
        *SOUND_TAILS,
        json.dumps(PERSONAL).encode()[:-30],
        json.dumps(PERSONAL).encode().replace(b'"user_id": "', b'"user_id": \x00"'),
        f"{HIDDEN}\n".encode(),
        f'["{HIDDEN}"]\n'.encode(),
        b'{"email":' + b"[" * 600 + f'"{HIDDEN}"'.encode() + b"]" * 600 + b"}",
    ],
    ids=["sound", "nan", "surrogate", "left-out", "cut-off", "damaged", "text", "list", "deep"],
)
def test_given_personal_values_when_dropped_or_hashed_then_they_are_nowhere_whatever_is_damaged(
    caplog: pytest.LogCaptureFixture, tail: bytes
) -> None:
    caplog.set_level(logging.DEBUG)
    fields = {"without_event_types": ["x"], **HIDING}
    for kind in (ExportArchiveExtractor, BatchingExtractor):
        extracted: list[Any] = []
        said = ""
        try:
            answer = response(body(PERSONAL, tail=tail))
            for found in kind(FIELDS, "server_upload_time", fields).extract_records(answer):
                extracted.append(found)
        except AirbyteTracedException as error:
            said = f"{error.as_airbyte_message()}{''.join(format_exception(error))}"
        events = events_in(extracted) if kind is BatchingExtractor else extracted
        assert [len(event["user_id"]) for event in events] == [64] * len(events)
        assert "lovelace" not in f"{extracted}{said}{caplog.text}"
        assert bool(said) == (tail not in SOUND_TAILS)


def test_given_a_damaged_event_then_its_error_does_not_lead_to_the_line() -> None:
    """The cause holds all of it, and would be printed by whoever prints causes with their data."""
    damaged = body(tail=f'{{"email":"{HIDDEN}'.encode())
    with pytest.raises(AirbyteTracedException) as failure:
        extract(ExportArchiveExtractor, damaged, HIDING)
    assert failure.value.__cause__ is None
    assert failure.value.__suppress_context__


@pytest.mark.usefixtures("no_waiting")
@pytest.mark.parametrize("in_batches", [False, True])
def test_given_a_damaged_event_when_read_then_no_value_of_it_is_in_the_output_or_debug_logs(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, in_batches: bool
) -> None:
    caplog.set_level(logging.DEBUG)
    damaged = body(PERSONAL, tail=json.dumps(PERSONAL).encode()[:-30])
    with freezegun.freeze_time("2024-01-03T23:30:00Z"):
        printed, _ = read([damaged, EMPTY], tmp_path, in_batches, caplog, **HIDING)
    assert [record["uuid"] for record in records_of(printed)] == ["05:00:00"]
    formatted = [logging.Formatter().format(record) for record in caplog.records]
    assert any("Amplitude sent something that is no event" in text for text in formatted)
    for output in (json.dumps(printed), *formatted):
        assert "lovelace" not in output
        assert SALT not in output


@pytest.mark.usefixtures("within_an_hour")
def test_given_filters_when_the_command_reads_then_no_hidden_value_is_printed_and_the_rest_is_right(
    tmp_path: Path,
) -> None:
    first_hour = hour(now()) - timedelta(hours=30)
    fields: dict[str, Any] = {
        "without_event_types": ["Page Viewed"],
        "drop_properties": ["ip_address", "user_properties.email", "company"],
        "hash_properties": ["user_id", "event_properties.title"],
        "hash_salt": SALT,
    }
    with Sandbox(Project(events_per_hour=20, first_hour=first_hour)) as sandbox:
        sent = events_of(sandbox)
        run = Connector(tmp_path, sandbox, **fields)
        output = run.run("read", "--debug", *run.read_options("events"))
    assert output.exit_code == 0
    expected = []
    for event in sent:
        if passed := filtered(event, **fields):
            expected.append(passed)
    assert 0 < len(expected) < len(sent)
    assert by("uuid", output.records("events")) == by("uuid", expected)
    for text_sent in ("@example.com", "203.0.113.", "Acme", "lo-fi beats", SALT):
        assert text_sent not in output.output
