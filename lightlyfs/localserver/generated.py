"""Samples and bytes that are computed, not stored: a dataset of any size in constant memory.

Ids count upwards behind a fixed prefix, as ObjectIds do, so id order is insertion order and an id leads back
to its number without a table.
"""

import random
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from .folder import FolderStorage, FolderUpload
from .storage import Blob, Found

CREATED_MS = 1_700_000_000_000
"""A fixed moment, so that two runs give the same documents."""

KEY_PREFIX = ".lightly/generated/"
_NOISE_BYTES = 1 << 20


@dataclass(frozen=True)
class GeneratedSamples:
    """`count` samples named `prefix/NNNN/img_NNNNNNN.jpg`; None: all in one directory."""

    count: int
    size: int
    per_directory: int | None
    prefix: str
    dataset_id: str
    reported_size: int | None

    def id_of(self, index: int) -> str:
        """Return the id of the sample at `index`, which may lie past `count` for samples added later."""
        return f"{self._id_prefix}{index:08x}"

    def index_of(self, sample_id: str) -> int | None:
        """Return the index behind an id, or None if the id is not of this dataset or past its end."""
        index = int(sample_id[16:], 16)
        return index if sample_id.startswith(self._id_prefix) and index < self.count else None

    def name_of(self, index: int) -> str:
        """Return the file name of a sample."""
        if self.per_directory is None:
            return f"{self.prefix}/img_{index:07d}.jpg"
        return f"{self.prefix}/{index // self.per_directory:04d}/img_{index:07d}.jpg"

    def index_of_name(self, name: str) -> int | None:
        """Return the index of a file name, or None."""
        match = re.fullmatch(r".*/img_(\d{7,15})\.jpg", name, re.ASCII | re.DOTALL)
        index = int(match[1]) if match else self.count
        return index if index < self.count and self.name_of(index) == name else None

    def indices_named(self, name: str, prefix: bool) -> list[int]:
        """Return the places of the samples called `name`, or whose names start with it."""
        if prefix:
            return [index for index in range(self.count) if self.name_of(index).startswith(name)]
        index = self.index_of_name(name)
        return [] if index is None else [index]

    def document(self, index: int) -> dict[str, Any]:
        """Return the full SampleData of a sample."""
        document: dict[str, Any] = {
            "id": self.id_of(index),
            "type": "IMAGE",
            "datasetId": self.dataset_id,
            "fileName": self.name_of(index),
            "index": index,
            "createdAt": CREATED_MS,
            "lastModifiedAt": CREATED_MS,
        }
        if self.reported_size is not None:
            document["metaData"] = {"sizeInBytes": self.reported_size}
        return document

    def fragments(self, column: str, indices: Iterator[int] | range) -> list[str]:
        """Return one JSON text per index; columns as in `Catalog.page`."""
        id_of, name_of = self.id_of, self.name_of
        if column == "ids":
            return [f'{{"id":"{id_of(i)}"}}' for i in indices]
        if column == "fileNames":
            return [f'{{"id":"{id_of(i)}","fileName":"{name_of(i)}"}}' for i in indices]
        if column == "id":
            return [f'"{id_of(i)}"' for i in indices]
        if column == "name":
            return [f'"{name_of(i)}"' for i in indices]
        middle = f'","type":"IMAGE","datasetId":"{self.dataset_id}","fileName":"'
        size = f',"metaData":{{"sizeInBytes":{self.reported_size}}}' if self.reported_size is not None else ""
        tail = f',"createdAt":{CREATED_MS},"lastModifiedAt":{CREATED_MS}{size}}}'
        return [f'{{"id":"{id_of(i)}{middle}{name_of(i)}","index":{i}{tail}' for i in indices]

    @cached_property
    def _id_prefix(self) -> str:
        return f"{CREATED_MS // 1000:08x}{self.dataset_id[:8]}"


class GeneratedBlob:
    """The bytes of one generated sample: its id, then noise that starts elsewhere for each sample."""

    modified_s = CREATED_MS / 1000

    def __init__(self, index: int, header: bytes, size: int, noise: bytes) -> None:
        self.size = size
        self.etag = f'"{index:x}-{size:x}"'
        self._header = header[:size]
        self._shift = index * 4099
        self._noise = noise

    def read_at(self, start: int, length: int) -> bytes:
        """Return up to `length` bytes from `start`."""
        length = min(length, self.size - start)
        pieces = [self._header[start : start + length]]
        missing = length - len(pieces[0])
        position = self._shift + max(start, len(self._header))
        while missing > 0:
            offset = position % _NOISE_BYTES
            pieces.append(self._noise[offset : offset + missing])
            missing -= len(pieces[-1])
            position += len(pieces[-1])
        return b"".join(pieces)

    def close(self) -> None:
        """Nothing is held."""


class GeneratedStorage:
    """Generated objects, with a folder behind them for what is uploaded later."""

    def __init__(self, samples: GeneratedSamples, uploads: FolderStorage) -> None:
        self._samples = samples
        self._uploads = uploads
        self._noise = random.Random(20240229).randbytes(_NOISE_BYTES)

    def scan(self) -> Iterator[Found]:
        """Yield nothing: generated samples are rows without an import."""
        return iter(())

    def accepts(self, key: str) -> bool:
        """Refuse names below the generated directory, so that they cannot shadow a generated sample."""
        return not key.startswith(self._samples.prefix + "/") and self._uploads.accepts(key)

    def exists(self, key: str) -> bool:
        """Say whether the object is generated or was uploaded."""
        return self._uploads.exists(key) or self._index(key) is not None

    def read_bytes(self, key: str) -> bytes | None:
        """Return the object's bytes, or None."""
        blob = self.open_blob(key)
        if blob is None:
            return None
        try:
            return blob.read_at(0, blob.size)
        finally:
            blob.close()

    def write_bytes(self, key: str, data: bytes) -> None:
        """Store an upload; it takes precedence over generated bytes."""
        self._uploads.write_bytes(key, data)

    def read_url(self, key: str) -> str:
        """Return a signed URL for GET."""
        return self._uploads.read_url(key)

    def write_url(self, key: str) -> str:
        """Return a signed URL for PUT."""
        return self._uploads.write_url(key)

    def location(self, name: str) -> str:
        """Return the name itself: there is no place it stands for."""
        return name

    def open_blob(self, key: str) -> Blob | None:
        """Open an uploaded object, else a generated one, else return None."""
        index = self._index(key)
        uploaded = self._uploads.open_blob(key)
        if uploaded is not None or index is None:
            return uploaded
        return GeneratedBlob(index, f"{key}\n".encode(), self._samples.size, self._noise)

    def begin_upload(self, key: str) -> FolderUpload:
        """Start receiving an object."""
        return self._uploads.begin_upload(key)

    def _index(self, key: str) -> int | None:
        sample_id = key.removeprefix(KEY_PREFIX)
        return self._samples.index_of(sample_id) if sample_id != key else None
