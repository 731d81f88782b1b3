"""Answers, and errors in the form of each of Amplitude's APIs."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

_WRONG_KEYS = "Invalid API/Secret Key combination"


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


def envelope(status: int, details: str) -> Answer:
    """Captured: https://github.com/airbytehq/airbyte/issues/46712."""
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


# Answers to wrong keys. Captured, but for the last three: what is documented of them are two
# statuses of 401.
EXPORT_FORBIDDEN = as_text(403, "Invalid API Key")
FORBIDDEN = as_json(
    {"error": {"http_code": 403, "type": "unspecified", "metadata": {"details": _WRONG_KEYS}}}, 403
)
REPLAYS_UNAUTHORIZED = replay_error(401, "Invalid API credentials")
LOOKUP_FORBIDDEN = lookup_error(403, _WRONG_KEYS)
EXPERIMENT_UNAUTHORIZED = experiment_error(401, "Invalid or revoked API key")
