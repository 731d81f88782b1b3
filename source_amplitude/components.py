"""What manifest.yaml cannot say: how Amplitude's archives and series become records, and how its
refusals become messages.

The manifest names these classes ``source_declarative_manifest.components.X``: that is where every
way of running the connector (package, Builder, manifest runner, PyAirbyte) registers this file.
Only what the CDK itself installs is imported. It is one file, because that is what they load; its
bands stand in the order in which they lean on each other, each class before its own helpers:

==  ====================  ======================================  ==============================
1   messages and answers  all                                     (functions)
2   unusable values       all                                     (functions)
3   every request         all                                     Secretive..., AmplitudeError...,
                                                                  RetryAfter..., ProjectName,
                                                                  FromSlice
4   state                 all that are incremental                SavedState
5   export                events, raw_events_files                Export..., EventFilter, Staged...
6   dashboard series      user counts, sessions, event_counts,    DashboardSeries..., Retention...,
                          retention, revenue_ltv                  LifetimeValue...
7   lists                 lists, taxonomy, lookup tables,         List..., NextPage, CsvRows...,
                          replays, experiments                    RowsOfTable, transformations
8   cohort downloads      cohort_members                          Cohort..., GrowingBackoff...
9   reports               report_<name>                           Report..., Segmentation...,
                                                                  Funnel..., Chart...
==  ====================  ======================================  ==============================
"""

import csv
import errno
import gzip
import io
import json
import logging
import math
import os
import re
import shutil
import struct
import tempfile
import threading
import time
import zipfile
import zlib
from base64 import b64encode
from codecs import iterdecode
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, MutableMapping, Sequence, Set
from contextlib import contextmanager, suppress
from copy import copy
from dataclasses import dataclass, field
from datetime import date, datetime, timedelta, timezone
from difflib import get_close_matches
from functools import partial
from hashlib import blake2b
from itertools import chain, islice
from lzma import LZMAError
from pathlib import Path
from typing import IO, Any, ClassVar, NamedTuple, TypeGuard
from urllib.parse import parse_qsl, quote, quote_plus, urljoin, urlsplit
from weakref import WeakKeyDictionary

import orjson
import pytz
import requests
from airbyte_cdk.models import (
    AirbyteRecordMessageFileReference,
    FailureType,
    StreamDescriptor,
)
from airbyte_cdk.sources.declarative.auth.declarative_authenticator import DeclarativeAuthenticator
from airbyte_cdk.sources.declarative.datetime.datetime_parser import DatetimeParser
from airbyte_cdk.sources.declarative.extractors.record_extractor import RecordExtractor
from airbyte_cdk.sources.declarative.incremental import ConcurrentPerPartitionCursor
from airbyte_cdk.sources.declarative.interpolation import InterpolatedString
from airbyte_cdk.sources.declarative.interpolation.macros import (
    now_utc,
    str_to_datetime,
    today_with_timezone,
)
from airbyte_cdk.sources.declarative.migrations.state_migration import StateMigration
from airbyte_cdk.sources.declarative.models.declarative_component_schema import DeclarativeStream
from airbyte_cdk.sources.declarative.partition_routers import SubstreamPartitionRouter
from airbyte_cdk.sources.declarative.partition_routers.substream_partition_router import (
    ParentStreamConfig,
)
from airbyte_cdk.sources.declarative.requesters.error_handlers import DefaultErrorHandler
from airbyte_cdk.sources.declarative.requesters.error_handlers.backoff_strategy import (
    BackoffStrategy,
)
from airbyte_cdk.sources.declarative.requesters.http_requester import HttpRequester
from airbyte_cdk.sources.declarative.requesters.paginators.strategies.pagination_strategy import (
    PaginationStrategy,
)
from airbyte_cdk.sources.declarative.retrievers import Retriever, SimpleRetriever
from airbyte_cdk.sources.declarative.retrievers.file_uploader import ConnectorBuilderFileUploader
from airbyte_cdk.sources.declarative.retrievers.request_window_splitting import (
    RequestWindowSplitting,
)
from airbyte_cdk.sources.declarative.transformations import RecordTransformation
from airbyte_cdk.sources.streams.call_rate import (
    APIBudget,
    BaseCallRatePolicy,
    CallRateLimitHit,
)
from airbyte_cdk.sources.streams.concurrent.cursor import ConcurrentCursor
from airbyte_cdk.sources.streams.core import StreamData
from airbyte_cdk.sources.streams.http.error_handlers import ErrorResolution, ResponseAction
from airbyte_cdk.sources.streams.http.error_handlers.response_models import SUCCESS_RESOLUTION
from airbyte_cdk.sources.streams.http.exceptions import (
    BaseBackoffException,
    DefaultBackoffException,
)
from airbyte_cdk.sources.streams.http.request_window_split_exception import (
    RequestWindowSplitRequiredException,
)
from airbyte_cdk.sources.types import Record, StreamSlice, StreamState
from airbyte_cdk.utils.airbyte_secrets_utils import add_to_secrets, filter_secrets
from airbyte_cdk.utils.traced_exception import AirbyteTracedException
from isodate import parse_duration  # type: ignore[import-untyped]
from urllib3.exceptions import InvalidHeader, ProtocolError
from urllib3.util import Retry

# -------------------------------------------------------------------------------------------------
# 1 Messages and answers: what is said to people, and how an answer is read
# -------------------------------------------------------------------------------------------------
_LOGGER = logging.getLogger("airbyte")
_CHUNK_BYTES = 256 * 1024
_REPORT_SECONDS = 30
# Of a CSV: a cell may be a long text, but no row may fill the memory.
_ROW_CHARACTERS = 16 * 1024 * 1024
# Up to Python 3.10, csv refuses NUL. A lone surrogate can't be in what was UTF-8.
_IN_PLACE_OF_NUL = "\udc00"
_NAMES_LOGGED = 100
# Keys of Amplitude have 32 characters and more.
_SHORTEST_SECRET = 8
# Some 980 levels can be printed, fewer the deeper the stack is that prints.
_MAX_DEPTH = 500
_DAY_OF_QUERY = re.compile(r"\d{8}", re.ASCII)
# Of what starts with a day, its midnight included: of another time, it is not known what is meant.
_ISO_DAY = re.compile(
    r"(\d{4}-\d\d-\d\d)(?:[T ]00:00(?::00(?:\.0+)?)?(?:Z|[+-]\d\d:?\d\d)?)?", re.ASCII
)
_DAY_IN_WORDS = re.compile(r"([A-Za-z]{3,9})\.? +(\d{1,2})(?:,? +(\d{4}))?", re.ASCII)
_MONTHS = (
    *("january", "february", "march", "april", "may", "june", "july", "august", "september"),
    *("october", "november", "december"),
)
_LIKE_A_DATE = re.compile(
    r"\d{4}[-/:]\d\d[-/:]\d\d(?:[T ]\d\d(?::\d\d)*(?:\.\d+)?(?:Z|[+-]\d\d:?\d\d)?)?|\d{8}(?:T\d\d)?"
    r"|\d\d?[-/.]\d\d?[-/.]\d{2,4}|[A-Z][a-z]{2,8}\.? \d{1,2}(?:,? \d{4})?",
    re.ASCII,
)
# The only sentence of Amplitude's that says that a range has no events.
_NO_EVENTS = "Raw data files were not found"
# What is no page, no JSON and no table: an error's own words.
_SENTENCE = re.compile(r"[^\W\d_][^\n<>{}\[\]\t\";]{1,199}")
_PARTS_OF_ENVELOPE = {
    *("code", "errorCode", "extraParams", "http_code", "message", "status", "statusCode"),
    *("success", "type"),
}
_SHAPE_CHARACTERS, _SHAPE_ELEMENTS = 2_000, 1_000
# Objects whose fields customers have named.
_SHAPE_OPAQUE = {
    *("csvDefinition", "definition", "event_properties", "group_properties", "groups", "metadata"),
    *("payload", "properties", "rolloutWeights", "user_properties"),
}


def failure(
    message: str, failure_type: FailureType = FailureType.system_error
) -> AirbyteTracedException:
    """An error that a person is shown; ``message`` never quotes a secret."""
    return AirbyteTracedException(
        message=message, internal_message=message, failure_type=failure_type
    )


def refusal(message: str) -> AirbyteTracedException:
    """The error of what the user can mend; ``message`` names the field."""
    return failure(message, FailureType.config_error)


def keep_secret(text: str) -> None:
    """Have the CDK hide a text in what it logs, also escaped as JSON, as Python or for a URL, or
    twice: ``--debug`` writes headers as Python does, in JSON. What is too short for a secret stays:
    all words that have it in them would be hidden."""
    if len(text) < _SHORTEST_SECRET:
        return
    for form in {text, *(twice for once in _escaped(text) for twice in (once, *_escaped(once)))}:
        add_to_secrets(form)


def _escaped(text: str) -> set[str]:
    in_json = {json.dumps(text, ensure_ascii=to_ascii)[1:-1] for to_ascii in (True, False)}
    return in_json | {repr(text)[1:-1], quote(text), quote(text, safe=""), quote_plus(text)}


def _excerpt(text: str, length: int) -> str:
    """The beginning of a text without secrets: of one that is cut first, a part may stay."""
    return filter_secrets(text)[:length]


def _name(text: Any) -> str:
    """A name that others gave, on one line of what can be seen, and not a long one."""
    return _excerpt("".join(map(_seen, str(text)[:400])), 100)


def _seen(character: str) -> str:
    is_seen = character.isprintable()
    return character if is_seen else character.encode("unicode_escape").decode("ascii")


def _described(body: IO[bytes]) -> str:
    """What a body is, without a byte of it: it may be a customer's data."""
    body.seek(0)
    begins, checksum = body.read(_CHUNK_BYTES), 0
    chunk = begins
    while chunk:
        checksum = zlib.crc32(chunk, checksum)
        chunk = body.read(_CHUNK_BYTES)
    if not begins:
        return "an empty body"
    kinds = {b"PK": "a zip", b"\x1f\x8b": "a gzip", b"<": "a page", b"{": "JSON", b"[": "JSON"}
    start = begins.lstrip()
    found = (kind for prefix, kind in kinds.items() if start.startswith(prefix))
    kind = next(found, "binary data" if b"\0" in begins else "a text")
    return f"{kind} of {body.tell():,} bytes with the checksum {checksum:08x}"


def _unquoted_reason(error: Exception) -> str:
    """What an error says, without what it quotes: names of members, beginnings of bodies."""
    text = filter_secrets(str(error))
    text = re.sub(r"(BadStatusLine|InvalidChunkLength)\(.*", r"\1", text, flags=re.DOTALL)
    if isinstance(error, requests.RequestException):
        return text
    return re.sub(r"""\bb?(['"]).*\1|(['"]).*\2""", "...", text, flags=re.DOTALL)


def _error_text(response: requests.Response) -> str:
    """What an error response says, on one line: ``message: details`` of Amplitude's envelope
    ``{"error": {"message", "metadata": {"details"}}}``, what the taxonomy, replays and lookup
    tables have in its place (``{"errors": [{"message"}]}``, ``{"error"}``, ``{"message"}``), or a
    sentence alone. Of any other body, what it is. Empty for a JSON object or list that came with
    200 and tells of no error."""
    text = response.text.strip()
    if response.ok or not _SENTENCE.fullmatch(text):
        text = ""
    try:
        body = response.json()
        if response.ok and (isinstance(body, list) or not body.get("error")):
            return ""
        if "error" in body or "errors" in body or body.keys() <= _PARTS_OF_ENVELOPE:
            error = body["errors"][0] if "errors" in body else body.get("error", body)
            said = [error]
            if not isinstance(error, str):
                said = [error.get("message"), (error.get("metadata") or {}).get("details")]
            text = ": ".join(part for part in said if part)
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        pass
    return _excerpt(" ".join(text.split()), 500) or _described(io.BytesIO(response.content))


def _is_no_events(text: Any) -> bool:
    """Whether a text is Amplitude's own sentence for a range without events."""
    return isinstance(text, str) and text.strip().rstrip(".") == _NO_EVENTS


def _request(
    answer: requests.Response | requests.RequestException,
) -> requests.PreparedRequest:
    """The request that was made, not what a redirect made of it."""
    return (getattr(answer, "history", None) or [answer])[0].request  # type: ignore[no-any-return]


def _query(answer: requests.Response | requests.RequestException) -> dict[str, str]:
    return _query_of(_request(answer))


def _query_of(request: requests.PreparedRequest) -> dict[str, str]:
    return dict(parse_qsl(urlsplit(request.url or "").query))


def _window(answer: requests.Response | requests.RequestException) -> str:
    query = _query(answer)
    return f"{query.get('start', '?')} to {query.get('end', '?')}"


def _asks_for_days(query: Mapping[str, str]) -> bool:
    return all(_DAY_OF_QUERY.fullmatch(query.get(name, "")) for name in ("start", "end"))


def _days_asked_for(response: requests.Response) -> list[str]:
    return _days_of(_request(response))


def _days_of(request: requests.PreparedRequest) -> list[str]:
    query = _query_of(request)
    first, last = (datetime.strptime(query[name], "%Y%m%d") for name in ("start", "end"))
    return [f"{first + timedelta(days=n):%Y-%m-%d}" for n in range((last - first).days + 1)]


def _day(text: Any, asked: Sequence[str]) -> str | None:
    """The one day that a text names with certainty, as ``2026-09-17``; None if there is none.

    That is ``2026-09-17``, also with a midnight in any zone, or ``Sep 17, 2026``; without a year it
    is the day among those ``asked`` for. ``Sep 9``, ``Sep 09`` and ``September 9`` are the same.
    """
    in_words = _DAY_IN_WORDS.fullmatch(text.strip()) if isinstance(text, str) else None
    found: list[str] = []
    if in_words:
        name, number, year = in_words.groups()
        months = [n for n, month in enumerate(_MONTHS, 1) if month.startswith(name.lower())]
        ends = [f"-{month:02d}-{int(number):02d}" for month in months]
        found = [f"{year}{end}" for end in ends] if year else [d for d in asked if d[4:] in ends]
    elif isinstance(text, str) and (match := _ISO_DAY.fullmatch(text.strip())):
        found = [match[1]]
    try:
        return date.fromisoformat(found[0]).isoformat() if len(found) == 1 else None
    except ValueError:
        return None


def _days_in(texts: Sequence[Any], asked: Sequence[str]) -> list[str]:
    """Texts as the days that were asked for, each of which must be there once: the cursor would
    pass over one that is missing."""
    days = [_day(text, asked) for text in texts]
    for number, (text, day) in enumerate(zip(texts, days, strict=True), start=1):
        if day not in asked:
            what = _excerpt(json.dumps(text), 40) if isinstance(text, str) else _kind(text)
            raise _UnreadableError(f"date {number} is {what}, which was not asked for")
    if len(set(days)) != len(days):
        raise _UnreadableError("a date stands twice")
    if missing := [day for day in asked if day not in days]:
        raise _UnreadableError(f"{len(missing)} of {len(asked)} dates are missing: {missing[0]}")
    return [day for day in days if day]


def _parse(text: bytes) -> Any:
    """What a JSON text says; raises ``ValueError`` when it is none.

    orjson refuses some of what lenient writers write, which must not be lost: NaN, infinity and
    numbers beyond a double become null, a lone surrogate ``?``, invalid UTF-8 U+FFFD.
    """
    try:
        value = orjson.loads(text)
    except orjson.JSONDecodeError:
        try:
            lenient = json.loads(
                text.decode("utf-8-sig", "replace"),
                parse_constant=lambda _: None,
                parse_float=_finite,
                parse_int=_whole,
            )
            value = json.loads(json.dumps(lenient, ensure_ascii=False).encode("utf-8", "replace"))
        except RecursionError:
            raise ValueError("too deep") from None
    # What can't be printed would end the whole process. To replace is thrice as fast as to count.
    brackets = len(text) - len(text.replace(b"{", b"").replace(b"[", b""))
    if brackets > _MAX_DEPTH and _depth(value) > _MAX_DEPTH:
        raise ValueError("too deep")
    return value


def _depth(value: Any) -> int:
    """How deep objects and lists lie in each other, found level by level, without recursion."""
    depth, level = 0, [value]
    while level := [
        inner
        for outer in level
        if isinstance(outer, dict | list)
        for inner in (outer.values() if isinstance(outer, dict) else outer)
    ]:
        depth += 1
    return depth


def _finite(number: str) -> float | None:
    value = float(number)
    return value if math.isfinite(value) else None


def _whole(number: str) -> int | float | None:
    # Python refuses to read integers of thousands of digits.
    is_64_bits = len(number) <= 20 and -(2**63) <= int(number) < 2**64
    return int(number) if is_64_bits else _finite(number)


class _UnreadableError(Exception):
    """What was found in an answer that must not be taken for records."""


@contextmanager
def _reading(response: requests.Response) -> Iterator[Any]:
    """A JSON answer, parsed as leniently as events are; as ``_refusing_to_guess``."""
    is_json = True
    try:
        answer = _parse(response.content)
    except ValueError:
        is_json, answer = False, response.text
    with _refusing_to_guess(response, answer):
        if not is_json:
            raise _UnreadableError("it is no JSON")
        yield answer


@contextmanager
def _refusing_to_guess(response: requests.Response, answer: Any) -> Iterator[None]:
    """``_UnreadableError`` becomes a message that names what was asked for, and ends with the shape
    of the answer, by which we can mend it."""
    try:
        yield
    except _UnreadableError as error:
        path = urlsplit(_request(response).url or "").path
        window = f" for {_window(response)}" if "start" in _query(response) else ""
        message = (
            f"Amplitude's answer to {path}{window} can't be read without guessing: "
            f"{_excerpt(str(error), 300)}. Nothing of it was stored. Try again later; if it "
            "stays like this, report it to the connector's maintainers. Shape of the answer, "
            f"without its values: {filter_secrets(shape(answer))}"
        )
        raise failure(message) from None


def shape(value: Any) -> str:
    """What a JSON value looks like, in at most 2,000 characters: names of fields, kinds, lengths,
    forms of dates; nothing that a customer entered.

    ``{data: {series: [1 * [7 * integer]], xValues: [7 * date 0000-00-00]}, wasCached: boolean}``
    """
    text = _shape(value, depth=8)
    return text if len(text) <= _SHAPE_CHARACTERS else f"{text[: _SHAPE_CHARACTERS - 3]}..."


def _shape(value: Any, depth: int, is_element: bool = False) -> str:
    if isinstance(value, str):
        if len(value) < 40 and _LIKE_A_DATE.fullmatch(value):
            return f"date {_form(value)}"
        # The elements of a list would all be of another length.
        return "text" if is_element else f"text({len(value)})"
    if isinstance(value, list | dict) and value and not depth:
        return "[...]" if isinstance(value, list) else "{...}"
    if isinstance(value, list):
        forms = Counter(_shape(e, depth - 1, is_element=True) for e in value[:_SHAPE_ELEMENTS])
        parts = [f"{count} * {form}" for form, count in forms.items()]
        return f"[{', '.join([*parts, *_more(value)])}]"
    if isinstance(value, dict):
        names: dict[str, dict[str, None]] = {}  # in the order in which they came
        for name, inner in islice(value.items(), _SHAPE_ELEMENTS):
            is_opaque = name in _SHAPE_OPAQUE and isinstance(inner, dict) and inner
            form = f"object({len(inner)})" if is_opaque else _shape(inner, depth - 1, is_element)
            names.setdefault(form, {})[_shape_of_name(name)] = None
        parts = [
            f"{', '.join(islice(of, 12))}{', ...' if len(of) > 12 else ''}: {form}"
            for form, of in names.items()
        ]
        return f"{{{', '.join([*parts, *_more(value)])}}}"
    return {bool: "boolean", int: "integer", float: "number"}.get(type(value), "null")


def _more(container: list[Any] | dict[str, Any]) -> list[str]:
    more = len(container) - _SHAPE_ELEMENTS
    return [f"{more} more"] if more > 0 else []


def _shape_of_name(name: str) -> str:
    """The name of a field, if it is one that Amplitude has given, and no date or text as a name."""
    if _LIKE_A_DATE.fullmatch(name):
        return _form(name)
    return name if re.fullmatch(r"[A-Za-z_$][A-Za-z0-9_$]{0,39}", name) else f"text({len(name)})"


def _form(text: str) -> str:
    """``0000-00-00T00:00:00Z`` for a time, ``Mon 00, 0000`` for a date in words."""
    return re.sub(r"[A-Za-z]{3,}", "Mon", re.sub(r"\d", "0", text))


def _records(elements: Iterable[Any], name: str) -> list[dict[str, Any]]:
    """The elements of the list ``name``, each of which may be passed to the CDK: it is an object,
    and not an empty one."""
    checked = []
    for number, element in enumerate(elements, start=1):
        if not isinstance(element, dict) or not element:
            found = f"element {number} of {name} is {_kind(element)}"
            raise _UnreadableError(f"{found} where a record should be")
        checked.append(element)
    return checked


def _list_at(path: Sequence[str], answer: Any) -> list[Any]:
    return _list(_value_at(path, answer), ".".join(path) or "the answer")


def _list_or_nothing(path: Sequence[str], answer: Any) -> list[Any]:
    """The list at a path; an empty one where there is none."""
    return _list_at(path, answer) if _value_at(path, answer) not in (None, ...) else []


def _list(value: Any, name: str) -> list[Any]:
    if not isinstance(value, list):
        raise _UnreadableError(f"{name} is {_kind(value)} where a list should be")
    return value


def _value_at(path: Sequence[str], value: Any) -> Any:
    """What stands at a path of fields; ``...`` when it is missing."""
    for name in path:
        value = value.get(name, ...) if isinstance(value, dict) else ...
    return value


def _kind(value: Any) -> str:
    """What a value of a JSON answer is, in words; ``...`` stands for one that is missing."""
    if value is None or value is ...:
        return "null" if value is None else "missing"
    kinds = {dict: "an object", list: "a list", str: "a text", bool: "a boolean"}
    kind = kinds.get(type(value), "a number")
    return f"an empty {kind.split()[1]}" if value in ({}, [], "") else kind


def _text_lines(response: requests.Response) -> Iterator[str]:
    """The lines of a body with their ends, streamed, or as the Builder has read it before; one that
    is longer than a row may be comes in pieces."""
    held: list[str] = []
    length = 0
    for text in iterdecode(response.iter_content(_CHUNK_BYTES), "utf-8-sig"):
        first, *others = text.split("\n")
        held.append(first)
        length += len(first)
        if others or length > _ROW_CHARACTERS:
            yield "".join([*held, "\n"[: len(others)]])
            yield from (f"{line}\n" for line in others[:-1])
            held = others[-1:]
            length = len("".join(held))
    yield "".join(held)


def _csv_rows(lines: Iterable[str], name: str) -> Iterator[list[str]]:
    """The headings of a CSV, then its rows, blank lines left out; ``name`` stands in messages.

    Raises ``AirbyteTracedException`` naming the row for one that does not fit the headings, or is
    longer than ``_ROW_CHARACTERS``, and for a connection that breaks off.
    """
    number = length = 0
    has_nul = False
    if isinstance(lines, io.TextIOBase):
        lines = iter(partial(lines.readline, _ROW_CHARACTERS + 1), "")

    def bounded() -> Iterator[str]:
        nonlocal length, has_nul
        for line in lines:
            length += len(line)
            if length > _ROW_CHARACTERS:
                raise failure(
                    f"What follows row {number} of {name} is a row of more than "
                    f"{_ROW_CHARACTERS:,} characters."
                )
            has_nul = has_nul or "\0" in line
            yield line.replace("\0", _IN_PLACE_OF_NUL)

    # For the whole process, as it can't be set for a reader: its 131,072 are fewer than a property
    # may have. It is only ever raised, and what a row may have at most is counted here.
    csv.field_size_limit(max(csv.field_size_limit(), _ROW_CHARACTERS))
    header: list[str] = []
    try:
        for row in csv.reader(bounded(), strict=True):
            length = 0
            if has_nul:
                row, has_nul = [cell.replace(_IN_PLACE_OF_NUL, "\0") for cell in row], False
            if not header:
                if not row or row[0].lstrip().startswith(("<", '{"', "{}", "[{", "[]")):
                    break
                header = row
            elif not row:
                continue
            elif len(row) != len(header):
                found = f"{len(row)} cells under {len(header)} headings"
                raise failure(f"Row {number + 1} of {name} has {found}.")
            else:
                number += 1
            yield row
    except (csv.Error, UnicodeDecodeError) as error:
        message = f"What follows row {number} of {name} can't be read: {error}."
        raise failure(message) from None
    except OSError as error:
        raise failure(
            f"The connection broke after row {number} of {name} ({type(error).__name__}). Run "
            "it again.",
            FailureType.transient_error,
        ) from error
    if not header:
        raise failure(f"The answer to {name} is no CSV with headings.")


