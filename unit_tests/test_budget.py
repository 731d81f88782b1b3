"""Amplitude's budget of cost, through first syncs of years.

The requests are the connector's own, as the sandbox gets them, and so is the policy that holds them
back; the minutes between them are made up.
"""

import heapq
import math
import random
from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any
from unittest.mock import patch
from urllib.parse import parse_qsl, urlsplit

import freezegun
import pytest
import yaml
from airbyte_cdk.models import SyncMode
from airbyte_cdk.sources.streams.call_rate import APIBudget, CallRateLimitHit
from airbyte_cdk.test.catalog_builder import CatalogBuilder
from airbyte_cdk.test.entrypoint_wrapper import read
from requests import PreparedRequest, Request

from sandbox import Project, Sandbox
from sandbox.app import Spending
from sandbox.params import days as days_of
from source_amplitude import SourceAmplitude
from unit_tests.installed import PACKAGE

LIMIT, SECONDS = 1_000, 300.0  # Amplitude's
SKEW, DELAY = 1.0, 10.0

Asked = tuple[PreparedRequest, int]


def first_sync(
    *streams: str, days: int, until: int = 0, **settings: Any
) -> tuple[APIBudget, list[Asked]]:
    """The budget that a first sync keeps, and its requests with their costs.

    It reads ``days`` days, the last of which was ``until`` days ago.
    """
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
        start, end = (sandbox.clock() - timedelta(days=until + n) for n in (days - 1, -1))
        config = sandbox.config(start_date=f"{start:%Y-%m-%d}", **settings)
        if until:
            config["end_date"] = f"{end:%Y-%m-%d}"
        source = SourceAmplitude(catalog=catalog.build(), config=config)
        assert read(source, config, catalog.build()).errors == []
        asked = [
            (Request("GET", f"https://{r.host}{r.path}", params=r.params.pairs).prepare(), r.cost)
            for r in sandbox.requests
        ]
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


SUGGESTED = yaml.safe_load((PACKAGE.parent / "metadata.yaml").read_text())["data"][
    "suggestedStreams"
]["streams"]
USER_COUNTS = ["daily_user_counts", "weekly_user_counts", "monthly_user_counts"]
BY_PLATFORM = {"user_counts_group_by": "platform"}


def weights(budget: APIBudget, asked: Sequence[Asked]) -> list[int]:
    policies: Any = [budget.get_matching_policy(request) for request, _ in asked]
    return [p.get_weight(request) for p, (request, _) in zip(policies, asked, strict=True)]


@pytest.mark.parametrize(
    ("streams", "years", "settings", "slower"),
    [
        (["active_users"], 5, {}, 1.3),
        ([s for s in SUGGESTED if s != "events"], 2, {}, 1.3),
        # One large query spends most of the budget, and the next one has to wait for all of it.
        (["active_users", *USER_COUNTS, "retention", "revenue_ltv"], 1, BY_PLATFORM, 1.6),
    ],
    ids=["one", "suggested", "grouped"],
)
def test_given_years_when_synced_then_no_429_and_hardly_slower_than_the_limit_allows(
    streams: list[str], years: int, settings: dict[str, Any], slower: float
) -> None:
    budget, asked = first_sync(*streams, days=365 * years, **settings)
    fastest = (math.ceil(sum(cost for _, cost in asked) / LIMIT) - 1) * SECONDS
    for workers in (2, 5):
        refused, seconds = spend(budget, asked, workers)
        assert refused == []
        assert fastest < seconds < slower * fastest


BY_DAY = ["active_users", "daily_user_counts"]


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        (
            {},
            {
                ("users", "1", "country"): 155,
                ("users", "1", ""): 31,
                ("users", "7", ""): 28,
                ("users", "30", ""): 31,
                ("sessions/average",): 4,
                ("sessions/peruser",): 4,
                ("sessions/length",): 4,
                ("events/segmentation",): 31,
                ("retention",): 168,
                ("revenue/ltv",): 100,
                ("events/list",): 1,
            },
        ),
        (
            BY_PLATFORM,
            {
                ("users", "1", "country"): 155,
                ("users", "1", "platform"): 155,
                ("users", "7", "platform"): 140,
                ("users", "30", "platform"): 155,
            },
        ),
    ],
    ids=["totals", "by-platform"],
)
def test_given_a_stream_when_read_then_each_request_weighs_what_it_costs(
    settings: dict[str, Any], expected: dict[tuple[str, ...], int]
) -> None:
    dearest: dict[tuple[str, ...], int] = {}
    # The last window has a day more where one is left over; weeks and months are whole ones.
    syncs = [(BY_DAY, 61), (["weekly_user_counts"], 57), (["monthly_user_counts"], 137)]
    if not settings:
        syncs += [(["event_counts"], 31), (["retention"], 41), (["revenue_ltv"], 100)]
        syncs += [(["session_lengths", "average_session_length", "sessions_per_user"], 3)]
    for streams, days in syncs:
        budget, asked = first_sync(*streams, days=days, until=70, **settings)
        assert weights(budget, asked) == [cost for _, cost in asked]
        for request, cost in asked:
            url = urlsplit(request.url or "")
            part: tuple[str, ...] = (url.path.removeprefix("/api/2/"),)
            if part == ("users",):
                query = dict(parse_qsl(url.query))
                part = (*part, query["i"], query.get("g", ""))
            dearest[part] = max(cost, dearest.get(part, 0))
    assert dearest == expected


