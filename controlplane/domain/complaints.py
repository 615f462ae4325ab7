"""What was given and what is allowed, in the product's own words, of what pydantic complains of. It knows no field."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from controlplane.domain.fields import WORDS

LONGEST_ECHO = 80  # characters of a bad value that are shown to whom it came from
MOMENT = "a time of ISO 8601 with its zone, such as 2026-11-30T12:00:00Z"
ALLOWED = {  # pydantic's kinds of errors, in our words
    "bool_parsing": "true or false",
    "bool_type": "true or false",
    "datetime_from_date_parsing": MOMENT,
    "datetime_object_invalid": MOMENT,
    "datetime_parsing": MOMENT,
    "datetime_type": MOMENT,
    "dict_type": "an object",
    "enum": "{expected}",
    "finite_number": "a finite number",
    "float_parsing": "a number",
    "float_type": "a number",
    "greater_than": "more than {gt}",
    "greater_than_equal": "at least {ge}",
    "int_from_float": "a whole number",
    "int_parsing": "a whole number",
    "int_type": "a whole number",
    "less_than": "less than {lt}",
    "less_than_equal": "at most {le}",
    "list_type": "a list",
    "literal_error": "{expected}",
    "model_attributes_type": "an object",
    "model_type": "an object",
    "string_too_long": "at most {max_length} characters",
    "string_too_short": "{min_length} or more characters",
    "string_type": "text",
    "timezone_aware": MOMENT,
    "too_long": "at most {max_length} entries",
    "too_short": "{min_length} or more entries",
}


def said(entry: Mapping[str, Any]) -> str:
    """What was given and what is allowed, from one of pydantic's errors."""
    code, told = str(entry["type"]), str(entry["msg"])
    if code == "value_error":  # a validator of ours has said it
        return told.removeprefix("Value error, ")
    if code == "string_pattern_mismatch" and (words := WORDS.get(entry["ctx"]["pattern"])):
        return f"got {echo(entry)}; allowed: {words}"
    if code in ALLOWED:
        return f"got {echo(entry)}; allowed: {ALLOWED[code].format(**entry.get('ctx', {}))}"
    return f"{told}; got {echo(entry)}"


def echo(entry: Mapping[str, Any]) -> str:
    """The value that was given, shortened."""
    return shorten(json.dumps(entry.get("input"), default=str, ensure_ascii=False))


def shorten(text: str) -> str:
    """What is shown of a text that came from outside."""
    return text if len(text) <= LONGEST_ECHO else text[: LONGEST_ECHO - 1] + "…"
