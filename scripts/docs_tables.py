"""Write the tables of streams and of columns into docs/amplitude.md.

Keys and cursors are the connector's own, columns those of schemas/*.json; what no file of the
connector says about a stream stands here.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from scripts.inline_schemas import COMMON, read_schemas
from source_amplitude import SourceAmplitude

PAGE = Path(__file__).parents[1] / "docs" / "amplitude.md"
_NOTHING = "\N{EN DASH}"
# A question of each kind.
_QUESTIONS: tuple[dict[str, Any], ...] = (
    {"kind": "segmentation", "events": ["a"]},
    {"kind": "funnel", "events": ["a", "b"]},
    {"kind": "retention"},
    {"kind": "composition", "property": "platform"},
    {"kind": "chart", "chart_id": "a"},
)
# With all that makes further streams.
_CONFIG = {
    "api_key": "api key",
    "secret_key": "secret key",
    "start_date": "2024-01-01",
    "management_api_key": "key",
    "reports": [{"name": query["kind"], "query": query} for query in _QUESTIONS],
}


class About(NamedTuple):
    """What a stream holds, the page of Amplitude's API, and the plan, product or key it needs."""

    holds: str
    api: str
    needs: str = _NOTHING


_ENTERPRISE = "Enterprise plan"
_LOOKUP_PLAN = "Growth or Enterprise plan with the Govern add-on"
_KEY = "Management API Key"
_DASHBOARD = "analytics/dashboard-rest"
ABOUT = {
    "events": About("Every event of the project, as Amplitude stored it", "analytics/export"),
    "active_users": About("Active users: a row per day, by country or in total", _DASHBOARD),
    "daily_user_counts": About(
        "Active and new users: a row per day, metric and segment", _DASHBOARD
    ),
    "weekly_user_counts": About("The same per week", _DASHBOARD),
    "monthly_user_counts": About("The same per month", _DASHBOARD),
    "average_session_length": About("Average length of sessions: a row per day", _DASHBOARD),
    "sessions_per_user": About("Average number of sessions per user: a row per day", _DASHBOARD),
    "session_lengths": About("Sessions by length: a row per day and range of lengths", _DASHBOARD),
    "retention": About(
        "New users who came back: a row per first day and each of the 30 days after it",
        _DASHBOARD,
    ),
    "revenue_ltv": About(
        "Revenue of new users: a row per first day and each of the 90 days from it", _DASHBOARD
    ),
    "event_counts": About(
        "Events, and the users who had them: a row per day, event type and metric", _DASHBOARD
    ),
    "annotations": About("Notes on charts", "analytics/chart-annotations"),
    "annotation_categories": About("Categories of annotations", "analytics/chart-annotations"),
    "cohorts": About(
        "Discoverable cohorts, their definitions and syncs",
        "analytics/behavioral-cohorts",
        "Behavioral Cohorts add-on",
    ),
    "cohort_members": About(
        "[Members of cohorts](#members-of-cohorts): a row per cohort and user",
        "analytics/behavioral-cohorts",
        "Growth or Enterprise plan with the Behavioral Cohorts add-on",
    ),
    "events_list": About("Visible event types, with this week's totals so far", _DASHBOARD),
    "channel_classifiers": About(
        "Rules by which Amplitude sorts traffic into channels", "analytics/channel-classifiers"
    ),
    "event_categories": About("Categories of event types", "analytics/taxonomy", _ENTERPRISE),
    "event_types": About(
        "Event types of the tracking plan, deleted ones included",
        "analytics/taxonomy",
        _ENTERPRISE,
    ),
    "event_properties": About(
        "Properties of events: a row per event type and property",
        "analytics/taxonomy",
        _ENTERPRISE,
    ),
    "user_properties": About(
        "Properties of users, deleted ones included", "analytics/taxonomy", _ENTERPRISE
    ),
    "group_properties": About(
        "Properties of groups: a row per group type and property",
        "analytics/taxonomy",
        _ENTERPRISE,
    ),
    "session_replays": About(
        "Recorded sessions: who, when and how long they are kept; not the recordings",
        "analytics/session-replay",
        "Session Replay",
    ),
    "lookup_tables": About(
        "Lookup tables and the properties they belong to",
        "analytics/lookup-table-2",
        _LOOKUP_PLAN,
    ),
    "lookup_table_rows": About(
        "Contents of the lookup tables: a row per table and line",
        "analytics/lookup-table-2",
        _LOOKUP_PLAN,
    ),
    "deletion_jobs": About(
        "Deletions of users: a row per scheduled day and project", "analytics/user-privacy"
    ),
    "deleted_users": About(
        "The users of these jobs: a row per user, scheduled day and project",
        "analytics/user-privacy",
    ),
    "raw_events_files": About(
        "The same events as `events`, as [files for engines](#events-as-files): a row per file",
        "analytics/export",
    ),
    "experiments": About(
        "Experiments as they are now, archived ones included",
        "experiment/experiment-management-api-experiments",
        _KEY,
    ),
    "flags": About(
        "Feature flags as they are now, archived ones included",
        "experiment/experiment-management-api-flags",
        _KEY,
    ),
    "flag_versions": About(
        "Every version of every flag and experiment: who changed what, and when",
        "experiment/experiment-management-api-version-endpoints",
        _KEY,
    ),
    "deployments": About(
        "Where flags and experiments are delivered; not the keys",
        "experiment/experiment-management-api-deployments",
        _KEY,
    ),
    "mutexes": About(
        "Groups of experiments that exclude each other",
        "experiment/experiment-management-api-mutexs",
        _KEY,
    ),
    "holdouts": About(
        "Groups of users who are held out of experiments",
        "experiment/experiment-management-api-holdouts",
        _KEY,
    ),
    "report_segmentation": About(
        "How often events happened, as [you define](#reports)", _DASHBOARD
    ),
    "report_funnel": About("A funnel that you define", _DASHBOARD),
    "report_retention": About("Retention as you define it", _DASHBOARD),
    "report_composition": About("Users by a property that you choose", _DASHBOARD),
    "report_chart": About("A chart that is saved in Amplitude", _DASHBOARD),
}


