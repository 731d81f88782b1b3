"""The manifest as a document: its order, its schemas, and that it says each thing once."""

import ast
import json
import re
import warnings
from collections import Counter
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import yaml
from airbyte_cdk.sources.declarative.interpolation import InterpolatedString
from airbyte_cdk.sources.streams.http.tcp_keepalive import TcpKeepaliveHTTPAdapter
from jsonschema import Draft7Validator

from scripts import lake_schemas
from scripts.inline_schemas import inline_schemas, read_schemas
from source_amplitude import SourceAmplitude
from unit_tests.helpers import config

ROOT = Path(__file__).parents[1]
MANIFEST_TEXT = (ROOT / "source_amplitude" / "manifest.yaml").read_text()
MANIFEST: dict[str, Any] = yaml.safe_load(MANIFEST_TEXT)
SCHEMAS = read_schemas()
# One of each kind
REPORTS = [
    {"name": "a", "query": {"kind": "segmentation", "events": ["Signed Up"]}},
    {"name": "b", "query": {"kind": "funnel", "events": ["Signed Up", "Song Played"]}},
    {"name": "c", "query": {"kind": "retention"}},
    {"name": "d", "query": {"kind": "composition", "property": "platform"}},
    {"name": "e", "query": {"kind": "chart", "chart_id": "abc123"}},
]
# With all that makes further streams
EVERYTHING = config(management_api_key="key", reports=REPORTS)
METADATA = yaml.safe_load((ROOT / "metadata.yaml").read_text())["data"]


def nodes(tree: Any, path: str = "#") -> Iterator[tuple[str, Any]]:
    yield path, tree
    children: Any = ()
    if isinstance(tree, dict):
        children = tree.items()
    elif isinstance(tree, list):
        children = enumerate(tree)
    for key, child in children:
        yield from nodes(child, f"{path}/{key}")


def test_top_level_keys_stand_in_the_agreed_order() -> None:
    assert list(MANIFEST) == [
        "version",
        "type",
        "check",
        "definitions",
        "streams",
        "dynamic_streams",
        "concurrency_level",
        "api_budget",
        "spec",
        "schemas",
    ]


def test_inline_schemas_are_those_of_the_files() -> None:
    assert inline_schemas(MANIFEST_TEXT, SCHEMAS) == MANIFEST_TEXT, "run `make schemas`"


def test_what_engines_are_told_of_events_is_what_their_schema_says() -> None:
    page = lake_schemas.PAGE.read_text(encoding="utf-8")
    assert lake_schemas.with_statements(page) == page, "run `make schemas`"
    # Only these would not be noticed: what has no place in the page.
    assert all(make() in page for _, make in lake_schemas.STATEMENTS.values())
    assert MANIFEST["schemas"] == SCHEMAS


def test_streams_are_references_only_and_every_stream_defined_is_listed() -> None:
    listed = [
        reference
        for entry in MANIFEST["streams"]
        for reference in (entry["streams"] if "condition" in entry else [entry])
    ]
    assert sorted(reference["$ref"] for reference in listed) == sorted(
        f"#/definitions/streams/{name}" for name in MANIFEST["definitions"]["streams"]
    )


def test_streams_that_take_nothing_of_the_budget_are_started_before_those_that_wait_for_it() -> (
    None
):
    """And these from the cheapest to the dearest; each report is priced by itself."""
    order = [s.name for s in SourceAmplitude(config=EVERYTHING).streams(EVERYTHING)]
    assert order[-len(REPORTS) :] == [f"report_{report['name']}" for report in REPORTS]
    dear = order[order.index("raw_events_files") + 1 : -len(REPORTS)]
    assert dear == [
        *("daily_user_counts", "weekly_user_counts", "monthly_user_counts", "revenue_ltv"),
        *("average_session_length", "sessions_per_user", "session_lengths"),
        *("active_users", "retention", "event_counts"),
    ]
    lists = order[: order.index("deletion_jobs")]
    assert {"annotations", "cohorts", "events_list", "lookup_tables", "flags"} <= {*lists}
    assert not {"events", "session_replays", "cohort_members", *dear} & {*lists}


def test_every_definition_is_used() -> None:
    references = {node for path, node in nodes(MANIFEST) if path.endswith("/$ref")}
    used = {re.split("/", reference)[2] for reference in references}
    assert set(MANIFEST["definitions"]) - {"streams"} <= used


def test_no_definition_of_more_than_a_few_lines_stands_twice() -> None:
    body = {key: value for key, value in MANIFEST.items() if key not in ("spec", "schemas")}
    subtrees = Counter(
        text
        for _, node in nodes(body)
        if isinstance(node, dict) and (text := yaml.safe_dump(node)).count("\n") > 4
    )
    assert [text for text, count in subtrees.items() if count > 1] == []


