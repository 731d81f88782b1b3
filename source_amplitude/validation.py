"""Config values, refused before any request with a message that names the field of the form.

The CDK checks a config against the spec as well, but what it says ("'2021' does not match
'^[0-9]{4}-...'") names no field. It does so before any component of a stream is made, and one of
the spec would be needed to resolve the manifest, for which the Builder's server is given no code.
"""

import logging
from collections.abc import Mapping
from typing import Any

from jsonschema import Draft7Validator
from jsonschema.exceptions import ValidationError

from source_amplitude.components import refusal, refuse_unusable


def without_blanks(config: Mapping[str, Any]) -> dict[str, Any]:
    """The config without what is null or an empty text: forms and scripts leave it for nothing."""
    return {name: value for name, value in config.items() if value not in (None, "")}


def refuse_invalid(config: Mapping[str, Any], spec: Mapping[str, Any]) -> None:
    """Raise for the first value that ``spec``, a JSON schema, rejects; log fields that it has not.

    Raises:
        AirbyteTracedException: config error; a secret is never quoted.
    """
    properties = spec["properties"]
    for name, schema in properties.items():
        title = f"{schema['title']} ({name})"
        if name in config:
            for error in Draft7Validator(schema).iter_errors(config[name]):
                raise refusal(f"{title} is not valid: {_complaint(error, schema)}.")
        elif name in spec["required"]:
            raise refusal(f"{title} is missing.")
    refuse_unusable(config)
    # The platform's own begin with two underscores.
    unknown = sorted(n for n in config.keys() - properties.keys() if not n.startswith("__"))
    if unknown:
        logging.getLogger("airbyte").warning(
            f"Fields of the config that this connector does not know: {', '.join(unknown)}."
        )


def _complaint(error: ValidationError, schema: Mapping[str, Any]) -> str:
    if schema.get("airbyte_secret"):
        return "it must be a text that is not empty"
    if error.validator == "pattern":
        return f"{error.instance!r} is not of the form {schema['pattern_descriptor']}"
    return error.message