def tables() -> dict[str, str]:
    """Name of a table in the page -> its text."""
    built = [s.as_airbyte_stream() for s in SourceAmplitude(config=_CONFIG).streams(_CONFIG)]
    facts = {
        stream.name: (
            ", ".join(f"`{key}`" for [key] in stream.source_defined_primary_key or []),
            ", ".join(f"`{field}`" for field in stream.default_cursor_field or []) or _NOTHING,
        )
        for stream in built
    }
    schemas: dict[str, Any] = read_schemas()
    return {
        "streams": "\n".join(_streams(facts)),
        "columns": "\n\n".join(_columns(name, schemas[name], *facts[name]) for name in facts),
    }


def write_tables(page: str, written: dict[str, str]) -> str:
    """The page's text with what stands between the marks of each table replaced."""
    for name, text in written.items():
        mark = f"<!-- {name}: written by `make schemas` -->"
        end = f"<!-- end of {name} -->"
        before, _, rest = page.partition(mark)
        _, found, after = rest.partition(end)
        if not found:
            raise ValueError(f"the page has no marks of the table {name}")
        page = f"{before}{mark}\n\n{text}\n\n{end}{after}"
    return page


def _streams(facts: dict[str, tuple[str, str]]) -> Iterator[str]:
    yield "| Stream | Holds | Primary key | Cursor | Needs |"
    yield "| :-- | :-- | :-- | :-- | :-- |"
    for name, (key, cursor) in facts.items():
        about = ABOUT[name]
        link = f"[`{_title(name)}`](#{_anchor(name)})"
        yield f"| {link} | {about.holds} | {key} | {cursor} | {about.needs} |"


def _columns(name: str, schema: dict[str, Any], key: str, cursor: str) -> str:
    about = ABOUT[name]
    title = f"<code>{_title(name)}</code>".replace("<name>", "&lt;name&gt;")
    rows = [
        f"| `{column}` | {_type(field)} | {_cell(field['description'])} |"
        for column, field in schema["properties"].items()
        if column not in COMMON
    ]
    lines = [
        f'<a id="{_anchor(name)}"></a>',
        "",
        "<details>",
        f"<summary>{title}</summary>",
        "",
        f"{about.holds}. Primary key: {key}. Cursor: {cursor}. Amplitude's API:"
        f" [{about.api.partition('/')[2]}](https://amplitude.com/docs/apis/{about.api}).",
        "",
        "| Column | Type | Holds |",
        "| :-- | :-- | :-- |",
        *rows,
        "",
        "</details>",
    ]
    return "\n".join(lines)


def _title(name: str) -> str:
    return "report_<name>" if name.startswith("report_") else name


def _anchor(name: str) -> str:
    return f"columns-{name.replace('_', '-')}"


def _type(field: dict[str, Any]) -> str:
    form = {"date": "date", "date-time": "timestamp"}.get(field.get("format", ""))
    without = " without zone" if "without" in field.get("airbyte_type", "") else ""
    return f"{form}{without}" if form else str(field["type"][1])


def _cell(text: str) -> str:
    return re.sub(r"\s*\n\s*", " ", text).replace("|", r"\|")


if __name__ == "__main__":
    PAGE.write_text(write_tables(PAGE.read_text(encoding="utf-8"), tables()), encoding="utf-8")
