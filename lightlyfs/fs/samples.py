"""Reads samples: which content an open pins, sizes missing from metadata, what the kernel may cache."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from functools import partial
from typing import Any, NamedTuple

from lightlyfs.blocks import BLOCK_BYTES, NO_OBJECT, SMALL_FILE_BYTES, ContentId
from lightlyfs.catalog.entries import SampleEntry
from lightlyfs.catalog.remote import Problems
from lightlyfs.catalog.sample_catalog import Catalog
from lightlyfs.desktop.programs import CrawlBudget, is_viewer, opens_without_reading
from lightlyfs.errors import (
    Cancelled,
    ContentChanged,
    NoContent,
    RequestError,
    Retryable,
    SizeUnknown,
    Throttled,
    TimedOut,
    Unauthorized,
    Unreachable,
)
from lightlyfs.fetch.prefetcher import Ended, EpochFetcher, Prefetcher
from lightlyfs.fetch.reader import LeftToAnother, Reader
from lightlyfs.fetch.transfers import PROBE_BYTES, NotBrought
from lightlyfs.fs.attributes import Attr
from lightlyfs.fs.handles import ReadHandle
from lightlyfs.fs.patience import Turn
from lightlyfs.name_rules import ShownRules
from lightlyfs.readahead.within_file import HeadReaders
from lightlyfs.tree import sample_ino

# sizes of neighbours that are found along with one that was asked for
_SIZES_AHEAD = 64
# samples that are looked up at once to be prefetched: about 200 microseconds of work
_LOOKED_UP_AT_ONCE = 64
_NO_VERSION = -1  # no hash of a version that was opened
# files whose version in the kernel's page cache is remembered; beyond that all are dropped at once
_KERNEL_VERSIONS = 100_000
# a program that reads a file asks for the next bytes sooner than this; it may finish with the version it has
_BUSY_S = 0.5
# for this long no other version of that file is shown
_LAST_READS_S = 2.0


class OpenedSample(NamedTuple):
    """An open sample, and what the kernel may do with the pages it holds of it."""

    handle: ReadHandle
    keep_cache: bool
    direct_io: bool


class Samples:
    """Opens and reads samples; any thread may call.

    `forget(paths)` tells the kernel that what it knows of these paths is outdated (None: everything); it
    returns whether the kernel has forgotten by then.
    """

    def __init__(
        self,
        catalog: Catalog,
        reader: Reader,
        *,
        problems: Problems,
        caller_name: Callable[[], str],
        forget: Callable[[tuple[str, ...] | None], bool],
        max_prefetches: int,
        epochs: EpochFetcher[SampleEntry],
        follows_order: bool,
        crawls: CrawlBudget,
        rules: ShownRules,
    ) -> None:
        self._catalog = catalog
        self._reader = reader
        self._problems = problems
        self._caller_name = caller_name
        self._forget = forget
        self._crawls = crawls
        self._rules = rules
        self.prefetcher: Prefetcher[SampleEntry] = Prefetcher(
            self._shown_after,
            self._prefetch,
            max_under_way=max_prefetches,
            room=lambda entry: reader.room_ahead(entry.published_size or 0),
            epochs=epochs,
            is_on=follows_order,
        )
        self._lock = threading.Lock()
        self._closed = threading.Condition(self._lock)  # a file of which another version is known was closed
        # guarded by _lock: how many wait to show another version of a file
        self._changing: dict[int, int] = {}
        # by inode number, of files whose open handles are of an older and longer version: its size, which the
        # kernel has to be told, or it would end their reads early and silently; changed under _lock
        self.held_sizes: dict[int, int] = {}
        # guarded by _lock: a hash of the version of each file whose pages the kernel may hold
        self._kernel_has: dict[int, int] = {}
        self._forgot_versions = False
        # guarded by _lock: the open handles of each file
        self._open: dict[int, list[ReadHandle]] = {}
        self._heads = HeadReaders()  # guarded by _lock
        # files whose pages the kernel was not told to drop since they were opened; used without a lock
        self._trusted: set[int] = set()
        # files of which the kernel may hold what no longer holds; single operations on it are atomic
        self._untold: set[int] = set()

    def open(self, path: str, entry: SampleEntry, turn: Turn) -> OpenedSample:
        """Open a sample; one that is unverified, or not here, waits for the headers of the GET that reads it.

        Programs known to open without reading are not made to wait: their first read is.
        """
        # that there is no image is asked again each time: it may be on its way
        verified = entry.verified and entry.etag != NO_OBJECT
        if verified and entry.ino not in self._changing and self._is_here(content_of(entry), entry.ino):
            return self._opened(path, entry, content_of(entry))
        if opens_without_reading(self._caller_name()):
            return OpenedSample(ReadHandle(path, entry, None, followed=True), False, True)
        head_only = self._heads.expects_head(path, entry.published_size)
        asked = self._ask_unless_known(entry, confirm=verified, head_only=head_only)
        if isinstance(asked, Future) and not head_only:
            # the file's own request is out, and those for the files behind it come after it
            self._note_open(path, entry.published_size or 0)
        content = self._answer(entry, asked, turn)
        return self._opened(path, entry, content, followed=True)

    def read(self, handle: ReadHandle, offset: int, size: int, turn: Turn) -> bytes:
        """Bytes of an open sample, short only at its end; ContentChanged once storage has another version."""
        if handle.content is None:
            handle.content = self._identify(handle.entry, turn)
            need_object(handle.content, handle.path)
        # where the kernel asks for all of a file, it has no page of it
        asks_for_all = not offset and size >= handle.content.size
        try:
            data = self._read(handle, handle.content, offset, size, turn)
        except ContentChanged:
            content = self._newer(handle, turn, asks_for_all=asks_for_all)
            if content is None:
                raise
            data = self._read(handle, content, offset, size, turn)
        if not handle.has_read:
            self._note_first_read(handle, asks_for_all=asks_for_all)
        return data

    def _note_first_read(self, handle: ReadHandle, *, asks_for_all: bool) -> None:
        """Note that a program has bytes of a version, which the kernel shows to all that have it open."""
        with self._lock:
            if handle.outdated and not asks_for_all:
                raise ContentChanged(f"the stored object changed since it was opened: {handle.path}")
            handle.has_read = True
            for other in self._open.get(handle.entry.ino, ()):
                other.kept |= other is not handle and other.content == handle.content

    def _read(self, handle: ReadHandle, content: ContentId, offset: int, size: int, turn: Turn) -> bytes:
        handle.used_at = time.monotonic()
        handle.read_to = max(handle.read_to, offset + size)
        if handle.outdated:
            raise ContentChanged(f"the stored object changed since it was opened: {handle.path}")
        if offset or handle.followed:
            return self.read_content(content, offset, size, turn)
        handle.followed = True
        return self.begin_to_read(handle.path, content, size, turn)

    def _newer(self, handle: ReadHandle, turn: Turn, *, asks_for_all: bool) -> ContentId | None:
        """The version to continue with if the opened one is gone; None if the program would notice."""
        if handle.has_read or handle.content is None or (handle.kept and not asks_for_all):
            return None
        content = self.identify(self._catalog.told(handle.entry) or handle.entry, turn)
        if content.size != handle.content.size or not content.has_object:
            return None  # the kernel cuts a read at the size it knows
        with self._lock:
            if handle.kept and not asks_for_all:
                return None  # another program read meanwhile
            handle.content, handle.outdated = content, False
            self._kernel_has[handle.entry.ino] = hash(content)
            for other in self._open.get(handle.entry.ino, ()):
                other.outdated |= other.content not in (None, content)
        return content

    def release(self, handle: ReadHandle) -> None:
        """Close a sample."""
        ino = handle.entry.ino
        with self._lock:
            if handle.content is not None:
                self._heads.closed(handle.path, handle.read_to, handle.content.size)
            left = [other for other in self._open.pop(ino, ()) if other is not handle]
            if left:
                self._open[ino] = left
            if ino in self._changing:
                self._closed.notify_all()
            freed = ino in self.held_sizes and not any(other.outdated for other in left)
            if freed:
                del self.held_sizes[ino]
        if freed:
            self._untold.add(ino)
            self._is_untold(handle.path, handle.entry)

    def storage_reported(self, content: ContentId, certain: bool) -> None:
        """Keep what storage reported, and make the kernel drop what is outdated; any thread may call.

        Call it before the content is handed to its readers, so that a new open finds no older pages.
        """
        ino = sample_ino(bytes.fromhex(content.sample_id))
        self._problems.note_read(content.sample_id)
        self._let_finish(ino, content)
        outdated: list[int] = []
        trusted = not self._catalog.hints_are_wrong

        def before(shown: SampleEntry) -> None:
            hint_counts = shown.size is None and shown.size_hint is not None
            if trusted and certain and content.size and hint_counts and shown.size_hint != content.size:
                self._catalog.note_wrong_hint(shown.name)
            if _shows_another(shown, content):
                outdated.append(shown.ino)
                self._untold.add(shown.ino)

        self._catalog.record_facts(content.sample_id, content.size, content.etag, before, certain=certain)
        self._outdate_handles(ino, content)
        if trusted and self._catalog.hints_are_wrong:
            # the kernel got hints with listings
            self.note_forgotten(None)
            self._forget(None)
        found = self._catalog.by_id(content.sample_id) if outdated else None
        if found is not None:
            self._is_untold(*found)

    def note_forgotten(self, paths: tuple[str, ...] | None) -> None:
        """Note that the kernel dropped its cache of the files at these paths (None: of all files)."""
        if paths is None:
            self._trusted.clear()
            return
        for path in paths:
            entry = self._catalog.known(path)
            if isinstance(entry, SampleEntry):
                self._trusted.discard(entry.ino)

    def outdate(self, sample_id: str) -> None:
        """Mark the kernel's pages of a sample as outdated; any thread may call."""
        with self._lock:
            self._kernel_has[sample_ino(bytes.fromhex(sample_id))] = _NO_VERSION

    @property
    def has_opened(self) -> bool:
        """Whether any file was opened, of which the kernel may hold pages then."""
        return bool(self._kernel_has) or self._forgot_versions

    def begin_to_read(self, path: str, content: ContentId, size: int, turn: Turn) -> bytes:
        """Read the first bytes of a file, and prefetch the files that are likely to be next if that helps."""
        here = self._reader.holds(content)
        if not here:
            self._crawls.spend(content.size)
            self._reader.begin(content, 0, size)
        if not self._heads.expects_head(path, content.size) and (not here or self.prefetcher.expects(path)):
            self._note_open(path, content.size)
        return self.read_content(content, 0, size, turn)

    def read_content(self, content: ContentId, offset: int, size: int, turn: Turn) -> bytes:
        """Bytes of a content, short only at its end; ContentChanged once storage has another version.

        May take as long as blocks keep coming.
        """
        try:
            return self._reader.read(content, offset, size, turn.piece)
        except RequestError as error:
            self._note_unreadable(content.sample_id, error)
            raise

    def identify(self, entry: SampleEntry, turn: Turn) -> ContentId:
        """Return which content a sample has; asks storage unless that is verified."""
        if entry.verified and entry.etag != NO_OBJECT:
            return content_of(entry)
        return self._identify(entry, turn)

    def read_entry(self, entry: SampleEntry, offset: int, size: int, turn: Turn) -> bytes:
        """Bytes of a sample that is not open."""
        content = content_of(entry) if entry.verified else self._identify(entry, turn)
        return b"" if not content.has_object else self.read_content(content, offset, size, turn)

    def read_whole(self, path: str, entry: SampleEntry, turn: Turn) -> bytes | None:
        """Return all bytes of a sample that is small or in the cache; None for one that has to be opened.

        Raises as `open` and `read` do.
        """
        verified = entry.verified and entry.etag != NO_OBJECT
        content = content_of(entry) if verified else None
        size = entry.published_size
        is_small = size is not None and size <= SMALL_FILE_BYTES
        is_here = self._reader.has_start if is_small else self._reader.holds
        if content is not None and is_here(content):
            if self.prefetcher.expects(path):
                self.prefetcher.opened(path, content.size)
        elif is_small:
            asked = self._ask_unless_known(entry, confirm=verified)
            if isinstance(asked, Future):
                self._note_open(path, size or 0)
            content = self._answer(entry, asked, turn)
            self._need_image(path, entry, content)
        else:
            return None
        try:
            return self.read_content(content, 0, content.size, turn)
        except ContentChanged:
            return None

    def is_cached(self, entry: SampleEntry) -> bool:
        """Whether all of a sample is in the cache, and needs no confirmation."""
        entry = self._catalog.with_facts(entry)
        return entry.verified and entry.etag != NO_OBJECT and self._reader.cache.has_whole(content_of(entry))

    def fetch_ahead(self, entry: SampleEntry, ended: Ended) -> bool:
        """Begin to fetch a small file for a reader without order; False where there is nothing to fetch."""
        future = self._prefetch(entry)
        if future is None:
            return False

        def told(future: Future[Any]) -> None:
            error = None if future.cancelled() else future.exception()
            if isinstance(error, LeftToAnother | NotBrought):
                ended(None, None)
            else:
                came = not future.cancelled() and error is None
                ended(came, error.retry_after_s if isinstance(error, RequestError) else None)

        future.add_done_callback(told)
        return True

    def ask(self, entry: SampleEntry, *, ahead: bool = False, head_only: bool = False) -> Future[ContentId]:
        """Ask storage which content a sample has, and for its first bytes, as `Reader.identify` does.

        The answer may also come from another process.
        """
        return self._reader.identify(
            entry.sample_id,
            size_hint=entry.published_size,
            for_reading=True,
            known=known_content(entry),
            told=partial(self._found_meanwhile, entry),
            ahead=ahead,
            head_only=head_only,
        )

    def find_size(self, path: str, entry: SampleEntry, turn: Turn) -> Attr:
        """Find a size that no metadata have, and those of the next such neighbours along with it."""
        future = self._ask_size(entry)
        self._find_sizes_after(path)
        try:
            content = turn.result(future)
        except RequestError as error:
            raise SizeUnknown(f"the size of {path} cannot be found: {error}") from error
        return Attr(entry.ino, False, content.size, entry.mtime)

    def _note_open(self, path: str, size: int) -> None:
        self.prefetcher.opened(path, size, browsed=is_viewer(self._caller_name()))

    def _shown_after(self, path: str, count: int) -> list[tuple[str, SampleEntry]]:
        found = self._catalog.samples_after(path, count)
        return found if self._rules.show_all else [pair for pair in found if self._rules.shows(pair[0])]

    def _let_finish(self, ino: int, content: ContentId) -> None:
        """Wait a moment for programs that are reading another version of a file.

        The kernel has one size and one set of pages of a file for all who have it open.
        """
        if ino not in self._open:
            return
        end = time.monotonic() + _LAST_READS_S
        with self._lock:
            self._changing[ino] = self._changing.get(ino, 0) + 1
            try:
                while (left_s := min(end, self._busy_until_locked(ino, content)) - time.monotonic()) > 0:
                    self._closed.wait(left_s)
            finally:
                self._changing[ino] -= 1
                if not self._changing[ino]:
                    del self._changing[ino]

    def _busy_until_locked(self, ino: int, content: ContentId) -> float:
        others = [other for other in self._open.get(ino, ()) if other.content not in (None, content)]
        return max((other.used_at + _BUSY_S for other in others if not other.outdated), default=0.0)

    def _outdate_handles(self, ino: int, content: ContentId) -> None:
        """End the reads of handles whose version is not the one that is shown."""
        if ino not in self._open:
            return
        with self._lock:
            held = content.size
            for other in self._open.get(ino, ()):
                if other.content is not None and other.content != content:
                    other.outdated = True
                    held = max(held, other.content.size)
            if held > content.size:
                self.held_sizes[ino] = held

    def _is_here(self, content: ContentId, ino: int) -> bool:
        """Whether the first read of a content needs no request: the kernel or cache has it, or soon will."""
        held = ino in self._trusted and self._kernel_has.get(ino) == hash(content)
        return held or self._reader.has_start(content)

    def _identify(self, entry: SampleEntry, turn: Turn) -> ContentId:
        """Which content a sample has now."""
        return self._answer(entry, self._ask_unless_known(entry), turn)

    def _ask_unless_known(
        self, entry: SampleEntry, *, confirm: bool = False, head_only: bool = False
    ) -> ContentId | Future[ContentId]:
        """Which content a sample has now, or the question to storage.

        With `confirm` storage is asked although it has answered before.
        """
        known = known_content(entry)
        holds = known is not None and self._reader.holds(known)
        if known is not None and holds and self._api_is_away():
            return known  # it cannot be confirmed now, and what is cached stays readable
        if not holds:
            self._crawls.spend(entry.published_size or PROBE_BYTES)
        # last of all, so that no answer comes between this and the question
        told = self._catalog.with_facts(entry)
        if told.verified and told.etag != NO_OBJECT and not (confirm and told.etag == entry.etag):
            return content_of(told)  # another open asked since this one looked
        return self.ask(entry, head_only=head_only)

    def _answer(self, entry: SampleEntry, asked: ContentId | Future[ContentId], turn: Turn) -> ContentId:
        if not isinstance(asked, Future):
            return asked
        try:
            return turn.result(asked)
        except RequestError as error:
            self._note_unreadable(entry.sample_id, error)
            raise

    def _note_unreadable(self, sample_id: str, error: RequestError) -> None:
        """Have `status` name a file that cannot be read, unless the network or the server is the cause."""
        if isinstance(error, Cancelled | Unreachable | TimedOut | Throttled | Unauthorized):
            return
        found = self._catalog.by_id(sample_id)
        if found is not None:
            self._problems.note_unreadable(sample_id, found[0], f"it cannot be read: {error}")

    def _prefetch(self, entry: SampleEntry) -> Future[Any] | None:
        """Begin to fetch a small file that is likely to be read next.

        The entry may have been looked up a while ago, and the file read since.
        """
        now = self._catalog.told(entry, by_others=False)
        size = None if now is None else now.published_size
        if now is None or size is None or size > SMALL_FILE_BYTES or self._reader.is_asked(now.sample_id):
            return None
        if now.verified:
            return self._reader.fetch_whole(content_of(now))
        return self.ask(now, ahead=True)

    def _found_meanwhile(self, entry: SampleEntry, by_others: bool) -> ContentId | None:
        """Which content a sample has, where that was found since the entry was looked up.

        Another process may have asked; it told its kernel, and this one has to tell ours.
        """
        told: SampleEntry | None = entry if entry.verified else self._catalog.with_facts(entry)
        if entry.verified or (told is not None and not told.verified):
            if self._reader.has_company():
                may_be_told = by_others
            else:  # they may have ended since
                may_be_told = not by_others and not entry.verified and self._catalog.may_lack_facts(entry)
            told = self._catalog.told(entry) if may_be_told else None
        if told is None or not told.verified or told.etag == NO_OBJECT:
            return None
        content = content_of(told)
        if _shows_another(entry, content):
            self._untold.add(entry.ino)
            found = self._catalog.by_id(entry.sample_id)
            if found is not None:
                self._is_untold(*found)
        return content

    def _is_untold(self, path: str, entry: SampleEntry) -> bool:
        """Whether the kernel, although it was told, may still hold what no longer holds of a file."""
        if entry.ino not in self._untold:
            return False
        if not self._forget((path,)):
            return True
        self._trusted.discard(entry.ino)
        self._untold.discard(entry.ino)
        return False

    def _need_image(self, path: str, entry: SampleEntry, content: ContentId) -> None:
        """Raise NoContent where storage has no image; `status` names the file if there should be one."""
        if not content.has_object and entry.size_hint:
            self._problems.note_unreadable(content.sample_id, path, "storage has no image of it")
        need_object(content, path)

    def _api_is_away(self) -> bool:
        return isinstance(self._catalog.refresher.error, Retryable)

    def _opened(
        self, path: str, entry: SampleEntry, content: ContentId, *, followed: bool = False
    ) -> OpenedSample:
        self._need_image(path, entry, content)
        key = hash(content)  # the strings of a hundred thousand take 30 MB
        handle = ReadHandle(path, entry, content, followed=followed, used_at=time.monotonic())
        untold = self._is_untold(path, entry)
        with self._lock:
            # of a file that was not opened yet the kernel holds nothing
            held = self._kernel_has.get(entry.ino)
            keep = held == key or (held is None and not self._forgot_versions)
            handle.kept = held == key
            if len(self._kernel_has) >= _KERNEL_VERSIONS:
                self._kernel_has.clear()
                self._trusted.clear()
                self._forgot_versions = True
            self._kernel_has[entry.ino] = key
            self._trusted.add(entry.ino)
            handles = self._open.setdefault(entry.ino, [])
            for other in handles:
                other.outdated |= other.content != content
            # the kernel keeps one set of pages a file: a handle on an older version must not meet ours in it
            mixed = any(other.outdated for other in handles)
            handles.append(handle)
        return OpenedSample(handle, keep, untold or mixed)

    def _find_sizes_after(self, path: str) -> None:
        hints_count = not self._catalog.hints_are_wrong
        for _, sample in self._catalog.samples_after(path, _SIZES_AHEAD):
            if sample.size is None and not (hints_count and sample.size_hint is not None):
                self._ask_size(sample)

    def _ask_size(self, entry: SampleEntry) -> Future[ContentId]:
        told = partial(self._found_meanwhile, entry)
        return self._reader.identify(entry.sample_id, size_hint=entry.size_hint, for_reading=False, told=told)


