"""Tags: named bit masks over the samples, bit k for the k-th sample."""

import json
import secrets
from collections.abc import Iterable
from typing import Any

from .api_errors import ApiError
from .state_file import StateFile

INITIAL_TAG = "initial-tag"


class TagTable:
    """The tags of one dataset, newest first. Any thread may call it."""

    def __init__(self, state: StateFile, dataset_id: str) -> None:
        self._state = state
        self._dataset_id = dataset_id

    def list_all(self) -> list[dict[str, Any]]:
        """Return all tags; the initial tag is the oldest and comes last."""
        return [
            json.loads(text) for text in self._state.column("SELECT document FROM tags ORDER BY seq DESC")
        ]

    def get(self, tag_id: str) -> dict[str, Any] | None:
        """Return one tag, or None."""
        row = self._state.row("SELECT document FROM tags WHERE id = ?", tag_id)
        return json.loads(row[0]) if row else None

    def add(self, name: str, mask: int, previous: str | None, now_ms: int) -> str:
        """Add a tag and return its id; names are unique within the dataset."""
        tag_id = secrets.token_hex(12)
        document = {
            "id": tag_id,
            "datasetId": self._dataset_id,
            "prevTagId": previous,
            "name": name,
            "bitMaskData": f"0x{mask:x}",
            "totSize": mask.bit_count(),
            "createdAt": now_ms,
            "lastModifiedAt": now_ms,
        }
        with self._state.transaction():
            if self._state.row("SELECT 1 FROM tags WHERE name = ?", name) is not None:
                raise ApiError(400, "TAG_NAME_EXISTS", f"there is a tag called {name} already")
            insert = "INSERT INTO tags (id, name, document) VALUES (?, ?, ?)"
            self._state.write(insert, tag_id, name, json.dumps(document))
        return tag_id

    def remove(self, tag_id: str) -> None:
        """Remove a tag; no effect for an unknown id."""
        with self._state.transaction():
            self._state.write("DELETE FROM tags WHERE id = ?", tag_id)

    def ensure_initial(self, count: int, now_ms: int) -> None:
        """Add the tag of all samples present, once there are any; later samples are not added to it."""
        if count and self._state.row("SELECT 1 FROM tags") is None:
            self.add(INITIAL_TAG, (1 << count) - 1, None, now_ms)

    def root_id(self) -> str | None:
        """Return the id of the oldest tag, or None without tags."""
        row = self._state.row("SELECT id FROM tags ORDER BY seq LIMIT 1")
        return row[0] if row else None


def mask_of(indices: Iterable[int], count: int) -> int:
    """Return the mask with these bits set, in time linear in `count`."""
    raw = bytearray(count // 8 + 1)
    for index in indices:
        raw[index // 8] |= 1 << (index % 8)
    return int.from_bytes(raw, "little")


def indices_of(mask: int) -> list[int]:
    """Return the set bits, lowest first, in linear time."""
    raw = mask.to_bytes((mask.bit_length() + 7) // 8, "little")
    return [
        position * 8 + bit for position, byte in enumerate(raw) if byte for bit in range(8) if byte >> bit & 1
    ]
