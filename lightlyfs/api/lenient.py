"""The slow and forgiving way to decode an answer, taken only where the fast and strict one refused it.

An optional field of a wrong type becomes None, a whole number may come as a float, an unpaired
surrogate in a name is kept. Knows no model: it reads the fields and their types from the struct.
"""

from __future__ import annotations

import json
from functools import cache
from typing import Any, TypeVar

import msgspec
from msgspec import Struct

from lightlyfs import errors
from lightlyfs.api.redaction import redact

M = TypeVar("M", bound=Struct)

_SHOWN_CHARS = 60
# What msgspec raises for bytes it refuses: the cue to come here.
STRICT_REFUSALS = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
# What it raises for a value: of the wrong type, with an unpaired surrogate as a key, nested too deeply.
_NO_VALUE = (msgspec.ValidationError, UnicodeEncodeError, RecursionError)
# Optional to the API, but not to be dropped silently: it becomes a path.
_NEVER_DROPPED = frozenset({"fileName"})


def parse(body: bytes, where: str) -> Any:
    """Return the JSON in `body`; NaN and infinities become None. Raises `errors.MalformedAnswer`."""
    try:
        return msgspec.json.decode(body)
    except STRICT_REFUSALS:
        pass
    try:
        return json.loads(body, parse_constant=lambda _name: None)
    except (ValueError, RecursionError) as exc:
        page = body.lstrip()[:1] == b"<"
        kind = "an HTML or XML page" if page else "no JSON" if body.strip() else "an empty body"
        start = "" if page or not body.strip() else f" ({shown(body[:200].decode('utf-8', 'replace'))})"
        raise errors.MalformedAnswer(f"{where}: the answer is {kind}{start}") from exc


def decode_each(body: bytes, model: type[M], where: str) -> list[M | str]:
    """Return the array of `model` in `body`, in place of an item that is none why it is not."""
    found = parse(body, where)
    if not isinstance(found, list):
        raise errors.MalformedAnswer(f"{where} is not an array: {shown(found)}")
    items: list[M | str] = []
    for item in found:
        try:
            items.append(_object(item, model, "the record"))
        except errors.MalformedAnswer as exc:
            items.append(str(exc))
    return items


def decode_object(body: bytes, model: type[M], where: str) -> M:
    """Return the `model` in `body`; raises `errors.MalformedAnswer` for a bad id or name."""
    return _object(parse(body, where), model, where)


def encode(value: Any) -> bytes:
    """Return the JSON of `value`, unpaired surrogates as escapes."""
    return json.dumps(value, separators=(",", ":")).encode("ascii")


def shown(value: object) -> str:
    """Return a short, redacted picture of `value` for an error text."""
    text = redact(repr(value)[:400])
    return text if len(text) <= _SHOWN_CHARS else text[: _SHOWN_CHARS - 3] + "..."


@cache
def _fields(model: type[Struct]) -> tuple[tuple[str, str, Any, bool, type[Struct] | None], ...]:
    """Return name, JSON name, type, whether required, and the nested struct of each field."""
    found = []
    for field in msgspec.structs.fields(model):
        arms = getattr(field.type, "__args__", (field.type,))
        nested = next((arm for arm in arms if isinstance(arm, type) and issubclass(arm, Struct)), None)
        found.append((field.name, field.encode_name, field.type, field.required, nested))
    return tuple(found)


def _object(value: Any, model: type[M], where: str) -> M:
    if not isinstance(value, dict):
        raise errors.MalformedAnswer(f"{where} is not an object: {shown(value)}")
    try:
        return msgspec.convert(value, model)
    except _NO_VALUE:
        return _object_by_field(value, model, where)


def _object_by_field(value: dict[str, Any], model: type[M], where: str) -> M:
    kept: dict[str, Any] = {}
    for name, json_name, kind, required, nested in _fields(model):
        if json_name not in value:
            if required:
                raise errors.MalformedAnswer(f"{where}.{json_name} is missing")
            continue
        found = value[json_name]
        strict = required or json_name in _NEVER_DROPPED
        try:
            kept[name] = _field(found, kind, nested, f"{where}.{json_name}")
        except (*_NO_VALUE, errors.MalformedAnswer) as exc:
            if not strict:
                continue
            if isinstance(exc, errors.MalformedAnswer):
                raise
            wanted = str(exc).split(" - at")[0]
            raise errors.MalformedAnswer(f"{where}.{json_name}: {wanted}: {shown(found)}") from exc
    return model(**kept)


def _field(value: Any, kind: Any, nested: type[Struct] | None, where: str) -> Any:
    if nested is not None and value is not None:
        return _object(value, nested, where)
    return msgspec.convert(_whole(value), kind)


def _whole(value: Any) -> Any:
    """Return a float that is a whole number as an int; msgspec takes an int for a float, not the reverse."""
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, list):
        return [_whole(item) for item in value]
    return value
