"""The extended attributes of samples: the metadata that Lightly has of an image."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future

import msgspec

from lightlyfs.api.models import Sample
from lightlyfs.catalog.entries import DirectoryEntry, SampleEntry, true_name
from lightlyfs.errors import NoAttribute, NotFound, UnknownNamespace
from lightlyfs.fs.namespace import Node
from lightlyfs.fs.patience import Turn
from lightlyfs.staging.local_files import LocalFile
from lightlyfs.staging.record import Record, State

PREFIX = "user.lightly."
# what lightlyfs says of a file, and no program can set
SHOWN = frozenset(
    PREFIX + name for name in ("sample_id", "file_name", "type", "metadata", "exif", "upload", "thumbnail")
)
# readable by name, not listed: `getfattr -d` and `cp -a` of a folder would fetch a picture for each file
_UNLISTED = PREFIX + "thumbnail"


class ExtendedAttributes:
    """Names and values; the sample's details are asked for only where an attribute needs them.

    `details(sample_id)` gives the whole sample, `thumbnail(sample_id, version)` a PNG; both as futures.
    """

    def __init__(
        self,
        details: Callable[[str], Future[Sample]],
        thumbnail: Callable[[str, str], Future[bytes]],
        forget_details: Callable[[str], None],
    ) -> None:
        self._details = details
        self._thumbnail = thumbnail
        self._forget_details = forget_details

    def names(self, node: Node, turn: Turn) -> list[str]:
        """Return the attributes a file has and lists."""
        if isinstance(node, DirectoryEntry):
            return []
        if isinstance(node, LocalFile):
            return []  # readable all the same; tools that copy attributes would take it along
        sample = turn.result(self._details(node.sample_id))
        always = ["sample_id", "file_name", "upload"]
        return [PREFIX + name for name in always + [key for key, value in _facts_of(sample).items() if value]]

    def value(self, path: str, node: Node, name: str, turn: Turn) -> bytes:
        """Return the value of one attribute, text in UTF-8; NoAttribute where the file has no such thing."""
        key = name.removeprefix(PREFIX)
        if isinstance(node, LocalFile) and name == PREFIX + "upload":
            return describe(node.record).encode()
        if not isinstance(node, SampleEntry) or not name.startswith(PREFIX):
            raise NoAttribute(f"no attribute {name}: {path}")
        if key == "sample_id":
            return node.sample_id.encode()
        if key == "file_name":
            return true_name(path, node).encode("utf-8", "surrogatepass")
        if key == "upload":
            return b"uploaded"
        if name == _UNLISTED:
            return self._thumbnail_of(path, node, turn)
        value = _facts_of(turn.result(self._details(node.sample_id))).get(key)
        if not value:
            raise NoAttribute(f"no attribute {name}: {path}")
        return value

    def forget(self, entry: SampleEntry) -> None:
        """Drop the cached details of a sample that was changed."""
        self._forget_details(entry.sample_id)

    @staticmethod
    def check_name(name: str) -> None:
        """Raise UnknownNamespace for names outside `user.`, without a request."""
        if not name.startswith("user."):
            raise UnknownNamespace(f"attributes of this namespace are not kept: {name}")

    def _thumbnail_of(self, path: str, entry: SampleEntry, turn: Turn) -> bytes:
        try:
            return turn.result(self._thumbnail(entry.sample_id, str(entry.mtime)))
        except NotFound as error:
            raise NoAttribute(f"the sample has no thumbnail: {path}") from error


def _facts_of(sample: Sample) -> dict[str, bytes]:
    """Return the attributes that come of the sample's details; empty where it has no such thing."""
    return {
        "type": (sample.type or "").encode(),
        "metadata": _json(sample.meta_data),
        "custom_metadata": _json(sample.custom_meta_data),
        "exif": _json(sample.exif),
    }


def _json(value: object) -> bytes:
    text = b"" if value is None else msgspec.json.encode(value)
    return b"" if text == b"{}" else text


def describe(record: Record) -> str:
    """Return what is to become of a local file, for a person to read."""
    state = record.state.value
    if record.state is State.OPEN:
        return "being written"
    return f"{state}: {record.error}" if record.error else state
