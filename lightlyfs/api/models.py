"""The documents of the API as typed structs, and their decoding, which tolerates harmless deviations.

Unknown fields are ignored; an optional field may be null, absent or of a wrong type (it is then None). What
becomes a file name is checked: an id is 24 hex digits, a name is a string; anything else raises
`errors.MalformedAnswer`, which names the field and its place.

Decoding is strict and fast first. Only an answer that msgspec refuses takes the slow way (`parse`,
`decode_each`, `decode_object`): an optional field of a wrong type becomes None, a whole number may come as a
float, an unpaired surrogate in a name is kept.
"""

from __future__ import annotations

import json
import re
from functools import cache
from typing import Any, TypeVar

import msgspec
from msgspec import UNSET, Struct, UnsetType

from lightlyfs import errors
from lightlyfs.api.redaction import redact

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


def encode_escaped(value: Any) -> bytes:
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


JsonObject = dict[str, Any]


class SampleMetaData(Struct, rename="camel", frozen=True, omit_defaults=True, kw_only=True):
    """Facts about a sample's image; `size_in_bytes` is a hint. API: SampleMetaData."""

    custom: JsonObject | None = None
    dynamic: JsonObject | None = None
    sharpness: float | None = None
    size_in_bytes: int | None = None
    snr: float | None = None
    mean: list[float] | None = None
    shape: list[int] | None = None
    std: list[float] | None = None
    sum_of_squares: list[float] | None = None
    sum_of_values: list[float] | None = None
    uniform_row_ratio: float | None = None
    luminance: float | None = None


class VideoFrameData(Struct, rename="camel", frozen=True, kw_only=True):
    """Where a video frame comes from. API: VideoFrameData."""

    source_video: str | None = None
    source_video_frame_index: float | None = None
    source_video_frame_timestamp: float | None = None


class CropData(Struct, rename="camel", frozen=True, kw_only=True):
    """Where a crop comes from. API: CropData."""

    parent_id: str | None = None
    prediction_uuid_timestamp: int | None = msgspec.field(default=None, name="predictionUUIDTimestamp")
    prediction_index: int | None = None
    prediction_task_name: str | None = None
    prediction_task_category_id: int | None = None
    prediction_task_score: float | None = None


class Sample(Struct, rename="camel", frozen=True, kw_only=True):
    """One sample; only `id` is always there. Times are unix ms. API: SampleData, SampleDataModes."""

    id: str
    type: str | None = None
    file_name: str | None = None
    dataset_id: str | None = None
    thumb_name: str | None = None
    exif: JsonObject | None = None
    index: int | None = None
    created_at: int | None = None
    last_modified_at: int | None = None
    meta_data: SampleMetaData | None = None
    custom_meta_data: JsonObject | None = None
    video_frame_data: VideoFrameData | None = None
    crop_data: CropData | None = None


class ListedSample(Struct, frozen=True, gc=False):
    """One row of a listing, as much of it as the catalogue keeps; times are unix milliseconds.

    `id` is "" where the row is no record of a sample, and `file_name` then says what it is.
    """

    id: str
    file_name: str | None = None
    created_at: int | None = None
    last_modified_at: int | None = None
    size_in_bytes: int | None = None


class DatasetRecord(Struct, rename="camel", frozen=True, kw_only=True):
    """One dataset; times are unix milliseconds. API: DatasetData."""

    id: str
    name: str | None = None
    user_id: str | None = None
    type: str | None = None
    img_type: str | None = None
    n_samples: int | None = None
    size_in_bytes: int | None = None
    created_at: int | None = None
    last_modified_at: int | None = None
    access_type: str | None = None
    parent_dataset_id: str | None = None
    original_dataset_id: str | None = None


class Tag(Struct, rename="camel", frozen=True, kw_only=True):
    """One tag; bit k of `bit_mask_data` (hex, from the lowest) is entry k of the mappings. API: TagData."""

    id: str
    name: str | None = None
    dataset_id: str | None = None
    prev_tag_id: str | None = None
    bit_mask_data: str | None = None
    tot_size: int | None = None
    created_at: int | None = None
    last_modified_at: int | None = None


class SampleWriteUrls(Struct, frozen=True, kw_only=True):
    """Signed addresses to PUT the image and its thumbnail to. API: SampleWriteUrls."""

    full: str
    thumb: str

    def __repr__(self) -> str:
        return "SampleWriteUrls(full=***, thumb=***)"


class CreatedSample(Struct, frozen=True):
    """The id of a new sample. API: CreateEntityResponse."""

    id: str


class CreatedSampleWithWriteUrls(Struct, rename="camel", frozen=True):
    """The id of a new sample and where its bytes go. API: CreateSampleWithWriteUrlsResponse."""

    id: str
    sample_write_urls: SampleWriteUrls


class SampleCreate(Struct, rename="camel", frozen=True, omit_defaults=True, kw_only=True):
    """A sample to create; unset fields are not sent. API: SampleCreateRequest."""

    file_name: str
    thumb_name: str | UnsetType = UNSET
    exif: JsonObject | UnsetType = UNSET
    meta_data: SampleMetaData | UnsetType = UNSET
    custom_meta_data: JsonObject | UnsetType | None = UNSET
    video_frame_data: VideoFrameData | UnsetType | None = UNSET
    crop_data: CropData | UnsetType | None = UNSET


