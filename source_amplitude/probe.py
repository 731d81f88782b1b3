"""The command ``source-amplitude probe``: what a project answers, stream by stream, for people.

Each stream is asked for one small window, with the code that a sync has. That takes a minute or two
and less than 150 of the 1,000 units of cost that Amplitude grants in five minutes; no cohort is
downloaded, and no file.
"""

import argparse
import logging
import re
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone
from itertools import islice
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import requests
from airbyte_cdk.models import FailureType
from airbyte_cdk.sources.declarative.concurrent_declarative_source import TestLimits
from airbyte_cdk.sources.declarative.interpolation.macros import (
    str_to_datetime,
    today_with_timezone,
)
from airbyte_cdk.sources.streams.call_rate import APIBudget, BaseCallRatePolicy
from airbyte_cdk.utils.airbyte_secrets_utils import filter_secrets
from airbyte_cdk.utils.traced_exception import AirbyteTracedException

from source_amplitude.components import shape
from source_amplitude.run import SourceAmplitude

_MOST_UNITS = 149
_MOST_RECORDS = 1_000
# What the connector spends in five minutes: see api_budget in the manifest.
_UNITS_PER_MINUTE = 980 / 5.25
# What is cheap tells most of what there is to know, wrong keys above all.
_FIRST = "events_list"
_NOT_ASKED = {
    "cohort_members": "each download takes one of the month's 500",
    "raw_events_files": "it hands over files; it makes the same call as events",
}
# Those whose windows are whole weeks or months: the property is tried by daily_user_counts.
_WITHOUT_GROUPS = ("weekly_user_counts", "monthly_user_counts")
_ONE_DAY, _ONE_HOUR = timedelta(days=1), timedelta(hours=1)


class _TooDearError(Exception):
    """A request that would spend more than the probe may; it has not been made."""


@dataclass
class Found:
    """What came of one stream.

    Args:
        answer: `yes`, `nothing there`, `not in the plan`, `refused`, `unreadable`, `failed`, or
            `not asked`.
        why: what was said where it is not `yes`.
        records: how many were read, `_MOST_RECORDS` at most.
        news: fields of records that the schema does not declare.
        units: what a day of it costs, None for a stream without a cost or without days.
        seconds: how long its window took.
    """

    stream: str
    answer: str
    why: str = ""
    records: int = 0
    news: set[str] = field(default_factory=set)
    units: float | None = None
    seconds: float = 0.0


@dataclass
class _Heard:
    """The requests made so far, by stream: what they cost, and the shapes of their answers."""

    stream: str = ""
    units: int = 0
    units_per_day: float | None = None
    shapes: list[str] = field(default_factory=list)


def probe(arguments: Sequence[str]) -> int:
    """Run the command; 0 when all could be read that the project's plan has, else 1."""
    parser = argparse.ArgumentParser(prog="source-amplitude probe", description=__doc__)
    parser.add_argument("--config", required=True, help="connector config (JSON)")
    parser.add_argument(
        "--shapes", type=Path, help="file to write the shapes of all answers to, without any value"
    )
    options = parser.parse_args(arguments)
    logger = logging.getLogger("airbyte")
    level = logger.level
    logger.setLevel(logging.CRITICAL)  # the table says it
    try:
        return _probe(options.config, options.shapes)
    finally:
        logger.setLevel(level)


def _probe(config_path: str, shapes: Path | None) -> int:
    try:
        config = SourceAmplitude.read_config(config_path)
        streams = _small_streams(config)
        if shapes:
            shapes.touch()
    except AirbyteTracedException as error:
        print(f"Error: {filter_secrets(str(error.message))}", file=sys.stderr)
        return 1
    except (OSError, ValueError) as error:
        print(f"Error: {error}.", file=sys.stderr)
        return 1
    found: list[Found] = []
    with _listening() as heard:
        for name, stream in streams.items():
            _show(f"Asking for {name} ...")
            found.append(_ask(name, stream, heard))
            if name == _FIRST and found[0].answer == "refused":
                _show("")
                print(f"Error: {found[0].why}", file=sys.stderr)  # so would be all others
                return 1
    _show("")
    print(report(found, config, heard.units))
    if shapes:
        shapes.write_text("".join(f"{line}\n" for line in heard.shapes), encoding="utf-8")
        print(f"\nShapes of {len(heard.shapes)} answers, without any value: {shapes}")
    return int(any(each.answer in ("refused", "unreadable", "failed") for each in found))


