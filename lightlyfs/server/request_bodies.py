"""The request bodies, with the types and bounds of the models of the generated client.

Names are those of the API. Unknown keys of a request are an error; unknown keys of `metaData` are dropped,
because old uploaders send them and the models of the client reject them in responses.
"""

from typing import Annotated, Any, TypeVar

import msgspec
from msgspec import UNSET, Meta, UnsetType

from .api_errors import ApiError

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
