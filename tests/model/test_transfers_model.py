"""Whatever storage answers, in whatever order: every waiter ends, nothing is left under way."""

from __future__ import annotations

import tempfile
from pathlib import Path

import contentkit
from contentkit import MIB, NOISE, Answer, Content, Style, sample_id
from hypothesis import example, given, settings
from hypothesis import strategies as st

from lightlyfs.blocks import ContentId
from lightlyfs.errors import Cancelled, LightlyFsError, TimedOut, Unreachable

A = sample_id(1)
SIZES = [0, 100_000, MIB + 1, 6 * MIB]


def status(number: int) -> Style:
    return lambda *_: (number, {}, b"<Error><Code>X</Code></Error>")


def nothing(*_: object) -> Answer:
    return 200, {"content-length": "0"}, b""


def wrong_total(data: bytes, start: int, end: int) -> Answer:
    number, headers, body = contentkit.honest(data, start, end)
    span, _, total = headers.get("content-range", "").partition("/")
    return number, headers | ({"content-range": f"{span}/{int(total) + 9}"} if total else {}), body


ODD: dict[str, Style | BaseException | float | int] = {
    **{str(number): number for number in (400, 401, 403, 404, 410, 412, 416, 429, 500, 503)},
    "breaks at once": 0.0,
    "breaks": 50_000.0,
    "breaks after a block": MIB + 5.0,
    "time-out": TimedOut("no byte came"),
    "unreachable": Unreachable("no route"),
    "cancelled": Cancelled("the mount is being taken down"),
    "whole": contentkit.whole,
    "nothing": nothing,
    "wrong total": wrong_total,
    "bare 416": contentkit.bare_416,
    "short": contentkit.short_ranges,
}


class Moody(contentkit.Storage):
    """A storage whose next answers are the ones that are planned; honest after that."""

    def __init__(self) -> None:
        super().__init__()
        self.plan: list[str] = []

    def send(self, request: contentkit.Request) -> contentkit.Response:
        odd = ODD[self.plan.pop(0)] if self.plan else contentkit.honest
        self.faults, self.style = [], contentkit.honest
        if callable(odd):
            self.style = odd
        else:
            self.faults = [odd]
        return super().send(request)


# each a moment, or for longer than it is doubted
PLANS = st.lists(st.tuples(st.sampled_from(sorted(ODD)), st.sampled_from([1, 1, 1, 2, 30])), max_size=6).map(
    lambda moods: [name for name, times in moods for _ in range(times)]
)


@example(6 * MIB, ["breaks after a block", *["404"] * 30], [], None, False)
@example(6 * MIB, ["breaks", *["404"] * 30], [], None, False)
@settings(max_examples=200, deadline=None)
@given(
    st.sampled_from(SIZES),
    PLANS,
    PLANS,
    st.sampled_from([None, 5, 100_000, 6 * MIB]),
    st.booleans(),
)
def test_every_waiter_ends(
    size: int, at_head: list[str], at_blocks: list[str], hint: int | None, replaced: bool
) -> None:
    data = NOISE[:size]
    with tempfile.TemporaryDirectory() as place:
        storage = Moody()
        content = Content(Path(place), storage=storage)
        storage.put(A, data, "v1")
        found: ContentId | None = None
        storage.plan = [*at_head]
        try:
            found = content.identify(A, hint)
        except LightlyFsError:
            pass
        if found is not None and found.size == size and found.has_object:
            storage.plan = [*at_blocks]
            if replaced:
                storage.put(A, NOISE[1 : size + 1], "v2")
            for offset in range(0, size, 2 * MIB):
                try:
                    assert content.read(found, offset, 100) in (data[offset : offset + 100],)
                except LightlyFsError:
                    pass
        assert content.reader.stats().under_way == 0

        # well again: a new open ends, and soon, with what is there
        storage.plan = []
        now = NOISE[1 : size + 1] if storage.objects[A][1] == '"v2"' else data
        again = content.identify(A, hint)
        assert again.size == size
        assert content.read(again, 0, size) == now
        content.cache.close()
