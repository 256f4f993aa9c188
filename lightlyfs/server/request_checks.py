"""Checks of a request: its token or signature, its path and query parameters, and its body.

Parameters are checked as strictly as the official client checks them. The generated Python client writes
booleans as `True` and `False`, JavaScript clients as `true` and `false`. Bodies have the names, types and
bounds of the models of the generated client. Unknown keys of a request are an error; unknown keys of
`metaData` are dropped, because old uploaders send them and the models of the client reject them in responses.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, TypeVar
from urllib.parse import quote

import msgspec
from msgspec import UNSET, Meta, UnsetType

from .asgi import ApiCall, ApiError, malformed, not_found

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


Positive = Annotated[float, Meta(ge=0)]
Count = Annotated[int, Meta(ge=0)]
Unit = Annotated[float, Meta(ge=0, le=1)]
ObjectId = Annotated[str, Meta(pattern=r"^[a-f0-9]{24}$")]
Three = Annotated[list[Positive], Meta(min_length=3, max_length=3)]


class MetaData(msgspec.Struct, omit_defaults=True):
    """SampleMetaData; every field is optional."""

    custom: dict[str, Any] | UnsetType | None = UNSET
    dynamic: dict[str, Any] | UnsetType | None = UNSET
    sharpness: Positive | UnsetType = UNSET
    luminance: Annotated[float, Meta(ge=0, le=100)] | UnsetType = UNSET
    sizeInBytes: Count | UnsetType = UNSET
    snr: Positive | UnsetType = UNSET
    uniformRowRatio: Unit | UnsetType = UNSET
    mean: Annotated[list[Unit], Meta(min_length=3, max_length=3)] | UnsetType = UNSET
    shape: Annotated[list[Count], Meta(min_length=3, max_length=3)] | UnsetType = UNSET
    std: Three | UnsetType = UNSET
    sumOfSquares: Three | UnsetType = UNSET
    sumOfValues: Three | UnsetType = UNSET


class VideoFrame(msgspec.Struct, omit_defaults=True):
    """VideoFrameData; every field is optional."""

    sourceVideo: str | UnsetType = UNSET
    sourceVideoFrameIndex: float | UnsetType = UNSET
    sourceVideoFrameTimestamp: float | UnsetType = UNSET


class Crop(msgspec.Struct):
    """CropData; every field is required."""

    parentId: ObjectId
    predictionUUIDTimestamp: Count
    predictionIndex: Count
    predictionTaskName: Annotated[str, Meta(pattern=r"^[a-zA-Z0-9_+=,.@:\/-]*$")]
    predictionTaskCategoryId: Count
    predictionTaskScore: Unit


class SampleUpdateBody(msgspec.Struct, omit_defaults=True, forbid_unknown_fields=True):
    """SampleUpdateRequest: only the keys that were sent change."""

    fileName: str | UnsetType = UNSET
    thumbName: str | UnsetType | None = UNSET
    exif: dict[str, Any] | UnsetType | None = UNSET
    metaData: MetaData | UnsetType | None = UNSET
    customMetaData: dict[str, Any] | UnsetType | None = UNSET


class SampleCreateBody(SampleUpdateBody, omit_defaults=True, forbid_unknown_fields=True, kw_only=True):
    """SampleCreateRequest: `fileName` is required and unbounded."""

    fileName: str
    videoFrameData: VideoFrame | UnsetType | None = UNSET
    cropData: Crop | UnsetType | None = UNSET


class TagCreateBody(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """TagCreateRequest, plus `fileNames` as an alternative to `bitMaskData`."""

    name: Annotated[str, Meta(min_length=3, pattern=r"^[a-zA-Z0-9][a-zA-Z0-9 .:;=@_-]+$")]
    prevTagId: ObjectId | None = None
    queryTagId: ObjectId | None = None
    preselectedTagId: ObjectId | None = None
    bitMaskData: Annotated[str, Meta(pattern=r"^0x[a-f0-9]+$")] | None = None
    fileNames: list[str] | None = None
    totSize: int | None = None
    creator: str | None = None
    changes: Any = None
    runId: ObjectId | None = None


Model = TypeVar("Model")


def parse_body(document: Any, model: type[Model], code: str = "MALFORMED_REQUEST") -> Model:
    """Return `document` as `model`, or raise `ApiError` with the invalid field."""
    try:
        return msgspec.convert(document, model)
    except msgspec.ValidationError as error:
        raise ApiError(400, code, str(error)) from error


def present_fields(model: msgspec.Struct) -> dict[str, Any]:
    """Return the fields that were sent, as plain values; nulls are kept at the top level only."""
    fields: dict[str, Any] = msgspec.to_builtins(model)
    return {
        key: {k: v for k, v in value.items() if v is not None} if key == "metaData" and value else value
        for key, value in fields.items()
    }


def derive(secret: bytes, purpose: str) -> bytes:
    """Return a key for one purpose, so that a signature for one purpose is invalid for another."""
    return hmac.new(secret, purpose.encode(), hashlib.sha256).digest()


@dataclass(frozen=True)
class UrlSigner:
    """Signs and checks storage URLs: one method, one key, one expiry.

    Keys are paths as `os.fsdecode` gives them, so any file name can be signed.
    """

    secret: bytes = field(repr=False)
    base_url: str
    lifetime_s: float
    clock: Callable[[], float]

    def sign(self, method: str, key: str) -> str:
        """Return a URL that allows `method` on `key` until it expires."""
        expires = int(self.clock() + self.lifetime_s)
        path = quote(key.encode("utf-8", "surrogateescape"))
        signature = self._signature(method, key, str(expires))
        return f"{self.base_url}/storage/{path}?expires={expires}&method={method}&sig={signature}"

    def is_signed(self, method: str, key: str, expires: str, signature: str) -> bool:
        """Return whether the signature is valid, regardless of the expiry."""
        return same_secret(self._signature(method, key, expires), signature)

    def is_expired(self, expires: str) -> bool:
        """Return whether a signed expiry has passed."""
        return self.clock() >= int(expires)

    def _signature(self, method: str, key: str, expires: str) -> str:
        text = f"{method}\n{expires}\n{key}".encode("utf-8", "surrogateescape")
        return hmac.new(self.secret, text, hashlib.sha256).hexdigest()


@dataclass(frozen=True)
class PublicTokens:
    """Makes and checks the JWTs that redirect links carry; valid for one dataset and nothing else."""

    secret: bytes = field(repr=False)
    dataset_id: str
    clock: Callable[[], float]

    def mint(self, expires_in_s: int | None = None) -> str:
        """Return a token, which does not expire if no lifetime is given."""
        claims: dict[str, object] = {"datasetId": self.dataset_id}
        if expires_in_s is not None:
            claims["exp"] = int(self.clock()) + expires_in_s
        head = _encode(json.dumps({"alg": "HS256", "typ": "JWT"}).encode())
        body = _encode(json.dumps(claims).encode())
        return f"{head}.{body}.{self._signature(head, body)}"

    def accepts(self, token: str) -> bool:
        """Return whether this server issued `token` and it has not expired."""
        head, _, rest = token.partition(".")
        body, _, signature = rest.partition(".")
        if not same_secret(self._signature(head, body), signature):
            return False
        claims = json.loads(base64.urlsafe_b64decode(body + "=" * (-len(body) % 4)))
        return "exp" not in claims or self.clock() < claims["exp"]

    def _signature(self, head: str, body: str) -> str:
        text = f"{head}.{body}".encode("utf-8", "surrogatepass")
        return _encode(hmac.new(self.secret, text, hashlib.sha256).digest())


def same_secret(expected: str, given: str) -> bool:
    """Compare in constant time; `given` may be any text."""
    return hmac.compare_digest(expected.encode(), given.encode("utf-8", "surrogatepass"))


def _encode(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode("ascii")