class SampleUpdate(Struct, rename="camel", frozen=True, omit_defaults=True, kw_only=True):
    """What to change of a sample: only set fields are sent. API: SampleUpdateRequest.

    `custom_meta_data=None` is sent as null and clears it.
    """

    file_name: str | UnsetType = UNSET
    thumb_name: str | UnsetType = UNSET
    exif: JsonObject | UnsetType = UNSET
    meta_data: SampleMetaData | UnsetType = UNSET
    custom_meta_data: JsonObject | UnsetType | None = UNSET


class _ListedFacts(Struct, frozen=True, gc=False):
    size_in_bytes: int | None = msgspec.field(default=None, name="sizeInBytes")


class _ListedRow(Struct, rename="camel", frozen=True, gc=False):
    id: str
    file_name: str | None = None
    created_at: int | None = None
    last_modified_at: int | None = None
    meta_data: _ListedFacts | None = None


M = TypeVar("M", bound=Struct)

_OID = re.compile(r"[a-f0-9]{24}")
_OIDS = re.compile(r"(?:[a-f0-9]{24}\n)*")
# the end of a list may hold no record; a long page without one is another document
_FEW_ROWS = 20
_NO_FACTS = _ListedFacts()
_ROWS = msgspec.json.Decoder(list[_ListedRow])


def is_oid(text: object) -> bool:
    """True for an id of the API: 24 lower-case hex digits. API: `^[a-f0-9]{24}$`."""
    return isinstance(text, str) and _OID.fullmatch(text) is not None


def decode_listing(body: bytes, where: str = "samples") -> list[ListedSample]:
    """Return the rows of one listing page. API: GET /v1/datasets/{id}/samples and .../samples/partial.

    Builds none of the objects the catalogue does not keep. A row that is no record keeps its place, for pages
    are counted. Raises `errors.MalformedAnswer` where the answer is no list, or many rows without a record.
    """
    try:
        rows = _ROWS.decode(body)
    except STRICT_REFUSALS:
        each = decode_each(body, _ListedRow, where)
        found = [_listed(row) if isinstance(row, _ListedRow) else ListedSample("", row) for row in each]
    else:
        if _are_ids([row.id for row in rows]):
            return [
                ListedSample(
                    row.id,
                    row.file_name,
                    row.created_at,
                    row.last_modified_at,
                    (row.meta_data or _NO_FACTS).size_in_bytes,
                )
                for row in rows
            ]
        found = [_listed(row) for row in rows]
    if len(found) > _FEW_ROWS and not any(row.id for row in found):
        raise errors.MalformedAnswer(f"{where}: no row is a record: {found[0].file_name}")
    return found


def _listed(row: _ListedRow) -> ListedSample:
    if not is_oid(row.id):
        return ListedSample("", f"an id is not 24 hex digits: {shown(row.id)}")
    size = (row.meta_data or _NO_FACTS).size_in_bytes
    return ListedSample(row.id, row.file_name, row.created_at, row.last_modified_at, size)


def decode_many(body: bytes, model: type[M], where: str) -> list[M]:
    """Return the items of the array in `body` that are a `model`; MalformedAnswer where none of them is."""
    try:
        found = msgspec.json.decode(body, type=list[model])  # type: ignore[valid-type]
    except STRICT_REFUSALS:
        each = decode_each(body, model, where)
        found = [one for one in each if not isinstance(one, str)]
        if each and not found:
            raise errors.MalformedAnswer(f"{where}: no item is a record: {each[0]}") from None
    kept = [one for one in found if is_oid(getattr(one, "id", None))]
    if found and not kept:
        bad = shown(getattr(found[0], "id", None))
        raise errors.MalformedAnswer(f"{where}[0].id is not 24 hex digits: {bad}")
    return kept


def decode_one(body: bytes, model: type[M], where: str) -> M:
    """Return the `model` in `body`; raises `errors.MalformedAnswer` naming the field in `where`."""
    try:
        found = msgspec.json.decode(body, type=model)
    except STRICT_REFUSALS:
        found = decode_object(body, model, where)
    oid = getattr(found, "id", None)
    if oid is not None and not is_oid(oid):
        raise errors.MalformedAnswer(f"{where}.id is not 24 hex digits: {shown(oid)}")
    return found


def decode_strings(body: bytes, where: str) -> list[str]:
    """Return the array of strings in `body`. API: GET /v1/datasets/{id}/mappings."""
    found = parse(body, where)
    if not isinstance(found, list):
        raise errors.MalformedAnswer(f"{where} is not an array: {shown(found)}")
    for position, item in enumerate(found):
        if not isinstance(item, str):
            raise errors.MalformedAnswer(f"{where}[{position}] is not a string: {shown(item)}")
    return found


def _are_ids(ids: list[str]) -> bool:
    # One pass over one string takes a fifth of the time of a pattern per id; the length tells whether
    # a line break inside an id made two of it.
    joined = "\n".join([*ids, ""])
    return len(joined) == 25 * len(ids) and _OIDS.fullmatch(joined) is not None


def encode(body: SampleCreate | SampleUpdate) -> bytes:
    """Return the JSON of a request body; unset fields are left out.

    Names with unpaired surrogates are sent as the escapes they came as.
    """
    try:
        return msgspec.json.encode(body)
    except UnicodeEncodeError:
        return encode_escaped(msgspec.to_builtins(body))
