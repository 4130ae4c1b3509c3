"""How a recipe's errors are worded, and a recipe's values as plain data."""

from __future__ import annotations

from typing import Any

_WORDS = {
    "float_type": "a number",
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "bool_type": "true or false",
    "string_type": "a text",
    "list_type": "a list",
    "dict_type": "keys below it",
    "finite_number": "a finite number",
    "none_required": "null",
    "string_pattern_mismatch": "hours and minutes, as 7:50",  # launch.max_time, which alone has a pattern
}


def wording(problem: Any) -> str:
    """What a pydantic error wanted, in words."""
    kind, context = problem["type"], problem.get("ctx", {})
    if kind in _WORDS:
        return _WORDS[kind]
    if kind == "literal_error":
        return str(context["expected"])
    limits = {"greater_than": ">", "greater_than_equal": ">=", "less_than": "<", "less_than_equal": "<="}
    if kind in limits:
        bound = context[{"greater_than": "gt", "greater_than_equal": "ge", "less_than": "lt", "less_than_equal": "le"}[kind]]
        return f"a number {limits[kind]} {bound:g}"
    return problem["msg"][0].lower() + problem["msg"][1:]


def show(value: Any) -> str:
    """A wrong value as it is quoted in a message."""
    if isinstance(value, bool):
        return f"{str(value).lower()} (true/false)"
    if isinstance(value, str):
        return f"'{value}' (text)"
    if isinstance(value, dict):
        return "a mapping"
    if isinstance(value, list):
        return "a list"
    return "null" if value is None else str(value)
