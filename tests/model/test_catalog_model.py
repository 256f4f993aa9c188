"""The catalogue against a dict: after any history of the dataset, users see what the names promise."""

from __future__ import annotations

import tempfile
from pathlib import Path

from catalogkit import FakeRemote, Impatient, Record, World, expected_tree
from contentkit import sample_id
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from lightlyfs.catalog.entries import Changes, DirectoryEntry, SampleEntry, true_name
from lightlyfs.tree import directory_ino, sample_ino

# few and clashing; the ids of 16 and more share their last 8 digits with those below
IDS = [sample_id(n) for n in range(8)] + [sample_id((1 << 40) + n) for n in range(4)]
NAMES = st.one_of(
    st.sampled_from(
        [
            *("a", "a/b", "a/b/c", "b", "x.jpg", "x~00000001.jpg", "x~00000002.jpg", "a/x.jpg"),
            *("x~" + sample_id(1) + ".jpg", "a~00000003", ".", "..", "/", "//a", "a/", "", "%2F", "%2Fa"),
            *(".lightlyfs", ".lightlyfs/x", "y" * 255, "y" * 256, "y" * 250 + ".jpg", "é" * 127 + ".p"),
            *("a\0", "\ud800", "a//b", "a/../b", "a/b~00000004", "100%", ".hidden"),
        ]
    ),
    st.lists(st.sampled_from(["a", "b", "c", ".", "", "~", "00000001"]), max_size=4).map("/".join),
)


class CatalogMachine(RuleBasedStateMachine):
    """Samples come, are renamed and change; the catalogue is listed, asked and remounted."""

    @initialize(compare_always=st.booleans())
    def begin(self, compare_always: bool) -> None:
        self.compare_always = compare_always
        self.place = tempfile.TemporaryDirectory()
        self.remote = FakeRemote()
        self.facts: dict[str, tuple[int, str]] = {}
        self.gone: set[str] = set()  # ids are never given out twice
        self.listed: dict[str, tuple[str, Record]] = {}
        self.mount()

    def teardown(self) -> None:
        if hasattr(self, "place"):
            self.world.catalog.close()
            self.place.cleanup()

    def mount(self) -> None:
        self.world = World(Path(self.place.name), self.remote)
        self.world.on_changes = self.note_listing

    def note_listing(self, changes: Changes) -> None:
        """A listing found something; whatever made it run, it saw the dataset as it is now."""
        for sample, (_, listed) in self.listed.items():
            now = self.remote.records.get(sample)
            # one that changed and changed back is as it was
            if now is None or (now.mtime, now.hint) != (listed.mtime, listed.hint):
                self.facts.pop(sample, None)
        for sample in self.gone:
            self.facts.pop(sample, None)
        for sample in sorted(self.facts.keys() - self.listed.keys()):
            # what was reported before any listing counts unless the listing tells another size
            if self.remote.records[sample].hint not in (None, self.facts[sample][0]):
                del self.facts[sample]
        paths = {sample: path for path, sample in expected_tree(self.remote.records).items() if sample}
        before = self.listed
        self.listed = {sample: (paths[sample], record) for sample, record in self.remote.records.items()}
        common = before.keys() & self.listed.keys()
        assert changes.added == len(self.listed.keys() - before.keys())
        assert changes.gone == len(before.keys() - self.listed.keys())
        assert changes.changed == sum(before[sample] != self.listed[sample] for sample in common)

    @rule(sample=st.sampled_from(IDS), name=NAMES, hint=st.sampled_from([None, 5, 7]))
    def a_sample_comes_or_is_renamed(self, sample: str, name: str, hint: int | None) -> None:
        if sample in self.gone:
            return
        old = self.remote.records.get(sample, Record(name, 100, hint))
        self.remote.records[sample] = Record(name, old.mtime, old.hint)
        self.remote.modified += 1

    @precondition(lambda self: self.remote.records)
    @rule(data=st.data(), hint=st.sampled_from([None, 5, 7]), later=st.booleans())
    def a_sample_changes(self, data: st.DataObject, hint: int | None, later: bool) -> None:
        sample = data.draw(st.sampled_from(sorted(self.remote.records)))
        old = self.remote.records[sample]
        self.remote.records[sample] = Record(old.name, old.mtime + later, hint)
        self.remote.modified += 1

    @precondition(lambda self: self.remote.records)
    @rule(data=st.data())
    def a_sample_goes(self, data: st.DataObject) -> None:
        sample = data.draw(st.sampled_from(sorted(self.remote.records)))
        del self.remote.records[sample]
        self.gone.add(sample)
        self.remote.modified += 1

    @precondition(lambda self: len(self.remote.records) > 1)
    @rule()
    def the_order_of_the_list_changes(self) -> None:
        self.remote.records = dict(reversed(self.remote.records.items()))

    @precondition(lambda self: self.remote.records)
    @rule(data=st.data(), size=st.integers(0, 9))
    def storage_reports(self, data: st.DataObject, size: int) -> None:
        sample = data.draw(st.sampled_from(sorted(self.remote.records)))
        self.world.catalog.record_facts(sample, size, f"e{size}")
        self.facts[sample] = (size, f"e{size}")

    @rule()
    def facts_are_written_down(self) -> None:
        self.world.catalog.flush_facts()

    @rule()
    def the_mount_is_made_anew(self) -> None:
        self.world.catalog.close()
        # what was reported of a sample that no listing had met is forgotten
        self.facts = {sample: fact for sample, fact in self.facts.items() if sample in self.listed}
        self.mount()

    @rule()
    def time_passes(self) -> None:
        self.world.clock.sleep(61)

    @rule()
    def everything_is_compared(self) -> None:
        self.world.refresher.list_now()
        assert self.listed.keys() == self.remote.records.keys()
        assert not self.world.refresher.list_now()
        expected = expected_tree(self.remote.records)
        assert self.world.tree() == expected
        for path, sample in expected.items():
            self.check_entry(path, sample)
        assert self.world.store.totals().samples == len(self.remote.records)
        assert self.world.store.totals().directories == 1 + sum(not sample for sample in expected.values())

    def check_entry(self, path: str, sample: str) -> None:
        entry = self.world.catalog.lookup(path, Impatient())
        if not sample:
            assert isinstance(entry, DirectoryEntry)
            below = [
                self.remote.records[inner].mtime
                for inside, inner in expected_tree(self.remote.records).items()
                if inner and inside.startswith(path + "/")
            ]
            assert (entry.ino, entry.mtime) == (directory_ino(path), max(below))
            return
        record = self.remote.records[sample]
        assert isinstance(entry, SampleEntry)
        assert entry.ino == sample_ino(bytes.fromhex(sample))
        assert (entry.sample_id, entry.mtime, entry.size_hint) == (sample, record.mtime, record.hint)
        assert true_name(path, entry) == record.name
        found = self.world.catalog.by_id(sample)
        assert found is not None
        assert found[0] == path
        assert entry.verified == (sample in self.facts)
        if entry.verified:
            assert (entry.size, entry.etag) == self.facts[sample]

    @invariant()
    def names_that_nobody_has_are_not_there(self) -> None:
        if hasattr(self, "world") and self.world.refresher.complete:
            if self.compare_always:
                self.everything_is_compared()
            assert self.world.catalog.lookup("nobody/has/this", Impatient()) is None


CatalogMachine.TestCase.settings = settings(max_examples=50, stateful_step_count=25, deadline=None)
TestCatalog = CatalogMachine.TestCase
