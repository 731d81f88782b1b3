"""The form as Airbyte draws it from the spec: the rules of its code, which no document tells.

- A list of texts is a field for tags: what is typed or pasted there is split at commas and
  semicolons.
- Below the top level, optional fields are folded away, but for those with ``always_show``.
- Fields of one name keep their value when another kind is chosen.
- ``pattern_descriptor`` stands in "The value must match the pattern ...".
"""

import re
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest

from source_amplitude import SourceAmplitude
from unit_tests.helpers import config

SPEC = SourceAmplitude(config=config()).resolved_manifest["spec"]["connection_specification"]
KINDS = {
    kind["properties"]["kind"]["const"]: kind
    for kind in SPEC["properties"]["reports"]["items"]["properties"]["query"]["oneOf"]
}
# Ids of Amplitude's, of letters and digits
WITHOUT_COMMAS = {"cohort_ids"}
# What a report can do without when it is made
IN_A_FOLD = {
    "segmentation": {"second_event", "second_grouped_by", "filters", "segment"},
    "funnel": {"step_order", "users", "funnel_filters", "funnel_segment"},
    "retention": set[str](),
    "composition": set[str](),
    "chart": set[str](),
}


def fields(schema: dict[str, Any], path: str = "") -> Iterator[tuple[str, dict[str, Any], bool]]:
    """All that the form shows: where it stands, its schema, and whether it is required."""
    for name, field in schema.get("properties", {}).items():
        if not field.get("airbyte_hidden"):
            inner = f"{path}/{name}".removeprefix("/")
            yield inner, field, name in schema.get("required", [])
            for kind in field.get("oneOf", []):
                yield from fields(kind, f"{inner}/{kind['properties']['kind']['const']}")
            yield from fields(field.get("items", field), inner)


FIELDS = {path: (field, is_required) for path, field, is_required in fields(SPEC)}


def folded(schema: dict[str, Any]) -> set[str]:
    """The fields of an object that nobody sees at first."""
    return {
        name
        for name, field in schema["properties"].items()
        if "const" not in field and not field.get("airbyte_hidden")
        if name not in schema.get("required", []) and not field.get("always_show")
    }


def test_groups_stand_in_the_order_in_which_they_are_filled_in() -> None:
    found: dict[str, list[str]] = {group["title"]: [] for group in SPEC["groups"]}
    titles = {group["id"]: group["title"] for group in SPEC["groups"]}
    for name, field in SPEC["properties"].items():
        found[titles[field["group"]]].append(name)
    assert found == {
        "Connection": [
            *("api_key", "secret_key", "start_date", "data_region", "project_timezone"),
            "project_name",
        ],
        "Reports": ["reports"],
        "Daily Numbers": ["active_users_group_by_country", "user_counts_group_by"],
        "Cohorts": ["cohort_ids", "cohort_member_properties", "cohort_downloads_per_sync"],
        "Experiment": ["management_api_key"],
        "Filter Events": [
            *("only_event_types", "without_event_types", "drop_properties", "hash_properties"),
            "hash_salt",
        ],
        "Tuning": [
            *("lookback_window_hours", "dashboard_lookback_days", "request_time_range"),
            *("num_workers", "end_date", "use_whole_cohort_quota"),
        ],
    }
    for name in found["Tuning"]:
        assert SPEC["properties"][name]["description"].startswith("Leave "), name


def test_no_list_of_texts_takes_what_may_hold_a_comma_without_saying_how() -> None:
    tags = {
        path: field["description"]
        for path, (field, _) in FIELDS.items()
        if field["type"] == "array" and field["items"]["type"] == "string"
    }
    assert tags.keys() >= WITHOUT_COMMAS
    for path, description in tags.items():
        says_how = "Write %2C for a comma in a name, and %3B for a semicolon." in description
        assert says_how or path in WITHOUT_COMMAS, path


def test_nothing_that_is_needed_is_folded_away() -> None:
    assert {name: folded(kind) for name, kind in KINDS.items()} == IN_A_FOLD
    for path, (field, _) in FIELDS.items():
        if field["type"] == "array" and field["items"]["type"] == "object":
            assert folded(field["items"]) == set(), path
        # "You need" is said of what only some need, or what a former version had elsewhere.
        if "You need" in field.get("description", "") and "/" in path:
            assert field.get("always_show"), path
    connection = {n: f for n, f in SPEC["properties"].items() if f["group"] == "connection"}
    assert folded({"properties": connection, "required": SPEC["required"]}) == set()
    assert SPEC["properties"]["reports"]["always_show"]


def test_no_two_kinds_of_reports_have_fields_of_the_same_name() -> None:
    shown = Counter(
        name
        for kind in KINDS.values()
        for name, field in kind["properties"].items()
        if not field.get("airbyte_hidden")
    )
    assert shown.pop("kind") == len(KINDS)
    assert set(shown.values()) == {1}


def test_what_is_hidden_has_no_bounds_and_no_defaults() -> None:
    """A value that stays when another kind is chosen could be neither seen nor mended; and a
    default would be written into configs that never had the field."""
    hidden = [
        field
        for kind in KINDS.values()
        for field in kind["properties"].values()
        if field.get("airbyte_hidden")
    ]
    assert len(hidden) == 7
    for field in hidden:
        assert field.keys() & {"default", "minItems", "maxItems", "pattern"} == set()


def test_what_took_the_place_of_another_field_has_no_default() -> None:
    """The form writes defaults into a config of an earlier version, where they would win."""
    for name in ("step_order", "funnel_grouped_by", "grouped_by", "funnel_filters"):
        [field] = [k["properties"][name] for k in KINDS.values() if name in k["properties"]]
        assert "default" not in field


def test_questions_are_radio_buttons_each_with_a_description() -> None:
    query, _ = FIELDS["reports/query"]
    assert query["display_type"] == "radio"
    assert all(len(kind["description"]) > 30 for kind in KINDS.values())


@pytest.mark.parametrize("path", FIELDS)
def test_a_field_is_titled_described_and_a_pattern_says_its_rule(path: str) -> None:
    field, _ = FIELDS[path]
    if "const" in field:
        return
    assert field["title"]
    assert len(field["description"]) > 15
    if field["type"] == "string" and "pattern" in field and not field.get("airbyte_secret"):
        rule, examples = field["pattern_descriptor"], field["examples"]
        assert rule not in examples
        assert not re.fullmatch(field["pattern"], rule), "an example is no rule"
        assert all(re.search(field["pattern"], example) for example in examples)
    assert "oneOf" not in field or field["type"] == "object", "a list of constants is no choice"


def test_texts_are_in_plain_english() -> None:
    odd = re.compile(
        r"besides|\bmend|for who\b|who waits|has its say|[Ss]tands? beside|spelt|\bit takes the\b"
        r"|, too\b|events_list|hitherto|thereof",
    )
    for path, (field, _) in FIELDS.items():
        assert not odd.search(field.get("description", "")), path
        for sentence in re.split(r"(?<=[.!?]) |<li>", field.get("description", "")):
            assert len(sentence.split()) < 36, f"{path}: {sentence}"
