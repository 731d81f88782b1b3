"""PyAirbyte's three ways to the connector, and what stands in the destination afterwards."""

import json
import re
from collections.abc import Iterator
from datetime import date, datetime
from decimal import Decimal
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import duckdb
import pytest

from door_tests.common import (
    KEYS,
    MANIFEST,
    REPOSITORY,
    Delivery,
    load,
)
from sandbox import Sandbox
from unit_tests.installed import SOURCE_AMPLITUDE

pytestmark = pytest.mark.skipif(
    find_spec("airbyte") is None, reason="PyAirbyte does not support this version of Python"
)
EXECUTABLE = {"local_executable": SOURCE_AMPLITUDE[0]}
DOORS = {
    "local_executable": EXECUTABLE,
    "source_manifest": {"source_manifest": str(MANIFEST)},
    "pip_url": {"pip_url": str(REPOSITORY)},
}
VIEWS = REPOSITORY / "docs" / "fivetran_compatible_views.sql"
COLUMNS = {
    "events": {
        "BIGINT": "_schema amplitude_id app event_id",
        "BOOLEAN": "is_attribution_event paying",
        "DECIMAL(38,9)": "location_lat location_lng session_id",
        "JSON": "data event_properties global_user_properties group_properties groups plan"
        " user_properties",
        "TIMESTAMP": "client_event_time client_upload_time event_time processed_time"
        " server_received_time server_upload_time user_creation_time",
        "VARCHAR": "_insert_id _insert_key adid amplitude_attribution_ids amplitude_event_type city"
        " country data_type device_brand device_carrier device_family device_id"
        " device_manufacturer device_model device_type dma event_type idfa ip_address language"
        " library os_name os_version partner_id platform region sample_rate source_id start_version"
        " user_id uuid version_name",
    },
    "active_users": {"DATE": "date", "JSON": "statistics"},
    "average_session_length": {"DATE": "date", "DECIMAL(38,9)": "length"},
    "annotations": {
        "BIGINT": "id",
        "DATE": "date",
        "JSON": "category",
        "TIMESTAMP": "end start",
        "VARCHAR": "chart_id details label",
    },
    "cohorts": {
        "BIGINT": "appid createdat last_viewed lastcomputed lastmod popularity size view_count",
        "BOOLEAN": "archived finished hidden is_official_content is_predictive published",
        "JSON": "definition metadata owners shortcut_ids syncmetadata viewers",
        "VARCHAR": "chart_id description edit_id id location_id name type",
    },
    "events_list": {
        "BOOLEAN": "autohidden clusters_hidden deleted flow_hidden hidden in_waitroom non_active"
        " timeline_hidden",
        # Declared as numbers, as published, not as integers: see AGENTS.md.
        "DECIMAL(38,9)": "id totals totals_delta",
        "VARCHAR": "display name value",
    },
}


