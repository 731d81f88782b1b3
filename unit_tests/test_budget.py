"""Amplitude's budget of cost, through a first sync of ten years.

The requests are the connector's own, as the sandbox gets them, and so is the policy that holds them
back; the minutes between them are made up.
"""

import heapq
import math
import random
from collections.abc import Sequence
from datetime import datetime, timedelta
from unittest.mock import patch

import freezegun
import pytest
from airbyte_cdk.models import SyncMode
from airbyte_cdk.sources.streams.call_rate import APIBudget, BaseCallRatePolicy, CallRateLimitHit
from airbyte_cdk.test.catalog_builder import CatalogBuilder
from airbyte_cdk.test.entrypoint_wrapper import read
from requests import Request

from sandbox import Project, Sandbox
from sandbox.app import Spending
from source_amplitude import SourceAmplitude

LIMIT, SECONDS = 1_000, 300.0  # Amplitude's
SKEW, DELAY = 1.0, 10.0

Asked = tuple[Request, int]


def first_sync(*streams: str, days: int, by_country: bool = True) -> tuple[APIBudget, list[Asked]]:
    """The budget that a first sync keeps, and its requests with their costs."""
    catalog = CatalogBuilder()
    for stream in streams:
        catalog.with_stream(stream, SyncMode.full_refresh)
    with (
        Sandbox(Project(), cost_limits=()) as sandbox,
        pytest.MonkeyPatch.context() as environment,
        patch.object(APIBudget, "acquire_call", autospec=True) as acquire_call,
    ):
        for name, value in sandbox.env.items():
            environment.setenv(name, value)
        start = f"{sandbox.clock() - timedelta(days=days - 1):%Y-%m-%dT00:00:00Z}"
        config = sandbox.config(start_date=start, active_users_group_by_country=by_country)
        source = SourceAmplitude(catalog=catalog.build(), config=config)
        assert read(source, config, catalog.build()).errors == []
        asked = [(Request("GET", f"https://{r.host}{r.path}"), r.cost) for r in sandbox.requests]
    return acquire_call.call_args.args[0], asked


def spend(budget: APIBudget, asked: Sequence[Asked], workers: int) -> tuple[list[int], float]:
    """The costs that Amplitude refuses, and the seconds that all takes.

    It counts from the moment at which a request comes in: at once, or long after the client's
    budget has let it go.
    """
    chance, queue = random.Random(workers), iter(asked)
    amplitude = Spending([(LIMIT, SECONDS)], SKEW)
    amplitude.book(1, now=0)  # a check, just before
    refused: list[int] = []
    began = datetime(2024, workers, 1)  # later than all that the budget has seen
    now = 0.0
    # What each worker does next, and when: take a request, ask the budget for it, or send it.
    agenda: list[tuple[float, int, Asked | None, bool]] = [
        (now, worker, None, False) for worker in range(workers)
    ]
    with freezegun.freeze_time(began) as clock:
        while agenda:
            now, worker, request, is_sent = heapq.heappop(agenda)
            clock.move_to(began + timedelta(seconds=now))
            if request and is_sent:
                refused += [] if amplitude.book(request[1], now) else [request[1]]
                request = None
            request = request or next(queue, None)
            if request:
                try:
                    budget.acquire_call(request[0], block=False)
                    step = (now + chance.choice([0, DELAY]), worker, request, True)
                except CallRateLimitHit as hit:
                    later = now + max(0.001, hit.time_to_wait.total_seconds())
                    step = (later, worker, request, False)
                heapq.heappush(agenda, step)
    return refused, now


@pytest.mark.parametrize(
    "streams",
    [["active_users"], ["active_users", "average_session_length", "events_list"]],
    ids=["one", "all"],
)
def test_given_ten_years_when_synced_then_no_429_and_hardly_slower_than_the_limit_allows(
    streams: list[str],
) -> None:
    budget, asked = first_sync(*streams, days=3650)
    fastest = (math.ceil(sum(cost for _, cost in asked) / LIMIT) - 1) * SECONDS
    for workers in (2, 5):
        refused, seconds = spend(budget, asked, workers)
        assert refused == []
        assert fastest < seconds < 1.1 * fastest


@pytest.mark.parametrize(("by_country", "users"), [(True, 195), (False, 39)])
def test_given_a_stream_when_read_then_its_weight_is_what_a_whole_window_costs(
    by_country: bool, users: int
) -> None:
    streams = ["active_users", "average_session_length", "events_list"]
    budget, asked = first_sync(*streams, days=60, by_country=by_country)
    costs: dict[str, list[int]] = {}
    weights = {}
    for request, cost in asked:
        path = request.url.removeprefix("https://amplitude.com")
        costs.setdefault(path, []).append(cost)
        policy = budget.get_matching_policy(request)
        assert isinstance(policy, BaseCallRatePolicy)
        weights[path] = policy.get_weight(request)
    assert {path: max(found) for path, found in costs.items()} == weights
    assert weights == {
        "/api/2/users": users,
        "/api/2/sessions/average": 196,
        "/api/2/events/list": 1,
    }