def _spool(response: requests.Response, spooled: IO[bytes], name: str) -> None:
    reported = time.monotonic()
    for chunk in response.iter_content(_CHUNK_BYTES):
        spooled.write(chunk)
        if time.monotonic() - reported > _REPORT_SECONDS:
            reported = time.monotonic()
            _LOGGER.info(f"{name}: {spooled.tell():,} bytes received so far.")


@contextmanager
def _kept_open(spooled: IO[bytes]) -> Iterator[IO[bytes]]:
    """A file that stays open for whoever reads it next, unless something fails."""
    try:
        yield spooled
    except BaseException:
        spooled.close()
        raise


@contextmanager
def _storing(kind: str, folder: Path, advice: str) -> Iterator[None]:
    """What the disk refuses becomes a message that names ``folder``."""
    try:
        yield
    except requests.RequestException:
        raise
    except OSError as error:
        raise failure(
            f"{kind} could not be stored in {folder}: {error.strerror}. {advice}"
        ) from error


# -------------------------------------------------------------------------------------------------
# 2 What no sync could use: values of the config that are refused, and what a query costs
# -------------------------------------------------------------------------------------------------
# Amplitude is younger. What is older is a typing error that would cost hours of empty requests.
_FIRST_DAY = datetime(2010, 1, 1, tzinfo=timezone.utc)
# Before a dot, they narrow a name of Filter Events to what lies in them.
_PROPERTY_COLUMNS = (
    "event_properties",
    "user_properties",
    "group_properties",
    "global_user_properties",
)
_COLUMNS_KEPT = {
    "uuid": "is the primary key, and can be neither dropped nor hashed",
    "server_upload_time": "is the cursor, and can be neither dropped nor hashed",
}
_COLUMNS_NOT_OF_TEXT = {
    name: f"holds {kind}, while a hash is a text: it can be dropped, but not hashed"
    for kind, names in {
        "numbers": "$schema amplitude_id app event_id location_lat location_lng session_id",
        "times": "client_event_time client_upload_time event_time processed_time "
        "server_received_time user_creation_time",
        "booleans": "is_attribution_event paying",
        "objects": " ".join(["data", "groups", "plan", *_PROPERTY_COLUMNS]),
    }.items()
    for name in names.split()
}
_LISTS_OF_FILTERS = {
    "only_event_types": "Only These Event Types",
    "without_event_types": "Without These Event Types",
    "drop_properties": "Drop Properties",
    "hash_properties": "Hash Properties",
}
# Not more than is a key for BLAKE2b, nor so little that it could be tried out.
_SALT = re.compile("[!-~]{16,64}")
# Of the 1,000 that Amplitude grants in five minutes: requests of others must fit in beside it.
_MOST_PER_REQUEST = 200
# Of each kind of report, the one field that it can't do without, if there is one
_KINDS = {
    **dict.fromkeys(("segmentation", "funnel", "retention"), "kind"),
    "composition": "property",
    "chart": "chart_id",
}
# Of a funnel's step, and of retention; other reports have 1 (api_budget says the same).
_QUERY_TYPES = {"funnel": 2, "retention": 8}
# Conditions that each group-by counts as.
_GROUP_CONDITIONS = 4
_INTERVALS = {"day": "1", "week": "7", "month": "30"}
# They count a number that an event carries, not events or users.
_PROPERTY_METRICS = ("sums", "value_avg")
# Those of Amplitude's own; compositions are not by device_type.
_USER_PROPERTIES = (
    *("version", "country", "city", "region", "DMA", "language", "platform", "os", "device"),
    *("device_type", "start_version", "paying"),
)
_COMPOSED_PROPERTIES = tuple(name for name in _USER_PROPERTIES if name != "device_type")
_MOST_GROUPS = 1_000


def refuse_unusable(config: Mapping[str, Any]) -> None:
    """Raise for dates, a time zone and filters of the right form that no sync could work with.

    Forms, and all other values, are told by the spec in the manifest. This is called by what every
    stream is built with, because the spec itself has to do without custom components.
    """
    dates: dict[str, datetime] = {}
    for title, name in (("Start Date", "start_date"), ("End Date", "end_date")):
        if value := config.get(name):
            try:
                dates[name] = str_to_datetime(value)
            except (OverflowError, TypeError, ValueError):
                reason = f"{value!r} is no date of the calendar"
                raise refusal(f"{title} ({name}) is not valid: {reason}.") from None
    start = dates.get("start_date", _FIRST_DAY)
    title = f"Start Date (start_date) is not valid: {config.get('start_date')!r}"
    if start < _FIRST_DAY:
        raise refusal(f"{title} lies before {_FIRST_DAY.year}.")
    if start > now_utc():
        raise refusal(f"{title} lies in the future, by the clock of UTC.")
    if "end_date" in dates and dates["end_date"] <= start:
        raise refusal(
            f"End Date (end_date) is not valid: {config['end_date']!r} is not after Start Date "
            f"(start_date), {config.get('start_date')!r}."
        )
    zone = config.get("project_timezone") or "UTC"
    try:
        pytz.timezone(zone)
    except (AttributeError, pytz.UnknownTimeZoneError):
        raise refusal(
            f"Project Time Zone (project_timezone) is not valid: {zone!r} is no IANA name of a "
            "time zone, such as Europe/Berlin."
        ) from None
    if group := config.get("user_counts_group_by"):
        title = "Group User Counts by (user_counts_group_by) is not valid"
        _user_property(group, title)
    _refuse_unusable_filters(config)
    _refuse_unusable_reports(config)


def _user_property(text: Any, title: str, names: Sequence[str] = _USER_PROPERTIES) -> str:
    """A property of users as Amplitude spells it; raises for what is none."""
    by_small = {name.lower(): name for name in names}
    small = str(text).strip().lower()
    if small in by_small:
        return by_small[small]
    if re.fullmatch(r"gp:.*\S.*", str(text)):
        return str(text)
    alike = get_close_matches(small, by_small, 1, 0.75)
    meant = by_small[alike[0]] if alike else f"gp:{text}"
    guess = f" Did you mean {meant}?" if alike or re.fullmatch(r"[\w ]*\w", str(text)) else ""
    raise refusal(
        f"{title}: {text!r} is not a property of users. Enter {', '.join(names)}, or gp: and the "
        f"name of a property of your own, such as gp:plan.{guess}"
    )


def _refuse_unusable_filters(config: Mapping[str, Any]) -> None:
    titles = {name: f"{title} ({name})" for name, title in _LISTS_OF_FILTERS.items()}
    lists = {name: config.get(name) or [] for name in _LISTS_OF_FILTERS}
    for name, values in lists.items():
        if not isinstance(values, list) or not all(isinstance(v, str) and v for v in values):
            raise refusal(f"{titles[name]} is not valid: it must be a list of texts.")
    lists = {name: [*_names(values)] for name, values in lists.items()}
    only, without, dropped, hashed = lists
    for one, other in ((only, without), (dropped, hashed)):
        if both := sorted(set(lists[one]) & set(lists[other])):
            raise refusal(
                f"{titles[one]} and {titles[other]} both have {both[0]!r}. Take it out of one."
            )
    for field_name, refused in (
        (dropped, _COLUMNS_KEPT),
        (hashed, {**_COLUMNS_NOT_OF_TEXT, **_COLUMNS_KEPT}),
    ):
        for value in sorted(set(lists[field_name]) & refused.keys()):
            others = ", ".join(f"{column}.{value}" for column in _PROPERTY_COLUMNS)
            raise refusal(
                f"{titles[field_name]} is not valid: the column {value} {refused[value]}. If a "
                f"property of that name is meant, say where it is: {others}."
            )
    salt = config.get("hash_salt") or ""
    keys = [str(config.get(name)).strip() for name in ("api_key", "secret_key")]
    if salt and not (isinstance(salt, str) and _SALT.fullmatch(salt.strip())):
        raise refusal(
            "Hash Salt (hash_salt) is not valid: it must have 16 to 64 letters, digits or signs of "
            "ASCII, and no blanks."
        )
    if salt and salt.strip() in keys:
        raise refusal(
            "Hash Salt (hash_salt) is not valid: it must be a secret of its own, not the API Key "
            "or the Secret Key."
        )
    if lists[hashed] and not salt:
        raise refusal(
            f"{titles[hashed]} needs Hash Salt (hash_salt): without a secret, anybody could find "
            "the values by trying."
        )


def _names(typed: Iterable[str]) -> frozenset[str]:
    """Names that people typed: as they are, without blanks at their ends, and each with commas and
    semicolons in the place of what stands for them. All of it may be a slip or the name's own: what
    is to be dropped must not stay for either."""
    spelt = (name for each in typed for name in (each, each.strip()) if name)
    return frozenset(form for name in spelt for form in (name, _with_commas(name)))


def _meant(name: str) -> str:
    """The one of ``_names`` that most likely is the name."""
    return _with_commas(name.strip() or name)


def _with_commas(name: str) -> str:
    """A name of a field that Airbyte's form splits at commas and semicolons."""
    return name.replace("%2C", ",").replace("%3B", ";")


def _log_blanks(typed: Iterable[str], title: str) -> None:
    if with_blanks := sorted({each for each in typed if each != each.strip()}):
        quoted = ", ".join(map(repr, with_blanks[:_NAMES_LOGGED]))
        _LOGGER.warning(f"{title}: blanks at the ends of names are taken off as well: {quoted}.")


def _refuse_unusable_reports(config: Mapping[str, Any]) -> None:
    reports, title = config.get("reports") or [], "Reports (reports) is not valid"
    try:
        names = [report["name"] for report in reports]
        for report in reports:
            _refuse_wrong_types(report["query"], f"{title}: {report['name']}")
            query = _as_asked(report["query"])
            _refuse_unusable_query(query, f"{title}: {report['name']}")
            _refuse_dear(query, f"{title}: {report['name']}")
    except (AttributeError, KeyError, TypeError) as error:
        reason = f"a report has another form than it should ({type(error).__name__}: {error})"
        raise refusal(f"{title}: {reason}.") from None
    for name in names:
        if names.count(name) > 1:
            raise refusal(f"{title}: {names.count(name)} reports have the name {name}.")


def _refuse_wrong_types(query: Mapping[str, Any], title: str) -> None:
    """Raise for what the spec says as well, but only a process of our own asks before templates."""
    if not isinstance(kind := query["kind"], str) or kind not in _KINDS:
        raise refusal(f"{title}: kind is {_kind_or_text(kind)}, not one of {', '.join(_KINDS)}.")
    for name, value in query.items():
        if value is None or value == "":
            continue
        match name:
            case "events" | "group_by":
                wanted, is_right = "a list of texts", _are_texts(value)
            case "steps":
                wanted = "a list of steps with an event"
                is_right = isinstance(value, list) and all(map(_is_step, value))
            case "filters" | "funnel_filters":
                wanted = "a list of filters with a property and values"
                is_right = isinstance(value, list) and all(map(_is_filter, value))
            case "conversion_window_days":
                wanted = "a whole number"
                is_right = type(value) in (int, float) and value % 1 == 0
            case _:
                wanted, is_right = "a text", isinstance(value, str)
        if not is_right:
            raise refusal(f"{title}: {name} is {_kind(value)} where {wanted} should be.")
    if not query.get(_KINDS[kind]):
        raise refusal(f"{title}: {_KINDS[kind]} is missing.")
    if (interval := query.get("interval") or "day") not in _INTERVALS:
        raise refusal(f"{title}: interval is {interval!r}, not one of {', '.join(_INTERVALS)}.")


def _kind_or_text(value: Any) -> str:
    return repr(value) if isinstance(value, str) else _kind(value)


def _is_filter(value: Any) -> bool:
    match value:
        case {"property": str(), **others}:
            values = others.pop("values", None) or []
            return _are_texts(values) and _are_texts([v for v in others.values() if v is not None])
    return False


def _is_step(value: Any) -> bool:
    match value:
        case {"event": str(event)}:
            return bool(event)
    return False


def _are_texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(each, str) for each in value)


def _refuse_unusable_query(query: Mapping[str, Any], title: str) -> None:
    """Raise for what the spec can't say: JSON in a text, and what depends on another field."""
    _refuse_unusable_lists(query, title)
    texts = [*(query.get("events") or []), *(query.get(n) for n in ("start_event", "return_event"))]
    for text in filter(None, texts):
        event = _parsed(text, title) if _is_json(text) else {"event_type": text}
        groups = event.get("group_by") or [] if isinstance(event, dict) else None
        if groups is None or not isinstance(event.get("event_type"), str):
            raise refusal(f"{title}: {_excerpt(text, 100)!r} is no JSON object with an event_type.")
        if not isinstance(groups, list) or not all(
            isinstance(group, dict) and {"type", "value"} <= group.keys() for group in groups
        ):
            raise refusal(
                f"{title}: group_by of the event {event['event_type']} must be a list such as "
                '[{"type": "event", "value": "price"}].'
            )
        if groups and query["kind"] == "retention":
            raise refusal(f"{title}: the events of retention can't have a group_by.")
        if not groups and _is_json(text) and query.get("metric") in _PROPERTY_METRICS:
            raise refusal(
                f"{title}: Count (metric) {query['metric']} takes events in JSON whose group_by is "
                f'the property to be counted, such as {{"event_type": "{event["event_type"]}", '
                '"group_by": [{"type": "event", "value": "price"}]}.'
            )
    if text := query.get("segment"):
        conditions = _parsed(text, f"{title}: Users (segment)")
        if not isinstance(conditions, list) or not all(
            isinstance(condition, dict) and "op" in condition for condition in conditions
        ):
            raise refusal(
                f"{title}: Users (segment) must be a list of conditions such as "
                '[{"prop": "country", "op": "is", "values": ["Germany"]}].'
            )
    if (query.get("mode") == "bracket") != bool(query.get("brackets")):
        raise refusal(
            f"{title}: Brackets (brackets) and the mode bracket are needed together or not at all."
        )
    if text := query.get("brackets"):
        match _parsed(text, f"{title}: Brackets (brackets)"):
            case [*brackets] if brackets and all(map(_is_bracket, brackets)):
                pass
            case _:
                raise refusal(
                    f"{title}: Brackets (brackets) must be a list of a first and a last day each, "
                    "up to day 365, such as [[0, 1], [1, 7]]."
                )


def _refuse_unusable_lists(query: Mapping[str, Any], title: str) -> None:
    """Raise for a query without what it needs, or with more than Amplitude takes."""
    count, kind = len(query.get("events") or []), query["kind"]
    if kind == "segmentation" and not count:
        raise refusal(f"{title}: Event (event) is missing.")
    if kind == "segmentation" and count > 2:
        raise refusal(f"{title}: it has {count} events (events), where 2 can be asked for at once.")
    if kind == "funnel" and not 2 <= count <= 20:
        raise refusal(
            f"{title}: Steps (steps) needs 2 to 20 events, and has {count or 'none'}. For one "
            "event, choose How often events happened."
        )
    groups = query.get("group_by") or []
    if len(groups) > (most := 1 if kind == "funnel" else 2):
        raise refusal(f"{title}: Group by (group_by) has {len(groups)} properties, not {most}.")
    for group in groups:
        _user_property(group, f"{title}: Group by")
    if kind == "composition":
        _user_property(query["property"], f"{title}: Property (property)", _COMPOSED_PROPERTIES)
    for condition in query.get("filters") or []:
        if not condition["values"]:
            raise refusal(
                f"{title}: Only Where: the condition on {condition['property']} needs Values "
                "(value_lines)."
            )
    has_sum = query.get("metric") in _PROPERTY_METRICS
    if (name := query.get("property_to_sum")) and not has_sum:
        raise refusal(
            f"{title}: Property to Sum (property_to_sum) is {name!r}, which goes with the Count "
            "(metric) sums or value_avg only."
        )
    if has_sum and not name and not all(map(_is_json, query["events"])):
        raise refusal(
            f"{title}: Count (metric) {query['metric']} needs Property to Sum (property_to_sum): "
            "the property of the event that has the number, such as price."
        )


def _is_bracket(bracket: Any) -> bool:
    match bracket:
        case [int(first), int(last)]:
            return 0 <= first <= last <= 365
    return False


def _is_json(event: str) -> bool:
    """Whether an event of a report is an event object in JSON, not a name such as ``{a}``."""
    return bool(re.match(r'\s*\{\s*["}]', event))


