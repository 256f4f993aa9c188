"""Query and path values, checked as strictly as the official client is.

The generated Python client writes booleans as `True` and `False`, JavaScript ones as `true` and `false`.
"""

import re
from collections.abc import Mapping

from .errors import malformed

OBJECT_ID = re.compile(r"[a-f0-9]{24}")
BOOLEANS = {"True": True, "true": True, "1": True, "False": False, "false": False, "0": False}


def object_id(value: str, name: str) -> str:
    """Return `value` if it is an id of the API, else refuse as the service does."""
    if OBJECT_ID.fullmatch(value) is None:
        raise malformed(f'{name} must match the following: "/^[a-f0-9]{{24}}$/"')
    return value


def integer(query: Mapping[str, str], name: str, least: int) -> int | None:
    """Return an optional integer of at least `least`."""
    text = query.get(name)
    if text is None:
        return None
    if not text.isascii() or not text.isdigit() or len(text) > 15 or int(text) < least:
        raise malformed(f"{name} must be an integer of at least {least}")
    return int(text)


def boolean(query: Mapping[str, str], name: str, default: bool | None = None) -> bool:
    """Return a boolean; with no default the parameter is required."""
    text = query.get(name)
    if text is None and default is not None:
        return default
    if text not in BOOLEANS:
        raise malformed(f"{name} is required and must be a boolean")
    return BOOLEANS[text]


def choice(query: Mapping[str, str], name: str, values: tuple[str, ...], default: str | None = None) -> str:
    """Return one of `values`; with no default the parameter is required."""
    text = query.get(name, default)
    if text not in values:
        raise malformed(f"{name} must be one of {', '.join(values)}")
    return text
