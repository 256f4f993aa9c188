"""Which answers of storage speak against what is known, and how often they are asked for again. Pure.

Middleboxes and tired gateways answer 200 with nothing in it, name the length of another object or lose the
ETag. What such an answer says would count for the life of a mount, so it is asked for again first.
"""

from __future__ import annotations

from enum import Enum
from typing import NamedTuple

from lightlyfs.content.identity import ContentId


class Doubt(Enum):
    """How far an answer is doubted."""

    NONE = 0
    SHORT = 1  # it counts when three answers in a row say the same
    LONG = 2  # it counts when all answers of some seconds say the same


class Known(NamedTuple):
    """What is known of a sample before storage is asked.

    `hint` is the size that is shown, `content` what storage last said.
    """

    hint: int | None = None
    content: ContentId | None = None

    @property
    def may_have_no_object(self) -> bool:
        """Whether it is no surprise that storage has no object."""
        return self.hint == 0 or (self.content is not None and not self.content.has_object)

    def doubt(self, said: ContentId, *, trust_hint: bool) -> Doubt:
        """Return how far an answer is doubted; without `trust_hint` a size that is only a hint is not one."""
        before = self.content if self.content is not None and self.content.has_object else None
        if said == before:
            return Doubt.NONE
        size = self.hint if before is None else before.size
        if said.size == 0 and (size or (size is None and not said.etag)):
            return Doubt.LONG
        if not said.etag and before is not None and before.etag:
            return Doubt.LONG
        if not said.etag and said.size < (size or 0):
            return Doubt.LONG if trust_hint else Doubt.SHORT
        if before is not None:
            # no storage gives one version two lengths
            return Doubt.LONG if said.etag == before.etag else Doubt.SHORT
        return Doubt.SHORT if trust_hint and size not in (None, said.size) else Doubt.NONE