def retrievers() -> dict[str, Any]:
    streams: list[Any] = SourceAmplitude(config=EVERYTHING).streams(EVERYTHING)
    factories = {s.name: s._stream_partition_generator._partition_factory for s in streams}
    built = {name: factory._retriever for name, factory in factories.items()}
    # That of files has another one inside.
    return {name: getattr(retriever, "retriever", retriever) for name, retriever in built.items()}


COMPONENTS_TEXT = (ROOT / "source_amplitude" / "components.py").read_text()
BAND = re.compile(r"^# -+\n# (\d) .+\n# -+$", re.MULTILINE)


def bands() -> dict[int, list[ast.stmt]]:
    """The statements of components.py by the number of their band; 0 is what stands before."""
    starts = {
        COMPONENTS_TEXT.count("\n", 0, m.start()): int(m[1]) for m in BAND.finditer(COMPONENTS_TEXT)
    }
    found: dict[int, list[ast.stmt]] = {}
    for statement in ast.parse(COMPONENTS_TEXT).body:
        number = max((n for line, n in starts.items() if line < statement.lineno), default=0)
        found.setdefault(number, []).append(statement)
    return found


def test_no_band_of_the_components_names_a_later_one() -> None:
    defined: dict[str, int] = {}
    used: set[tuple[int, str]] = set()
    for number, statements in bands().items():
        for statement in statements:
            if isinstance(statement, ast.FunctionDef | ast.ClassDef):
                defined[statement.name] = number
            for target in statement.targets if isinstance(statement, ast.Assign) else ():
                defined |= {n.id: number for n in ast.walk(target) if isinstance(n, ast.Name)}
            for node in ast.walk(statement):
                if isinstance(node, ast.Name):
                    used.add((number, node.id))
    assert {number for number, _ in used} == set(range(1, 10))
    assert {(number, name) for number, name in used if defined.get(name, 0) > number} == set()


def test_every_class_of_the_components_is_named_in_the_manifest_or_a_helper_of_one() -> None:
    classes = {
        statement.name
        for statements in bands().values()
        for statement in statements
        if isinstance(statement, ast.ClassDef) and not statement.name.startswith("_")
    }
    named = set(re.findall(r"source_declarative_manifest\.components\.(\w+)", MANIFEST_TEXT))
    # What is made for each event is no component, nor is an error.
    named.remove("X")  # of the comment that says how they are named
    assert classes - named == {"EventFilter", "LeftOutEvent", "OutageError"}
    assert named <= classes


def scalars(node: yaml.Node | None, key: str = "") -> Iterator[tuple[str, yaml.ScalarNode]]:
    """All texts below a node, by the key under which they stand."""
    if isinstance(node, yaml.ScalarNode):
        yield key, node
    elif isinstance(node, yaml.SequenceNode):
        for child in node.value:
            yield from scalars(child, key)
    elif isinstance(node, yaml.MappingNode):
        for name, child in node.value:
            yield from scalars(child, name.value)


def test_no_template_is_longer_than_six_lines() -> None:
    long = []
    for key, node in scalars(yaml.compose(MANIFEST_TEXT.split("\nschemas:")[0])):
        text = MANIFEST_TEXT[node.start_mark.index : node.end_mark.index]
        lines = [line for line in text.splitlines()[1:] if line.strip()]
        if "{{" in text and key != "error_message" and len(lines) > 6:
            long.append(text)
    assert long == []


def test_tests_that_maintainers_are_told_of_are_there() -> None:
    told = set(re.findall(r"`(test_\w+)`", (ROOT / "AGENTS.md").read_text()))
    tests = "".join(file.read_text() for file in (ROOT / "unit_tests").glob("test_*.py"))
    assert told
    assert [name for name in told if f"def {name}(" not in tests] == []


def test_every_request_has_its_timeouts_and_keeps_its_connection_alive() -> None:
    clients = {name: r.requester._http_client for name, r in retrievers().items()}
    # `check` reads events_list, and a person waits for it.
    assert {name: client._request_timeout for name, client in clients.items()} == {
        **dict.fromkeys(clients, (30, 300)),
        "events_list": (30, 60),
    }
    for client in clients.values():
        adapter = client._session.get_adapter("https://amplitude.com")
        assert type(adapter) is TcpKeepaliveHTTPAdapter


def test_only_archives_lookup_tables_and_members_are_streamed() -> None:
    """What is not would be read into memory whole before a component sees it."""
    streamed = {name for name, r in retrievers().items() if r.requester.stream_response}
    assert streamed == {"cohort_members", "events", "lookup_table_rows", "raw_events_files"}


