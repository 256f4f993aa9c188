"""The reader against objects in memory: any reads, faults, damages and new versions, never a wrong byte."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import contentkit
from contentkit import MIB, NOISE, STYLES, Content, sample_id
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from lightlyfs.blocks import ContentId
from lightlyfs.errors import ContentChanged, LightlyFsError, NotFound

SAMPLES = [sample_id(n) for n in range(3)]
SIZES = st.sampled_from([0, 1, 100_000, MIB, MIB + 1, 4 * MIB, 4 * MIB + 1, 6 * MIB])
FAULTS = st.sampled_from([503, 403, 0.0, 10.0, 1.5 * MIB])


class ReaderMachine(RuleBasedStateMachine):
    """Objects are put, opened, read and replaced, over a cache that loses, damages and forgets."""

    @initialize(budget=st.sampled_from([0, MIB, 5 * MIB, 1 << 30]))
    def begin(self, budget: int) -> None:
        self.place = tempfile.TemporaryDirectory()
        self.budget = budget
        self.storage = contentkit.Storage()
        self.versions: dict[ContentId, bytes] = {}
        self.number = 0
        self.mount()

    def teardown(self) -> None:
        if hasattr(self, "place"):
            self.content.cache.close()
            self.place.cleanup()

    def mount(self) -> None:
        self.content = Content(Path(self.place.name), budget_bytes=self.budget, storage=self.storage)
        self.content.on_facts = self.check_facts
        self.open: list[ContentId] = []

    def check_facts(self, found: ContentId) -> None:
        assert found.size == len(self.now(found.sample_id))

    def now(self, sample: str) -> bytes:
        return self.storage.objects.get(sample, (b"", None))[0]

    @rule(sample=st.sampled_from(SAMPLES), size=SIZES)
    def an_object_is_stored(self, sample: str, size: int) -> None:
        self.number += 1
        start = self.number * 101 % 10_000
        self.storage.put(sample, NOISE[start : start + size], f"v{self.number}")

    @rule(sample=st.sampled_from(SAMPLES))
    def an_object_vanishes(self, sample: str) -> None:
        self.storage.objects.pop(sample, None)

    @rule(style=st.sampled_from(STYLES))
    def the_storage_changes_its_manners(self, style: contentkit.Callable[..., contentkit.Answer]) -> None:
        self.storage.style = style

    @rule(faults=st.lists(FAULTS, max_size=3))
    def the_storage_falters(self, faults: list[int | float]) -> None:
        self.storage.faults = [*faults]

    @rule(sample=st.sampled_from(SAMPLES), hint=st.sampled_from([None, 5, MIB, 1 << 40]), data=st.data())
    def a_sample_is_opened(self, sample: str, hint: int | None, data: st.DataObject) -> None:
        known = data.draw(st.sampled_from([None, *(c for c in self.open if c.sample_id == sample)]))
        faults = list(self.storage.faults)
        try:
            found = self.content.identify(sample, hint, known)
        except LightlyFsError:
            assert faults.count(403) > 1  # one refusal is answered with a new URL
            return
        if sample in self.storage.objects:
            assert found.size == len(self.now(sample))
            self.versions[found] = self.now(sample)
            self.open.append(found)
        else:
            assert not found.has_object

    @precondition(lambda self: self.open)
    @rule(data=st.data(), offset=st.integers(0, 6 * MIB + 10), size=st.integers(1, 3 * MIB))
    def an_open_file_is_read(self, data: st.DataObject, offset: int, size: int) -> None:
        found = data.draw(st.sampled_from(self.open))
        current = self.storage.objects.get(found.sample_id)
        faults = list(self.storage.faults)
        try:
            read = self.content.read(found, offset, size)
        except (ContentChanged, NotFound):
            assert current is None or current[0] is not self.versions[found]
        except LightlyFsError:
            assert faults.count(403) > 1
        else:
            assert read == self.versions[found][offset : offset + size]

    @rule(how=st.sampled_from(["delete", "cut", "flip"]))
    def files_of_the_cache_are_damaged(self, how: str) -> None:
        self.content.cache.close()  # a damage under an open file is a fault of the disk, tested elsewhere
        for path in Path(self.place.name).glob("blocks/*/*"):
            if how == "delete":
                path.unlink()
            elif how == "cut":
                os.truncate(path, path.stat().st_size // 2)
            else:
                with path.open("r+b") as file:
                    file.write(b"\0" * 10)
        self.remount()

    @rule()
    def the_process_is_killed(self) -> None:
        self.remount()  # the old cache is not closed: what it had not recorded is lost

    def remount(self) -> None:
        kept = self.open
        self.mount()
        self.open = kept

    @invariant()
    def nothing_is_left_under_way_and_the_budget_holds(self) -> None:
        if hasattr(self, "content"):
            assert self.content.reader.stats().under_way == 0
            assert self.content.cache.stats().bytes <= self.budget


ReaderMachine.TestCase.settings = settings(max_examples=40, stateful_step_count=25, deadline=None)
TestReader = ReaderMachine.TestCase


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 6 * MIB + 20_000), st.integers(1, 3 * MIB)), max_size=6),
    st.sampled_from(STYLES),
    st.sampled_from([0, MIB, 3 * MIB, 1 << 30]),
    st.lists(st.sampled_from([503, 0.0, 1.5 * MIB]), max_size=3),
)
def test_any_reads_of_any_storage_with_any_cache_give_the_true_bytes(
    reads: list[tuple[int, int]],
    style: contentkit.Callable[..., contentkit.Answer],
    budget: int,
    faults: list[int | float],
) -> None:
    with tempfile.TemporaryDirectory() as place:
        content = Content(Path(place), budget_bytes=budget)
        content.storage.style = style
        content.storage.put(SAMPLES[0], NOISE, "v1")
        content.storage.faults = [*faults]
        found = content.identify(SAMPLES[0])

        for offset, size in reads:
            assert content.read(found, offset, size) == NOISE[offset : offset + size]
        assert content.cache.stats().bytes <= budget
        content.cache.close()
