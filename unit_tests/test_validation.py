"""Config values: a bad one is named by the field of the form, and a secret is never quoted."""

import logging
from collections.abc import Callable
from copy import deepcopy
from typing import Any

import freezegun
import pytest
from airbyte_cdk.models import FailureType
from airbyte_cdk.sources.declarative.concurrent_declarative_source import (
    ConcurrentDeclarativeSource,
)
from airbyte_cdk.utils.traced_exception import AirbyteTracedException

from source_amplitude import SourceAmplitude
from unit_tests.helpers import API_KEY, config
from unit_tests.test_manifest import MANIFEST


def package(settings: dict[str, Any]) -> None:
    SourceAmplitude(config=settings)


def two_files(settings: dict[str, Any]) -> None:
    """What all other doors do with the manifest and the components, once they are registered."""
    source = ConcurrentDeclarativeSource(config=settings, source_config=deepcopy(MANIFEST))
    source.streams(settings)


def complaint(settings: dict[str, Any], door: Callable[[dict[str, Any]], None] = package) -> str:
    with pytest.raises(AirbyteTracedException) as failure:
        door(settings)
    assert failure.value.failure_type is FailureType.config_error
    assert failure.value.message
    assert failure.value.internal_message == failure.value.message
    return failure.value.message


@pytest.mark.parametrize("value", [123456789, " \n"])
def test_given_a_bad_secret_then_the_field_is_named_and_never_the_value(value: object) -> None:
    assert complaint(config(secret_key=value)) == (
        "Secret Key (secret_key) is not valid: it must be a text that is not empty."
    )


@pytest.mark.parametrize("left_out", [{}, {"start_date": None}, {"start_date": ""}])
def test_given_a_required_field_that_is_left_out_or_empty_then_it_is_missing(
    left_out: dict[str, Any],
) -> None:
    required = {name: value for name, value in config().items() if name != "start_date"}
    assert complaint({**required, **left_out}) == "Start Date (start_date) is missing."


@pytest.mark.parametrize("value", ["2021", "2021-1-5", "25.01.2021", "2021-01-25T10", 20210125])
@pytest.mark.parametrize(
    "field",
    [
        ("start_date", "Start Date", "2021-01-25T00:00:00Z"),
        ("end_date", "End Date", "2022-01-01T00:00:00Z"),
    ],
    ids=lambda f: f[0],
)
def test_given_a_date_of_another_form_then_the_field_is_named(
    field: tuple[str, str, str], value: object
) -> None:
    name, title, example = field
    form = (
        f"{value!r} is not of the form YYYY-MM-DDTHH:mm:ssZ, such as {example}"
        if isinstance(value, str)
        else f"{value} is not of type 'string'"
    )
    assert complaint(config(**{name: value})) == f"{title} ({name}) is not valid: {form}."


@pytest.mark.parametrize("door", [package, two_files])
@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        (
            {"end_date": "9999-12-31T23:00:00-05:00"},
            "End Date (end_date) is not valid: '9999-12-31T23:00:00-05:00' is no date of the "
            "calendar.",
        ),
        (
            {"start_date": "2009-12-31T23:59:59Z"},
            "Start Date (start_date) is not valid: '2009-12-31T23:59:59Z' lies before 2010.",
        ),
        (
            {"start_date": "2030-01-01T00:00:00Z"},
            "Start Date (start_date) is not valid: '2030-01-01T00:00:00Z' lies in the future, by "
            "the clock of UTC.",
        ),
        (
            {"start_date": "2024-01-03T23:30:00-01:00"},
            "Start Date (start_date) is not valid: '2024-01-03T23:30:00-01:00' lies in the future, "
            "by the clock of UTC.",
        ),
        (
            {"start_date": "2024-01-01", "end_date": "2024-01-01T00:00:00Z"},
            "End Date (end_date) is not valid: '2024-01-01T00:00:00Z' is not after Start Date "
            "(start_date), '2024-01-01'.",
        ),
        (
            {"start_date": "2024-01-01", "end_date": "2024-01-01T00:00:00+01:00"},
            "End Date (end_date) is not valid: '2024-01-01T00:00:00+01:00' is not after Start Date "
            "(start_date), '2024-01-01'.",
        ),
        (
            {"project_timezone": "Mars/Base"},
            "Project Time Zone (project_timezone) is not valid: 'Mars/Base' is no IANA name of a "
            "time zone, such as Europe/Berlin.",
        ),
    ],
)
def test_given_a_value_of_the_right_form_that_no_sync_could_use_then_every_door_names_the_field(
    settings: dict[str, Any], expected: str, door: Callable[[dict[str, Any]], None]
) -> None:
    with freezegun.freeze_time("2024-01-03T23:30:00Z"):
        assert complaint(config(**settings), door) == expected