def _show(progress: str) -> None:
    if sys.stderr.isatty():
        print(f"\r{progress:60}\r", end="", file=sys.stderr, flush=True)


def _small_streams(config: Mapping[str, Any]) -> dict[str, Any]:
    """Each stream with its window made small; None for those that are not asked for."""
    today = today_with_timezone(config.get("project_timezone") or "UTC")
    hour = datetime.now(timezone.utc) - 4 * _ONE_HOUR
    whole = {key: value for key, value in config.items() if key != "end_date"}
    day = {**whole, "start_date": f"{today - _ONE_DAY}", "end_date": f"{today}"}
    hours = {
        "start_date": f"{hour:%Y-%m-%dT%H:00:00Z}",
        "end_date": f"{hour + _ONE_HOUR:%Y-%m-%dT%H:00:00Z}",
    }
    SourceAmplitude(config=config)  # refuses what can't be used, Start Date included
    streams = _streams(day)
    events = _streams({**whole, **hours})
    if config.get("user_counts_group_by"):
        totals = _streams({**day, "user_counts_group_by": ""})
        streams |= {name: totals[name] for name in _WITHOUT_GROUPS}
    streams["events"] = events["events"]
    # Reports come last as it is: they may cost more than is left.
    names = sorted(streams, key=lambda name: name != _FIRST)
    return {name: None if name in _NOT_ASKED else streams[name] for name in names}


def _streams(config: Mapping[str, Any]) -> dict[str, Any]:
    limits = TestLimits(max_pages_per_slice=1, max_slices=1)
    source = SourceAmplitude(config=config, limits=limits)
    return {stream.name: stream for stream in source.streams(config=source._config)}


def _ask(name: str, stream: Any, heard: _Heard) -> Found:
    if stream is None:
        return Found(name, "not asked", _NOT_ASKED[name])
    heard.stream, heard.units_per_day = name, None
    started, found = time.monotonic(), Found(name, "yes")
    try:
        declared = set(stream.get_json_schema()["properties"])
        partition = next(iter(stream.generate_partitions()), None)
        for record in islice(partition.read() if partition else (), _MOST_RECORDS):
            found.records += 1
            found.news |= record.data.keys() - declared
    except _TooDearError as error:
        return Found(name, "not asked", str(error))
    except AirbyteTracedException as error:
        found.why = filter_secrets(str(error.message or error.internal_message))
        found.answer = "failed"
        if "can't be read without guessing" in found.why:
            found.answer = "unreadable"
        elif error.failure_type == FailureType.config_error:
            found.answer = "not in the plan" if "plan" in found.why else "refused"
    except Exception as error:
        found.answer, found.why = "failed", filter_secrets(f"{type(error).__name__}: {error}")
    if found.answer == "yes" and not found.records:
        found.answer = "nothing there"
    found.seconds, found.units = time.monotonic() - started, heard.units_per_day
    return found


@contextmanager
def _listening() -> Iterator[_Heard]:
    """Hear all requests of this process, and hold back those that cost too much."""
    send, heard = requests.Session.send, _Heard()

    def listen(
        session: requests.Session, request: requests.PreparedRequest, **options: Any
    ) -> requests.Response:
        price, query = _price(session, request), dict(parse_qsl(urlsplit(request.url or "").query))
        if heard.units + price > _MOST_UNITS:
            raise _TooDearError(f"{price} units more than the {heard.units} spent are too many")
        heard.units += price
        if price and "start" in query and "end" in query:
            first, last = (datetime.strptime(query[name], "%Y%m%d") for name in ("start", "end"))
            heard.units_per_day = price / ((last - first).days + 1)
        response = send(session, request, **options)
        body = "a streamed body" if options.get("stream") else _shape_of_body(response)
        heard.shapes.append(
            f"{heard.stream}: {request.method} {_without_names(response.url)} "
            f"({', '.join(query)}) HTTP {response.status_code}: {body}"
        )
        return response

    requests.Session.send = listen  # type: ignore[method-assign,assignment]
    try:
        yield heard
    finally:
        requests.Session.send = send  # type: ignore[method-assign]


