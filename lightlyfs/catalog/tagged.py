"""A dataset as far as one tag goes: the samples of a curated selection, and no others."""

from __future__ import annotations

from collections.abc import Sequence

from lightlyfs.api.models import Sample
from lightlyfs.catalog.remote import DatasetState, Remote
from lightlyfs.catalog.staging import Row
from lightlyfs.catalog.tags import Tags
from lightlyfs.errors import NotFound


class TaggedRemote:
    """`Remote` for the samples of one tag; the tag may change, and is asked for with the dataset's record."""

    def __init__(self, remote: Remote, tags: Tags, name: str) -> None:
        self._remote = remote
        self._tags = tags
        self._name = name
        self._version = ""
        self._members: frozenset[bytes] = frozenset()  # replaced as a whole

    def dataset(self) -> DatasetState:
        """The dataset's record, and which samples the tag holds; NotFound where there is no such tag."""
        record = self._remote.dataset()
        self._tags.forget_all()
        tag = self._tags.find(self._name)
        if tag is None:
            names = ", ".join(repr(tag.name) for tag in self._tags.all()) or "none"
            raise NotFound(f"the dataset has no tag {self._name!r}; there are: {names}", code="TAG_UNKNOWN")
        if tag.version() != self._version:
            self._members = self._tags.members(tag)
            self._version = tag.version()
        return record._replace(selection=self._version)

    def page(self, offset: int, size: int) -> Sequence[Row]:
        """As without a tag."""
        return self._remote.page(offset, size)

    def kept(self, rows: Sequence[Row]) -> Sequence[Row]:
        """Those that the tag holds."""
        members = self._members
        return [row for row in rows if row.id in members]

    def find(self, file_name: str) -> list[Row]:
        """The samples of this name that the tag holds."""
        return list(self.kept(self._remote.find(file_name)))

    def sample(self, sample_id: str) -> Sample:
        """As without a tag."""
        return self._remote.sample(sample_id)
