"""Answers, and errors in the form of each of Amplitude's APIs."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import date
from typing import Any

_WRONG_KEYS = "Invalid API Key"
_MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")
# Recorded beside `data`, as some twenty fields about how an answer came about.
_COMPUTED = {
    "timeComputed": 1790240400000,
    "wasCached": True,
    "cacheFreshness": "FRESH",
    "novaRuntime": 41,
    "novaRequestDuration": 57,
    "novaCost": 30,
    "throttleTime": 0,
    "minSampleRate": 1.0,
    "transformationIds": [],
    "backend": "novaV2",
    "realtimeDataMissing": False,
    "timedOutRealtimeData": False,
    "partialMergedAndNewUserInformation": False,
    "prunedResult": False,
    "hitChunkGroupByLimit": False,
    "subcluster": 0,
    "millisSinceComputed": 5,
    "queryIds": ["q7t2m9"],
    "perQueryMetadata": [{"queryId": "q7t2m9", "wasCached": True}],
}


@dataclass(frozen=True)
class Answer:
    """A status, and a body that is at hand or made while it is sent."""

    status: int
    body: bytes | Iterator[bytes]
    media_type: str
    headers: Mapping[str, str] = field(default_factory=dict)


def as_json(content: Any, status: int = 200) -> Answer:
    return Answer(status, json.dumps(content).encode(), "application/json")


def as_text(status: int, content: str) -> Answer:
    return Answer(status, content.encode(), "text/plain")


def dashboard(data: Any, **beside: Any) -> Answer:
    """The answer to a query of the Dashboard API."""
    return as_json({"data": data, **beside, **_COMPUTED})


def short_date(day: date) -> str:
    """Such as `Sep 09`."""
    return f"{_MONTHS[day.month - 1]} {day.day:02d}"


def envelope(status: int, details: str) -> Answer:
    """Recorded, for all of `/api/2` and `/api/3`; but that `/api/5` has it is a guess.

    See also https://github.com/airbytehq/airbyte/issues/46712.
    """
    kind, message = "unspecified", "Unspecified Error"
    if status == 400:
        kind, message = "invalid", "Invalid chart definition"
    error = {"http_code": status, "type": kind, "message": message}
    return as_json({"error": {**error, "metadata": {"details": details}}}, status)


def taxonomy_error(status: int, message: str) -> Answer:
    """Source: https://amplitude.com/docs/apis/analytics/taxonomy."""
    return as_json({"success": False, "errors": [{"message": message}]}, status)


def replay_error(status: int, message: str) -> Answer:
    """Source: https://amplitude.com/docs/apis/analytics/session-replay."""
    return as_json({"error": message}, status)


def lookup_error(status: int, message: str) -> Answer:
    """Source: https://amplitude.com/docs/apis/analytics/lookup-table-2."""
    code = "LOOKUP_TABLE_DOES_NOT_EXIST" if status == 400 else "UNSPECIFIED"
    error = {"statusCode": status, "message": message, "errorCode": code, "extraParams": {}}
    return as_json(error, status)


def experiment_error(status: int, message: str) -> Answer:
    """Statuses are documented (https://amplitude.com/docs/apis/experiment/experiment-management-api
    #status-codes), bodies are not."""
    return as_json({"error": message}, status)


# Answers to wrong keys. Recorded is the first; what is documented of the others are two statuses of
# 401.
FORBIDDEN = envelope(403, _WRONG_KEYS)
REPLAYS_UNAUTHORIZED = replay_error(401, "Invalid API credentials")
LOOKUP_FORBIDDEN = lookup_error(403, _WRONG_KEYS)
EXPERIMENT_UNAUTHORIZED = experiment_error(401, "Invalid or revoked API key")