def test_given_a_spent_budget_when_a_request_has_to_wait_then_the_log_says_how_long_and_for_what(
    caplog: pytest.LogCaptureFixture,
) -> None:
    def waits() -> list[str]:
        return [message for message in caplog.messages if "rate limit" in message]

    budget, asked = first_sync("active_users", days=31, until=70)
    [(request, cost)] = asked
    window = "{start} to {end}".format(**dict(parse_qsl(urlsplit(request.url or "").query)))
    with freezegun.freeze_time("2024-02-01T21:58:30Z") as clock, caplog.at_level("INFO"):
        for _ in range(980 // cost):
            budget.acquire_call(request, block=False)
            clock.tick(timedelta(seconds=10))
        assert waits() == []
        with pytest.raises(CallRateLimitHit):
            budget.acquire_call(request, block=False)
        assert waits() == [
            f"/api/2/users for {window} waits for Amplitude's rate limit, of which it takes 155 "
            "units. It goes on at 22:03:45 UTC."
        ]
        caplog.clear()
        clock.move_to("2024-02-01T22:03:40Z")  # soon
        with pytest.raises(CallRateLimitHit):
            budget.acquire_call(request, block=False)
        assert waits() == []


SIGNUPS: dict[str, Any] = {"kind": "segmentation", "events": ["Signed Up"]}
BY_COUNTRY = {**SIGNUPS, "group_by": ["country"]}
FUNNEL: dict[str, Any] = {"kind": "funnel", "events": ["Signed Up", "Song Played 🎧"]}
BY_ITSELF = '{"event_type": "Signed Up", "group_by": [{"type": "user", "value": "country"}]}'
SEGMENT = (
    '[{"prop": "gp:plan", "op": "is", "values": ["pro"]},'
    ' {"prop": "platform", "op": "is not", "values": ["iOS"]}]'
)


@pytest.mark.parametrize(
    ("query", "days", "longest", "cost"),
    [
        (SIGNUPS, 61, 31, 31),
        (BY_COUNTRY, 61, 31, 155),
        ({**BY_COUNTRY, "events": ["Signed Up", "Song Played 🎧"]}, 39, 20, 200),
        ({**BY_COUNTRY, "group_by": ["country", "platform"]}, 43, 22, 198),
        ({**BY_COUNTRY, "interval": "week"}, 43, 28, 140),
        (
            {**BY_COUNTRY, "interval": "week", "events": ["Signed Up", "Song Played 🎧"]},
            *(31, 14, 140),
        ),
        ({**BY_COUNTRY, "interval": "month"}, 91, 31, 155),
        ({**BY_COUNTRY, "events": [BY_ITSELF], "segment": SEGMENT}, 9, 5, 175),
        (FUNNEL, 61, 31, 124),
        ({**FUNNEL, "conversion_window_days": 3, "group_by": ["country"]}, 19, 10, 200),
        ({"kind": "retention"}, 49, 25, 200),
        ({"kind": "composition", "property": "platform"}, 3, 1, 1),
    ],
)
def test_given_a_report_when_synced_then_each_request_weighs_what_it_costs_and_200_at_most(
    query: dict[str, Any], days: int, longest: int, cost: int
) -> None:
    report = {"name": "x", "query": query}
    budget, asked = first_sync("report_x", days=days, until=70, reports=[report])
    assert weights(budget, asked) == [cost for _, cost in asked]
    queries = [dict(parse_qsl(urlsplit(request.url or "").query)) for request, _ in asked]
    lengths = [len(days_of(query)) for query in queries]
    assert (max(lengths), max(cost for _, cost in asked)) == (longest, cost)
