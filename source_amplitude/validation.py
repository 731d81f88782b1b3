"""Config values, refused before any request with a message that names the field of the form.

The CDK checks a config against the spec as well, but what it says ("'2021' does not match
'^[0-9]{4}-...'") names no field. It does so before any component of a stream is made, and one of
the spec would be needed to resolve the manifest, for which the Builder's server is given no code.
"""

import logging
from collections.abc import Iterator, Mapping
from typing import Any

from jsonschema import Draft7Validator
from jsonschema.exceptions import ValidationError

from source_amplitude.components import refusal, refuse_unusable

# Looked into one by one, since what the schema's own error quotes of them is far too much.
_INNER_RULES = ("items", "oneOf", "properties", "required")


def without_blanks(config: Mapping[str, Any]) -> dict[str, Any]:
    """The config without what is null or an empty text: forms and scripts leave it for nothing."""
    return {name: _inner(value) for name, value in config.items() if value not in (None, "")}


def _inner(value: Any) -> Any:
    if isinstance(value, list):
        return [_inner(each) for each in value]
    return without_blanks(value) if isinstance(value, dict) else value


def refuse_invalid(config: Mapping[str, Any], spec: Mapping[str, Any]) -> None:
    """Raise for the first value that ``spec``, a JSON schema, rejects; log fields that it has not.

    Raises:
        AirbyteTracedException: config error; a secret is never quoted.
    """
    properties = spec["properties"]
    for name, schema in properties.items():
        title = f"{schema['title']} ({name})"
        if name in config:
            for complaint in _complaints(config[name], schema):
                raise refusal(f"{title} is not valid: {complaint}.")
        elif name in spec["required"]:
            raise refusal(f"{title} is missing.")
    refuse_unusable(config)
    # The platform's own begin with two underscores.
    unknown = sorted(n for n in config.keys() - properties.keys() if not n.startswith("__"))
    if unknown:
        logging.getLogger("airbyte").warning(
            f"Fields of the config that this connector does not know: {', '.join(unknown)}."
        )


def _complaints(value: Any, schema: Mapping[str, Any]) -> Iterator[str]:
    """What ``schema`` rejects in a value, after the entries and fields that lead there."""
    outermost = {name: rule for name, rule in schema.items() if name not in _INNER_RULES}
    errors = [_complaint(error, schema) for error in Draft7Validator(outermost).iter_errors(value)]
    yield from errors
    if not errors and isinstance(value, list):
        for number, each in enumerate(value, start=1):
            for complaint in _complaints(each, schema["items"]):
                yield f"{_name_of(each, number)}: {complaint}"
    if not errors and isinstance(value, dict):
        yield from _complaints_of_fields(value, schema)


def _complaints_of_fields(value: Mapping[str, Any], schema: Mapping[str, Any]) -> Iterator[str]:
    if "oneOf" in schema:
        kinds = {branch["properties"]["kind"]["const"]: branch for branch in schema["oneOf"]}
        kind = value.get("kind")
        if not isinstance(kind, str) or kind not in kinds:
            yield f"kind is {kind!r}, not one of {', '.join(kinds)}"
            return
        schema = kinds[kind]
    for name, field in schema["properties"].items():
        title = f"{field['title']} ({name})" if "title" in field else name
        if name in value:
            yield from (f"{title}: {complaint}" for complaint in _complaints(value[name], field))
        elif name in schema["required"]:
            yield f"{title} is missing"
    # What is in it would not be asked for.
    if unknown := sorted(value.keys() - schema["properties"].keys()):
        yield f"there is no field {', '.join(unknown)}, but {', '.join(schema['properties'])}"


def _name_of(entry: Any, number: int) -> str:
    """What a person calls an entry of a list: its name, if it has one."""
    name = entry.get("name") if isinstance(entry, dict) else None
    return name if isinstance(name, str) else f"entry {number}"


def _complaint(error: ValidationError, schema: Mapping[str, Any]) -> str:
    if schema.get("airbyte_secret"):
        return "it must be a text that is not empty"
    if error.validator == "pattern":
        return f"{error.instance!r} is not of the form {schema['pattern_descriptor']}"
    return error.message