def test_every_extractor_is_one_that_refuses_empty_records() -> None:
    """The CDK ends a whole sync, in silence, at an empty record, and its extractors yield such."""
    extractors = {type(r.record_selector.extractor).__name__ for r in retrievers().values()}
    assert extractors == {
        "ChartExtractor",
        "CohortMembersExtractor",
        "CsvRowsExtractor",
        "DashboardSeriesExtractor",
        "ExportArchiveExtractor",
        "FunnelExtractor",
        "LifetimeValueExtractor",
        "ListExtractor",
        "RetentionExtractor",
        "SegmentationExtractor",
        "StagedFilesExtractor",
    }


def test_every_list_is_held_against_the_primary_key_of_its_stream() -> None:
    streams: list[Any] = SourceAmplitude(config=EVERYTHING).streams(EVERYTHING)
    keys = {s.name: s.as_airbyte_stream().source_defined_primary_key for s in streams}
    found = {
        name: r.record_selector.extractor.parameters["primary_key"]
        for name, r in retrievers().items()
        if type(r.record_selector.extractor).__name__ == "ListExtractor"
    }
    assert len(found) > 15
    for name, key in found.items():
        assert keys[name] == [[part] for part in ([key] if isinstance(key, str) else key)]


def test_every_stream_adds_the_name_of_the_project() -> None:
    transformations = {
        name: [type(t).__name__ for t in r.record_selector.transformations]
        for name, r in retrievers().items()
    }
    # Their extractor does.
    assert transformations.pop("events") == []
    assert {first for first, *_ in transformations.values()} == {"ProjectName"}


def test_the_manifest_loads_without_warnings_of_the_cdk(caplog: pytest.LogCaptureFixture) -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        source = SourceAmplitude(config=EVERYTHING)
        source.streams(EVERYTHING)
    assert [str(w.message) for w in caught if w.category is DeprecationWarning] == []
    assert source.deprecation_warnings() == []
    assert [record.message for record in caplog.records if record.levelname == "WARNING"] == []


@pytest.mark.parametrize("name", SCHEMAS)
def test_every_field_is_described_nullable_and_of_one_type(name: str) -> None:
    schema = SCHEMAS[name]
    assert isinstance(schema, dict)
    Draft7Validator.check_schema(schema)
    assert schema["$schema"] == "http://json-schema.org/draft-07/schema#"
    assert schema["additionalProperties"] is True
    for path, field in nodes(schema["properties"]):
        if path == "#" or not isinstance(field, dict) or path.endswith("/properties"):
            continue
        if not path.endswith("/items"):
            assert len(field["description"]) > 15, path
        assert field["type"][0] == "null", path
        assert len(field["type"]) == 2, f"PyAirbyte and others make a text of two types: {path}"
        if field.get("format") == "date-time":
            has_zone = (name, path) != ("channel_classifiers", "#/lastModified")
            zone = "with" if has_zone else "without"
            assert field["airbyte_type"] == f"timestamp_{zone}_timezone", path


@pytest.mark.parametrize("stream", MANIFEST["definitions"]["streams"].values(), ids=str)
def test_keys_and_cursors_are_fields_of_the_schema(stream: dict[str, Any]) -> None:
    source = SourceAmplitude(config=EVERYTHING)
    built = {s.name: s.as_airbyte_stream() for s in source.streams(EVERYTHING)}[stream["name"]]
    fields = SCHEMAS[stream["name"]]["properties"]  # type: ignore[index]
    for key, *_ in built.source_defined_primary_key or []:
        assert key in fields
    for key in built.default_cursor_field or []:
        assert key in fields


def test_every_timestamp_of_events_is_rewritten() -> None:
    selector = MANIFEST["definitions"]["streams"]["events"]["retriever"]["record_selector"]
    properties = SCHEMAS["events"]["properties"]  # type: ignore[index]
    assert sorted(selector["extractor"]["timestamp_fields"]) == sorted(
        name for name, field in properties.items() if field.get("format") == "date-time"
    )


def test_fields_of_the_form_are_titled_ordered_and_described_the_required_ones_first() -> None:
    form = MANIFEST["spec"]["connection_specification"]
    properties = form["properties"]
    assert list(properties)[: len(form["required"])] == form["required"]
    orders = [field["order"] for field in properties.values()]
    assert orders == sorted(set(orders))
    # Each group in one piece: the order counts within it only.
    groups = [group for group, _ in groupby(field["group"] for field in properties.values())]
    assert groups == [group["id"] for group in form["groups"]]
    docs = (ROOT / "docs" / "amplitude.md").read_text()
    for name, field in properties.items():
        assert f"- **{field['title']}** (`{name}`): " in docs
        assert field["title"] == re.sub(
            r"\b(?!by\b|of\b|per\b|the\b)\w", lambda m: m[0].upper(), field["title"]
        )
        assert len(field["description"]) > 40


