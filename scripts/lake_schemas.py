"""Write what engines are told of the files of raw_events_files into docs/lake.md.

In: schemas/events.json, which has the columns of `events`. The lines in the files have the same
keys; only timestamps differ, which stand there as Amplitude writes them, `2026-11-23
14:05:00.123456`, and `amplitude_attribution_ids`, a list there.
"""

import json
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "lake.md"
# By engine: types of string, integer, number, boolean, object, timestamp
DUCKDB = ("VARCHAR", "BIGINT", "DOUBLE", "BOOLEAN", "JSON", "TIMESTAMP")
SPARK = ("STRING", "BIGINT", "DOUBLE", "BOOLEAN", "STRING", "TIMESTAMP_NTZ")
ATHENA = ("string", "bigint", "double", "boolean", "string", "timestamp")
BIGQUERY = ("STRING", "INT64", "FLOAT64", "BOOL", "JSON", "TIMESTAMP")
_KINDS = ("string", "integer", "number", "boolean", "object")


def columns(types: tuple[str, ...]) -> dict[str, str]:
    """The type of each column of an event."""
    schema = json.loads((ROOT / "source_amplitude" / "schemas" / "events.json").read_text())
    return {
        name: types[-1 if "format" in column else _KINDS.index(column["type"][1])]
        for name, column in schema["properties"].items()
    }


def duckdb() -> str:
    listed = ",\n".join(f"        '{name}': '{kind}'" for name, kind in columns(DUCKDB).items())
    return f"""CREATE VIEW events AS
SELECT *
FROM read_json(
    'events/*/*/*.json.gz',
    format = 'newline_delimited',
    hive_partitioning = true,
    hive_types = {{'date': DATE, 'hour': INTEGER}},
    columns = {{
{listed}
    }}
)"""


def spark() -> str:
    listed = ",\n".join(f"    `{name}` {kind}" for name, kind in columns(SPARK).items())
    return f'''schema = """
{listed}
"""
events = (
    spark.read.schema(schema)
    .option("timestampNTZFormat", "yyyy-MM-dd HH:mm:ss[.SSSSSS]")
    .option("mode", "FAILFAST")
    .json("s3a://my-lake/events")
)'''


def athena() -> str:
    named = {name.replace("$", "_"): kind for name, kind in columns(ATHENA).items()}
    listed = ",\n".join(f"    `{name}` {kind}" for name, kind in named.items())
    renamed = ",\n".join(
        f"    'mapping.{name.replace('$', '_')}' = '{name}'"
        for name in columns(ATHENA)
        if "$" in name
    )
    return f"""CREATE EXTERNAL TABLE events (
{listed}
)
PARTITIONED BY (`date` date, `hour` int)
ROW FORMAT SERDE 'org.openx.data.jsonserde.JsonSerDe'
WITH SERDEPROPERTIES (
{renamed}
)
LOCATION 's3://my-lake/events/'
TBLPROPERTIES (
    'projection.enabled' = 'true',
    'projection.date.type' = 'date',
    'projection.date.format' = 'yyyy-MM-dd',
    'projection.date.range' = '2020-01-01,NOW',
    'projection.hour.type' = 'integer',
    'projection.hour.range' = '0,23',
    'projection.hour.digits' = '2'
)"""


def bigquery() -> str:
    # No name there may have a dollar, and no text may be read from a list.
    kinds = {**columns(BIGQUERY), "amplitude_attribution_ids": "JSON"}
    listed = ",\n".join(f"    `{name}` {kind}" for name, kind in kinds.items() if "$" not in name)
    return f"""CREATE EXTERNAL TABLE my_dataset.events (
{listed}
)
WITH PARTITION COLUMNS (`date` DATE, `hour` INT64)
OPTIONS (
    format = 'NEWLINE_DELIMITED_JSON',
    compression = 'GZIP',
    uris = ['gs://my-lake/events/*'],
    hive_partition_uri_prefix = 'gs://my-lake/events',
    ignore_unknown_values = true
)"""


STATEMENTS: dict[str, tuple[str, Callable[[], str]]] = {
    "DuckDB": ("sql", duckdb),
    "Spark": ("python", spark),
    "Athena": ("sql", athena),
    "BigQuery": ("sql", bigquery),
}


def with_statements(page: str) -> str:
    """The page with the first block of code under each engine's heading replaced."""
    for engine, (language, make) in STATEMENTS.items():
        head, heading, section = page.partition(f"\n### {engine}\n")
        text, fence, rest = section.partition(f"```{language}\n")
        page = f"{head}{heading}{text}{fence}{make()}{rest[rest.index(chr(10) + '```') :]}"
    return page


if __name__ == "__main__":
    PAGE.write_text(with_statements(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
