import gc
import json
import logging
import pickle
import socket
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from typing import Any
from unittest.mock import patch

import freezegun
import pytest
from airbyte_cdk.sources.declarative import concurrent_declarative_source as cdk
from airbyte_cdk.utils.airbyte_secrets_utils import update_secrets
from pyrate_limiter import BucketFactory

from source_amplitude import run
from unit_tests.at_moment import clock_from
from unit_tests.installed import MOMENT


@pytest.fixture(autouse=True, scope="session")
def _garbage_is_collected_seldom() -> None:
    """A source is a hundred thousand objects: half of the time it takes to make would go there."""
    gc.freeze()
    gc.set_threshold(200_000, 50, 50)


@pytest.fixture(autouse=True, scope="session")
def _budgets_are_not_tidied_up() -> Iterator[None]:
    """Every budget of every source has a thread for good that drops old calls every ten minutes:
    hundreds of them in the end. What counts is the same without."""
    with patch.object(BucketFactory, "schedule_leak"):
        yield


@pytest.fixture(autouse=True, scope="session")
def _manifest_is_valid_once() -> Iterator[None]:
    """For every source, the CDK resolves the manifest's references, reads its own schema and holds
    the one against the other: 0.3 s."""
    read, validate = cdk.get_declarative_component_schema, cdk.validate_manifest
    resolve = cdk.ConcurrentDeclarativeSource._pre_process_manifest
    schema = cache(read)
    validated: set[str] = set()
    resolved: dict[str, bytes] = {}

    def resolve_once(source: Any, manifest: dict[str, Any]) -> Any:
        text = json.dumps(manifest)
        if text not in resolved:
            resolved[text] = pickle.dumps(resolve(source, manifest))
        return pickle.loads(resolved[text])

    def validate_once(manifest: Mapping[str, Any], _: Mapping[str, Any]) -> None:
        text = json.dumps(manifest)
        if text not in validated:
            validate(manifest, schema())
            validated.add(text)

    with (
        patch.object(cdk, "get_declarative_component_schema", schema),
        patch.object(cdk, "validate_manifest", validate_once),
        patch.object(cdk.ConcurrentDeclarativeSource, "_pre_process_manifest", resolve_once),
        patch.object(run, "safe_load_yaml", _parsed_once(run.safe_load_yaml)),
    ):
        yield


def _parsed_once(parse: Callable[[str], Any]) -> Callable[[str], Any]:
    parsed = cache(lambda text: json.dumps(parse(text)))
    return lambda text: json.loads(parsed(text))


@pytest.fixture(autouse=True)
def _nothing_of_other_tests(monkeypatch: pytest.MonkeyPatch) -> None:
    """The CDK masks all keys it has seen in this process; PyAirbyte takes its log for its own."""
    update_secrets([])
    monkeypatch.setattr(logging.getLogger("airbyte"), "propagate", True)


@pytest.fixture(autouse=True)
def _no_internet(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A test that asks another machine for anything fails, whatever became of its request."""
    look_up = socket.getaddrinfo
    asked_for: list[object] = []

    def look_up_here(host: Any, *args: Any, **kwargs: Any) -> Any:
        if host not in ("localhost", "127.0.0.1", "::1") and not str(host).endswith(".invalid"):
            asked_for.append(host)
            raise socket.gaierror(f"no test may ask for {host}")
        return look_up(host, *args, **kwargs)

    monkeypatch.setattr(socket, "getaddrinfo", look_up_here)
    yield
    assert not asked_for


@pytest.fixture
def within_an_hour() -> Iterator[None]:
    """No new hour or day begins during the test: it begins at `MOMENT`, on a clock that goes on.

    The clocks of sandboxes, and of the commands that are sent there, go by it.
    """
    with clock_from(MOMENT):
        yield


@pytest.fixture
def no_waiting() -> Iterator[None]:
    """Back-off without its pauses."""

    def sleep(seconds: float) -> None:
        if not seconds >= 0:
            raise ValueError("sleep length must be non-negative")

    with patch("time.sleep", sleep):
        yield


@pytest.fixture
def standing_clock() -> Iterator[Any]:
    """Noon of 2024-01-03 in UTC, on a clock that goes on by what is slept only."""
    with (
        freezegun.freeze_time("2024-01-03T12:00:00Z") as clock,
        # One millisecond more, since budgets count in them.
        patch("time.sleep", lambda seconds: clock.tick(seconds + 0.001)),
    ):
        yield clock