@pytest.fixture(scope="module")
def deduped(sandbox: Sandbox, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database filled by two syncs with dedup."""
    folder = tmp_path_factory.mktemp("deduped")
    load(EXECUTABLE, folder / "deduped.duckdb", sandbox, folder, times=2, strategy="merge")
    return folder / "deduped.duckdb"


def columns(db: Path) -> dict[str, dict[str, str]]:
    found: dict[str, dict[str, str]] = {}
    with duckdb.connect(str(db), read_only=True) as connection:
        for table, kind, names in connection.execute(
            "SELECT table_name, data_type, string_agg(column_name, ' ' ORDER BY column_name)"
            " FROM duckdb_columns() WHERE NOT starts_with(column_name, '_airbyte') GROUP BY ALL"
        ).fetchall():
            found.setdefault(table, {})[kind] = names
    return {table: found[table] for table in KEYS}


def rows(db: Path, table: str) -> list[dict[str, Any]]:
    with duckdb.connect(str(db), read_only=True) as connection:
        result = connection.execute(f'SELECT * FROM "{table}"')
        names = [description[0] for description in result.description or []]
        return [
            {
                name: value
                for name, value in zip(names, row, strict=True)
                if value is not None and not name.startswith("_airbyte_")
            }
            for row in result.fetchall()
        ]


def stored(stream: str, record: dict[str, Any]) -> dict[str, Any]:
    """A record as the destination holds it, whose columns are named in lower case."""
    kinds = {name: kind for kind, names in COLUMNS[stream].items() for name in names.split()}
    renamed = {re.sub(r"\W", "_", name).lower(): value for name, value in record.items()}
    return {name: in_type(kinds[name], value) for name, value in renamed.items()}


def in_type(kind: str, value: Any) -> Any:
    if kind == "TIMESTAMP":
        # PyAirbyte cuts the offset off instead of converting to UTC, as Airbyte's destinations do.
        # That is why every column of this kind is in UTC.
        assert value.endswith("+00:00")
        return datetime.fromisoformat(value).replace(tzinfo=None)
    if kind == "DATE":
        return date.fromisoformat(value)
    if kind.startswith("DECIMAL"):
        return Decimal(str(value)).quantize(Decimal("1e-9"))
    if kind == "VARCHAR" and isinstance(value, bool):
        return str(value).lower()
    return value


def unpacked(stream: str, row: dict[str, Any]) -> dict[str, Any]:
    packed = COLUMNS[stream].get("JSON", "").split()
    return {name: json.loads(v) if name in packed else v for name, v in row.items()}


def assert_holds(db: Path, expected: Delivery) -> None:
    for stream, key in KEYS.items():
        held = sorted(
            (unpacked(stream, row) for row in rows(db, stream)), key=lambda r: str(r[key])
        )
        assert held == sorted(
            (stored(stream, record) for record in expected.records[stream]),
            key=lambda record: str(record[key]),
        )


@pytest.mark.parametrize("door", DOORS)
def test_given_a_way_to_the_connector_when_read_then_each_value_stands_in_a_fitting_column(
    sandbox: Sandbox, expected: Delivery, tmp_path: Path, door: str
) -> None:
    db = tmp_path / "one.duckdb"
    load(DOORS[door], db, sandbox, tmp_path)
    assert columns(db) == COLUMNS
    assert_holds(db, expected)


def test_given_dedup_when_synced_twice_then_each_record_stands_once(
    expected: Delivery, deduped: Path
) -> None:
    assert_holds(deduped, expected)


def test_given_append_when_synced_twice_then_lists_stand_twice_and_no_key_is_missing(
    sandbox: Sandbox, expected: Delivery, tmp_path: Path
) -> None:
    db = tmp_path / "appended.duckdb"
    load(EXECUTABLE, db, sandbox, tmp_path, times=2, strategy="append")
    assert columns(db) == COLUMNS
    for stream, key in KEYS.items():
        keys = [row[key] for row in rows(db, stream)]
        truth = [stored(stream, record)[key] for record in expected.records[stream]]
        assert set(keys) == set(truth)
        if stream in ("annotations", "cohorts", "events_list"):
            assert len(keys) == 2 * len(truth)
        else:
            assert len(truth) < len(keys) <= 2 * len(truth), "the look-back, and no more"


class TestViewsForFivetransPackage:
    # macros/get_event_columns.sql and get_event_type_columns.sql of fivetran/dbt_amplitude, without
    # what it fills with nulls when a table lacks it: _fivetran_deleted and project_name.
    EVENT = """
        _fivetran_synced _insert_id ad_id amplitude_event_type amplitude_id app city
        client_event_time client_upload_time country data device_brand device_carrier device_family
        device_id device_manufacturer device_model device_type dma event_properties event_time
        event_type event_type_id group_properties groups id idfa ip_address is_attribution_event
        language library location_lat location_lng os_name os_version paying platform
        processed_time region schema server_received_time server_upload_time session_id
        start_version user_creation_time user_id user_properties uuid version_name
    """.split()  # noqa: SIM905
    EVENT_TYPE = """
        _fivetran_synced deleted display flow_hidden hidden id in_waitroom name non_active
        timeline_hidden totals totals_delta value
    """.split()  # noqa: SIM905

    @pytest.fixture
    def connection(self, deduped: Path) -> Iterator[duckdb.DuckDBPyConnection]:
        with duckdb.connect() as connection:
            # Views want a database of their own to stand in; that of the syncs is left as it is.
            connection.execute(f"ATTACH '{deduped}' AS synced (READ_ONLY)")
            connection.execute("SET search_path = 'memory.main,synced.main'")
            connection.execute(VIEWS.read_text())
            yield connection

    def test_given_synced_tables_when_selected_then_the_columns_of_the_package_are_there(
        self, connection: duckdb.DuckDBPyConnection
    ) -> None:
        for view, names in (("event", self.EVENT), ("event_type", self.EVENT_TYPE)):
            selected = connection.execute(f"SELECT {', '.join(names)} FROM amplitude.{view}")
            assert selected.fetchone()

    def test_given_synced_tables_when_joined_then_every_event_has_its_type(
        self, connection: duckdb.DuckDBPyConnection, expected: Delivery
    ) -> None:
        joined = connection.execute(
            "SELECT count(*) FROM amplitude.event"
            " JOIN amplitude.event_type ON event.event_type_id = event_type.id"
        )
        assert joined.fetchone() == (len(expected.records["events"]),)

    def test_when_read_then_nothing_but_columns_and_their_new_names_is_selected(self) -> None:
        statements = re.sub(r"--.*", "", VIEWS.read_text())
        for selected in re.findall(r"SELECT(.*?)FROM", statements, re.DOTALL):
            for column in selected.split(","):
                assert re.fullmatch(r"\s*\w+( AS \w+)?\s*", column), column
