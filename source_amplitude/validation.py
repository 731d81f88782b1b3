"""Config values, refused before any request with a message that names the field of the form.

The CDK checks a config against the spec as well, but what it says ("'2021' does not match
'^[0-9]{4}-...'") names no field and quotes secrets. A component of the manifest can't do this: the
Builder's server has to resolve a manifest before it is given any code.
"""

from collections.abc import Mapping
from datetime import datetime
from typing import Any

import pytz
from airbyte_cdk.models import FailureType
from airbyte_cdk.utils.traced_exception import AirbyteTracedException
from jsonschema import Draft7Validator, FormatChecker
from jsonschema.exceptions import ValidationError


def refuse_invalid(config: Mapping[str, Any], properties: Mapping[str, Any]) -> None:
    """Raise for the first value that its schema in ``properties`` (those of the spec) rejects.

    Missing fields are left to the CDK, which names them.

    Raises:
        AirbyteTracedException: config error; a secret is never quoted.
    """
    formats = FormatChecker(formats=())
    formats.checks("date-time", ValueError)(_is_utc_datetime)
    formats.checks("time-zone", pytz.UnknownTimeZoneError)(_is_time_zone)
    for name in config.keys() & properties.keys():
        schema = properties[name]
        for error in Draft7Validator(schema, format_checker=formats).iter_errors(config[name]):
            message = f"{schema['title']} ({name}) is not valid: {_complaint(error, schema)}."
            raise AirbyteTracedException(
                message=message, internal_message=message, failure_type=FailureType.config_error
            )


def _is_utc_datetime(value: object) -> bool:
    return not isinstance(value, str) or bool(datetime.strptime(value, "%Y-%m-%dT%H:%M:%SZ"))


def _is_time_zone(value: object) -> bool:
    return not isinstance(value, str) or bool(pytz.timezone(value))


def _complaint(error: ValidationError, schema: Mapping[str, Any]) -> str:
    if schema.get("airbyte_secret"):
        return "it must be a text that is not empty"
    if error.validator in ("pattern", "format"):
        return f"{error.instance!r} is not of the form {schema['pattern_descriptor']}"
    return error.message