def _parsed(text: str, title: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        raise refusal(f"{title}: {_excerpt(text, 100)!r} is no JSON ({error}).") from None


def _refuse_dear(query: Mapping[str, Any], title: str) -> None:
    """Raise for a report that costs too much even in the smallest windows.

    Those are a day, a week or a month, and the day that the CDK adds to the last one.
    """
    if query["kind"] in ("chart", "composition"):
        return
    days = {"week": 8, "month": 32}.get(query.get("interval") or "day", 2)
    cost = _cost_of_days(query, days)
    if cost > _MOST_PER_REQUEST:
        raise refusal(
            f"{title} would cost {cost}, where one request may cost {_MOST_PER_REQUEST}. That is "
            f"{days} days, the fewest that can be asked for, at {cost // days} each: conditions "
            "(one, four for each group-by, and those of Users) times what its events count. Leave "
            "out some of these."
        )


def _cost_of_days(query: Mapping[str, Any], days: int) -> int:
    """What a request of a report for so many days costs."""
    last = date(2024, 1, 1) + timedelta(days=days - 1)
    params = {**_query_of_report(query), "start": "20240101", "end": f"{last:%Y%m%d}"}
    request = requests.Request("GET", "https://amplitude.com", params=params).prepare()
    return price(request, _QUERY_TYPES.get(query["kind"], 1))


def price(request: requests.PreparedRequest, query_type: int) -> int:
    """The units that Amplitude counts for a Dashboard query: days * conditions * query type.

    ``query_type`` is that of the endpoint, for queries about events that of one event. A request
    without days costs the query type alone.
    Source: https://amplitude.com/docs/apis/analytics/dashboard-rest (Rate limits).
    """
    pairs = parse_qsl(urlsplit(request.url or "").query)
    if not _asks_for_days(dict(pairs)):
        return query_type
    segments = [json.loads(value) for name, value in pairs if name == "s"] or [[]]
    groups = sum(name in ("g", "g2") for name, _ in pairs)
    conditions = sum(1 + len(segment) for segment in segments) + _GROUP_CONDITIONS * groups
    events = [json.loads(value) for name, value in pairs if name in ("e", "e2")]
    of_events = (query_type + _GROUP_CONDITIONS * len(e.get("group_by") or ()) for e in events)
    return len(_days_of(request)) * conditions * (sum(of_events) or query_type)


def _as_asked(query: Mapping[str, Any]) -> dict[str, Any]:
    """A report's query as the first version with reports had it, whichever fields it was put in.

    Airbyte's form makes other fields necessary; what it hides counts until ``event`` or ``steps``
    is filled in, since nobody could take it out there.
    """
    is_new = query.get("event") or query.get("steps")

    def found(old: str, *names: str) -> list[Any]:
        values = [query[name] for name in names if query.get(name)]
        return values or (query.get(old) if old not in names and not is_new else None) or []

    match query["kind"]:
        case "segmentation":
            events, filters = found("events", "event", "second_event"), query.get("filters")
            groups = found("group_by", "grouped_by", "second_grouped_by")
            asked = {**query, "events": events, "group_by": groups}
        case "funnel":
            steps = [step["event"] for step in query.get("steps") or []]
            groups = found("group_by", "funnel_grouped_by")
            old = {} if is_new else query
            filters = query.get("funnel_filters") or old.get("filters")
            asked = {
                **{**query, "events": steps or query.get("events"), "group_by": groups},
                "mode": query.get("step_order") or old.get("mode"),
                "segment": query.get("funnel_segment") or old.get("segment"),
            }
        case _:
            return {**query}
    return {**asked, "filters": [{**each, "values": _values(each)} for each in filters or []]}


def uncounted_fields(query: Mapping[str, Any]) -> list[str]:
    """Fields of earlier versions that don't count in a report's query, since newer ones do."""
    if query.get("event"):
        return sorted(query.keys() & {"events", "group_by"})
    if query.get("steps"):
        return sorted(query.keys() & {"events", "group_by", "mode", "filters", "segment"})
    return []


def _values(condition: Mapping[str, Any]) -> list[str]:
    lines = (line.strip() for line in (condition.get("value_lines") or "").splitlines())
    return [line for line in lines if line] or condition.get("values") or []


def _query_of_report(query: Mapping[str, Any]) -> dict[str, Any]:
    """Amplitude's parameters for a report, without its days; None is for what is not sent."""
    query = _as_asked(query)

    def event(text: str) -> str:
        return _event_of_report(text, query)

    events, groups = query.get("events") or [], query.get("group_by") or []
    groups = [_user_property(group, "Group by") for group in groups]
    mode, segment = query.get("mode"), query.get("segment") or None
    match query["kind"]:
        case "segmentation":
            return {
                **dict(zip(("e", "e2"), map(event, events), strict=False)),
                "m": query.get("metric") or "uniques",
                "i": _INTERVALS[query.get("interval") or "day"],
                **dict(zip(("g", "g2"), groups, strict=False)),
                "s": segment,
                "limit": str(_MOST_GROUPS),
            }
        case "funnel":
            return {
                "e": [*map(event, events)],
                "mode": mode or "ordered",
                "n": query.get("users") or "active",
                "cs": str(86_400 * int(query.get("conversion_window_days") or 30)),
                "i": "1",
                "g": next(iter(groups), None),
                "s": segment,
                "limit": str(_MOST_GROUPS),
            }
        case "retention":
            return {
                "se": event(query.get("start_event") or "_new"),
                "re": event(query.get("return_event") or "_active"),
                # Amplitude refuses the name that it documents for what it does without one.
                "rm": None if mode == "n-day" else mode,
                "rb": query.get("brackets"),
                "i": "1",
            }
    return {"p": _user_property(query["property"], "Property", _COMPOSED_PROPERTIES)}


def _event_of_report(text: str, query: Mapping[str, Any]) -> str:
    """Amplitude's JSON for an event: as it was typed, or its name, all filters and what it sums."""
    if _is_json(text):
        return text
    conditions = [
        {
            "subprop_type": _property_type(each["property"]),
            "subprop_key": each["property"],
            "subprop_op": each.get("operator") or "is",
            "subprop_value": each["values"],
        }
        for each in query.get("filters") or []
    ]
    summed = query.get("property_to_sum")
    return json.dumps(
        {
            "event_type": text,
            **({"filters": conditions} if conditions else {}),
            **({"group_by": [{"type": _property_type(summed), "value": summed}]} if summed else {}),
        }
    )


def _property_type(name: str) -> str:
    is_users = name in _USER_PROPERTIES or re.match("gp:.", name)
    return "user" if is_users else "event"


# -------------------------------------------------------------------------------------------------
# 3 Every request: keys, refusals, prices, and what each record is given
# -------------------------------------------------------------------------------------------------
_TOO_FAR_BACK = "Date too far back"
# Shorter ones are the rhythm of what may be asked for once a second.
_WAIT_LOGGED = timedelta(seconds=10)
# An answer, but for a streamed one, which may be slow, but must not drip: so many bytes in so long.
_ANSWER_SECONDS = 60 * 60
_SLOWEST_BYTES, _SLOWEST_SECONDS = 1024 * 1024, 5 * 60
# Requests given up in a row that end their stream.
GIVEN_UP_IN_A_ROW = 3


class _Authenticator(DeclarativeAuthenticator):
    """A key in the header, bounds in time for the answer, and a look at each redirect before it is
    followed: nothing else of ours is shown a request before it is sent, and ``requests`` has no
    time-out but for silence."""

    def __call__(self, request: requests.PreparedRequest) -> Any:
        hooks = request.hooks["response"]
        # The CDK calls it again for each retry.
        hooks += [hook for hook in (_look_at_redirect, _bound_in_time) if hook not in hooks]
        return super().__call__(request)

    @property
    def auth_header(self) -> str:
        return "Authorization"


def _bound_in_time(response: requests.Response, **options: Any) -> None:
    """What ``requests`` calls before it reads a body."""
    raw: Any = response.raw
    response.raw = _TimedBody(raw, is_streamed=response.ok and bool(options.get("stream")))


class _TimedBody:
    """A body that takes too long, or drips, breaks off: what is waited for counts, not what whoever
    reads it does in between."""

    def __init__(self, raw: Any, is_streamed: bool) -> None:
        self._raw, self._is_streamed = raw, is_streamed

    def __getattr__(self, name: str) -> Any:
        return getattr(self._raw, name)

    def stream(self, size: int, decode_content: bool | None = None) -> Iterator[bytes]:
        """As urllib3's, which waits until there are ``size`` bytes."""
        seconds, received = 0.0, 0
        while True:
            asked = time.monotonic()
            chunk: bytes = self._raw.read1(size, decode_content=decode_content)
            seconds += time.monotonic() - asked
            if not chunk:
                return
            yield chunk
            received += len(chunk)
            if not self._is_streamed and seconds > _ANSWER_SECONDS:
                raise ProtocolError(f"not all of it had arrived after {_ANSWER_SECONDS} seconds")
            if self._is_streamed and seconds > _SLOWEST_SECONDS:
                if received < _SLOWEST_BYTES:
                    raise ProtocolError(f"{received} bytes in {seconds:.0f} seconds are too slow")
                seconds, received = 0.0, 0


def _look_at_redirect(response: requests.Response, **_: Any) -> None:
    """Raise for a redirect from HTTPS to HTTP, where all would be open, and for one to what is no
    address, for which requests has bare Python errors. The address is not quoted: it may be signed.
    """
    if not response.is_redirect:
        return
    from_host, problem = urlsplit(response.url or "").hostname, ""
    try:
        location = response.headers["Location"].encode("latin-1").decode()
        target = urlsplit(urljoin(response.url or "", location))
        (target.hostname or "").encode("idna")
        # To ask for a port above 65535 is a ValueError.
        if (
            target.port != 0
            and target.scheme == "http"
            and urlsplit(response.url or "").scheme == "https"
        ):
            problem = "an address without encryption (http)"
    except ValueError:  # and UnicodeError, which is one
        problem = "what is no address"
    if problem:
        raise failure(
            f"Amplitude answered HTTP {response.status_code}, a redirect of {from_host} to "
            f"{problem}, which is not followed. Look for a proxy or a firewall between this "
            "machine and Amplitude, then try again.",
            FailureType.transient_error,
        )


@dataclass
class SecretiveBasicHttpAuthenticator(_Authenticator):
    """HTTP Basic with the two keys as they stand in the config, which no log shows in any form.

    ``username_field`` and ``password_field`` name fields of the config. The built-in authenticator
    evaluates a template, which takes the valid key ``1e10`` for a number, and the CDK hides only
    the keys themselves: not the header, nor what a server or ``--debug`` makes of them (escaped as
    JSON, as Python or for a URL).
    """

    config: Mapping[str, Any]
    username_field: str
    password_field: str

    def __post_init__(self) -> None:
        keys = _hidden_keys(self.config, self.username_field, self.password_field)
        self._token = b64encode(":".join(keys).encode()).decode()
        keep_secret(self._token)

    @property
    def token(self) -> str:
        return f"Basic {self._token}"


@dataclass
class SecretiveBearerAuthenticator(_Authenticator):
    """HTTP Bearer with the key of the config's field ``key_field``, for the reasons above.

    Raises ``AirbyteTracedException`` (config error) for a key that no header can hold: what is
    raised when it is sent would quote it. Not before, so that other streams can be read.
    """

    config: Mapping[str, Any]
    key_field: str

    def __post_init__(self) -> None:
        [self._key] = _hidden_keys(self.config, self.key_field)

    @property
    def token(self) -> str:
        if not re.fullmatch("[!-~]+", self._key):
            raise refusal(
                f"Management API Key ({self.key_field}) is not valid: it has a blank in between "
                "or a character that is not ASCII."
            )
        return f"Bearer {self._key}"


def _hidden_keys(config: Mapping[str, Any], *fields: str) -> list[str]:
    """The keys in these fields of a usable config, which no log shows from now on."""
    refuse_unusable(config)
    # Keys are pasted, often with a blank or a line end.
    keys = [str(config[name]).strip() for name in fields]
    for key in keys:
        keep_secret(key)
    return keys


@dataclass
class AmplitudeErrorHandler(DefaultErrorHandler):
    """A refusal or a failed connection in, a resolution out whose message a person can act on.

    The built-in handler interpolates only JSON bodies into its messages and has no messages for
    exceptions at all. Here, each message of a response filter is preceded by the HTTP code and
    what Amplitude said, be it JSON or plain text, and a host that can't be reached is named. A day
    before the history that the project's plan keeps is empty, which is logged.

    Raises ``AirbyteTracedException`` for a refusal; ``DefaultBackoffException``, which has the CDK
    ask again, for a 200 whose body is no JSON, or tells of an error: the CDK would take it for an
    answer without records. ``is_streamed`` bodies are looked at only when they are HTML.
    ``OutageError`` when three requests of the stream in a row are given up, and in the place of all
    that would follow.
    """

    is_streamed: bool = False
    # The one that all streams share: the CDK gives it to whatever has a field of this name.
    api_budget: APIBudget | None = None

    def __post_init__(self, parameters: Mapping[str, Any]) -> None:
        super().__post_init__(parameters)
        if self.api_budget:
            _price_queries(self.api_budget)
        self._outage = _Outage()
        # The last day that was too far back, and the day after it that the log has named.
        self._too_far_back = self._first_day_logged = ""
        self._lock = threading.Lock()

    @property  # type: ignore[misc]
    def max_time(self) -> int:
        """The seconds for which a request may be tried. The CDK looks here before it sends one: so
        this is where one can be refused."""
        self._outage.begin_request()
        return self._max_time

    @max_time.setter
    def max_time(self, seconds: int) -> None:
        self._max_time = seconds

    def interpret_response(
        self, response_or_exception: requests.Response | Exception | None
    ) -> ErrorResolution:
        answer: Any = response_or_exception
        try:
            resolution = self.resolve(answer)
        except DefaultBackoffException as error:
            # Anything else is a fault of the window's own, such as a damaged member.
            if error.failure_type is FailureType.transient_error:
                self._outage.count(answer, str(error), self.max_retries)
            else:
                self._outage.end_request()
            raise
        except Exception:
            self._outage.end_request()
            raise
        match resolution.response_action:
            case ResponseAction.RETRY | ResponseAction.RATE_LIMITED:
                self._outage.count(answer, resolution.error_message or "", self.max_retries)
            case ResponseAction.SUCCESS | ResponseAction.IGNORE:
                self._outage.end_request(is_answered=True)
            case _:
                self._outage.end_request()
        return resolution

    def resolve(
        self, response_or_exception: requests.Response | Exception | None
    ) -> ErrorResolution:
        """As ``interpret_response``, which counts what comes of it."""
        if isinstance(response_or_exception, requests.RequestException):
            return _connection_failed(response_or_exception, response_or_exception.request)
        if isinstance(response_or_exception, requests.Response):
            if _is_too_far_back(response_or_exception):
                return self._before_history(response_or_exception)
            if self._too_far_back and response_or_exception.ok:
                self._log_first_day(response_or_exception)
        resolution = super().interpret_response(response_or_exception)
        if not isinstance(response_or_exception, requests.Response):
            return resolution
        is_page = "html" in response_or_exception.headers.get("Content-Type", "")
        if response_or_exception.ok and self.is_streamed and not is_page:
            return SUCCESS_RESOLUTION
        said = f"Amplitude answered HTTP {response_or_exception.status_code}"
        if text := _error_text(response_or_exception):
            said += f" ({text})"
        if response_or_exception.ok:
            if not text:
                return resolution
            raise DefaultBackoffException(
                response_or_exception.request,
                ValueError("no answer"),
                f"{said}, which is no answer. Try again later.",
                FailureType.transient_error,
            )
        message = f"{said}. {resolution.error_message or ''}".rstrip()
        if resolution.response_action == ResponseAction.FAIL:
            # Raised, because the CDK quotes the body as it came beside the message.
            raise failure(message, resolution.failure_type or FailureType.system_error)
        return ErrorResolution(resolution.response_action, resolution.failure_type, message)

    def _before_history(self, response: requests.Response) -> ErrorResolution:
        days, path = _days_asked_for(response), urlsplit(response.url).path
        said = f"Amplitude answered HTTP 403 ({_error_text(response)})"
        if len(days) > 1:  # its last days may be there
            raise refusal(
                f"{said} to {path} for {_window(response)}: the project's plan keeps no history as "
                "old as that. Set Start Date (start_date) to a later day."
            )
        with self._lock:
            is_first, self._too_far_back = (
                not self._too_far_back,
                max(self._too_far_back, days[0]),
            )
        if is_first:
            _LOGGER.info(
                f"{said} to {path} for {days[0]}: the project's plan keeps no history as old as "
                "that. Days before the first one that can be read have no records."
            )
        # The CDK takes no records from a response that is no success, whatever the resolution; one
        # to ignore it would be logged for each day.
        return SUCCESS_RESOLUTION

    def _log_first_day(self, response: requests.Response) -> None:
        first = f"{date.fromisoformat(self._too_far_back) + timedelta(days=1)}"
        # Days are asked for side by side: one that is too far back may be answered after its next.
        with self._lock:
            is_known, self._first_day_logged = first == self._first_day_logged, first
        if not is_known:
            _LOGGER.info(
                f"{urlsplit(response.url).path}: the first day of the project's history that could "
                f"be read is {first}."
            )


class OutageError(AirbyteTracedException):
    """Ends a stream: of the window that showed that nobody answers, and of all that follow it,
    which are not asked for."""

    # Errors of requests before it
    tells_of = GIVEN_UP_IN_A_ROW - 1


def was_given_up(error: Exception) -> TypeGuard[AirbyteTracedException]:
    """Whether an error of the CDK is that of a request whose retries are used up, for reasons that
    are not its own."""
    return (
        isinstance(error, AirbyteTracedException)
        and isinstance(error._exception, BaseBackoffException)
        and error.failure_type is FailureType.transient_error
    )


class _Outage:
    """The requests of a stream in a row that were given up for reasons that are not their own.

    A request is one thread's until it is over. One is given up after ``max_retries``, and when its
    thread begins another though it was to be tried again: the CDK's ``max_time`` was over, or the
    wait that Amplitude asked for too long.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._request = threading.local()  # with `tries`, and `said`: of it, and of its last answer
        self._given_up: list[tuple[str, str]] = []

    def begin_request(self) -> None:
        if getattr(self._request, "tries", 0):
            self._give_up()
        self._refuse_if_out()
        self._request.tries = 0

    def end_request(self, is_answered: bool = False) -> None:
        self._request.tries = None
        with self._lock:
            if is_answered and len(self._given_up) < GIVEN_UP_IN_A_ROW:
                self._given_up.clear()

    def count(self, answer: Any, said: str, max_retries: Any) -> None:
        if getattr(self._request, "tries", None) is None:
            return
        self._request.tries += 1
        self._request.said = _endpoint_and_window(answer), said
        if self._request.tries > (max_retries or 0):
            self._give_up()
            self._refuse_if_out()

    def _give_up(self) -> None:
        self._request.tries = None
        with self._lock:
            self._given_up.append(self._request.said)

    def _refuse_if_out(self) -> None:
        with self._lock:
            row = self._given_up[:GIVEN_UP_IN_A_ROW]
        if len(row) == GIVEN_UP_IN_A_ROW:
            message = (
                f"{len(row)} requests in a row were given up after their retries, from {row[0][0]} "
                f"on. Of the last, {row[-1][0]}: {row[-1][1].rstrip('. ')}. So the stream ends "
                "here, and nothing more of it is asked for. What was read is kept: run it again "
                "when Amplitude answers, and it goes on before the gap."
            )
            raise OutageError(
                message=message, internal_message=message, failure_type=FailureType.transient_error
            )


def _endpoint_and_window(answer: requests.Response | requests.RequestException) -> str:
    if not (request := _request(answer)):
        return "a request"
    path = urlsplit(request.url or "").path
    return f"{path} for {_window(answer)}" if "start" in _query_of(request) else path


def _price_queries(budget: APIBudget) -> None:
    """Have a budget weigh each query by its own price; a matcher's ``weight`` is the query type."""
    for policy in budget._policies:
        if isinstance(policy, BaseCallRatePolicy) and "get_weight" not in vars(policy):
            policy.get_weight = partial(_weight, policy.get_weight)  # type: ignore[method-assign]
            policy.try_acquire = partial(_acquire, policy.try_acquire)  # type: ignore[method-assign]


def _acquire(acquire: Callable[..., None], request: requests.PreparedRequest, weight: int) -> None:
    """As the budget's, but a long wait has a line in the log: the CDK waits in silence."""
    try:
        acquire(request, weight=weight)
    except CallRateLimitHit as hit:
        if hit.time_to_wait >= _WAIT_LOGGED:
            query = _query_of(request)
            days = f" for {query['start']} to {query['end']}" if _asks_for_days(query) else ""
            _LOGGER.info(
                f"{urlsplit(request.url or '').path}{days} waits for Amplitude's rate limit, of "
                f"which it takes {weight:,} units. It goes on at "
                f"{now_utc() + hit.time_to_wait:%H:%M:%S} UTC."
            )
        raise


def _weight(query_type: Callable[[Any], int], request: requests.PreparedRequest) -> int:
    return price(request, query_type(request))


def _connection_failed(
    error: requests.RequestException, request: requests.Request | requests.PreparedRequest | None
) -> ErrorResolution:
    host = urlsplit(request.url or "").hostname if request else None
    advice = "(name lookup, firewall, proxy)"
    if isinstance(error, requests.exceptions.SSLError):
        advice = (
            "(a firewall or proxy in between may sign its own certificates: then have the "
            "environment variable REQUESTS_CA_BUNDLE name a file with these)"
        )
    return ErrorResolution(
        ResponseAction.RETRY,
        FailureType.transient_error,
        f"The connection to {host or 'Amplitude'} failed ({type(error).__name__}: "
        f"{_unquoted_reason(error)}). Check that this machine may reach it over HTTPS {advice}, "
        "then try again.",
    )


def _is_too_far_back(response: requests.Response) -> bool:
    """Whether Amplitude says that the plan keeps no such history, which is not about the keys."""
    is_about_days = _asks_for_days(_query(response))
    return response.status_code == 403 and is_about_days and _TOO_FAR_BACK in response.text


@dataclass
class SecretiveErrorHandler(AmplitudeErrorHandler):
    """As its base, for answers whose objects have a secret in the field ``secret_field``.

    In: a response with a JSON body. Out: the same response, its body rewritten with the end of each
    secret alone, "…abcd", before anything can show it: records, messages, the log of ``--debug``
    and the Builder's view of responses are all made from it. A transformation would come too late
    for all but the records. A body that is no JSON object becomes an error that says so.
    """

    secret_field: str = ""

    def resolve(
        self, response_or_exception: requests.Response | Exception | None
    ) -> ErrorResolution:
        if isinstance(response_or_exception, requests.Response):
            body = self._without_secrets(response_or_exception.content)
            response_or_exception._content = body.encode()
            response_or_exception.encoding = "utf-8"
        return super().resolve(response_or_exception)

    def _without_secrets(self, body: bytes) -> str:
        if not body:
            return ""
        try:
            text = body.decode("utf-8-sig", "replace")
            answer = json.loads(text, object_hook=self._without_secret)
            if isinstance(answer, dict):
                return json.dumps(answer)
        except (ValueError, RecursionError):
            pass
        said = f"{len(body):,} bytes that are no JSON object, and may hold secrets"
        return json.dumps({"error": said})

    def _without_secret(self, found: dict[str, Any]) -> dict[str, Any]:
        if found.get(self.secret_field) is not None:
            found[self.secret_field] = _end_of_secret(found[self.secret_field])
        return found


def _end_of_secret(secret: Any) -> str:
    """Its last four characters, "…abcd", or fewer, so that three quarters of it stay hidden."""
    text = secret if isinstance(secret, str) else ""
    return "…" + text[len(text) - min(4, len(text) // 4) :]


@dataclass
class RetryAfterBackoffStrategy(BackoffStrategy):
    """The header ``Retry-After`` in, seconds out, or None when it names no time to come.

    The built-in ``WaitTimeFromHeader`` knows no dates (RFC 9110, 10.2.3), and would have the CDK
    sleep for -5 or NaN seconds.

    A 429 without the header waits for ``rate_limited_seconds``.

    Raises ``AirbyteTracedException`` for a wait of ``max_seconds`` or more.
    """

    max_seconds: int
    rate_limited_seconds: int

    def backoff_time(
        self,
        response_or_exception: requests.Response | requests.RequestException | None,
        attempt_count: int,
    ) -> float | None:
        if not isinstance(response_or_exception, requests.Response):
            return None
        is_rate_limited = response_or_exception.status_code == 429
        otherwise = self.rate_limited_seconds if is_rate_limited else None
        header = response_or_exception.headers.get("Retry-After", "")
        try:
            seconds = Retry().parse_retry_after(header)
        except (InvalidHeader, OverflowError, ValueError):
            return otherwise
        if seconds >= self.max_seconds:
            message = (
                f"Amplitude answered HTTP {response_or_exception.status_code} and asks to wait for "
                f"longer than a sync should (Retry-After: {_excerpt(header, 40)}). Run it again "
                "after that."
            )
            raise failure(message, FailureType.transient_error)
        return seconds or otherwise


class _Transformation(RecordTransformation):
    """A record in; the same, changed in place, out. Built-in ones evaluate templates for each."""

    def transform(
        self,
        record: dict[str, Any],
        config: Mapping[str, Any] | None = None,
        stream_state: Mapping[str, Any] | None = None,
        stream_slice: StreamSlice | None = None,
    ) -> None:
        self.change(record, config or {}, stream_slice)

    def change(
        self, record: dict[str, Any], config: Mapping[str, Any], slice_: StreamSlice | None
    ) -> None:
        raise NotImplementedError


@dataclass
class ProjectName(_Transformation):
    """Adds the config's ``project_name``, if there is one."""

    def change(
        self, record: dict[str, Any], config: Mapping[str, Any], slice_: StreamSlice | None
    ) -> None:
        if name := config.get("project_name"):
            record["project_name"] = name


@dataclass
class FromSlice(_Transformation):
    """Copies what the slice has at paths into ``fields``: ``{metric: parent_slice.metric}``.

    Extra fields of the slice stand under ``extra_fields``. AddFields would evaluate a text once
    more, which takes off quotes, and makes a number of the name ``1e3``.
    """

    fields: dict[str, str]

    def change(
        self, record: dict[str, Any], config: Mapping[str, Any], slice_: StreamSlice | None
    ) -> None:
        if slice_ is not None:
            parts = {**slice_, "extra_fields": slice_.extra_fields}
            for name, path in self.fields.items():
                record[name] = _value_at(path.split("."), parts)


# -------------------------------------------------------------------------------------------------
# 4 State: what has been read, and what is to be read again
# -------------------------------------------------------------------------------------------------
# Where a migrated state has what a partition without one begins with.
NEW_PARTITION = "new_partition"


@dataclass
class SavedState(StateMigration):
    """A saved state in; out, the CDK's slices: all is done but for what is to be read again.

    ``read_again`` is a duration (``P7D``), counted back from the state, and with a parameter
    ``period`` (``week``, ``month``) on to the first day of one; ``beyond`` the one by which the
    cursor ends after the newest unit that can be read. The CDK's look-back would do the same, but
    it takes what it reads again for done: a window that fails there, or is not finished when the
    process dies, would not hold the state back. A state from the future is set back to the newest
    unit that can be read, with a line of the log.
    In: ``{cursor_field: time}``, in any of ``formats``, or any of the CDK's own forms that hold
    such a state. Out: ``{"state_type": "date-range", "slices": [{...}]}``, one for each partition
    of a stream that has some; a partition without a state has everything before it.

    Of streams with units (``cursor_granularity``), a state also has the first that it holds, in
    ``from``: the CDK prints what it is given as ``legacy``. When Start Date is moved back, what
    lies before it is read. Until that is done, what was done before is in ``later``, and the cursor
    value lies back there, so that versions that don't know of it read all again. A state without
    ``from`` is taken to hold all from the Start Date of when it is first read here
    (``assumed_from``), with a warning in every sync.

    Raises ``AirbyteTracedException`` (config error) for a state that can't be read.
    """

    config: Mapping[str, Any]
    declarative_stream: DeclarativeStream
    read_again: str
    formats: list[str]
    beyond: str = "PT0S"
    parameters: Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        # Before the cursor is made of them.
        refuse_unusable(self.config)

    def should_migrate(self, stream_state: Mapping[str, Any]) -> bool:
        return bool(self._unit or _without_marks(stream_state))

    def migrate(self, stream_state: Mapping[str, Any]) -> Mapping[str, Any]:
        saved, retriever = _without_marks(stream_state), self.declarative_stream.retriever
        self._assumed, self._moved_back = set[datetime](), set[datetime]()
        migrated: Mapping[str, Any]
        if getattr(retriever, "partition_router", None):
            # What is not here yet is for the cursor of a process of our own.
            migrated = {"states": self._done_by_partition(saved), NEW_PARTITION: self._done({})}
        else:
            migrated = self._done(saved)
        self._log_beginnings()
        return migrated

    def _done_by_partition(self, saved: Mapping[str, Any]) -> list[dict[str, Any]]:
        is_global = "state" in saved or saved.get("use_global_cursor")
        if is_global and "states" not in saved:
            _LOGGER.warning(
                f"The saved state of the stream {self.declarative_stream.name} is one for all of "
                "its partitions, of which there were more than 10,000. All are read anew."
            )
            return []
        try:
            states = saved["states"] if saved else []
            pairs = [(each["partition"], each["cursor"]) for each in states]
        except (LookupError, TypeError):
            raise self._unreadable(f"it is {saved}") from None
        for partition, cursor in pairs:
            if not (_is_partition(partition) and isinstance(cursor, dict)):
                raise self._unreadable(f"it has a partition {partition} with a cursor {cursor}")
        return [{"partition": p, "cursor": self._done(cursor)} for p, cursor in pairs]

    def _done(self, saved: Mapping[str, Any]) -> Mapping[str, Any]:
        cursor: Any = self.declarative_stream.incremental_sync
        value = self._cursor_value(saved, cursor.cursor_field) if saved else None
        is_new = value in (None, "")
        if is_new and not self._unit:
            return {}
        start = self._evaluate(cursor.start_datetime.datetime)
        newest = self._evaluate(cursor.end_datetime.max_datetime) - parse_duration(self.beyond)
        noted, spans = "from", [(start, start)]
        if not is_new:
            state = self._parse(value, cursor)
            if state > newest:
                _LOGGER.warning(
                    f"The saved state of the stream {self.declarative_stream.name} lies in the "
                    f"future ({value}). It is set back to {self._written(newest)}."
                )
                state = newest
            noted, spans = self._spans(saved, start, state)
        if spans[0][1] <= start:
            noted, began = "from", start
        elif (began := spans[0][0]) > start:
            self._moved_back.add(began)
            began = start
        if noted != "from":
            self._assumed.add(began)
        spans = [(max(begin, start), end) for begin, end in spans if end > start]
        if not spans or spans[0][0] > start:
            spans.insert(0, (start, start))
        dones = self._dones(saved, spans, newest)
        # What is to be read again as a whole is as good as not read.
        first, *later = (
            (begin, max(begin, done), end)
            for n, ((begin, end), done) in enumerate(zip(spans, dones, strict=True))
            if not n or done > begin
        )
        slices = [first, *((begin + self._unit, done, end) for begin, done, end in later)]
        names = ("start", "end", "most_recent_cursor_value")
        migrated = {
            "state_type": "date-range",
            "slices": [
                dict(zip(names, map(self._written, times), strict=True)) for times in slices
            ],
        }
        if not self._unit:
            return migrated
        legacy: dict[str, Any] = {noted: self._written(began + self._unit)}
        if later:
            legacy["later"] = [
                {"from": self._written(begin), "to": self._written(end)}
                for begin, _, end in slices[1:]
            ]
        return {**migrated, "legacy": legacy}

    def _spans(
        self, saved: Mapping[str, Any], start: datetime, state: datetime
    ) -> tuple[str, list[tuple[datetime, datetime]]]:
        """What a state holds, from a moment on, that excluded, to another, the earliest first; and
        by which name it notes the first."""
        if not self._unit:
            return "from", [(start, state)]
        cursor: Any = self.declarative_stream.incremental_sync
        noted = "from" if "from" in saved else "assumed_from"
        try:
            began = self._parse(saved[noted], cursor) - self._unit if noted in saved else start
            later = [
                (self._parse(each["from"], cursor) - self._unit, self._parse(each["to"], cursor))
                for each in saved.get("later", [])
            ]
        except (LookupError, TypeError):
            raise self._unreadable(f"it is {saved}") from None
        return noted, [(began, state), *(span for span in later if span[1] > state)]

    def _dones(
        self, saved: Mapping[str, Any], spans: Sequence[tuple[datetime, datetime]], newest: datetime
    ) -> list[datetime]:
        """Of each span, the last moment that is not to be read again."""
        return [self._done_until(min(end, newest), newest) for _, end in spans]

    def _done_until(self, state: datetime, newest: datetime) -> datetime:
        """The last moment that is not to be read again."""
        done: datetime = state - parse_duration(self._interpolate(self.read_again))
        begins = done + timedelta(days=1)
        match (self.parameters or {}).get("period"):
            case "week":
                done -= timedelta(days=begins.weekday())
            case "month":
                done -= timedelta(days=begins.day - 1)
        if done >= newest:  # what lies beyond is not to be read
            done = newest + parse_duration(self.beyond)
        return done

    def _log_beginnings(self) -> None:
        name = self.declarative_stream.name
        if self._moved_back:
            _LOGGER.info(
                f"Start Date (start_date) was moved back before {self._first(self._moved_back)}, "
                f"with which the stream {name} began: what lies between is loaded now."
            )
        if self._assumed:
            _LOGGER.warning(
                f"The saved state of the stream {name} does not say what it began with: an older "
                f"version wrote it. It is taken to hold all from {self._first(self._assumed)} on. "
                "If Start Date (start_date) was moved back to that after the first sync, what lies "
                "between was not loaded: refresh the stream in Airbyte."
            )

    def _first(self, beginnings: set[datetime]) -> str:
        return self._written(min(beginnings) + self._unit)

    @property
    def _unit(self) -> Any:
        cursor: Any = self.declarative_stream.incremental_sync
        return cursor.cursor_granularity and parse_duration(cursor.cursor_granularity)

    def _written(self, time: datetime) -> str:
        cursor: Any = self.declarative_stream.incremental_sync
        return DatetimeParser().format(time, cursor.datetime_format)

    def _cursor_value(self, state: Mapping[str, Any], field: str) -> Any:
        if field in state:
            return state[field]
        match state:
            case {"slices": [{"most_recent_cursor_value": value}, *_]} if value:
                return value
            case {"slices": [{"start": value}, *_]}:
                return value
            case {"state": {**inner}} | {"states": [{"cursor": {**inner}}]} if field in inner:
                return inner[field]
        raise self._unreadable(f"it is {dict(state)}")

    def _evaluate(self, template: str) -> datetime:
        cursor: Any = self.declarative_stream.incremental_sync
        return DatetimeParser().parse(self._interpolate(template), cursor.datetime_format)

    def _interpolate(self, template: str) -> str:
        text = InterpolatedString.create(template, parameters=self.parameters or {})
        return str(text.eval(self.config))

    def _parse(self, value: object, cursor: Any) -> datetime:
        parser = DatetimeParser()
        for form in self.formats:
            with suppress(ValueError):
                time = parser.format(parser.parse(str(value), form), cursor.datetime_format)
                return parser.parse(time, cursor.datetime_format)
        example = parser.format(datetime(2024, 1, 31, 20), cursor.datetime_format)
        raise self._unreadable(
            f"{cursor.cursor_field} is {value!r}, where a time such as {example} should be"
        )

    def _unreadable(self, reason: str) -> AirbyteTracedException:
        name = self.declarative_stream.name
        error = refusal(
            f"The saved state of the stream {name} can't be read: {_excerpt(reason, 500)}. Clear "
            "the stream's data in Airbyte, or mend its state."
        )
        # By this, a process of our own knows which stream to leave out.
        error._stream_descriptor = StreamDescriptor(name=name or "")
        return error


def _without_marks(stream_state: Mapping[str, Any]) -> dict[str, Any]:
    """A state without what the CDK writes for streams that have none."""
    return {key: value for key, value in stream_state.items() if not key.startswith("__ab_")}


def _is_partition(value: Any) -> bool:
    return isinstance(value, dict) and all(
        isinstance(each, str | int) or _is_partition(each) for each in value.values()
    )


# -------------------------------------------------------------------------------------------------
# 5 Export: archives, their events, what is left of those, and files
# -------------------------------------------------------------------------------------------------
_GIVE_WAY_BYTES = 128 * 1024
_LINE_BYTES = 32 * 1024 * 1024
# What members may hold all in all, whatever is packed; above it, so many times of what is packed.
_INFLATED_BYTES, _INFLATED_TIMES = 1024**3, 1_000
_BREAKS_BEFORE_SPLIT = 2
# zipfile and gzip raise more than their own errors for damaged or unusual archives.
_UNZIP_ERRORS = (
    EOFError,
    LZMAError,
    NotImplementedError,
    OSError,
    RuntimeError,
    struct.error,
    ValueError,
    zipfile.BadZipFile,
    zlib.error,
)
_SPOOLED_ADVICE = (
    "Archives are held there while they are read. Make room, or point the environment variable "
    "TMPDIR to a folder with more; fewer Hours per Export Request make smaller archives."
)
_STAGED_ADVICE = (
    "Files stay there until the destination has taken them. Make room; the next sync goes on where "
    "this one ended."
)
# How long a full staging folder is waited for, and how long between two looks.
_ROOM_SECONDS, _LOOK_SECONDS = 600, 5
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT)
# Engines pass over names that begin with a dot or an underscore, and inflate by how they end.
_FILE_NAME = re.compile(r"[A-Za-z0-9][^/\\\x00-\x1f\x7f]*\.json\.gz", re.ASCII)
_HOUR_IN_NAME = re.compile(r"(?<!\d)(\d{4}-\d\d-\d\d)_(\d{1,2})(?=[#.])", re.ASCII)
_TRIES_AT_FOLDER = 100
# What Hive and Spark write as %XX in the name of a partition's folder, and take back.
_NOT_IN_FOLDER = re.compile(r"[\x00-\x1f\x7f\"#%'*/:=?\\{\[\]^]")
_FILTERS_WARNING = (
    "Filter Events does not apply to the stream raw_events_files: its files hold all events as "
    "Amplitude has them, with all their properties. Deselect it if that must not be."
)
_MEMBER_NAME = re.compile(
    r"(?:\d{1,20}/)?\d{1,20}_\d{4}-\d\d-\d\d_\d\d?#\d{1,9}\.json\.gz", re.ASCII
)
_NESTED = frozenset((dict, list))
_EXPORT_TIMESTAMP = re.compile(r"(\d{4})[-:](\d\d)[-:](\d\d) (\d\d:\d\d:\d\d(?:\.\d{1,6})?)")


@dataclass
class ExportErrorHandler(AmplitudeErrorHandler):
    """An export archive counts as a success only when all of it has arrived.

    In: a response with an unread ``application/zip`` body. Out: the same response with ``raw``
    replaced by a temporary file that holds the archive, checked against its own directory and
    checksums. The CDK itself never retries a streamed body that breaks off, and would hold an
    unstreamed one (up to 4 GB) in memory. An hour that can't be split any more is unpacked as well
    before it counts. A 404 in Amplitude's own words, an empty window, is named in the log. Codes
    for ``too_much`` are left to the next handler. All else is as in the base class.

    With ``is_staged``, nobody reads the members later: all are unpacked before any is handed over.

    Raises ``DefaultBackoffException``, which has the CDK ask again, for a connection that breaks
    or stays silent, for a body that is no intact archive and for any other 404; resolves to a
    split when connections for a long window break again and again, or a member of one is damaged.
    """

    is_staged: bool = False
    gunzip: ClassVar[Callable[..., Any]] = gzip.GzipFile
    too_much: list[int] = field(default_factory=list)

    def __post_init__(self, parameters: Mapping[str, Any]) -> None:
        super().__post_init__(parameters)
        self._breaks: MutableMapping[requests.PreparedRequest, int] = WeakKeyDictionary()

    def resolve(
        self, response_or_exception: requests.Response | Exception | None
    ) -> ErrorResolution:
        if isinstance(response_or_exception, requests.RequestException) and _is_break(
            response_or_exception
        ):
            return self._broken(response_or_exception, response_or_exception)
        if not isinstance(response_or_exception, requests.Response):
            return super().resolve(response_or_exception)
        response, window = response_or_exception, _window(response_or_exception)
        failure_type = FailureType.transient_error
        try:
            if response.ok or response.history:
                response.raw = _spool_archive(response, self.is_staged, self.gunzip)
                return SUCCESS_RESOLUTION
            if response.status_code in self.too_much:
                return ErrorResolution(ResponseAction.FAIL, FailureType.system_error)
            if response.status_code != 404:
                return super().resolve(response)
            if _says_no_events(response):
                said = f"Export of {window}: no events (HTTP 404: {_error_text(response)})"
                return ErrorResolution(ResponseAction.IGNORE, error_message=said)
            failure: Exception = ValueError("no answer")
            message = (
                f"The answer to the export of {window} (HTTP 404: {_error_text(response)}) is not "
                f"Amplitude's own sentence for a range without events, {_NO_EVENTS!r}. It may be a "
                "gateway's or a proxy's, so nothing was skipped. Try again later; if it stays, "
                "report it to Amplitude's support."
            )
        except requests.RequestException as error:
            response.close()
            return self._broken(error, response)
        except _DamagedMember as error:
            failure = error
            message = f"{error} in the export of {window}."
            failure_type = FailureType.system_error
            if not _is_one_hour(window):  # so that its other hours arrive
                response.close()
                return ErrorResolution(
                    ResponseAction.SPLIT_REQUEST_WINDOW, failure_type, error_message=message
                )
        except zipfile.BadZipFile as error:
            failure = error
            message = (
                f"The answer to the export of {window} (HTTP {response.status_code}) is no intact "
                f"zip archive: {error}."
            )
            if response.history:  # only the host is named: the address may hold a token
                message += (
                    f" It came from {urlsplit(response.url).hostname}, to which the export was "
                    f"redirected (HTTP {response.history[0].status_code}): look for a proxy or a "
                    "sign-in page between this machine and Amplitude, then try again."
                )
        response.close()
        # Raised, because the CDK logs the body of a response that is resolved to be retried.
        raise DefaultBackoffException(response.request, failure, message, failure_type)

    def _broken(
        self,
        error: requests.RequestException,
        answer: requests.Response | requests.RequestException,
    ) -> ErrorResolution:
        request, window = _request(answer), _window(answer)
        message = (
            f"The connection to {urlsplit(request.url or '').hostname} broke or stayed silent in "
            f"the export of {window} ({type(error).__name__}: {_unquoted_reason(error)}). Try "
            "again later; if that does not help, lower Hours per Export Request, so that Amplitude "
            "has less to send at once."
        )
        breaks = self._breaks[request] = self._breaks.get(request, 0) + 1
        if breaks <= _BREAKS_BEFORE_SPLIT or _is_one_hour(window):
            failure_type = FailureType.transient_error
            raise DefaultBackoffException(request, error, message, failure_type) from None
        return ErrorResolution(
            ResponseAction.SPLIT_REQUEST_WINDOW, FailureType.transient_error, message
        )


def _is_break(error: requests.RequestException) -> bool:
    """Whether a connection broke or stayed silent, so that a smaller window may get through; not
    whether none came about (name lookup, refusal, proxy, certificate)."""
    cause = error.args[0] if error.args else None
    return isinstance(error, requests.ReadTimeout) or isinstance(cause, ProtocolError)


def _says_no_events(response: requests.Response) -> bool:
    """Whether a 404 of the export is Amplitude's own sentence: in its envelope, ``{"error":
    {"message", "metadata": {"details"}}}``, or as plain text. A gateway may say anything else."""
    said: list[Any] = [response.text]
    with suppress(AttributeError, LookupError, TypeError, ValueError):
        error = response.json()["error"]
        said = [error.get("message"), (error.get("metadata") or {}).get("details")]
    return any(map(_is_no_events, said))


def _is_one_hour(window: str) -> bool:
    start, _, end = window.partition(" to ")
    return start == end


def _spool_archive(
    response: requests.Response, is_staged: bool, gunzip: Callable[..., Any]
) -> IO[bytes]:
    """The body in a file that vanishes with the process, checked to be an intact zip.

    Raises ``requests.RequestException`` when the connection breaks off, ``zipfile.BadZipFile``
    when the body is something else or damaged, ``AirbyteTracedException`` when the disk refuses.
    """
    with (
        _storing("An export archive", Path(tempfile.gettempdir()), _SPOOLED_ADVICE),
        _kept_open(tempfile.TemporaryFile()) as spooled,
    ):
        _spool(response, spooled, f"Export of {_window(response)}")
        is_to_be_unpacked = is_staged or _is_one_hour(_window(response))
        _check_archive(spooled, gunzip if is_to_be_unpacked else None)
    return spooled


class _DamagedMember(zipfile.BadZipFile):
    """A member of an intact zip archive that can't be unpacked."""


def _check_archive(spooled: IO[bytes], gunzip: Callable[..., Any] | None) -> None:
    try:
        with _Archive(spooled) as archive:
            # A damaged directory may hide a member from zipfile, which does not count them.
            if (len(archive.filelist) - _member_count(spooled)) % 2**16:
                raise zipfile.BadZipFile("its directory is incomplete")
            # The checksum of a member is not looked at when its size was damaged to 0.
            if any(member.CRC and not member.file_size for member in archive.filelist):
                raise zipfile.BadZipFile("a member has lost its size")
            damaged = archive.testzip()
            if gunzip and not damaged:
                for member in archive.infolist():
                    with archive.unpacked(gunzip, member) as lines:
                        while lines.read(_CHUNK_BYTES):
                            pass
    except _DamagedMember:
        raise
    except _UNZIP_ERRORS as error:
        reason = _unquoted_reason(error)
        raise zipfile.BadZipFile(f"{reason}; it is {_described(spooled)}") from None
    if damaged:
        raise zipfile.BadZipFile(f"the checksum of member {_member_name(damaged)} does not match")


def _member_count(spooled: IO[bytes]) -> int:
    """The number of members that the archive itself says it has; modulo 2 ** 16 if not zip64.

    https://pkware.cachefly.net/webdocs/casestudies/APPNOTE.TXT (4.3.14 to 4.3.16)
    """
    spooled.seek(0, io.SEEK_END)
    spooled.seek(-min(spooled.tell(), 2**17), io.SEEK_END)
    before, _, end = spooled.read().rpartition(b"PK\5\6")
    if before[-20:].startswith(b"PK\6\7"):
        return int(struct.unpack_from("<Q", before, before.rindex(b"PK\6\6") + 32)[0])
    return int(struct.unpack_from("<H", end, 6)[0])


class _Archive(zipfile.ZipFile):
    """An export, whose members must not inflate beyond all measure.

    Raises ``zipfile.BadZipFile`` when its directory says that they do.
    """

    def __init__(self, spooled: IO[bytes]) -> None:
        super().__init__(spooled)
        packed = sum(member.compress_size for member in self.filelist)
        self._left = self._limit = max(_INFLATED_BYTES, _INFLATED_TIMES * packed)
        if sum(member.file_size for member in self.filelist) > self._limit:
            self.close()
            raise zipfile.BadZipFile(self._too_much())

    @contextmanager
    def unpacked(
        self, gunzip: Callable[..., Any], member: zipfile.ZipInfo
    ) -> Iterator[io.BufferedReader]:
        try:
            with self.open(member) as packed:
                bounded = _Counted(gunzip(fileobj=packed), self._count)
                yield io.BufferedReader(bounded, _CHUNK_BYTES)
        except _UNZIP_ERRORS as error:
            name, reason = _member_name(member.filename), _unquoted_reason(error)
            raise _DamagedMember(f"Member {name} can't be unpacked ({reason})") from None

    def _count(self, size: int) -> None:
        self._left -= size
        if self._left < 0:
            raise zipfile.BadZipFile(self._too_much())

    def _too_much(self) -> str:
        return f"the archive would inflate to more than {self._limit:,} bytes"


def _member_name(name: str) -> str:
    """The name of a member if it is one of Amplitude's, which has nothing of a customer."""
    return name if _MEMBER_NAME.fullmatch(name) else f"with a name of {len(name)} characters"


class _Counted(io.RawIOBase):
    """What is read from a file, with each length shown to ``count``."""

    def __init__(self, file: Any, count: Callable[[int], None]) -> None:
        super().__init__()
        self._file, self._count = file, count

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        size: int = self._file.readinto(buffer)
        self._count(size)
        return size


class LeftOutEvent(dict[str, Any]):
    """Of an event that is not passed on, what the cursor needs."""


class _Edits(NamedTuple):
    """What names of the config ask for, by the key that is meant, and by the end of its path, such
    as ``.a.b``: whether its value is hashed rather than dropped, and those names."""

    by_key: dict[str, tuple[bool, list[str]]]
    by_path: dict[str, tuple[bool, list[str]]]
    last_parts: tuple[str, ...]  # of the paths: what a key has to end with

    @classmethod
    def of(cls, dropped: Set[str], hashed: Set[str], column: str | None) -> "_Edits":
        """Those for a column of properties; for all others, if it is None."""
        edits = cls({}, {}, tuple(name.rpartition(".")[2] for name in dropped | hashed))
        for name in (*dropped, *hashed):
            first, _, rest = name.partition(".")
            if first not in _PROPERTY_COLUMNS or not rest:
                rest = name
            elif first != column:
                continue
            table, key = (edits.by_path, f".{rest}") if "." in rest else (edits.by_key, rest)
            names = [*table.get(key, (True, []))[1], name]
            table[key] = (set(names).isdisjoint(dropped), names)
        return edits


class EventFilter:
    """What *Filter Events* of the config makes of events, one by one, in the order they are read.

    A name to drop or hash stands for every key of that name in the event, however deep it lies;
    ``a.b`` for a ``b`` in an ``a``, and for a key ``a.b``; after one of ``_PROPERTY_COLUMNS`` and a
    dot, for what lies in that column only. RecordFilter and RemoveFields evaluate templates for
    every record, and the cursor never sees what they leave out.
    """

    def __init__(self, config: Mapping[str, Any]) -> None:
        lists = [config.get(name) or () for name in _LISTS_OF_FILTERS]
        _log_blanks(chain(*lists), "Filter Events")
        self._only, self._without, dropped, hashed = map(_names, lists)
        salt = (config.get("hash_salt") or "").strip()
        if salt:
            keep_secret(salt)
        self._keyed = blake2b(key=salt.encode(), digest_size=32)
        self._edits = {c: _Edits.of(dropped, hashed, c) for c in (None, *_PROPERTY_COLUMNS)}
        self._edits_any = bool(dropped or hashed)
        self._unseen_types = {_meant(name) for name in self._only | self._without}
        self._unseen_names = {_meant(name) for name in dropped | hashed}
        self._logged: list[str] = []
        self.read = self.left_out = 0

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> "EventFilter | None":
        """None when nothing is configured, so that nothing is spent on events."""
        return cls(config) if any(config.get(name) for name in _LISTS_OF_FILTERS) else None

    def passes(self, event: dict[str, Any]) -> bool:
        """Whether the event is passed on; if so, what is to be dropped or hashed in it now is."""
        self.read += 1
        event_type = event.get("event_type")
        if not isinstance(event_type, str):
            event_type = ""
        self._unseen_types.discard(_meant(event_type))
        passes = event_type not in self._without and (not self._only or event_type in self._only)
        if passes and self._edits_any:
            self._edit_event(event)
            # The CDK takes an empty record for the end of the sync.
            passes = bool(event)
        self.left_out += not passes
        return passes

    def log_unseen(self) -> None:
        """Name what no event has had so far, unless the last line has just done so."""
        types = sorted(self._unseen_types) if self.read else []
        names = sorted(self._unseen_names) if self.read > self.left_out else []
        unseen = [*(f"event type {t!r}" for t in types), *(f"property {n!r}" for n in names)]
        if unseen and unseen != self._logged:
            _LOGGER.warning(
                f"Filter Events: what this sync has read so far had no {', no '.join(unseen)}. "
                "Check how it is spelt in Amplitude, upper and lower case included."
            )
            self._logged = unseen

    def _edit_event(self, event: dict[str, Any]) -> None:
        elsewhere = self._edits[None]
        self._edit_keys(event, elsewhere, "")
        for column, value in event.items():
            if type(value) in _NESTED and value:
                edits = self._edits.get(column, elsewhere)
                if edits.by_key or edits.by_path:
                    self._edit(value, edits, f".{column}")

    def _edit(self, container: Any, edits: _Edits, path: str) -> None:
        """Drop and hash in an object or a list at a path, such as ``.a.b``."""
        if type(container) is list:
            for value in container:
                if type(value) in _NESTED and value:
                    self._edit(value, edits, path)
            return
        self._edit_keys(container, edits, path)
        for key, value in container.items():
            if type(value) in _NESTED and value:
                self._edit(value, edits, f"{path}.{key}")

    def _edit_keys(self, container: dict[str, Any], edits: _Edits, path: str) -> None:
        found = [(key, edit) for key, edit in edits.by_key.items() if key in container]
        if edits.by_path:
            for key in container:
                if key.endswith(edits.last_parts):
                    full = f"{path}.{key}"
                    found += [(key, e) for end, e in edits.by_path.items() if full.endswith(end)]
        if not found:
            return
        is_hashed: dict[str, bool] = {}
        for key, (hashes, names) in found:
            # What is dropped by one name is not hashed by another.
            is_hashed[key] = hashes and is_hashed.get(key, True)
            self._unseen_names.difference_update(map(_meant, names))
            if self._unseen_names and type(container[key]) in _NESTED:
                # What is named in it, too, goes with it.
                below = {name for name in self._unseen_names if f".{key}." in f".{name}"}
                self._unseen_names -= below
        for key, hashes in is_hashed.items():
            if not hashes:
                del container[key]
            elif container[key] is not None:
                container[key] = self._hash(container[key])

    def _hash(self, value: Any) -> str:
        text = value
        if not isinstance(value, str):
            text = json.dumps(value, ensure_ascii=False, sort_keys=True, separators=(",", ":"))
        keyed = self._keyed.copy()
        keyed.update(text.encode())
        return keyed.hexdigest()


@dataclass
class ExportArchiveExtractor(RecordExtractor):
    """Zip of gzips of JSON lines in (as ``ExportErrorHandler`` leaves it), one record per line out.

    Records are what Amplitude sent, but for ``timestamp_fields``: their naive UTC form
    ``2024-01-01 05:00:00.123456`` becomes RFC 3339, ``2024-01-01T05:00:00.123456+00:00``; and for
    ``list_fields``: a list becomes its JSON, ``["a","b"]``, and a text that of a list of it. A
    ``cursor_field`` beyond its window keeps a form that no cursor reads, so that the state does not
    follow it. Project Name is added, as by ``ProjectName``, and *Filter Events* is applied, by
    ``EventFilter``. The built-in decoders hold archive and members in memory, drop lines they can't
    parse, and leave timestamps to a transformation that costs more per event than all of this does.

    Raises ``RequestWindowSplitRequiredException``, which has the CDK read the window again as two
    halves, for a member that can't be unpacked; ``AirbyteTracedException`` naming window, member
    and line for one that is no event.
    """

    timestamp_fields: list[str]
    cursor_field: str
    config: Mapping[str, Any] = field(default_factory=dict)
    list_fields: list[str] = field(default_factory=list)
    gunzip: ClassVar[Callable[..., Any]] = gzip.GzipFile
    # No component is told where a sync ends.
    logs_unseen_by_window: ClassVar[bool] = True

    def __post_init__(self) -> None:
        self._project_name = self.config.get("project_name")
        self._filter = EventFilter.of(self.config)
        # Archives are downloaded side by side and read one by one: readers of several would hinder
        # each other at the interpreter's lock, and outrun the thread that prints.
        self._one_by_one = threading.Lock()

    def extract_records(self, response: requests.Response) -> Iterable[MutableMapping[str, Any]]:
        events = self._events(response)
        if self._filter is None:
            return events
        return (event for event in events if not isinstance(event, LeftOutEvent))

    def _events(self, response: requests.Response) -> Iterator[dict[str, Any]]:
        """All events, a ``LeftOutEvent`` in the place of each that is filtered out."""
        window = _window(response)
        # As the first 13 characters of a timestamp.
        last_hour = datetime.strptime(window[-11:], "%Y%m%dT%H").strftime("%Y-%m-%dT%H")
        raw: Any = response.raw
        with self._one_by_one, raw as spooled, _Archive(spooled) as archive:
            started = reported = time.monotonic()
            members = [m for m in archive.infolist() if m.file_size]
            events = unreported_bytes = 0
            left_out_before = self._filter.left_out if self._filter else 0
            for files, member in enumerate(members):
                for line_number, line, is_blank in _lines(self.gunzip, archive, member, window):
                    if not is_blank:
                        yield self._event(line, line_number, member.filename, window, last_hour)
                        events += 1
                    unreported_bytes += len(line)
                    if unreported_bytes < _GIVE_WAY_BYTES:
                        continue
                    # Let the thread that prints records catch up. The queue between the two is
                    # bounded in records only, and records that grow old in it are slow to print.
                    unreported_bytes = 0
                    time.sleep(0)
                    if time.monotonic() - reported > _REPORT_SECONDS:
                        reported = time.monotonic()
                        _LOGGER.info(
                            f"Export of {window}: {events:,} events so far, of {files} of "
                            f"{len(members)} files."
                        )
            size = sum(member.compress_size for member in members)
            left_out = self._filter.left_out - left_out_before if self._filter else 0
            of_them = f" ({left_out:,} of them left out by Filter Events)" if left_out else ""
            _LOGGER.info(
                f"Export of {window}: {len(members)} files, {events:,} events{of_them}, {size:,} "
                f"bytes zipped, read in {time.monotonic() - started:.1f} s."
            )
            if self._filter and self.logs_unseen_by_window:
                self._filter.log_unseen()

    def _event(
        self, line: bytes, number: int, member: str, window: str, last_hour: str
    ) -> dict[str, Any]:
        try:
            event = _parse_event(line)
        except ValueError:
            raise failure(
                f"Amplitude sent something that is no event: line {number} of member "
                f"{_member_name(member)} of the export of {window}. Nothing after it was read. "
                "Report the window to Amplitude's support."
            ) from None  # the cause would quote the line, which is a customer's data
        for name in self.list_fields:
            if name in event:
                event[name] = _json_of_list(event[name])
        if self._filter is not None and not self._filter.passes(event):
            event = LeftOutEvent({self.cursor_field: event.get(self.cursor_field)})
        for name in self.timestamp_fields:
            value = event.get(name)
            if value:
                event[name] = _rfc3339(value)
        cursor_value = event.get(self.cursor_field)
        if isinstance(cursor_value, str) and cursor_value[:13] > last_hour:
            event[self.cursor_field] = cursor_value.replace("T", " ", 1)
        if self._project_name:
            event["project_name"] = self._project_name
        return event


def _lines(
    gunzip: Callable[..., Any], archive: _Archive, member: zipfile.ZipInfo, window: str
) -> Iterator[tuple[int, bytes, bool]]:
    """The lines of a member, each with its number, and whether it is blank; a stretch of blank ones
    as one, since 256 MB of them fit into 700 bytes."""
    number = 1
    try:
        with archive.unpacked(gunzip, member) as lines:
            # Not a plain iteration: a line may not grow beyond all bounds.
            while line := lines.readline(_LINE_BYTES):
                if not line.isspace():
                    yield number, line, False
                    number += 1
                    continue
                while line:
                    yield number, line, True
                    number += line.count(b"\n")
                    ahead = lines.peek()
                    blank = ahead[: len(ahead) - len(ahead.lstrip())]
                    # Blanks may be the beginning of an event.
                    line = lines.read(blank.rfind(b"\n") + 1)
    except _DamagedMember as error:
        message = f"{error} in the export of {window}."
        _LOGGER.warning(f"{message} Its hours are read again; their events may come twice.")
        raise RequestWindowSplitRequiredException("events", message) from error


def _parse_event(line: bytes) -> dict[str, Any]:
    """One line of an archive as an object; raises ``ValueError`` when it is none."""
    event = _parse(line)
    # The CDK takes an empty record for the end of the sync.
    if not isinstance(event, dict) or not event:
        raise ValueError("no event")
    return event


def _rfc3339(value: Any) -> Any:
    """Amplitude's naive UTC timestamp in RFC 3339; anything else as it came."""
    if not isinstance(value, str):
        return value
    # Slicing is what nearly every value takes: it costs a fortieth of parsing.
    if len(value) == 26 and value[10] == " " and value[4] == "-":
        return f"{value[:10]}T{value[11:]}+00:00"
    if match := _EXPORT_TIMESTAMP.fullmatch(value):
        year, month, day, time = match.groups()
        return f"{year}-{month}-{day}T{time}+00:00"
    return value


def _json_of_list(value: Any) -> Any:
    """A list as JSON, a text as that of a list of it; anything else as it came."""
    if isinstance(value, str) and value and not value.startswith("["):
        value = [value]
    return orjson.dumps(value).decode() if isinstance(value, list) else value


@dataclass
class StagedFilesExtractor(RecordExtractor):
    """The archive of a window in (as ``ExportErrorHandler`` leaves it), a record about each of its
    members out, which then is a file in the staging folder, as engines read them.

    Out: ``{"hour": "2026-11-23T14:00:00+00:00", "path": "events/date=2026-11-23/hour=14/1.json.gz",
    "file": "1.json.gz", "bytes": 1234}``, where the file is the member's gzip, in the place of an
    earlier one of that name. With Project Name there is a folder more, ``project=Shop``. Members
    without bytes make no file. The hour is that of the name, ``187520_2026-11-23_14#0.json.gz``; of
    a name without one, that of a window of one hour. No built-in knows of files that are there.

    When there is no room, it looks for ten minutes whether the destination makes some; nothing is
    asked for again meanwhile, so that no back-off of the CDK's would do.

    Raises ``RequestWindowSplitRequiredException``, which has the CDK read the window again as two
    halves, for a name without an hour in a longer window; ``AirbyteTracedException`` for a name
    that is none of a file, or contradicts the window, and when the disk refuses.
    """

    config: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._root = "events"
        if project := self.config.get("project_name"):
            self._root += f"/project={_NOT_IN_FOLDER.sub(_percent_encoded, project)}"
        self.ended = ""  # by a folder that stayed full: what is said about it

    def extract_records(self, response: requests.Response) -> Iterable[MutableMapping[str, Any]]:
        window, folder = _window(response), _staging_folder()
        raw: Any = response.raw
        with raw as spooled, _Archive(spooled) as archive:
            members = [member for member in archive.infolist() if member.file_size]
            # All of them, before the first is handed over.
            records = [self._record(member, window) for member in members]
            if len({record["path"] for record in records}) < len(records):
                raise failure(
                    f"Two members of the export of {window} have one name. {_UNUSABLE_ADVICE}"
                )
            for member, record in zip(members, records, strict=True):
                self._stage(archive, member, folder, record["path"])
                yield record
            _LOGGER.info(
                f"Export of {window}: {len(records)} files of "
                f"{sum(record['bytes'] for record in records):,} bytes handed over."
            )

    def _record(self, member: zipfile.ZipInfo, window: str) -> dict[str, Any]:
        *folders, name = member.filename.split("/")
        if not _FILE_NAME.fullmatch(name) or any(part in ("", ".", "..") for part in folders):
            raise failure(
                f"A member of the export of {window} has a name that can't be a file's here: "
                f"{_quoted_name(member)}. {_UNUSABLE_ADVICE}"
            )
        start, _, end = window.partition(" to ")
        said = _hour_in(name)
        if said is None and not _is_one_hour(window):
            message = (
                f"Member {_quoted_name(member)} of the export of {window} does not say its hour."
            )
            _LOGGER.info(f"{message} Its hours are asked for one by one.")
            raise RequestWindowSplitRequiredException("raw_events_files", message)
        hour = said or datetime.strptime(start, "%Y%m%dT%H").replace(tzinfo=timezone.utc)
        if not start <= f"{hour:%Y%m%dT%H}" <= end:
            raise failure(
                f"Member {_quoted_name(member)} of the export of {window} is of another hour. "
                f"{_UNUSABLE_ADVICE}"
            )
        return {
            "hour": hour.isoformat(),
            "path": f"{self._root}/date={hour:%Y-%m-%d}/hour={hour:%H}/{name}",
            "file": name,
            "bytes": member.file_size,
        }

    def _stage(
        self, archive: zipfile.ZipFile, member: zipfile.ZipInfo, folder: Path, path: str
    ) -> None:
        waits_since = None
        while True:
            try:
                with archive.open(member) as packed, _nameable_file(folder) as file:
                    shutil.copyfileobj(packed, file, _CHUNK_BYTES)
                    file.flush()
                    _hand_over(file, folder / path)
                return
            except OSError as error:
                said = (
                    f"A file of {member.file_size:,} bytes could not be stored in {folder}: "
                    f"{error.strerror}. {_STAGED_ADVICE}"
                )
                is_full, now = error.errno in _NO_ROOM, time.monotonic()
                if waits_since is None and is_full and not self.ended:
                    waits_since = now
                    _LOGGER.warning(
                        f"There is no room in {folder} for a file of {member.file_size:,} bytes. "
                        "The stream waits until the destination has taken others, for "
                        f"{_ROOM_SECONDS // 60} minutes at most."
                    )
                if not is_full or self.ended or now - (waits_since or now) >= _ROOM_SECONDS:
                    self.ended = said if is_full else self.ended
                    raise (_FullFolderError.of(said) if self.ended else failure(said)) from error
            time.sleep(_LOOK_SECONDS)


class _FullFolderError(OutageError):
    """Ends a stream for which there was no room."""

    tells_of = 0

    @classmethod
    def of(cls, message: str) -> "_FullFolderError":
        failure_type = FailureType.system_error
        return cls(message=message, internal_message=message, failure_type=failure_type)


_UNUSABLE_ADVICE = (
    "None of its files was handed over. Report the window to Amplitude's support; the stream "
    "events reads it."
)


def _hour_in(name: str) -> datetime | None:
    """The hour of a member's name, ``187520_2026-11-23_7#0.json.gz``, if there is one."""
    match = _HOUR_IN_NAME.search(name)
    with suppress(ValueError):
        return match and datetime.strptime(" ".join(match.groups()), "%Y-%m-%d %H").replace(
            tzinfo=timezone.utc
        )
    return None


def _quoted_name(member: zipfile.ZipInfo) -> str:
    return ascii(_excerpt(member.filename, 100))


def _percent_encoded(match: re.Match[str]) -> str:
    return f"%{ord(match[0]):02X}"


def _nameable_file(folder: Path) -> IO[bytes]:
    """An open file without a name, which can be given one where the system is able to."""
    try:
        return open(os.open(folder, os.O_TMPFILE | os.O_RDWR, 0o666), "w+b")
    except (AttributeError, OSError):
        return tempfile.TemporaryFile(dir=folder)


def _hand_over(spooled: IO[bytes], path: Path) -> None:
    """Give a file without a name one, all at once: whoever reads an earlier one can go on.

    Who takes files away may remove the folder that they have left empty, just before.
    """
    # Of a name that no engine reads.
    unfinished = path.with_name(f".{path.name}.part")
    number = spooled.fileno()
    for tries_left in reversed(range(_TRIES_AT_FOLDER)):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            unfinished.unlink(missing_ok=True)
            try:
                # A descriptor of a folder, whichever, has Python make a call that follows this
                # link.
                os.link(f"/proc/self/fd/{number}", unfinished, src_dir_fd=number)
            except (NotImplementedError, OSError):
                spooled.seek(0)
                with unfinished.open("wb") as copy:
                    shutil.copyfileobj(spooled, copy, _CHUNK_BYTES)
            unfinished.replace(path)
            return
        except FileNotFoundError:
            if not tries_left:
                raise
        except BaseException:
            unfinished.unlink(missing_ok=True)
            raise


@dataclass
class StagedFileRetriever(Retriever):
    """What ``retriever`` reads, with a reference to its file added to each record.

    In: records with ``path``, that of a file in the staging folder, and ``bytes``. The CDK's
    uploader does nothing here: it holds a whole file in memory, writes over one that somebody may
    be reading, and takes another folder, unknown to any destination, when there is no staging
    folder. A stream has a ``file_uploader`` so that the catalog says it has files. Beside one, the
    CDK refuses ``request_window_splitting``, since its uploader sends requests in the middle of a
    window: so windows are halved from here, with ``failure_message`` where that ends.

    Raises ``AirbyteTracedException`` (config error) where no file can be handed over, before
    anything is asked for; once there was no room for ten minutes, for each window that follows.
    """

    retriever: SimpleRetriever
    cursor: Any
    failure_message: str
    config: Mapping[str, Any]

    def __post_init__(self) -> None:
        selector: Any = self.retriever.record_selector
        self._extractor = selector.extractor
        self._is_preview = isinstance(selector.file_uploader, ConnectorBuilderFileUploader)
        selector.file_uploader = None
        self.retriever.request_window_splitting = RequestWindowSplitting(self.failure_message)
        self.retriever.request_window_splitter = self.cursor.split_request_window
        self.cursor.__class__ = _NewHoursFirst
        self._warnings = iter([_FILTERS_WARNING] if EventFilter.of(self.config) else [])

    def read_records(
        self, records_schema: Mapping[str, Any], stream_slice: StreamSlice | None = None
    ) -> Iterable[StreamData]:
        if self._is_preview:
            raise refusal(
                "The Connector Builder and the manifest server can't hand over files, which are "
                "all that this stream is for. It can be read where the connector runs by itself."
            )
        folder = _staging_folder()
        for warning in self._warnings:
            _LOGGER.warning(warning)
        if self._extractor.ended:
            raise _FullFolderError.of(self._extractor.ended)
        for record in self.retriever.read_records(records_schema, stream_slice):
            if isinstance(record, Record):
                record.file_reference = AirbyteRecordMessageFileReference(
                    staging_file_url=str(folder / record["path"]),
                    source_file_relative_path=record["path"],
                    file_size_bytes=record["bytes"],
                )
            yield record


class _NewHoursFirst(ConcurrentCursor):
    """As the CDK's, but gaps come after the hours that no sync has read, and what is read again as
    far as there is no gap after both: else a folder that the look-back fills would never let them
    through.

    What is done beyond the first gap is in the state as well, ``later`` (see ``SavedState``), with
    the latest hour that had files, ``newest``, for ``StagedState``.
    """

    def stream_slices(self) -> Iterable[StreamSlice]:
        # Of its own: windows that are done meanwhile change it.
        snapshot, parse = copy(self), self._connector_state_converter.parse_value
        slices = [dict(each) for each in self._concurrent_state["slices"]]
        snapshot._concurrent_state = {**self._concurrent_state, "slices": slices}
        newest, value, unit = (
            self._newest(),
            slices[0]["most_recent_cursor_value"],
            self._cursor_granularity,
        )
        gaps, again = [], []
        for window in ConcurrentCursor.stream_slices(snapshot):
            start, end = parse(window["start_time"]), parse(window["end_time"])
            if end > newest:
                yield self._from_to(max(start, newest + unit), end)
            if start <= newest and min(end, newest) > value:
                gaps.append(self._from_to(max(start, value + unit), min(end, newest)))
            if start <= value:
                again.append(self._from_to(start, min(end, value)))
        yield from gaps
        yield from again

    @property
    def state(self) -> MutableMapping[str, Any]:
        converter, newest = self._connector_state_converter, self._newest()
        form = converter.output_format
        # Those that the state began with are among the slices.
        printed = {name: value for name, value in super().state.items() if name != "later"}
        slices = converter.merge_intervals([dict(s) for s in self._concurrent_state["slices"]])
        later = [
            {"from": form(s["start"]), "to": form(min(s["end"], newest))}
            for s in slices[1:]
            if s["start"] <= newest
        ]
        return {**printed, "later": later, "newest": form(newest)} if later else printed

    def _newest(self) -> Any:
        """As of events, hours without any do not count."""
        saved = self._concurrent_state.get("newest")
        known = [self._connector_state_converter.parse_value(saved)] if saved else []
        values = [s.get("most_recent_cursor_value") for s in self._concurrent_state["slices"]]
        return max(known + [value for value in values if value])

    def _from_to(self, start: Any, end: Any) -> StreamSlice:
        form = self._connector_state_converter.output_format
        window = {"start_time": form(start), "end_time": form(end)}
        return StreamSlice(partition={}, cursor_slice=window)


@dataclass
class StagedState(SavedState):
    """As its base, but the look-back of what is in ``later`` is that of the stream, see
    ``_NewHoursFirst``.

    In: a state that may also have ``newest``, an hour. Out: ``newest`` as well.
    """

    def _done(self, saved: Mapping[str, Any]) -> Mapping[str, Any]:
        done = super()._done(saved)
        if "newest" not in saved:
            return done
        return {**done, "newest": self._written(self._newest(saved))}

    def _dones(
        self, saved: Mapping[str, Any], spans: Sequence[tuple[datetime, datetime]], newest: datetime
    ) -> list[datetime]:
        dones = super()._dones(saved, spans, newest)
        if "newest" not in saved:
            return dones
        latest = self._done_until(min(self._newest(saved), newest), newest)
        return [dones[0], *(min(end, latest) for _, end in spans[1:])]

    def _newest(self, saved: Mapping[str, Any]) -> datetime:
        return self._parse(saved["newest"], self.declarative_stream.incremental_sync)


def _staging_folder() -> Path:
    """Where destinations that take files look for them.

    Raises ``AirbyteTracedException`` (config error) when it can't be used. The CDK would take
    another one.
    """
    folder = Path(os.environ.get("AIRBYTE_STAGING_DIRECTORY") or "/staging/files")
    reason = None
    if not folder.is_dir():
        reason = "there is no such folder"
    elif not os.access(folder, os.W_OK | os.X_OK):
        reason = "it can't be written to"
    if reason:
        raise refusal(
            f"Files can't be handed over in {folder}: {reason}. Airbyte provides it where a "
            "destination takes files. Choose such a destination, or deselect the stream; where you "
            "run the connector yourself, point the environment variable AIRBYTE_STAGING_DIRECTORY "
            "to a folder that exists."
        )
    return folder


# -------------------------------------------------------------------------------------------------
# 6 Dashboard series: parallel arrays, and cohorts of new users
# -------------------------------------------------------------------------------------------------
# Retention is followed for so many days after the first, lifetime value for so many in all.
_RETENTION_DAYS, _LIFETIME_DAYS = 30, 90


@dataclass
class DashboardSeriesExtractor(RecordExtractor):
    """Parallel arrays of the Dashboard REST API in, one record per number out.

    In: ``{"data": {"xValues": [x, ...], "series": [[value, ...], ...], "seriesLabels": [...],
    "seriesMeta": [...]}}``, where ``series[k][j]`` is series *k* at *x j*: a day, the first day of
    a week or month, or, with ``x_field``, anything. Labels are needed where the query groups only:
    texts, ``[index, text, ...]``, or the texts of ``seriesMeta`` when ``seriesLabels`` is missing.
    Out: ``{"date": x, value_field: value}``, with ``label_field`` also ``{label_field: label}``,
    which is ``(all)`` where nothing was grouped; when ``labelled``, one record per day, ``{"date":
    x, value_field: {label: value}}``, the label of everybody being ``0``. Values are counts, unless
    they are ``averages``. No built-in extractor transposes.

    Nothing is an answer: ``series: []``, with or without the other arrays, or nothing but nulls.
    Where nothing was grouped and the x values are there, that is a 0 for each, so that a count that
    was taken back is overwritten.

    Raises ``AirbyteTracedException`` for arrays that can't be paired with certainty.
    """

    parameters: Mapping[str, Any]

    def extract_records(self, response: requests.Response) -> Iterable[MutableMapping[str, Any]]:
        value_field = self.parameters["value_field"]
        x_field = self.parameters.get("x_field", "date")
        label_field, labelled = (self.parameters.get(n) for n in ("label_field", "labelled"))
        everybody = "0" if labelled else "(all)"
        with _reading(response) as answer:
            xs = _days_found(response, answer) if x_field == "date" else _texts_found(answer)
            series = _series_found(answer, xs)
            if not self.parameters.get("averages"):
                series = [
                    [_count(value, f"a value of series {number}") for value in values]
                    for number, values in enumerate(series, start=1)
                ]
            is_grouped = "g" in _query(response)
            if not any(series):
                series = [] if is_grouped or not xs else [[0] * len(xs)]
            labels = [everybody] * len(series)
            if is_grouped and series:
                labels = _series_labels(answer["data"], len(series))
            if len(set(labels)) != len(labels):
                raise _UnreadableError(f"{len(series)} series, two of which have the same label")
        cells = [
            (label, x, value)
            for label, values in zip(labels, series, strict=True)
            for x, value in zip(xs, values, strict=False)
        ]
        if labelled:
            by_day: dict[str, dict[str, float]] = {}
            for label, x, value in cells:
                by_day.setdefault(x, {})[label] = value
            return [{"date": x, value_field: values} for x, values in by_day.items()]
        return [
            {x_field: x, **({label_field: label} if label_field else {}), value_field: value}
            for label, x, value in cells
        ]


def _days_found(response: requests.Response, answer: Any) -> list[str]:
    """The ``xValues`` of an answer as days: all days that were asked for, or the first days of the
    weeks or months (the windows of such queries begin with one), each once; or none at all."""
    texts = _list_or_nothing(["data", "xValues"], answer)
    asked = _days_asked_for(response)
    interval = _query(response).get("i", "1")
    if interval == "7":
        asked = asked[::7]
    elif interval == "30":
        asked = [day for day in asked if day.endswith("-01")]
    return _days_in(texts, asked) if texts else []


def _texts_found(answer: Any) -> list[str]:
    """The ``xValues`` of an answer as texts."""
    texts = []
    for number, x in enumerate(_list_or_nothing(["data", "xValues"], answer), start=1):
        if isinstance(x, list | dict) or x is None:
            raise _UnreadableError(f"x value {number} is {_kind(x)}")
        texts.append(x if isinstance(x, str) else json.dumps(x))
    if len(set(texts)) != len(texts):
        raise _UnreadableError("an x value stands twice")
    return texts


def _series_found(answer: Any, xs: Sequence[str]) -> list[list[float]]:
    """The ``series`` of an answer, a number for each x; empty those that are nothing but nulls."""
    found: list[list[float]] = []
    for number, values in enumerate(_list_at(["data", "series"], answer), start=1):
        if _list(values, f"series {number}") and all(value is None for value in values):
            found.append([])
            continue
        if len(values) != len(xs):
            raise _UnreadableError(
                f"{len(xs)} x values but {len(values)} values in series {number}"
            )
        for position, value in enumerate(values, start=1):
            if type(value) not in (int, float):  # isinstance() would take True for a number
                raise _UnreadableError(f"value {position} of series {number} is {_kind(value)}")
        found.append(values)
    return found


def _count(value: float, name: str) -> int:
    """A number as that of users or events: no part of one, and not below 0; 99.0 is 99."""
    if not 0 <= value < 2**63 or value != int(value):
        raise _UnreadableError(f"{name} is not 0, 1, 2 or so on, as a count should be")
    return int(value)


def _series_labels(data: Mapping[str, Any], count: int) -> list[str]:
    """The groups that ``count`` series are of, in any of the forms Amplitude has for them."""
    for name in ("seriesLabels", "seriesMeta"):
        if data.get(name) not in (None, []):
            labels = _list(data[name], name)
            if len(labels) != count:
                raise _UnreadableError(f"{count} series but {len(labels)} {name}")
            return [_series_label(label, number) for number, label in enumerate(labels, start=1)]
    raise _UnreadableError(f"{count} series but no labels")


def _series_label(label: Any, number: int) -> str:
    """A group: a text, or those of several properties, which an event's index may precede."""
    parts = label if isinstance(label, list) else [label]
    if len(parts) > 1 and type(parts[0]) is int:
        parts = parts[1:]
    if not parts or not all(isinstance(part, str) for part in parts):
        raise _UnreadableError(f"label {number} is {_kind(label)}, not the text of a group")
    return "; ".join(parts)


@dataclass
class RetentionExtractor(RecordExtractor):
    """Retention in, a record per cohort and day, or bracket, out.

    In: ``{"data": {"series": [{"dates": [date, ...], "values": {date: [{"count", "outof",
    "incomplete"}, ...]}}]}}``, where a date is ``Sep 09, 2026`` or another form of a day, and its
    cells are the cohort's size, then day 0, day 1 and so on, up to today. Out: ``{"cohort_date",
    "day_number", "users", "cohort_size", "is_complete"}``, up to day 30, or to the last bracket of
    the query: later syncs read no cohort for longer. A null ``count`` is no record. No built-in
    extractor turns keys into records.

    Raises ``AirbyteTracedException`` for a cohort that was not asked for, or without a cell for
    each day up to the end of the window.
    """

    def extract_records(self, response: requests.Response) -> Iterable[MutableMapping[str, Any]]:
        brackets = json.loads(_query(response).get("rb", "[]"))
        last = len(brackets) - 1 if brackets else _RETENTION_DAYS
        records: list[MutableMapping[str, Any]] = []
        with _reading(response) as answer:
            for name, day, cells, _ in _cohorts(response, answer):
                # Of brackets that have not begun, nobody has recorded whether there is a cell.
                days = 1 if brackets else min(_days_begun(response, day), last + 1)
                if len(_list(cells, f"the cohort of {name}")) <= days:
                    raise _UnreadableError(f"the cohort of {name} has {len(cells)} cells")
                found = []
                for number, cell in enumerate(cells[1 : last + 2]):
                    if not isinstance(cell, dict) or "count" not in cell:
                        what = "without count" if isinstance(cell, dict) else _kind(cell)
                        raise _UnreadableError(
                            f"cell {number + 1} of the cohort of {name} is {what}"
                        )
                    users, size = (_users(cell, key, name) for key in ("count", "outof"))
                    is_incomplete = cell.get("incomplete")
                    record = {
                        "cohort_date": day,
                        "day_number": number,
                        "users": users,
                        "cohort_size": size,
                        "is_complete": not is_incomplete if type(is_incomplete) is bool else None,
                    }
                    if users is not None:
                        found.append(record)
                if not found and isinstance(cells[0], dict) and _users(cells[0], "count", name):
                    raise _UnreadableError(f"the cohort of {name} has users, but null in all cells")
                records.extend(found)
        return records


@dataclass
class LifetimeValueExtractor(RecordExtractor):
    """Revenue of new users in, a record per cohort and day out.

    In: as of ``RetentionExtractor``, but a date is ``Sep 24``, of the year that was asked for, and
    its cells are ``{"r1d": revenue, ..., "r180d", "count", "paid", "total_amount"}``, days to come
    being 0; beside ``values`` stands ``complete``, ``{date: {"r1d": true, ...}}``. Out:
    ``{"cohort_date", "day_number", "revenue", "users", "paying_users", "total_amount",
    "is_complete"}`` for days 1 to 90 that have come in the project's time zone, since later syncs
    read no cohort for longer. No built-in extractor turns keys into records, or takes a year from
    the request.

    Raises ``AirbyteTracedException`` for a cohort that was not asked for, or without one of the
    days up to the end of the window.
    """

    config: Mapping[str, Any] = field(default_factory=dict)

    def extract_records(self, response: requests.Response) -> Iterable[MutableMapping[str, Any]]:
        today = today_with_timezone(self.config.get("project_timezone") or "UTC")
        records: list[MutableMapping[str, Any]] = []
        with _reading(response) as answer:
            for name, day, cells, complete in _cohorts(response, answer):
                if not isinstance(cells, dict) or "r1d" not in cells:
                    raise _UnreadableError(f"the cohort of {name} has no r1d")
                age = (today - date.fromisoformat(day)).days
                days = min(_days_begun(response, day), _LIFETIME_DAYS)
                for number in range(1, days + 1):
                    if f"r{number}d" not in cells:
                        raise _UnreadableError(f"the cohort of {name} has no r{number}d")
                users, paying = (_users(cells, key, name) for key in ("count", "paid"))
                total = _number(cells, "total_amount", name)
                if users and all(cells[f"r{n}d"] is None for n in range(1, days + 1)):
                    raise _UnreadableError(f"the cohort of {name} has users, but null on all days")
                for number in range(1, _LIFETIME_DAYS + 1):
                    key = f"r{number}d"
                    is_complete = complete.get(key) if isinstance(complete, dict) else None
                    revenue = _number(cells, key, name)
                    if revenue is None or (number > age + 1 and is_complete is not True):
                        continue
                    records.append(
                        {
                            "cohort_date": day,
                            "day_number": number,
                            "revenue": revenue,
                            "users": users,
                            "paying_users": paying,
                            "total_amount": total,
                            "is_complete": is_complete if type(is_complete) is bool else None,
                        }
                    )
        return records


def _cohorts(
    response: requests.Response, answer: Any
) -> Iterator[tuple[str, str, Any, Mapping[str, Any] | None]]:
    """Of each cohort of an answer: its date as it stands there, its day, its cells, and which of
    them are complete."""
    series = _list_at(["data", "series"], answer)
    if len(series) > 1:
        raise _UnreadableError(f"{len(series)} series where one was asked for")
    asked = _days_asked_for(response)
    for cohorts in series:
        values = _value_at(["values"], cohorts)
        if not isinstance(values, dict):
            raise _UnreadableError(f"values is {_kind(values)} where an object should be")
        days = {name: _day(name, asked) for name in values}
        for name, day in days.items():
            if day not in asked:
                raise _UnreadableError(f"{_excerpt(json.dumps(name), 40)} was not asked for")
        if len({*days.values()}) != len(days):
            raise _UnreadableError("a date stands twice")
        listed = cohorts.get("dates") if isinstance(cohorts.get("dates"), list) else []
        if lost := {_day(name, asked) for name in listed} - {None, *days.values()}:
            raise _UnreadableError(f"{len(lost)} dates have no values: {min(map(str, lost))}")
        for name, day in days.items():
            complete = _value_at(["complete", name], cohorts)
            yield name, str(day), values[name], complete if isinstance(complete, dict) else None


def _days_begun(response: requests.Response, day: str) -> int:
    """How many days a cohort has had up to the end of the window, or to yesterday in UTC, which has
    begun in any time zone that the project may have."""
    end = min(_days_asked_for(response)[-1], f"{now_utc() - timedelta(days=1):%Y-%m-%d}")
    return max((date.fromisoformat(end) - date.fromisoformat(day)).days + 1, 1)


def _users(cells: Mapping[str, Any], key: str, cohort: str) -> int | None:
    value = _number(cells, key, cohort)
    return None if value is None else _count(value, f"{key} of the cohort of {cohort}")


def _number(cells: Mapping[str, Any], key: str, cohort: str) -> float | None:
    value = cells.get(key)
    if value is not None and type(value) not in (int, float):
        raise _UnreadableError(f"{key} of the cohort of {cohort} is {_kind(value)}")
    return value


# -------------------------------------------------------------------------------------------------
# 7 Lists: everything in one answer, or in pages
# -------------------------------------------------------------------------------------------------
_RFC3339_TIME = re.compile(
    r"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d)(\.\d+)?(Z|[+-]\d\d:\d\d)", re.ASCII | re.IGNORECASE
)
_TIME_WITHOUT_ZONE = re.compile(r"\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\d(?:\.\d+)?", re.ASCII)
# More than a filter of Amplitude's could leave of any list that is one.
_EMPTY_PAGES = 100
_DAY_OF_TIME = re.compile(r"(\d{4}-\d\d-\d\d)([Tt ]\d\d:\d\d.*)?")


@dataclass
class ListExtractor(RecordExtractor):
    """An answer with a list of objects at ``list_path`` (``["data"]``) in, the objects out.

    An answer that ``is_bare_list`` is that list itself. With ``expand``, the objects of the list of
    that name within each are passed on instead, and take the other fields along. Each must have all
    parts of the stream's ``primary_key``: the field of that name, or what stands at ``key_at``
    (``{flag_id: flagConfig.id}``), or gets what Amplitude means by leaving it out, ``if_missing``
    (``{event_type: ""}``). What stands twice is passed on twice. The built-in extractors take a
    list that is missing or null for an empty one, which would empty the table of an overwrite, and
    pass on elements that are no objects. An empty one is worse than wrong: the CDK takes it for the
    end of the whole sync.

    Raises ``AirbyteTracedException`` that says what was found, before anything is passed on: also
    for two of the same key that differ, and for an answer that says it is no success.
    """

    parameters: Mapping[str, Any]

    def extract_records(self, response: requests.Response) -> Iterable[MutableMapping[str, Any]]:
        is_bare, expand = self.parameters.get("is_bare_list"), self.parameters.get("expand")
        path = [] if is_bare else self.parameters.get("list_path", ["data"])
        with _reading(response) as answer:
            if _value_at(["success"], answer) is False:
                raise _UnreadableError("its success is false")
            records = _records(_list_at(path, answer), ".".join(path) or "the answer")
            if expand:
                records = [
                    {**{name: outer[name] for name in outer if name != expand}, **inner}
                    for outer in records
                    for inner in _records(_list_at([expand], outer), expand)
                ]
            found: dict[tuple[str, ...], Mapping[str, Any]] = {}
            for number, record in enumerate(records, start=1):
                key = self._key(record, number)
                if key and found.setdefault(key, record) != record:
                    raise _UnreadableError(f"element {number} has the key of another, and differs")
            return records

    def _key(self, record: dict[str, Any], number: int) -> tuple[str, ...]:
        names = self.parameters.get("primary_key", [])
        paths, defaults = (self.parameters.get(n, {}) for n in ("key_at", "if_missing"))
        key = []
        for name in [names] if isinstance(names, str) else names:
            path = paths.get(name, name)
            value = _value_at(path.split("."), record)
            if value in (None, ...) and name in defaults:
                value = record[name] = defaults[name]
            if value in (None, ...):
                raise _UnreadableError(f"element {number} has no {path}")
            if isinstance(value, bool | dict | list):
                raise _UnreadableError(f"the {path} of element {number} is {_kind(value)}")
            key.append(str(value))
        return tuple(key)


@dataclass
class NextPage(PaginationStrategy):
    """An answer in pages in, the token of the next one out, which stands in ``field_name``.

    A token is a text or a whole number; null, ``""``, 0 or none is the end. The built-in strategy
    evaluates it once more, which makes a number of ``1e10``, and follows a circle for ever.

    Raises ``AirbyteTracedException`` for a token that has led to a page before, and after
    ``_EMPTY_PAGES`` without an element in a row.
    """

    field_name: str
    page_size: int
    initial_token = None

    def get_page_size(self) -> int:
        return self.page_size

    def next_page_token(
        self,
        response: requests.Response,
        last_page_size: int,
        last_record: Record | None,
        last_page_token_value: Any = None,
        page_size_override: int | None = None,
        stream_slice: StreamSlice | None = None,
    ) -> "_PageToken | None":
        found = _value_at([self.field_name], _parse(response.content))
        if found in (None, ..., "", 0):
            return None
        token = _PageToken(found).after(last_page_token_value, is_empty=not last_page_size)
        if type(found) not in (str, int):
            reason = f"has {_kind(found)} for its {self.field_name}"
        elif token in token.before:
            reason = "leads to one that was read before"
        elif token.empty_pages >= _EMPTY_PAGES:
            reason = f"is the {_EMPTY_PAGES}th without an element in a row"
        else:
            return token
        path = urlsplit(_request(response).url or "").path
        raise failure(
            f"The pages of {path} can't be followed to their end: the last one {reason}. Try again "
            "later; if it stays like this, report it to the connector's maintainers."
        )


class _PageToken(str):
    """The token of a page; those before it, and how many pages without an element led there.

    It knows its own way, as pages of several windows are read side by side with one strategy.
    """

    before: set[str]
    empty_pages: int

    def after(self, last: "_PageToken | None", is_empty: bool) -> "_PageToken":
        self.before, empty = (last.before, last.empty_pages) if last is not None else (set(), 0)
        if last is not None:
            self.before.add(last)
        self.empty_pages = empty + 1 if is_empty else 0
        return self

    def __deepcopy__(self, memo: Any) -> str:
        return str(self)  # what the CDK sends


@dataclass
class CsvRowsExtractor(RecordExtractor):
    """A streamed CSV with a header in, ``{"row_number": n, "row": {column: text}}`` out, from 1.

    The header comes first, as row 0, for ``RowsOfTable``. The built-in decoder would make columns
    of whatever the table's are, and read them as types.

    Raises ``AirbyteTracedException`` naming the row for one that does not fit the header, and for a
    connection that breaks off.
    """

    def extract_records(self, response: requests.Response) -> Iterable[MutableMapping[str, Any]]:
        path = urlsplit(response.url).path
        rows = _csv_rows(_text_lines(response), path)
        header = next(rows)
        if len(set(header)) != len(header):
            raise failure(f"Two columns of {path} have the same heading.")
        for number, row in enumerate(chain([header], rows)):
            yield {"row_number": number, "row": dict(zip(header, row, strict=True))}


@dataclass
class RowsOfTable:
    """What ``CsvRowsExtractor`` makes of the CSV of a lookup table in, its rows out, if it has the
    columns that the list of tables names: ``keyColumnHeader`` and ``columnHeaders``.

    Any line of plain text is a CSV without rows. The built-in filter sees records one by one.

    Raises ``AirbyteTracedException`` for a table without one of its columns.
    """

    def filter_records(
        self,
        records: Iterable[Mapping[str, Any]],
        stream_state: StreamState,
        stream_slice: StreamSlice | None = None,
        next_page_token: Mapping[str, Any] | None = None,
    ) -> Iterator[Mapping[str, Any]]:
        rows = iter(records)
        headings = next(rows)["row"]
        table = stream_slice or StreamSlice(partition={}, cursor_slice={})
        columns = table.extra_fields.get("columnHeaders")
        key = table.extra_fields.get("keyColumnHeader")
        for column in [key, *(columns if isinstance(columns, list) else [])]:
            if isinstance(column, str) and column not in headings:
                raise failure(
                    f"The CSV of the lookup table {table['table']!r} has no column {column!r}, "
                    "which Amplitude lists for it. Nothing of it was stored. Run it again: the "
                    "table may have changed meanwhile."
                )
        yield from rows


@dataclass
class AnnotationTimes(_Transformation):
    """``start`` and ``end`` of an annotation with any offset in; in UTC, and ``date``, out.

    In: ``2025-11-01T23:30:00-08:00``. Out: ``2025-11-02T07:30:00+00:00``, since destinations that
    keep no offsets cut them off, and the local day of ``start``, ``2025-11-01``. What is no such
    time is passed on as it came; the CDK's functions for Jinja would guess what it is.
    """

    def change(
        self, record: dict[str, Any], config: Mapping[str, Any], slice_: StreamSlice | None
    ) -> None:
        if day := _local_day(record.get("start")):
            record["date"] = day
        for name in {"start", "end"} & record.keys():
            record[name] = _in_utc(record[name])


def _in_utc(value: Any) -> Any:
    """A time of RFC 3339 with any offset in UTC; anything else as it came."""
    match = _RFC3339_TIME.fullmatch(value) if isinstance(value, str) else None
    if not match:
        return value
    clock, fraction, offset = match.groups("")
    try:
        local = datetime.strptime(f"{clock}{offset}".upper(), "%Y-%m-%dT%H:%M:%S%z")
        return local.astimezone(timezone.utc).isoformat().replace("+", f"{fraction}+")
    except (ValueError, OverflowError):
        return value


def _local_day(value: Any) -> str | None:
    """The calendar day that a time says it falls on where it was written."""
    match = _DAY_OF_TIME.fullmatch(value) if isinstance(value, str) else None
    try:
        return date.fromisoformat(match[1]).isoformat() if match else None
    except ValueError:
        return None


@dataclass
class CategoryNames(_Transformation):
    """A category in, ``{"id", "category": name}`` or ``{"id", "name"}``; out, with both fields.

    It is the record itself, or what the record has at ``field_name``. Amplitude sends the first
    form and documents the second, which published versions have as a column. The built-in AddFields
    would evaluate the name.
    """

    field_name: str = ""

    def change(
        self, record: dict[str, Any], config: Mapping[str, Any], slice_: StreamSlice | None
    ) -> None:
        category = record.get(self.field_name) if self.field_name else record
        if isinstance(category, dict):
            for name, other in (("category", "name"), ("name", "category")):
                if category.get(name) is None and other in category:
                    category[name] = category[other]


@dataclass
class TimesWithZone(_Transformation):
    """Times of the fields ``names`` in, with or without a zone; out, those without one as UTC.

    In: ``2026-09-24T07:53:10.25``. Out: ``2026-09-24T07:53:10.25Z``; anything else as it came. The
    CDK's functions for Jinja would guess what it is.
    """

    names: list[str]

    def change(
        self, record: dict[str, Any], config: Mapping[str, Any], slice_: StreamSlice | None
    ) -> None:
        for name in self.names:
            value = record.get(name)
            if isinstance(value, str) and _TIME_WITHOUT_ZONE.fullmatch(value):
                record[name] = f"{value.replace(' ', 'T')}Z"


@dataclass
class IdsAsText(_Transformation):
    """Identifiers at ``paths`` as numbers or texts in, as texts out.

    A path is a list of fields, ``*`` standing for each element of a list: ``[slots, "*",
    experiments, "*"]``. Amplitude's samples have numbers where its paths have texts; as texts, both
    hold, and can be joined. ``AddFields`` does not reach into lists, and makes a text of null.
    """

    paths: list[list[str]]

    def change(
        self, record: dict[str, Any], config: Mapping[str, Any], slice_: StreamSlice | None
    ) -> None:
        for path in self.paths:
            _with_text(record, path)


def _with_text(value: Any, path: Sequence[str]) -> Any:
    """The value, in which a number at the path has become a text."""
    if not path:
        return str(value) if type(value) is int else value  # isinstance() would take True for one
    name, *rest = path
    if name == "*" and isinstance(value, list):
        return [_with_text(element, rest) for element in value]
    if isinstance(value, dict) and name in value:
        value[name] = _with_text(value[name], rest)
    return value


# -------------------------------------------------------------------------------------------------
# 8 Cohort downloads: which, when, and their members
# -------------------------------------------------------------------------------------------------
# Polls that say something else than that a job is under way, or fail, before it counts as lost.
_STRANGE_POLLS = 5
_MEMBER_COLUMNS = ("amplitude_id", "user_id")
_GIVE_WAY_ROWS = 64
# After so many failures in a row, a cohort lets so many of its turns pass before it is tried again.
_FAILURES, _TURNS_PASSED = 3, 4
# Of what a state says of a cohort's downloads beside its cursor: numbers, and a text.
_TURN_NUMBERS, _TURN_TEXTS = ("turn", "failed", "passed"), ("downloaded",)
_TIME_WITH_ZONE = re.compile(
    r"(\d{4}-\d\d-\d\d)[T ](\d\d:\d\d)(:\d\d)?(?:\.\d+)? ?(Z|[+-]\d\d:?\d\d)", re.ASCII | re.I
)
# Of an address, what may be a secret by itself.
_SECRET_CHARACTERS = 20
_MEMBERS_ADVICE = (
    "It is held there while it is read. Make room, or point the environment variable TMPDIR to a "
    "folder with more."
)


@dataclass
class CohortDownloadsRouter(SubstreamPartitionRouter):
    """All cohorts in; out, a slice for each whose members are to be downloaded, in that order.

    The first parent lists the cohorts, the second says how many downloads of this month are left,
    as ``{"rest_download": {"limit": 500, "usage": 12, "resets_at": "..."}}``, or is not there. The
    built-in router takes all that a parent lists, and knows neither states nor other parents'
    records.

    ``saved`` has a triple for each cohort that had its turn before: its id, when the members of
    its last download were computed, and its turn; ``CohortDownloads`` fills it in. ``per_sync`` is
    the number of downloads of one sync, ``share_left`` the share of a month's that others are left.

    The longest without a turn comes first, whatever became of it: who fails is not in the way of
    others. ``turns`` has, by cohort, ``turn`` (the number of the sync of its last), ``failed`` (how
    often in a row), ``passed`` (turns that it let pass since) and ``downloaded`` (the computation
    downloaded last, if the cursor does not tell).

    Out: ``{"cohort_id": "a"}`` with extra fields: ``size``; ``moved_at``, when it was computed, and
    ``computed_at``, the same, but now where that is to come; or a ``problem``, for which it fails.
    """

    per_sync: str
    share_left: str
    saved: list[tuple[str, str, dict[str, Any]]] = field(default_factory=list)

    def __post_init__(self, parameters: Mapping[str, Any]) -> None:
        super().__post_init__(parameters)
        self.turns = {cohort_id: turn for cohort_id, _, turn in self.saved if turn}
        self.turn = 1 + max((turn.get("turn", 0) for turn in self.turns.values()), default=0)

    def stream_slices(self) -> Iterable[StreamSlice]:
        cohorts, usage = self.parent_stream_configs
        due, unreadable = self._due(_records_of(cohorts))
        yield from unreadable
        if not due:
            return
        count, reason = self._allowed(usage)
        taken, passing, waiting = self._in_turn(due, count)
        if passing:
            _LOGGER.warning(
                f"{len(passing)} of {len(due)} cohorts to be downloaded are left out of this sync, "
                f"since their downloads failed {_FAILURES} times in a row or more. They are tried "
                f"once in {_TURNS_PASSED + 1} of their turns: {_named(passing)}."
            )
        if waiting:
            _LOGGER.warning(
                f"{len(waiting)} of {len(due)} cohorts to be downloaded wait for the next sync, "
                f"where they come first, since {reason}: {_named(waiting)}."
            )
        yield from taken

    def _in_turn(
        self, due: Iterable[StreamSlice], count: int
    ) -> tuple[list[StreamSlice], list[str], list[str]]:
        """Of cohorts in their order: whose members are downloaded, who lets a turn pass, who waits
        for one."""
        taken: list[StreamSlice] = []
        passing, waiting = [], []
        for cohort in due:
            cohort_id = cohort.partition["cohort_id"]
            turn = self.turns.get(cohort_id, {})
            passed = turn.get("passed", 0)
            if len(taken) == count:
                waiting.append(cohort_id)
            elif turn.get("failed", 0) >= _FAILURES and passed < _TURNS_PASSED:
                self.turns[cohort_id] = {**turn, "turn": self.turn, "passed": passed + 1}
                passing.append(cohort_id)
            else:
                taken.append(cohort)
        return taken, passing, waiting

    def _due(
        self, cohorts: Iterable[Mapping[str, Any]]
    ) -> tuple[list[StreamSlice], list[StreamSlice]]:
        """A slice for each cohort that has moved, the longest without a turn first, and one for
        each of which that can't be told."""
        by_id = {str(cohort["id"]): cohort for cohort in cohorts}
        wanted = dict.fromkeys(str(each).strip() for each in self.config.get("cohort_ids") or by_id)
        _log_blanks(map(str, self.config.get("cohort_ids") or ()), "Cohorts")
        if unknown := [each for each in wanted if each not in by_id]:
            named = ", ".join(map(_name, unknown[:_NAMES_LOGGED]))
            _LOGGER.warning(f"Cohorts (cohort_ids) names what Amplitude does not list: {named}.")
        if of_groups := [each for each in wanted if each in by_id and _group_type(by_id[each])]:
            named = ", ".join(f"{_name(c)} ({_name(_group_type(by_id[c]))})" for c in of_groups)
            _LOGGER.warning(
                "Cohorts of groups have no users as members, and are left out: "
                f"{named[: _NAMES_LOGGED * 20]}."
            )
        saved = {cohort_id: computed_at for cohort_id, computed_at, _ in self.saved}
        found: dict[str, list[StreamSlice]] = {}
        for cohort_id in (each for each in wanted if each in by_id):
            kind, extra = self._standing(cohort_id, by_id[cohort_id], saved.get(cohort_id, ""))
            partition = {"cohort_id": cohort_id, "parent_slice": {}}
            cohort = StreamSlice(partition=partition, cursor_slice={}, extra_fields=extra)
            found.setdefault(kind, []).append(cohort)
        due = found.get("due", [])
        kinds = "of groups", "archived", "empty", "never computed", "unchanged"
        _LOGGER.info(
            f"{len(by_id)} cohorts, {len(wanted) - len(unknown)} of them wanted: "
            f"{', '.join(f'{len(found.get(kind, []))} {kind}' for kind in kinds)}, "
            f"{len(due)} to be downloaded."
        )

        def place(cohort: StreamSlice) -> tuple[int, int, str]:
            cohort_id = cohort.partition["cohort_id"]
            turn = self.turns.get(cohort_id, {})
            return turn.get("turn", 0), turn.get("failed", 0), saved.get(cohort_id, "")

        return sorted(due, key=place), found.get("unreadable", [])

    def _standing(
        self, cohort_id: str, cohort: Mapping[str, Any], saved: str
    ) -> tuple[str, dict[str, Any]]:
        """Whether a cohort is due, and the extra fields of its slice."""
        if _group_type(cohort):
            return "of groups", {}
        if cohort.get("archived"):
            return "archived", {}
        if cohort.get("size") == 0:
            return "empty", {}
        try:
            moved_at = _computed_at(cohort.get("lastComputed"))
        except (OverflowError, ValueError):
            said = _excerpt(json.dumps(cohort["lastComputed"]), 40)
            return "unreadable", {
                "problem": f"When cohort {_name(cohort_id)} was computed can't be read: "
                f"lastComputed is {said}, where seconds since 1970 should be. It is left out, the "
                "others are read. Report it to Amplitude's support; to go without it, name the "
                "others under Cohorts (cohort_ids)."
            }
        if not moved_at:
            return "never computed", {}
        if moved_at <= saved or moved_at == self.turns.get(cohort_id, {}).get("downloaded"):
            return "unchanged", {}
        return "due", {
            "size": cohort.get("size"),
            "moved_at": moved_at,
            "computed_at": _not_to_come(cohort_id, moved_at),
        }

    def _allowed(self, usage: ParentStreamConfig) -> tuple[int, str]:
        """How many downloads this sync may take, and what bounds it."""
        per_sync, share = (
            InterpolatedString.create(template, parameters={}).eval(self.config)
            for template in (self.per_sync, self.share_left)
        )
        by_field = per_sync, f"Cohort Downloads per Sync is {per_sync}"
        try:
            answers = _records_of(usage)
        except AirbyteTracedException as error:
            answers = []
            _LOGGER.warning(error.internal_message)
        limit, used, text = _usage(answers)
        if limit is None or used is None:
            _LOGGER.warning(
                f"How many cohort downloads of this month are left is not known ({text}). This "
                f"sync takes at most {per_sync}."
            )
            return by_field
        if limit < 0:
            _LOGGER.info(f"Cohort downloads of this month have no limit ({text}).")
            return by_field
        left, kept = max(0, limit - used), math.ceil(limit * share)
        _LOGGER.info(
            f"Cohort downloads of this month, by all clients of the project: {left} of {limit} "
            f"left, {kept} of which are not touched ({text})."
        )
        if per_sync <= left - kept:
            return by_field
        reason = f"{left} of {limit} downloads of this month are left"
        if kept:
            reason += f", and Use the Whole Quota is off, which keeps {kept} for others"
        return max(0, left - kept), reason


def _records_of(parent: ParentStreamConfig) -> list[Mapping[str, Any]]:
    partitions = parent.stream.generate_partitions()
    return [record.data for partition in partitions for record in partition.read()]


def _group_type(cohort: Mapping[str, Any]) -> str | None:
    """What a cohort is made of, if not of users."""
    name = _value_at(["definition", "countGroup", "name"], cohort)
    return name if isinstance(name, str) and name != "User" else None


def _named(cohort_ids: Sequence[str]) -> str:
    more = len(cohort_ids) - _NAMES_LOGGED
    named = ", ".join(map(_name, cohort_ids[:_NAMES_LOGGED]))
    return f"{named} and {more} more" if more > 0 else named


def _computed_at(value: Any) -> str | None:
    """When a cohort was computed, from epoch seconds, milliseconds, or a time with a zone; None
    when it never was.

    Raises ``ValueError`` or ``OverflowError`` for what names no moment with certainty.
    """
    text = "" if value is None else str(value).strip()
    if text in ("", "0", "0.0"):
        return None
    if match := _TIME_WITH_ZONE.fullmatch(text):
        day, clock, seconds, zone = match.groups(":00")
        local = datetime.strptime(f"{day}T{clock}{seconds}{zone.upper()}", "%Y-%m-%dT%H:%M:%S%z")
        moment = local.astimezone(timezone.utc)
    else:
        number = float(text) if re.fullmatch(r"\d{1,15}(\.\d+)?", text, re.ASCII) else 0
        # From 2001 to 5138; what lies in between may be either.
        if 1e12 <= number < 1e14:
            number /= 1000
        elif not 1e9 <= number < 1e11:
            raise ValueError("no time")
        moment = datetime.fromtimestamp(number, timezone.utc)
    return f"{moment:%Y-%m-%dT%H:%M:%SZ}"


def _not_to_come(cohort_id: str, moved_at: str) -> str:
    """When a cohort was computed, or now where that is more than a day to come: what comes then
    would be older, and never the latest."""
    now = datetime.now(timezone.utc)
    if moved_at <= f"{now + timedelta(days=1):%Y-%m-%dT%H:%M:%SZ}":
        return moved_at
    _LOGGER.warning(
        f"Cohort {_name(cohort_id)} is said to be computed at {moved_at}, which is to come. Its "
        "members are given the time of this sync, and are downloaded again when that changes."
    )
    return f"{now:%Y-%m-%dT%H:%M:%SZ}"


def _usage(answers: Sequence[Any]) -> tuple[int | None, int | None, str]:
    """Limit and use of the month's downloads, and what was said of them.

    Nobody documents how: third parties have it in ``rest_download``, as ``limit`` and ``usage``, or
    on its own, as ``limit`` and ``count``.
    """
    for answer in answers:
        found = answer.get("rest_download", answer) if isinstance(answer, dict) else None
        if isinstance(found, dict):
            limit, used = found.get("limit"), found.get("usage", found.get("count"))
            if type(limit) is int and type(used) is int:
                return limit, used, f"resets_at: {found.get('resets_at', 'unknown')}"
    return None, None, f"Amplitude said {_excerpt(json.dumps(answers), 200)}"


@dataclass
class CohortDownloads(SavedState):
    """As ``SavedState``; what is saved is shown to the stream's ``CohortDownloadsRouter``, too.

    The CDK migrates a stream's state before it makes the router, which it tells nothing of it.
    """

    def migrate(self, stream_state: Mapping[str, Any]) -> Mapping[str, Any]:
        migrated, saved = super().migrate(stream_state), []
        turns = {
            str(each["partition"]): _turn(each["cursor"]) for each in stream_state.get("states", ())
        }
        for each in migrated["states"]:
            for done in each["cursor"].get("slices", []):
                # What is due has a window, also after a state that lies at the end of all.
                done["end"] = done["start"]
                computed_at, turn = (
                    done["most_recent_cursor_value"],
                    turns.get(str(each["partition"]), {}),
                )
                saved.append((each["partition"].get("cohort_id"), computed_at, turn))
        retriever: Any = self.declarative_stream.retriever
        retriever.partition_router["saved"] = saved
        return migrated


def _turn(cursor: Mapping[str, Any]) -> dict[str, Any]:
    """What a cohort's saved state says of its downloads beside its cursor."""
    numbers = {name: cursor.get(name) for name in _TURN_NUMBERS}
    texts = {name: cursor.get(name) for name in _TURN_TEXTS}
    return {
        **{name: n for name, n in numbers.items() if type(n) is int and n > 0},
        **{name: text for name, text in texts.items() if isinstance(text, str)},
    }


@dataclass
class CohortMembersRetriever(Retriever):
    """What ``retriever`` reads, with a state after each cohort that tells of its turn, too.

    The CDK's cursor of a stream with partitions knows nothing but the cursor's value, and prints a
    state every ten minutes at most: what had been delivered since would be downloaded again after
    a sync that was killed. No component can take its place, so this one is made another. A turn is
    in the state before its job is made, so that one that never ends is not the first for ever.
    """

    retriever: SimpleRetriever
    partition_router: CohortDownloadsRouter
    cursor: ConcurrentPerPartitionCursor

    def __post_init__(self) -> None:
        self.cursor.__class__ = _CohortsCursor
        requester: Any = self.retriever.requester
        requester.cursor = self.cursor

    def read_records(
        self, records_schema: Mapping[str, Any], stream_slice: StreamSlice | None = None
    ) -> Iterable[StreamData]:
        cohort, count = stream_slice or StreamSlice(partition={}, cursor_slice={}), 0
        if problem := cohort.extra_fields.get("problem"):
            raise failure(problem)
        for record in self.retriever.read_records(records_schema, cohort):
            yield record
            count += 1
        cursor: Any = self.cursor
        cursor.succeeded(cohort, count)


class _CohortsCursor(ConcurrentPerPartitionCursor):
    """As its base; the state of each cohort has its turn, as in ``CohortDownloadsRouter.turns``,
    beside ``computed_at``, which is all that versions before 0.12 read."""

    _partition_router: CohortDownloadsRouter

    @property
    def state(self) -> MutableMapping[str, Any]:
        state = super().state
        for each in state.get("states", ()):
            each["cursor"] |= self._partition_router.turns.get(each["partition"]["cohort_id"], {})
        return state

    def begun(self, cohort: StreamSlice) -> None:
        self._note(cohort, turn=self._partition_router.turn, passed=0)

    def failed(self, cohort: StreamSlice) -> None:
        turn = self._partition_router.turns[cohort.partition["cohort_id"]]
        self._note(cohort, failed=turn.get("failed", 0) + 1)

    def came_without_rows(self, cohort: StreamSlice) -> None:
        self._note(cohort, downloaded=cohort.extra_fields["moved_at"])

    def succeeded(self, cohort: StreamSlice, count: int) -> None:
        """Its rows have been passed on, unless it was put off; a state follows."""
        router, extra = self._partition_router, cohort.extra_fields
        if router.turns.get(cohort.partition["cohort_id"], {}).get("turn") == router.turn:
            is_told = count and extra["moved_at"] == extra["computed_at"]
            with self._lock:
                self._set(cohort, failed=0, downloaded="" if is_told else extra["moved_at"])

    def _note(self, cohort: StreamSlice, **changes: Any) -> None:
        with self._lock:
            self._set(cohort, **changes)
            self._emit_state_message()

    def _set(self, cohort: StreamSlice, **changes: Any) -> None:
        turns, cohort_id = self._partition_router.turns, cohort.partition["cohort_id"]
        changed = {**turns.get(cohort_id, {}), **changes}
        turns[cohort_id] = {name: value for name, value in changed.items() if value}

    def _throttle_state_message(self) -> float | None:
        return time.time()


@dataclass(kw_only=True)
class CohortMembersRequester(HttpRequester):
    """A cohort in; its members out, as a spooled CSV that has been read through once.

    It has a job made (``creation_requester``: ``/:cohort_id``), asks until it is done
    (``status_requester``: ``/:request_id``), and downloads (``/:request_id/file``). What has to be
    asked again, and when to give up, is said by their error handlers; a job that fails is not made
    anew, since each takes one of the project's downloads of the month. The built-in retriever for
    such jobs makes up to three, and doesn't ask again for a file that broke off. A file that can't
    be read, or has less than half of the cohort's size while the cohort was not computed anew
    (``list_requester``), is asked for once more.

    Jobs are made one after the other. When one is not, for a reason that is not the cohort's (the
    month is used up, in whatever words; keys; no answer), it was the last of the sync.

    A test read of the Builder is given the members of one cohort only, the first.

    Raises ``AirbyteTracedException`` naming the cohort.
    """

    creation_requester: HttpRequester
    status_requester: HttpRequester
    list_requester: HttpRequester

    def __post_init__(self, parameters: Mapping[str, Any]) -> None:
        super().__post_init__(parameters)
        self.cursor: Any = None  # CohortMembersRetriever sets it
        self._first, self._making = threading.Lock(), threading.Lock()
        # Whose job was not made, so that no more are, and what was said of others.
        self._last, self._refusals = "", set[str]()

    def send_request(self, *_: Any, **options: Any) -> requests.Response | None:
        cohort: StreamSlice = options["stream_slice"]
        cohort_id, size = cohort.partition["cohort_id"], cohort.extra_fields["size"]
        name = _name(cohort_id)
        # The factory makes one for test reads only. The lock is never given back.
        if options.get("log_formatter") and not self._first.acquire(blocking=False):
            _LOGGER.info(f"Cohort {name}: a test read downloads one cohort, not this one.")
            return None
        try:
            if not (job := self._job(cohort)):
                _LOGGER.warning(
                    f"Cohort {name} waits for the next sync: no more downloads are asked for in "
                    f"this one, since that of cohort {_name(self._last)} was refused."
                )
                return None
            self.status_requester.send_request(path=job)
            response, count = self._file(cohort, job)
        except AirbyteTracedException as error:
            if cohort_id == self._last:
                ends = "no more downloads are asked for in this sync. The next one goes on."
            else:
                self.cursor.failed(cohort)
                ends = (
                    "the next sync tries again, which takes another of the month's downloads. To "
                    "go without it, name the others under Cohorts (cohort_ids)."
                )
            raise failure(
                f"The members of cohort {name} could not be read. {error.internal_message} "
                f"What the destination has of this cohort stays as it is, and {ends}",
                error.failure_type or FailureType.system_error,
            ) from error
        spooled: Any = response.raw
        ends = "" if count else " Nothing is stored of it until it is computed anew."
        _LOGGER.info(
            f"Cohort {name}, computed at {cohort.extra_fields['moved_at']}: {count:,} members, "
            f"where its size is given as {size}; {spooled.tell():,} bytes.{ends}"
        )
        spooled.seek(0)
        return response

    def _job(self, cohort: StreamSlice) -> str | None:
        """The path of a new job, which takes one of the downloads of the month; None when no more
        are made in this sync."""
        keys = [*map(_with_commas, self.config.get("cohort_member_properties") or [])]
        cohort_id = cohort.partition["cohort_id"]
        with self._making:
            if self._last:
                return None
            self.cursor.begun(cohort)
            try:
                created = self.creation_requester.send_request(
                    path=quote(cohort_id, safe=""),
                    request_params={"props": "1", "propKeys": keys} if keys else {"props": "0"},
                )
            except AirbyteTracedException as error:
                # A refusal of this cohort alone is one that nobody can mend, and not said again.
                said = str(error.internal_message)
                is_of_cohort = error.failure_type is FailureType.system_error
                if not is_of_cohort or said in self._refusals:
                    self._last = cohort_id
                self._refusals.add(said)
                raise
        if created is None:
            raise failure(f"Amplitude did not answer to the request for cohort {_name(cohort_id)}.")
        with _reading(created) as answer:
            request_id = answer.get("request_id") if isinstance(answer, dict) else None
            if not request_id or not isinstance(request_id, str | int):
                raise _UnreadableError(f"request_id is {_kind(request_id)}")
        return quote(str(request_id), safe="")

    def _file(self, cohort: StreamSlice, job: str) -> tuple[requests.Response, int]:
        """The file of a job, read through, and how many members it has."""
        size = cohort.extra_fields["size"]
        has_size = type(size) is int
        for is_last in (False, True):
            response = super().send_request(path=f"{job}/file")
            if response is None:
                raise failure("Amplitude did not answer to the request for its file.")
            spooled: Any = response.raw
            with _kept_open(spooled):
                try:
                    count = sum(1 for _ in _members(spooled, f"the file of job {_name(job)}"))
                except AirbyteTracedException as error:
                    if is_last:
                        raise
                    said = error.internal_message
                else:
                    said = f"The file has {count:,} members, where its size is given as {size}."
                    if not has_size or 2 * count >= size or (is_last and self._has_moved(cohort)):
                        return response, count
                    if is_last and not count:
                        self.cursor.came_without_rows(cohort)
                    if is_last:
                        raise failure(
                            f"{said} That is less than half, and the cohort was not computed anew."
                        )
            spooled.close()
            _LOGGER.warning(f"{said} It is asked for once more.")
        raise AssertionError

    def _has_moved(self, cohort: StreamSlice) -> bool:
        """Whether a cohort was computed anew since this sync has listed it."""
        listed = self.list_requester.send_request()
        if listed is None:
            raise failure("Amplitude did not answer to the request for its cohorts.")
        with _reading(listed) as answer:
            found = {str(each.get("id")): each for each in _list_at(["cohorts"], answer)}
            computed = found.get(cohort.partition["cohort_id"], {}).get("lastComputed")
            return _computed_at(computed) not in (None, cohort.extra_fields["moved_at"])


@dataclass
class CohortJobErrorHandler(AmplitudeErrorHandler):
    """The status of a job counts as an answer only when the job is done.

    In: ``{"request_id", "cohort_id", "async_status"}``, where the status is ``JOB INPROGRESS`` or
    ``JOB COMPLETED``; no other is documented, not even one for failure. Out: a resolution to ask
    again while it is in progress. The built-in poller asks again without a pause, and begins a job
    that failed anew.

    Raises ``AirbyteTracedException`` when a job's status was another, or no answer, for
    the fifth time.
    """

    def __post_init__(self, parameters: Mapping[str, Any]) -> None:
        super().__post_init__(parameters)
        # By the address, which is one job's.
        self._strange: MutableMapping[str | None, int] = {}

    def resolve(
        self, response_or_exception: requests.Response | Exception | None
    ) -> ErrorResolution:
        response, status = response_or_exception, None
        try:
            resolution = super().resolve(response)
            if isinstance(response, requests.Response) and response.ok:
                answer = _parse(response.content)
                status = answer.get("async_status") if isinstance(answer, dict) else None
                said = f"Amplitude says {_excerpt(json.dumps(status), 80)} of the job."
                resolution = ErrorResolution(
                    ResponseAction.RETRY, FailureType.transient_error, said
                )
        except DefaultBackoffException as error:
            resolution = ErrorResolution(
                ResponseAction.RETRY, FailureType.transient_error, str(error)
            )
        if status == "JOB COMPLETED":
            return SUCCESS_RESOLUTION
        # The CDK's own line calls every pause one for a limit of rate.
        _LOGGER.info(f"{resolution.error_message} It is asked again after a pause.")
        if status == "JOB INPROGRESS":
            return resolution
        if isinstance(response, requests.Response | requests.RequestException):
            job = response.request.url if response.request else None
            count = self._strange[job] = self._strange.get(job, 0) + 1
            if count == _STRANGE_POLLS:
                raise failure(resolution.error_message or "", FailureType.transient_error)
        return resolution


@dataclass
class GrowingBackoffStrategy(BackoffStrategy):
    """Attempts in, seconds out: ``first_seconds``, then twice as many each time up to
    ``max_seconds``. The built-in exponential strategy knows no bound."""

    first_seconds: int
    max_seconds: int

    def backoff_time(
        self,
        response_or_exception: requests.Response | requests.RequestException | None,
        attempt_count: int,
    ) -> float | None:
        return float(min(self.max_seconds, self.first_seconds * 2 ** (attempt_count - 1)))


@dataclass
class CohortFileErrorHandler(AmplitudeErrorHandler):
    """A CSV of members counts as a success only when all of it has arrived.

    In: a response with an unread body, of Amplitude or of the storage to which it redirects. Out:
    the same response with ``raw`` replaced by a temporary file that holds the body, begins with
    headings and ends with a line, or was in a gzip that has its end. The CDK never retries a
    streamed body that breaks off, and takes a gzip without its end for a whole one.

    Raises ``DefaultBackoffException``, which has the CDK ask Amplitude's own link again, for a body
    that breaks off or is something else, and for all that the storage refuses: Amplitude leads to
    an address there that is valid for a minute, and gives a fresh one each time. That address, a
    secret for as long, is in no message, and hidden in what the CDK logs.
    """

    def __post_init__(self, parameters: Mapping[str, Any]) -> None:
        super().__post_init__(parameters)
        if self.api_budget:
            _hide_addresses(self.api_budget)

    def resolve(
        self, response_or_exception: requests.Response | Exception | None
    ) -> ErrorResolution:
        answer = response_or_exception
        if isinstance(answer, requests.RequestException):
            resolution = super().resolve(answer)
            message = re.sub(r"\?[^\s)]+", "?...", resolution.error_message or "")
            return ErrorResolution(
                resolution.response_action, resolution.failure_type, error_message=message
            )
        if not isinstance(answer, requests.Response) or not (answer.ok or answer.history):
            return super().resolve(answer)
        cause: Exception = ValueError("no answer")
        found = f"is HTTP {answer.status_code}"
        try:
            if answer.ok:
                answer.raw = _spool_members(answer)
                headings = answer.raw.readline(_CHUNK_BYTES).decode("utf-8-sig", "replace")
                answer.raw.seek(0)
                if {*_MEMBER_COLUMNS} <= {*re.sub(r'["\t]', "", headings.strip()).split(",")}:
                    return SUCCESS_RESOLUTION
                answer.raw.close()
                media_type = answer.headers.get("Content-Type", "of no type")
                found += f", {media_type}, no CSV with amplitude_id and user_id"
        except requests.RequestException as error:
            why = error if isinstance(error, _CutOffError) else type(error).__name__
            cause, found = error, f"broke off ({why})"
        answer.close()
        message = (
            f"The answer of {urlsplit(answer.url).hostname}, from where a cohort's members were to "
            f"be downloaded, {found}. Try again later; if it stays, look for a firewall or a proxy "
            "between this machine and that host."
        )
        raise DefaultBackoffException(answer.request, cause, message, FailureType.transient_error)


def _hide_addresses(budget: APIBudget) -> None:
    """Have a budget keep the addresses secret to which Amplitude leads: ``--debug`` logs each."""
    if "_extract_endpoint" not in vars(budget):
        extract = partial(_hidden_address, budget._extract_endpoint)
        budget._extract_endpoint = extract  # type: ignore[method-assign]


def _hidden_address(extract: Callable[[Any], str], request: Any) -> str:
    address = extract(request)
    parts = urlsplit(address)
    if not (parts.hostname or "").endswith("amplitude.com"):
        values = [value for _, value in parse_qsl(parts.query)]
        for secret in (parts.query or address, *values):
            if len(secret) >= _SECRET_CHARACTERS:
                keep_secret(secret)
    return address


class _CutOffError(requests.ConnectionError):
    """A body that shows by itself that it is not whole."""


def _spool_members(response: requests.Response) -> IO[bytes]:
    """The body in a file that vanishes with the process, read from its beginning.

    Raises ``requests.RequestException`` when the connection breaks off, or the body has no end,
    ``AirbyteTracedException`` when the disk refuses.
    """
    headers = getattr(response.raw, "headers", {})
    if "gzip" in headers.get("Content-Encoding", ""):
        # Who unpacks on the way does not miss its end.
        del headers["Content-Encoding"]
    with (
        _storing("A cohort's CSV", Path(tempfile.gettempdir()), _MEMBERS_ADVICE),
        _kept_open(tempfile.TemporaryFile()) as spooled,
    ):
        _spool(response, spooled, "Members of a cohort")
        if _is_gzip(spooled):
            unpacked = _gunzipped(spooled)
            # One for the way, which Content-Encoding tells of, and one that is the file.
            return _gunzipped(unpacked) if _is_gzip(unpacked) else unpacked
        spooled.seek(-min(1, spooled.seek(0, io.SEEK_END)), io.SEEK_END)
        if spooled.read(1) not in (b"", b"\n", b"\r"):
            raise _CutOffError("it ends within a line")
        spooled.seek(0)
    return spooled


def _is_gzip(spooled: IO[bytes]) -> bool:
    spooled.seek(0)
    begins = spooled.read(2)
    spooled.seek(0)
    return begins == b"\x1f\x8b"


def _gunzipped(packed: IO[bytes]) -> IO[bytes]:
    """What a gzip holds, in a file like it, read from its beginning.

    Raises ``_CutOffError`` for one that is cut off or damaged.
    """
    packed.seek(0)
    with _kept_open(tempfile.TemporaryFile()) as spooled:
        with packed, gzip.GzipFile(fileobj=packed) as unpacked:
            while chunk := _unpacked_chunk(unpacked):
                spooled.write(chunk)
        spooled.seek(0)
    return spooled


def _unpacked_chunk(unpacked: gzip.GzipFile) -> bytes:
    try:
        return unpacked.read(_CHUNK_BYTES)
    except (EOFError, OSError, zlib.error) as error:
        raise _CutOffError(f"its gzip is damaged: {error}") from error


@dataclass
class CohortMembersExtractor(RecordExtractor):
    """A CSV of members (as ``CohortMembersRequester`` leaves it) in, one record per row out.

    In: the columns ``amplitude_id`` and ``user_id``, and one for each property. Out:
    ``{"amplitude_id": 1, "user_id": "a", "properties": {column: text or None}}``, without
    ``properties`` where there are no more columns. A property may bear the name of either column.
    The built-in decoder would make columns of properties, and guess what a text means.
    """

    def extract_records(self, response: requests.Response) -> Iterable[MutableMapping[str, Any]]:
        spooled: Any = response.raw
        with spooled:
            for number, member in enumerate(_members(spooled, urlsplit(response.url).path)):
                yield member
                if not number % _GIVE_WAY_ROWS:
                    time.sleep(0)  # as ExportArchiveExtractor


def _members(spooled: IO[bytes], name: str) -> Iterator[dict[str, Any]]:
    """The members in a CSV as records, see ``CohortMembersExtractor``; the file stays open.

    Raises ``AirbyteTracedException`` naming the row, never quoting it, for one that is none.
    """
    text = io.TextIOWrapper(spooled, "utf-8-sig", newline="")
    try:
        # Amplitude puts a tab before texts, so that no spreadsheet takes them for formulas.
        rows = ([cell.removeprefix("\t") for cell in row] for row in _csv_rows(text, name))
        header: list[str] = next(rows)
        fixed = [header.index(column) for column in _MEMBER_COLUMNS]
        properties = {n: heading for n, heading in enumerate(header) if n not in fixed}
        if len(set(properties.values())) != len(properties):
            raise failure(f"Two properties of {name} have the same heading.")
        for number, row in enumerate(rows, start=1):
            # User ids have been seen in quotes that are not the CSV's.
            amplitude_id, user_id = (_unquoted(row[n]) for n in fixed)
            if not (amplitude_id.isascii() and amplitude_id.isdigit()):
                raise failure(f"Row {number} of {name} has no amplitude_id that is a number.")
            member: dict[str, Any] = {"amplitude_id": int(amplitude_id), "user_id": user_id or None}
            if properties:
                member["properties"] = {p: row[n] or None for n, p in properties.items()}
            yield member
    finally:
        text.detach()


def _unquoted(cell: str) -> str:
    return cell[1:-1] if len(cell) > 1 and cell[0] == cell[-1] == '"' else cell


# -------------------------------------------------------------------------------------------------
# 9 Reports: questions of the config, and their answers
# -------------------------------------------------------------------------------------------------
# Groups that a query gets when it does not say how many.
_DEFAULT_GROUPS = 100
_COLUMN_DATE = re.compile(r"(\d{4}-\d\d-\d\d)(?:T(\d\d:\d\d:\d\d))?", re.ASCII)
# 1,234 may be a thousand or a decimal; 1,234,567 and 1,234.5 may not.
_CELL_NUMBER = re.compile(
    r"([+-]?(?:\d+|\d{1,3}(?:,\d{3}){2,}|\d{1,3},\d{3}(?=\.)))((?:\.\d+)?(?:E[+-]?\d+)?)(%?)",
    re.ASCII | re.IGNORECASE,
)
_LONE_BARS = re.compile(r"(?<!\S)\|+(?!\S)")
_PREVIOUS = re.compile(r"\s*\[Previous\]\s*")
# Of a CSV: retention, funnels and lifetime value; stickiness; everything else.
_MOST_ROWS = (300, 2_000, 10_000)


@dataclass
class ReportRequester(HttpRequester):
    """A report of the config and a window in, Amplitude's query out.

    ``parameters`` are those that the manifest makes of a report, the ``report`` itself among them.
    A template would evaluate what people have typed.
    """

    def __post_init__(self, parameters: Mapping[str, Any]) -> None:
        super().__post_init__(parameters)
        self._query: Mapping[str, Any] = parameters["report"]["query"]
        self._unsaid = [
            f"The report {parameters['report']['name']} costs {_cost_of_days(self._query, 1)} for "
            "each day, of the 1,000 that Amplitude grants in five minutes."
        ]

    def send_request(self, *args: Any, **options: Any) -> requests.Response | None:
        with suppress(IndexError):
            _LOGGER.info(self._unsaid.pop())
        return super().send_request(*args, **options)

    def get_request_params(
        self,
        *,
        stream_state: StreamState | None = None,
        stream_slice: StreamSlice | None = None,
        next_page_token: Mapping[str, Any] | None = None,
    ) -> MutableMapping[str, Any]:
        window = stream_slice.cursor_slice if stream_slice else {}
        start, end = (window[name].replace("-", "") for name in ("start_time", "end_time"))
        if self._query["kind"] == "composition":  # its answer has no dates: it must be one day's
            end = start
        return {"start": start, "end": end, **_query_of_report(self._query)}


@dataclass
class SegmentationExtractor(RecordExtractor):
    """An event segmentation in, one record per date, event and group out.

    In: parallel arrays, as for ``DashboardSeriesExtractor``; which of two events a series is of,
    its label says (``[event index, group]``), or its ``seriesMeta`` (``{"eventIndex": k}``). Out:
    ``{"date", "event_number", "event", "group", "value"}``; events count from 1, ``event`` is as
    the query names it, and ``group`` is ``(all)`` where the query has no group-by. Nothing is an
    answer, and a 0 per event and date where nothing was grouped. An answer with as many groups as
    Amplitude gives at most is logged. No built-in extractor transposes.

    Raises ``AirbyteTracedException`` for arrays that can't be paired with certainty.
    """

    parameters: Mapping[str, Any]

    def extract_records(self, response: requests.Response) -> Iterable[MutableMapping[str, Any]]:
        query, name = _query(response), self.parameters["report"]["name"]
        events = [json.loads(query[n]) for n in ("e", "e2") if n in query]
        # The first group-by of an event is the property that such a metric counts.
        properties = 1 if query["m"] in _PROPERTY_METRICS else 0
        is_grouped = "g" in query or any((e.get("group_by") or [])[properties:] for e in events)
        with _reading(response) as answer:
            days = _days_found(response, answer)
            series = _series_found(answer, days)
            series = series if any(series) else []
            numbers = _event_numbers(answer["data"], len(series), len(events))
            groups: Sequence[str] = ["(all)"] * len(series)
            if is_grouped and series:
                groups = _series_labels(answer["data"], len(series))
            found = dict(zip(zip(numbers, groups, strict=True), series, strict=True))
            if len(found) != len(series):
                raise _UnreadableError(f"{len(series)} series, two of which have the same label")
        if any(numbers.count(number) >= _MOST_GROUPS for number in {*numbers}):
            _LOGGER.warning(
                f"The report {name} has {_MOST_GROUPS:,} groups for {_window(response)}, the most "
                "that Amplitude gives: others are missing. Group by a property with fewer values, "
                "or count fewer users."
            )
        if not is_grouped:
            nothing = [0.0] * len(days)
            wanted = [(n, "(all)") for n in range(1, len(events) + 1)]
            found = {key: found.get(key) or nothing for key in wanted}
        return [
            {
                "date": day,
                "event_number": number,
                "event": events[number - 1]["event_type"],
                "group": group,
                "value": value,
            }
            for (number, group), values in found.items()
            for day, value in zip(days, values, strict=False)
        ]


def _event_numbers(data: Mapping[str, Any], count: int, events: int) -> list[int]:
    """Which of so many events, from 1, each of ``count`` series is of."""
    if events == 1:
        return [1] * count
    labels, metas = (_list(data.get(n) or [], n) for n in ("seriesLabels", "seriesMeta"))
    found: list[int] = []
    for position in range(count):
        label, meta = (each[position] if position < len(each) else None for each in (labels, metas))
        index = meta.get("eventIndex") if isinstance(meta, dict) else None
        if isinstance(label, list) and label and type(label[0]) is int:
            index = label[0]
        elif sorted(map(str, labels)) == [*map(str, range(events))]:  # the query has one segment
            index = label
        if type(index) is not int or not 0 <= index < events:
            raise _UnreadableError(f"nothing says which event series {position + 1} is of")
        found.append(index + 1)
    return found


@dataclass
class FunnelExtractor(RecordExtractor):
    """A funnel by day in, a record per group, day and step out.

    In: ``{"data": [{"events": [name, ...], "groupValue": label, "dayFunnels": {"xValues": [day,
    ...], "series": [[users, ...], ...]}, "dayMedianTransTimes": {"xValues", "series":
    [[milliseconds, ...], ...]}, "dayAvgTransTimes": {...}}]}``, an element per group, where
    ``series[j][k]`` is step *k* on day *j*; ``[]`` when nobody took the first step. Out: ``{"date",
    "step", "event", "group", "users", "conversion", "median_seconds", "average_seconds"}``; steps
    count from 1, ``group`` is ``(all)`` where the query has no group-by, ``conversion`` is the
    share of step 1. Nobody has timed a step that nobody took, nor the first one: null. No built-in
    extractor puts parallel arrays together.

    Raises ``AirbyteTracedException`` for arrays that can't be paired with certainty.
    """

    def extract_records(self, response: requests.Response) -> Iterable[MutableMapping[str, Any]]:
        query, asked = _query(response), _events_asked_for(response)
        is_grouped = "g" in query or any(map(_has_groups, asked))
        records: list[MutableMapping[str, Any]] = []
        with _reading(response) as answer:
            funnels = _records(_list_at(["data"], answer), "data")
            if not is_grouped and len(funnels) > 1:
                raise _UnreadableError(f"{len(funnels)} funnels where one was asked for")
            groups = [
                _group_value(funnel, number) if is_grouped else "(all)"
                for number, funnel in enumerate(funnels, start=1)
            ]
            if len(set(groups)) != len(groups):
                raise _UnreadableError(f"{len(groups)} funnels, two of which have the same group")
            for group, funnel in zip(groups, funnels, strict=True):
                for row in _funnel_rows(funnel, asked, _days_asked_for(response)):
                    records.append({"group": group, **row})
        if is_grouped and len(groups) >= int(query.get("limit", _DEFAULT_GROUPS)):
            names = " > ".join(map(_event_type, asked))
            _LOGGER.warning(
                f"The funnel {names} for {_window(response)} came with {len(groups)} groups, as "
                "many as its limit lets through: others may be missing. Set a higher limit, or "
                "group by a property with fewer values."
            )
        return records


def _events_asked_for(response: requests.Response) -> list[str]:
    """The event objects of a query, as JSON."""
    query = urlsplit(_request(response).url or "").query
    return [value for name, value in parse_qsl(query) if name == "e"]


def _has_groups(event: str) -> bool:
    """Whether an event object groups by a property of its own."""
    with suppress(AttributeError, ValueError):
        return bool(json.loads(event).get("group_by"))
    return False


def _event_type(event: str) -> str:
    return str(json.loads(event).get("event_type"))


def _group_value(funnel: Mapping[str, Any], number: int) -> str:
    label = funnel.get("groupValue", ...)
    if not isinstance(label, str) or not label:
        raise _UnreadableError(f"the groupValue of funnel {number} is {_kind(label)}")
    return label


def _funnel_rows(
    funnel: Mapping[str, Any], asked: Sequence[str], days_asked: Sequence[str]
) -> Iterator[dict[str, Any]]:
    """A row for each day and step of a funnel of the events that were asked for."""
    events = _list_or_nothing(["events"], funnel) or [*map(_event_type, asked)]
    if len(events) != len(asked):
        raise _UnreadableError(f"{len(events)} events where {len(asked)} were asked for")
    for number, event in enumerate(events, start=1):
        if not isinstance(event, str):
            raise _UnreadableError(f"event {number} is {_kind(event)} where a text should be")
    users = _by_step(funnel, "dayFunnels", days_asked, len(events))
    times = [
        _by_step(funnel, name, days_asked, len(events), needed=False)
        for name in ("dayMedianTransTimes", "dayAvgTransTimes")
    ]
    for day, by_step in users.items():
        first = by_step[0]
        for step, event in enumerate(events):
            median, average = (
                of[day][step] if of and step > 0 and by_step[step] else None for of in times
            )
            yield {
                "date": day,
                "step": step + 1,
                "event": event,
                "users": by_step[step],
                "conversion": by_step[step] / first if first else None,
                "median_seconds": median / 1000 if median is not None else None,
                "average_seconds": average / 1000 if average is not None else None,
            }


def _by_step(
    funnel: Mapping[str, Any],
    name: str,
    days_asked: Sequence[str],
    count: int,
    needed: bool = True,
) -> dict[str, list[Any]]:
    """``count`` numbers for each of the days, or nulls where they are not ``needed``; empty when
    there are no days, or nothing but nulls."""
    if not needed and not _list_or_nothing([name, "xValues"], funnel):
        return {}
    texts, rows = (_list_at([name, part], funnel) for part in ("xValues", "series"))
    if all(isinstance(row, list) and not any(cell is not None for cell in row) for row in rows):
        return {}
    days = _days_in(texts, days_asked)
    if len(rows) != len(days):
        raise _UnreadableError(f"{name} has {len(rows)} rows for {len(days)} days")
    for number, row in enumerate(rows, start=1):
        if len(_list(row, f"row {number} of {name}")) != count:
            found = f"row {number} of {name} has {len(row)} numbers"
            raise _UnreadableError(f"{found} for {count} events")
        for position, value in enumerate(row, start=1):
            # isinstance() would take True for a number
            if type(value) not in (int, float) and (needed or value is not None):
                found = f"number {position} of row {number} of {name}"
                raise _UnreadableError(f"{found} is {_kind(value)}")
            if needed:
                row[position - 1] = _count(value, f"number {position} of row {number} of {name}")
    return dict(zip(days, rows, strict=True))


@dataclass
class ChartExtractor(RecordExtractor):
    """The CSV of a saved chart in, a record per row and column of a date out.

    In: ``{"data": text}`` or the text itself, which an ``AmplitudeErrorHandler`` lets pass when it
    ``is_streamed``. Rows of a title; one of headings, of the labels and then of dates,
    ``2025-01-06T00:00:00`` or ``2025-01-06``; a row per series, where of several labels a blank one
    is that of the row above. A tab may stand before a text, so that no spreadsheet takes it for a
    formula. Out: ``{"series": all labels as one text, "labels": {heading: label}, "date": heading
    with its time, "value": number or null, "is_percentage": it had a %, "is_previous": it was
    marked ``[Previous]``}``. A row of the period before stands under the dates of this one, and is
    named as its counterpart is. The built-in decoder makes columns of the dates.

    Raises ``AirbyteTracedException`` naming the chart for what can't be read with certainty, before
    anything is passed on, and (config error) for a chart without dates: there, nothing tells labels
    from numbers, or where the title ends.
    """

    def extract_records(self, response: requests.Response) -> Iterable[MutableMapping[str, Any]]:
        chart = urlsplit(_request(response).url or "").path.removesuffix("/csv").split("/")[-1]
        with _refusing_to_guess(response, _first_rows(response.content)):
            text = _chart_text(response.content)
            # Twice, because the records of a large chart would not fit in memory.
            rows = sum(1 for _ in _chart_rows(text, chart))
        if rows in _MOST_ROWS:
            _LOGGER.warning(
                f"The chart {chart} came with {rows:,} rows, which is the most that Amplitude "
                "gives for some kinds of charts: others may be missing. Give it fewer groups."
            )
        for row, values in _chart_rows(text, chart):
            for day, (value, is_percentage) in values.items():
                yield {**row, "date": day, "value": value, "is_percentage": is_percentage}


def _chart_text(body: bytes) -> str:
    """The CSV of a chart, out of its envelope if it has one."""
    try:
        answer = _parse(body)
    except ValueError:
        if body.lstrip().startswith((b"<", b"{")):
            raise _UnreadableError("it is neither JSON nor CSV") from None
        try:
            return body.decode()
        except UnicodeDecodeError as error:
            raise _UnreadableError(f"it is no UTF-8 ({error.reason})") from None
    text = answer.get("data", ...) if isinstance(answer, dict) else ...
    if not isinstance(text, str):
        raise _UnreadableError(f"data is {_kind(text)} where a text should be")
    return text


def _first_rows(body: bytes) -> Any:
    """What the shape of a chart's answer is made from: the cells of its first lines."""
    with suppress(csv.Error, UnicodeDecodeError, _UnreadableError):
        lines = csv.reader(io.StringIO(_chart_text(body), newline=""))
        return [[_in_kind(cell.lstrip("\t")) for cell in line] for line in islice(lines, 40)]
    return body.decode("utf-8", "replace")


def _in_kind(cell: str) -> str | float:
    with suppress(ValueError):
        return float(cell.rstrip("%"))
    return cell


def _chart_rows(
    text: str, chart: str
) -> Iterator[tuple[dict[str, Any], dict[str, tuple[float | None, bool]]]]:
    """Each row of a chart: what stands for all of it, and its cells by date."""
    lines = csv.reader(io.StringIO(text.removeprefix("\ufeff"), newline=""), strict=True)
    seen: set[tuple[str, bool]] = set()
    above: list[str] = []
    try:
        rows = ([cell.lstrip("\t") for cell in line] for line in lines if line)
        headings, dates = _chart_headings(rows, chart)
        for number, row in enumerate(rows, start=1):
            if len(row) != len(headings) + len(dates):
                found = f"{len(row)} cells under {len(headings) + len(dates)} headings"
                raise _UnreadableError(f"row {number} has {found}")
            above = marked = _filled(row[: len(headings)], above)
            labels = [_PREVIOUS.sub(" ", label).strip() for label in marked]
            is_previous = any(map(_PREVIOUS.search, marked))
            series = _joined(labels)
            if (series, is_previous) in seen:
                raise _UnreadableError(f"row {number} has the labels of another, {series}")
            seen.add((series, is_previous))
            yield (
                {
                    "series": series,
                    "labels": dict(zip(headings, labels, strict=True)),
                    "is_previous": is_previous,
                },
                {
                    day: _cell(cell, f"{day} of row {number}, {series},")
                    for day, cell in zip(dates, row[len(headings) :], strict=True)
                },
            )
    except csv.Error as error:
        raise _UnreadableError(f"line {lines.line_num} is no CSV ({error})") from None


def _joined(labels: Sequence[str]) -> str:
    """Labels as one text, which no others make: a bar that stands alone in one of several has one
    more than it came with."""
    if len(labels) == 1:
        return labels[0]
    return " | ".join(_LONE_BARS.sub(r"\g<0>|", label) for label in labels)


def _filled(labels: Sequence[str], above: Sequence[str]) -> list[str]:
    """Labels, blank ones being those of the row above as far as all to their left are as well.

    The last one is what tells the row from the one above: there, blank is blank.
    """
    filled = [*labels]
    for position, (label, label_above) in enumerate(zip(labels[:-1], above, strict=False)):
        if not label.strip():
            filled[position] = label_above
        if filled[position] != label_above:
            break
    return filled


def _chart_headings(rows: Iterator[list[str]], chart: str) -> tuple[list[str], list[str]]:
    """The headings of a chart's labels and its dates; ``rows`` are left at the first after them."""
    is_empty = True
    for row in rows:
        is_empty = False
        found = [match for cell in row if (match := _COLUMN_DATE.fullmatch(cell))]
        count = len(row) - len(found)
        if not found or not count:  # a title, or the days of one
            continue
        if [match[0] for match in found] != row[count:]:
            if not any(cell.strip() for cell in row if not _COLUMN_DATE.fullmatch(cell)):
                continue
            raise _UnreadableError("its columns of dates do not stand together at the end")
        dates = [f"{match[1]}T{match[2] or '00:00:00'}" for match in found]
        if len(set(dates)) != len(dates):
            raise _UnreadableError("two of its columns have the same date")
        for day in dates:
            try:
                datetime.fromisoformat(day)
            except ValueError:
                raise _UnreadableError(f"the heading {day} is no date") from None
        # Two events may be grouped by the same property.
        headings = [
            heading if heading and row.index(heading) == position else f"{heading}#{position + 1}"
            for position, heading in enumerate(row[:count])
        ]
        if len(set(headings)) != count:
            raise _UnreadableError(f"two of its columns have the same heading: {headings}")
        return headings, dates
    if is_empty:
        raise _UnreadableError("it holds no row")
    raise refusal(
        f"The CSV of the chart {chart} has no columns of dates, so that it can't be told what is a "
        "label in it and what a number. Have the chart show its figures over time, or take it out "
        "of the configuration."
    )


def _cell(text: str, name: str) -> tuple[float | None, bool]:
    """The number of a cell, None where it is empty, and whether it is a percentage."""
    if not text.strip():
        return None, False
    match = _CELL_NUMBER.fullmatch(text.strip())
    value = None
    if match:
        whole, fraction = match[1].replace(",", ""), match[2]
        value = _finite(f"{whole}{fraction}") if fraction else _whole(whole)
    if match is None or value is None:
        found = _excerpt(json.dumps(text, ensure_ascii=False), 80)
        raise _UnreadableError(f"{name} is {found}, no number")
    return value, bool(match[3])