def _price(session: requests.Session, request: requests.PreparedRequest) -> int:
    """What a request costs of the budget that all dashboard queries share."""
    budget = getattr(session, "_api_budget", None)
    if not isinstance(budget, APIBudget) or not budget._policies:
        return 0
    policy = budget.get_matching_policy(request)
    if not isinstance(policy, BaseCallRatePolicy) or policy is not budget._policies[0]:
        return 0
    return policy.get_weight(request)


def _shape_of_body(response: requests.Response) -> str:
    try:
        return shape(response.json())
    except ValueError:
        return f"{len(response.content)} bytes, {response.headers.get('Content-Type', 'no type')}"


def _without_names(url: str) -> str:
    """Host and path without the ids and names of what a customer has made."""
    parts = urlsplit(url)
    path = re.sub(r"/(chart|lookup_table|cohorts)/[^/]+", r"/\1/*", parts.path)
    return f"{parts.hostname}{path}"


def report(found: Sequence[Found], config: Mapping[str, Any], units: int) -> str:
    """The table, and below it why streams could not be read."""
    lines = [f"{'stream':28}{'answered':17}{'rows':>6}  {'shape':10}{'first sync':>12}"]
    numbers = {each.stream: each.records for each in found}
    for each in found:
        rows = f"{each.records:,}{'+' if each.records == _MOST_RECORDS else ''}"
        known = "new fields" if each.news else "known"
        is_read = each.answer in ("yes", "nothing there")
        lines.append(
            f"{each.stream:28}{each.answer:17}{rows if is_read else '-':>6}  "
            f"{known if is_read else 'unknown' if each.answer == 'unreadable' else '-':10}"
            f"{_first_sync(each, config, numbers) if is_read else '-':>12}"
        )
    lines.append(f"\n{units} units of Amplitude's cost were spent.")
    if not config.get("management_api_key"):
        lines.append("Amplitude Experiment was not asked: the Management API Key is not set.")
    reasons: dict[str, list[str]] = {}
    for each in found:
        news = f"New fields: {', '.join(sorted(each.news))}." if each.news else ""
        for why in filter(None, (each.why, news)):
            reasons.setdefault(why, []).append(each.stream)
    return "\n".join([*lines, *(f"\n{', '.join(of)}: {why}" for why, of in reasons.items())])


def _first_sync(found: Found, config: Mapping[str, Any], rows: Mapping[str, int]) -> str:
    """About how long a first sync of a stream takes from Start Date on, if it is read alone."""
    start, end = (
        str_to_datetime(config[name]) if config.get(name) else datetime.now(timezone.utc)
        for name in ("start_date", "end_date")
    )
    days = max(1.0, (end - start) / _ONE_DAY)
    times = {
        **dict.fromkeys(("daily_user_counts", *_WITHOUT_GROUPS), 2),
        "event_counts": 2 * rows.get("events_list", 1),
        "lookup_table_rows": rows.get("lookup_tables", 1),
    }.get(found.stream, 1)
    minutes = found.seconds / 60 * times
    if found.units is not None:
        by_group = config.get("user_counts_group_by") and found.stream in _WITHOUT_GROUPS
        minutes = days * found.units * times * (5 if by_group else 1) / _UNITS_PER_MINUTE
    elif found.stream == "events":
        minutes *= days * 24 / (config.get("num_workers") or 2)
    elif found.stream in ("session_replays", "flag_versions"):
        minutes *= days / (7 if found.stream == "session_replays" else 30)
    return f"{minutes:,.0f} min" if minutes >= 1 else "< 1 min"
