"""Config values: a bad one is named by the field of the form, and a secret is never quoted."""

import pytest
from airbyte_cdk.models import FailureType
from airbyte_cdk.utils.traced_exception import AirbyteTracedException

from source_amplitude import SourceAmplitude
from unit_tests.helpers import API_KEY, config


def complaint(**values: object) -> str:
    with pytest.raises(AirbyteTracedException) as failure:
        SourceAmplitude(config=config(**values))
    assert failure.value.failure_type is FailureType.config_error
    assert failure.value.message
    return failure.value.message


@pytest.mark.parametrize("value", [123456789, "", " \n", None])
def test_given_a_bad_secret_then_the_field_is_named_and_never_the_value(value: object) -> None:
    assert complaint(secret_key=value) == (
        "Secret Key (secret_key) is not valid: it must be a text that is not empty."
    )


@pytest.mark.parametrize("value", ["2021", "2021-02-30T00:00:00Z", "2021-01-25T00:00:00+01:00"])
@pytest.mark.parametrize(
    "field", [("start_date", "Start Date"), ("end_date", "End Date")], ids=lambda f: f[0]
)
def test_given_a_bad_date_then_the_form_is_shown(field: tuple[str, str], value: str) -> None:
    name, title = field
    assert complaint(**{name: value}) == (
        f"{title} ({name}) is not valid: {value!r} is not of the form YYYY-MM-DDTHH:mm:ssZ."
    )


def test_given_a_number_out_of_range_then_the_bound_is_named() -> None:
    assert complaint(num_workers=9) == (
        "Number of Concurrent Workers (num_workers) is not valid: 9 is greater than the maximum "
        "of 5."
    )


def test_given_an_unknown_time_zone_then_an_example_is_shown() -> None:
    assert complaint(project_timezone="Mars/Base") == (
        "Project Time Zone (project_timezone) is not valid: 'Mars/Base' is not of the form IANA "
        "name, such as Europe/Berlin."
    )


def test_given_fields_of_published_versions_only_then_the_config_is_accepted() -> None:
    SourceAmplitude(
        config=config(
            api_key=f" {API_KEY}\n",
            data_region="EU Residency Server",
            request_time_range=8760,
            active_users_group_by_country=False,
            something_else="ignored",
        )
    )
