"""Checks of a request: its token, and its path and query parameters.

Parameters are checked as strictly as the official client checks them. The generated Python client writes
booleans as `True` and `False`, JavaScript clients as `true` and `false`.
"""

import re
from collections.abc import Mapping

from .api_errors import ApiError, malformed, not_found
from .asgi import ApiCall
from .signing import PublicTokens, same_secret

OBJECT_ID = re.compile(r"[a-f0-9]{24}")
BOOLEANS = {"True": True, "true": True, "1": True, "False": False, "false": False, "0": False}


def refused(error: str) -> ApiError:
    """Return the error for a call without a valid token."""
    return ApiError(401, "UNAUTHORIZED", error)


class AccessChecks:
    """The checks of tokens and ids for one dataset. Read-only, so any task may call it."""

    def __init__(self, token: str, public_tokens: PublicTokens, dataset_id: str) -> None:
        self._token = token
        self._public_tokens = public_tokens
        self._dataset_id = dataset_id

    def anyone(self, call: ApiCall) -> None:
        """Accept any call: version checks need no token."""

    def with_token(self, call: ApiCall) -> None:
        """Require the API token, as `token=` or as a bearer token."""
        given = call.query.get("token")
        header = call.header(b"authorization") or ""
        bearer = header[7:] if header[:7].lower() == "bearer " else None
        if given is None and bearer is None:
            raise refused("a token is required: `token` in the query or `Authorization: Bearer`")
        if not any(same_secret(self._token, one) for one in (given, bearer) if one is not None):
            raise refused("the token is not valid")

    def for_dataset(self, call: ApiCall) -> None:
        """Require the API token and an id of this dataset."""
        self.with_token(call)
        self._check_ids(call)

    def for_redirect(self, call: ApiCall) -> None:
        """Require a public token; the API token is not accepted here."""
        token = call.query.get("publicToken")
        if token is None or not self._public_tokens.accepts(token):
            raise refused("a valid publicToken is required")
        self._check_ids(call)

    def _check_ids(self, call: ApiCall) -> None:
        dataset_id = object_id(call.path["datasetId"], "datasetId")
        if "sampleId" in call.path:
            object_id(call.path["sampleId"], "sampleId")
        if dataset_id != self._dataset_id:
            raise not_found("DATASET_UNKNOWN", f"dataset {dataset_id}")


def object_id(value: str, name: str) -> str:
    """Return `value` if it is an id of the API, else raise the error of the service."""
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
    """Return a boolean; without a default the parameter is required."""
    text = query.get(name)
    if text is None and default is not None:
        return default
    if text not in BOOLEANS:
        raise malformed(f"{name} is required and must be a boolean")
    return BOOLEANS[text]


def choice(query: Mapping[str, str], name: str, values: tuple[str, ...], default: str | None = None) -> str:
    """Return one of `values`; without a default the parameter is required."""
    text = query.get(name, default)
    if text not in values:
        raise malformed(f"{name} must be one of {', '.join(values)}")
    return text