def test_the_form_has_the_defaults_and_bounds_that_users_rely_on() -> None:
    properties = MANIFEST["spec"]["connection_specification"]["properties"]
    facts = ("default", "minimum", "maximum", "enum")
    assert {
        name: found
        for name, field in properties.items()
        if (found := {fact: field[fact] for fact in facts if fact in field})
    } == {
        "data_region": {
            "default": "Standard Server",
            "enum": ["Standard Server", "EU Residency Server"],
        },
        "project_timezone": {"default": "UTC"},
        "active_users_group_by_country": {"default": True},
        "lookback_window_hours": {"default": 6, "minimum": 0, "maximum": 720},
        "dashboard_lookback_days": {"default": 7, "minimum": 0, "maximum": 365},
        "request_time_range": {"default": 24, "minimum": 1, "maximum": 8760},
        "num_workers": {"default": 2, "minimum": 1, "maximum": 5},
        "cohort_downloads_per_sync": {"default": 10, "minimum": 1, "maximum": 500},
        "use_whole_cohort_quota": {"default": False},
    }
    secrets = {name for name, field in properties.items() if field.get("airbyte_secret")}
    assert secrets == {"api_key", "secret_key", "management_api_key", "hash_salt"}
    assert [name for name, field in properties.items() if field.get("format")] == ["start_date"]


def test_templates_fall_back_to_the_defaults_of_the_form() -> None:
    properties = MANIFEST["spec"]["connection_specification"]["properties"]
    template = re.compile(r"config\.get\('(\w+)'(?:\) \| int\(|, )(.+?)\)")
    fallbacks = template.findall(re.sub(r"\s+", " ", MANIFEST_TEXT))
    with_default = {name for name, field in properties.items() if "default" in field}
    without = {"user_counts_group_by": ""}
    assert {name for name, _ in fallbacks} == with_default | without.keys()
    for name, value in fallbacks:
        default = properties[name].get("default", without.get(name))
        assert yaml.safe_load(value) == default, name


def test_version_and_base_image_are_the_same_everywhere() -> None:
    pyproject = (ROOT / "pyproject.toml").read_text()
    assert f'version = "{METADATA["dockerImageTag"]}"' in pyproject
    assert f"| {METADATA['dockerImageTag']} " in (ROOT / "docs" / "amplitude.md").read_text()
    dockerfile = (ROOT / "Dockerfile").read_text()
    assert f"ARG BASE_IMAGE={METADATA['connectorBuildOptions']['baseImage']}\n" in dockerfile
    assert f"io.airbyte.version={METADATA['dockerImageTag']}\n" in dockerfile


def test_allowed_hosts_are_those_the_manifest_calls() -> None:
    of_requesters = {
        InterpolatedString.create(node["url"], parameters={"endpoint": "/"}).eval(
            {"data_region": region}, stream_slice=None
        )
        for name, node in MANIFEST["definitions"].items()
        if name.endswith("_requester") and "url" in node
        for region in ("Standard Server", "EU Residency Server")
    }
    hosts = sorted(str(urlsplit(url).hostname) for url in of_requesters)
    # The storage to which Amplitude redirects is not asked by itself.
    assert [*hosts, "*.amazonaws.com"] == METADATA["allowedHosts"]["hosts"]
    assert sum(path.endswith("/url") for path, _ in nodes(MANIFEST)) == len(hosts) / 2


def test_sample_config_is_accepted_by_the_spec() -> None:
    sample = json.loads((ROOT / "integration_tests" / "sample_config.json").read_text())
    assert Draft7Validator(MANIFEST["spec"]["connection_specification"]).is_valid(sample)


def test_every_query_with_a_limit_spends_from_a_budget() -> None:
    """A path without a weight would be asked for without a bound."""
    matchers = [
        matcher for policy in MANIFEST["api_budget"]["policies"] for matcher in policy["matchers"]
    ]
    paths = {
        node
        for path, node in nodes(MANIFEST["definitions"])
        if path.endswith("/endpoint") and node.startswith(("/api/1/", "/api/2/"))
    }
    free = {
        path
        for path in paths
        if not any(re.search(matcher["url_path_pattern"], path) for matcher in matchers)
    }
    assert free == {"/api/1/session-replays", "/api/2/export"}
    assert len(paths) > 10
