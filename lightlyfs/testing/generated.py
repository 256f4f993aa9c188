"""Samples and bytes that are computed, not stored: a dataset of any size in constant memory.

Ids count upwards after a fixed prefix, as ObjectIds do, so id order is insertion order, and the index of a
sample can be computed from its id.
"""

import random
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from lightlyfs.server.serve_options import SizeReport
from lightlyfs.server.storage import Blob, FolderUpload, ListedObject, LocalStorage, bytes_of

CREATED_MS = 1_700_000_000_000
"""A fixed moment, so that two runs return the same documents."""

KEY_PREFIX = ".lightly/generated/"
_NOISE_BYTES = 1 << 20


@dataclass(frozen=True)
class GeneratedDataset:
    """`count` samples of `file_bytes`, `per_directory` of them in a directory; None for one directory."""

    count: int
    file_bytes: int
    per_directory: int | None
    prefix: str

    @property
    def place(self) -> str:
        """What the dataset id is derived from."""
        return f"fake {self.count}"

    @property
    def name(self) -> str:
        """The name of the dataset."""
        return f"fake-{self.count}"

    def open(
        self, dataset_id: str, sizes: SizeReport, uploads: LocalStorage
    ) -> tuple["GeneratedSamples", "GeneratedStorage"]:
        """Return the samples, and a storage of their objects that keeps uploads in `uploads`."""
        reported = {"true": self.file_bytes, "wrong": self.file_bytes + 1, "omitted": None}
        samples = GeneratedSamples(
            count=self.count,
            size=self.file_bytes,
            per_directory=self.per_directory,
            prefix=self.prefix,
            dataset_id=dataset_id,
            reported_size=reported[sizes],
        )
        return samples, GeneratedStorage(samples, uploads)


@dataclass(frozen=True)
class GeneratedSamples:
    """`count` samples named `prefix/NNNN/img_NNNNNNN.jpg`, or `prefix/img_NNNNNNN.jpg` in one directory."""

    count: int
    size: int
    per_directory: int | None
    prefix: str
    dataset_id: str
    reported_size: int | None
    created_ms: int = CREATED_MS

    @property
    def total_bytes(self) -> int:
        """The size of all objects."""
        return self.count * self.size

    def key_of(self, sample_id: str) -> str:
        """Return the key of the object of a sample."""
        return KEY_PREFIX + sample_id

    def id_of(self, index: int) -> str:
        """Return the id of the sample at `index`, which may lie past `count` for samples added later."""
        return f"{self._id_prefix}{index:08x}"

    def index_of(self, sample_id: str) -> int | None:
        """Return the index of an id, or None if the id is not of this dataset or past its end."""
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
        """Return the indices of the samples called `name`, or whose names start with it."""
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

    def fragments(self, column: str, indices: range) -> list[str]:
        """Return one JSON text per index; columns as in `SampleTable.page`."""
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
    """The bytes of one generated sample: its key, then noise with an offset that differs for each sample."""

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
        """Do nothing: no resource is open."""


class GeneratedStorage:
    """Generated objects, and a storage for uploads."""

    def __init__(self, samples: GeneratedSamples, uploads: LocalStorage) -> None:
        self._samples = samples
        self._uploads = uploads
        self._noise = random.Random(20240229).randbytes(_NOISE_BYTES)

    def scan(self) -> Iterator[ListedObject]:
        """Yield nothing: generated samples need no import."""
        return iter(())

    def accepts(self, key: str) -> bool:
        """Return False for names below the generated directory, which could shadow a generated sample."""
        return not key.startswith(self._samples.prefix + "/") and self._uploads.accepts(key)

    def exists(self, key: str) -> bool:
        """Return whether the object is generated or was uploaded."""
        return self._uploads.exists(key) or self._index(key) is not None

    def read_bytes(self, key: str) -> bytes | None:
        """Return the bytes of the object, or None."""
        return bytes_of(self.open_blob(key))

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
        """Return the name itself: generated objects have no location."""
        return name

    def open_blob(self, key: str) -> Blob | None:
        """Open an uploaded object, else a generated one, else return None."""
        index = self._index(key)
        uploaded = self._uploads.open_blob(key)
        if uploaded is not None or index is None:
            return uploaded
        return GeneratedBlob(index, f"{key}\n".encode(), self._samples.size, self._noise)

    def begin_upload(self, key: str) -> FolderUpload:
        """Start an upload."""
        return self._uploads.begin_upload(key)

    def _index(self, key: str) -> int | None:
        sample_id = key.removeprefix(KEY_PREFIX)
        return self._samples.index_of(sample_id) if sample_id != key else None