def test_given_a_start_date_that_no_calendar_has_then_the_field_is_named() -> None:
    assert complaint(config(start_date="2021-02-30")) == (
        "Start Date (start_date) is not valid: '2021-02-30' is no date of the calendar."
    )


def test_given_a_start_date_of_this_moment_and_an_end_in_the_future_then_they_are_accepted() -> (
    None
):
    with freezegun.freeze_time("2024-01-03T23:30:00Z"):
        package(config(start_date="2024-01-03T23:30:00Z", end_date="2030-01-01T00:00:00Z"))
        package(config(start_date="2010-01-01T00:00:00Z"))


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (9, "9 is greater than the maximum of 5"),
        (0, "0 is less than the minimum of 1"),
        ("two", "'two' is not of type 'integer'"),
    ],
)
def test_given_a_number_of_workers_that_can_not_be_then_the_bound_is_named(
    value: object, reason: str
) -> None:
    assert complaint(config(num_workers=value)) == (
        f"Number of Concurrent Workers (num_workers) is not valid: {reason}."
    )


@pytest.mark.parametrize("door", [package, two_files])
@pytest.mark.parametrize(
    ("value", "guess"),
    [
        ("plan", " Did you mean gp:plan?"),
        ("countri", " Did you mean country?"),
        ("Platforms", " Did you mean platform?"),
        ("my plan", " Did you mean gp:my plan?"),
        ("gp:", ""),
        ("gp: ", ""),
        (" ", ""),
        ("country,city", ""),
        ("g:x", ""),
    ],
)
def test_given_a_property_that_amplitude_can_not_group_by_then_every_door_says_what_it_can_be(
    value: str, guess: str, door: Callable[[dict[str, Any]], None]
) -> None:
    assert complaint(config(user_counts_group_by=value), door) == (
        f"Group User Counts by (user_counts_group_by) is not valid: {value!r} is not a property of "
        "users. Enter version, country, city, region, DMA, language, platform, os, device, "
        "device_type, start_version, paying, or gp: and the name of a property of your own, such "
        f"as gp:plan.{guess}"
    )


@pytest.mark.parametrize(
    "value",
    ["platform", "Country", "dma", "DMA", " os ", "device_type", "gp:plan", "gp:a b/c", "gp:gp:"],
)
def test_given_a_property_that_amplitude_can_group_by_then_it_is_accepted(value: str) -> None:
    package(config(user_counts_group_by=value))


@pytest.mark.parametrize(
    ("value", "workers"),
    [(..., 2), (1, 1), (5, 5), (0, 1), (None, 2), ("", 2), ("two", 2), (2.0, 2), (9, 5)],
)
def test_given_any_number_of_workers_then_the_manifest_makes_one_to_five_of_it(
    value: object, workers: int
) -> None:
    settings = config() if value is ... else config(num_workers=value)
    source: Any = ConcurrentDeclarativeSource(config=settings, source_config=deepcopy(MANIFEST))
    source.streams(settings)
    assert source._concurrent_source._threadpool._threadpool._max_workers == workers


@pytest.mark.parametrize("blank", [None, ""])
def test_given_an_optional_field_that_is_empty_then_it_counts_as_absent(blank: object) -> None:
    optional = SourceAmplitude(config=config()).resolved_manifest["spec"]
    names = optional["connection_specification"]["properties"].keys() - config().keys()
    source = SourceAmplitude(config=config(**dict.fromkeys(names, blank)))
    assert source.configure({}, "") == {**config(), "__end": "9999-11-30T00:00:00Z"}


def test_given_whole_numbers_with_a_decimal_point_then_they_are_accepted() -> None:
    numbers = ("num_workers", "request_time_range", "lookback_window_hours")
    settings = config(**dict.fromkeys((*numbers, "dashboard_lookback_days"), 2.0))
    SourceAmplitude(config=settings).streams(settings)


def test_given_fields_that_nobody_knows_then_they_are_logged_once_by_name_only(
    caplog: pytest.LogCaptureFixture,
) -> None:
    settings = config(end_dat="2024", api_secret="hidden", __injected_by_the_platform=1)
    source = SourceAmplitude(config=settings)
    source.configure(settings, "")
    source.streams(settings)
    assert [r.message for r in caplog.records if r.levelno >= logging.WARNING] == [
        "Fields of the config that this connector does not know: api_secret, end_dat."
    ]
    assert "hidden" not in caplog.text


def test_given_fields_of_published_versions_only_then_the_config_is_accepted() -> None:
    SourceAmplitude(
        config=config(
            api_key=f" {API_KEY}\n",
            data_region="EU Residency Server",
            request_time_range=8760,
            active_users_group_by_country=False,
        )
    )
