"""What is wrong with a setting, in one line."""

from difflib import get_close_matches
from typing import Any


def unknown_key(key: str, known: list[str]) -> str:
    """Say that a setting is not known, and which one may be meant."""
    close = get_close_matches(key, known, n=1)
    hint = f"did you mean '{close[0]}'?" if close else f"known: {', '.join(known)}"
    return f"unknown setting '{key}'; {hint}"


def problem(item: Any) -> str:
    """Name a wrong setting, what is allowed, and the value seen: one of pydantic's errors."""
    place = ".".join(str(part) for part in item["loc"])
    message = item["msg"].removeprefix("Value error, ")
    return f"{place}: {message} (got {item['input']!r})" if place else message