class FilesBelow:
    """Finds the files below a directory in the catalogue, for `EpochFetcher`."""

    def __init__(self, catalog: Catalog, reader: Reader, rules: ShownRules) -> None:
        self._catalog = catalog
        self._reader = reader
        self._rules = rules

    def room_bytes(self) -> int:
        """Return how many bytes an epoch may have in all to be fetched ahead."""
        return self._reader.cache.room.epoch_bytes

    def count_below(self, directory: str, most_bytes: int) -> tuple[int, int]:
        """Count the samples below a directory, and their bytes; ends early once those are too many."""
        return self._catalog.sums_below(directory, BLOCK_BYTES, most_bytes)

    def walk(self, directory: str) -> Iterator[tuple[str, SampleEntry, int]]:
        """Yield the samples below a directory with their paths and sizes."""
        for path, entry in self._catalog.samples_below(directory, _LOOKED_UP_AT_ONCE):
            if not self._rules.shows(path):
                continue
            size = entry.published_size
            yield path, entry, BLOCK_BYTES if size is None else size


def known_content(entry: SampleEntry) -> ContentId | None:
    """Return what storage last said, whether or not that still counts."""
    return None if entry.size is None or entry.etag is None else content_of(entry)


def _shows_another(entry: SampleEntry, content: ContentId) -> bool:
    """Whether the size or the version of a sample, as far as it is shown, is not that of a content."""
    return entry.published_size not in (None, content.size) or entry.etag not in (None, content.etag)


def content_of(entry: SampleEntry) -> ContentId:
    """Return the content that storage last reported of a sample; to be asked only where it did."""
    assert entry.size is not None
    assert entry.etag is not None
    return ContentId(entry.sample_id, entry.etag, entry.size)


def need_object(content: ContentId, path: str) -> None:
    """NoContent where storage has no image of a sample."""
    if not content.has_object:
        raise NoContent(f"the sample has no image on the server: {path}")
