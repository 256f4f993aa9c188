"""The images of a dataset as a training takes them: by number, with labels, groups and errors by sample.

No framework is needed: what has a length and gives items by number is a dataset to torch.
"""

from __future__ import annotations

import hashlib
import io
import logging
import multiprocessing
import os
import zlib
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from fnmatch import fnmatchcase
from functools import partial
from itertools import chain, count, islice, repeat
from pathlib import PurePath
from typing import Any, Literal

from lightlyfs.errors import LightlyFsError, NoSuchFile, UnreadableSample
from lightlyfs.memory import keep_freed_memory
from lightlyfs.name_rules import IMAGE_EXTENSIONS
from lightlyfs.training.order import Batch
from lightlyfs.training.reading import ADDRESS, Announcer, Source, opener_of, read_patiently

log = logging.getLogger(__name__)

Include = str | Sequence[str] | Callable[[str], bool]
OnError = Literal["raise", "skip"] | Callable[[UnreadableSample], Any]
_LEFT_OUT: Any = object()
# a batch as trainings have them
_ITERATED_AT_ONCE = 64
# items that are read before the first of them is decoded: their bytes take memory until then
_READ_AT_ONCE = 8


class LightlyImages:
    """The images of a dataset, by number, in the order of their paths; a map-style dataset.

    An item is an image and its label, or the image alone without `labels`. It can be pickled where its
    functions can, and any process, forked or spawned, may use its copy: the listing comes along, and each
    process opens the dataset at its first read. A batch that is asked for at once is fetched together.
    """

    def __init__(
        self,
        dataset: str | os.PathLike[str],
        *,
        include: Include | None = None,
        tags: str | Sequence[str] | None = None,
        group_by: Literal["stem"] | Callable[[str], Any] | None = None,
        labels: Literal["folder", "tag"] | Callable[[str], Any] | None = "folder",
        decode: bool | Callable[[bytes], Any] = True,
        transform: Callable[[Any], Any] | None = None,
        on_error: OnError = "raise",
        **storage_options: Any,
    ) -> None:
        """List the images of a dataset, once for all processes.

        `dataset` is a name or id, perhaps with a directory behind it, the same as `lightly://` address, or
        a path below a mount (absolute, `./...` or a Path). `include` chooses files by their paths: patterns,
        of which one fits, or a function; else all images. With `tags` only what one of them holds.

        `group_by` makes one item of several files, as an image and its mask: those with the same "stem", the
        name without directory and ending, or with the same result of a function of the path (None: left out).
        The item is then a tuple, in the order of the paths; groups of another size than most are left out.

        `labels` are the numbers in `classes` of the first "folder" of the path, or of the first of `tags`
        that holds the image, or what a function makes of the path. `decode` gives Pillow images, in RGB (in
        a group the first; others keep their mode), False the bytes, a function what it makes of the bytes.
        `transform` is called with the image, or the tuple. What cannot be read or decoded is an
        UnreadableSample: `on_error` raises it, skips the item (in batches and loops), or returns another one
        for it (None: skip).

        Other keywords are options of the mount, for a dataset that this process opens by itself.
        """
        _check("group_by", group_by, None, "stem")
        _check("labels", labels, None, "folder", "tag")
        _check("decode", decode, True, False)
        _check("on_error", on_error, "raise", "skip")
        tags = [tags] if isinstance(tags, str) else list(tags or ())
        if labels == "tag" and not tags:
            raise ValueError("labels by tag need tags, in the order of their numbers")
        self.root = _root_of(dataset)
        self._open = opener_of(self.root, storage_options)
        self._decode = decode
        self._transform = transform
        self._on_error = on_error
        self._labels = labels
        self._here: _Here | None = None
        found = self._find(_chooser(include), tags)
        items = [(path,) for path in sorted(found)] if group_by is None else _grouped(found, group_by)
        if not items:
            raise NoSuchFile(f"there are no images in {self.root} that fit")
        self.paths = PackedPaths(items)
        self.classes: list[str] = []
        self._number_of: dict[str, int] = {}
        self._tag_of = array("H")
        if labels == "folder":
            self.classes = sorted({_folder(item[0]) for item in items})
            self._number_of = {name: number for number, name in enumerate(self.classes)}
        elif labels == "tag":
            self.classes = tags
            self._tag_of = array("H", (found[item[0]] for item in items))

    def _find(self, fits: Callable[[str], bool], tags: list[str]) -> dict[str, int]:
        return {path: number for path, number in self._open().below(self.root, tags) if fits(path)}

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, number: int) -> Any:
        item = self._item(number, self._in_this_process())
        if item is _LEFT_OUT:
            name = self.name(self.paths[number][0])
            # no IndexError: who iterates by number, as wrappers do, would take it for the end
            raise UnreadableSample(f"{name} cannot be read, and is skipped in batches only", name)
        return item

    def __iter__(self) -> Iterator[Any]:
        """Yield the items in order, but for those that are skipped; some are fetched together."""
        here = self._in_this_process()
        for start in range(0, len(self), _ITERATED_AT_ONCE):
            numbers = range(start, min(len(self), start + _ITERATED_AT_ONCE))
            here.ahead.add(self._names(numbers))
            for number in numbers:
                item = self._item(number, here)
                if item is not _LEFT_OUT:
                    yield item

    def __getitems__(self, numbers: Sequence[int]) -> list[Any]:
        """Return the items of a batch, which is fetched together; DataLoader calls this."""
        here = self._in_this_process()
        if isinstance(numbers, Batch):
            here.begin(numbers.epoch_run)
            here.ahead.add(self._names(numbers.announced))
        else:
            here.ahead.add(self._names(numbers))
        items: list[Any] = []
        at_once = len(numbers) if self._decode is False else _READ_AT_ONCE
        for start in range(0, len(numbers), at_once or 1):
            some = numbers[start : start + at_once]
            paths = [self.paths[number] for number in some]
            with here.source.while_reading():
                read = [self._read(of_item, here.source) for of_item in paths]
            items += map(self._made, some, paths, read, repeat(here.source))
        return [item for item in items if item is not _LEFT_OUT]

    def label(self, number: int) -> Any:
        """Return the label of an item, without reading it."""
        return self._label(number, self.paths[number][0])

    def name(self, path: str) -> str:
        """Return the full name of a path of `paths`."""
        return f"{self.root}/{path}"

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_here": None}

    def _in_this_process(self) -> _Here:
        if self._here is None or self._here.process != os.getpid():
            if multiprocessing.parent_process() is not None:
                keep_freed_memory()  # a worker, which does little else than decode
            self._here = _Here(self._open())
        return self._here

    def _names(self, numbers: Iterable[int]) -> list[str]:
        return [self.name(path) for number in numbers for path in self.paths[number]]

    def _item(self, number: int, here: _Here) -> Any:
        paths = self.paths[number]
        return self._made(number, paths, self._read(paths, here.source), here.source)

    def _read(self, paths: tuple[str, ...], source: Source) -> list[bytes | UnreadableSample]:
        """Return the bytes of the files of an item, or why they cannot be read."""
        return [self._bytes(path, source) for path in paths]

    def _bytes(self, path: str, source: Source) -> bytes | UnreadableSample:
        name = self.name(path)
        try:
            return read_patiently(partial(source.read, name))
        except (OSError, LightlyFsError) as error:
            return _unreadable("cannot be read", name, source, error)

    def _made(
        self, number: int, paths: tuple[str, ...], read: list[bytes | UnreadableSample], source: Source
    ) -> Any:
        """Return an item, made of the bytes of its files."""
        try:
            images = tuple(map(self._image, paths, read, count(), repeat(source)))
        except UnreadableSample as error:
            if self._on_error == "raise":
                raise
            if self._on_error == "skip":
                log.warning("left out: %s", error)
                return _LEFT_OUT
            instead = self._on_error(error)
            return _LEFT_OUT if instead is None else instead
        image = images[0] if len(paths) == 1 else images
        if self._transform is not None:
            try:
                image = self._transform(image)
            except Exception as error:
                error.add_note(f"the image was {_described(self.name(paths[0]), source)[0]}")
                raise
        return image if self._labels is None else (image, self._label(number, paths[0]))

    def _image(self, path: str, data: bytes | UnreadableSample, place: int, source: Source) -> Any:
        if isinstance(data, UnreadableSample):
            raise data
        if self._decode is False:
            return data
        try:
            return self._decode(data) if callable(self._decode) else _decoded(data, in_rgb=not place)
        except Exception as error:
            raise _unreadable("cannot be decoded", self.name(path), source, error) from error

    def _label(self, number: int, path: str) -> Any:
        if self._labels == "folder":
            return self._number_of[_folder(path)]
        if self._labels == "tag":
            return self._tag_of[number]
        return self._labels(path) if callable(self._labels) else None


class _Here:
    """What one process has of a dataset."""

    def __init__(self, source: Source) -> None:
        self.process = os.getpid()
        self.source = source
        self.ahead = Announcer(source)
        self._epoch_run = -1

    def begin(self, epoch_run: int) -> None:
        """Discard what was fetched for an abandoned epoch."""
        if epoch_run != self._epoch_run:
            self.ahead.close()
            self._epoch_run = epoch_run


def _check(name: str, value: object, *known: object) -> None:
    """Refuse a misspelt word, which would be taken for something else."""
    if not callable(value) and not any(value is one or value == one for one in known):
        raise ValueError(f"{name} is {value!r}; it may be {', '.join(map(repr, known))} or a function")


def _root_of(dataset: str | os.PathLike[str]) -> str:
    name = os.fspath(dataset)
    if name.startswith(ADDRESS):
        return name.rstrip("/")
    if isinstance(dataset, PurePath) or name.startswith((os.sep, ".")):
        return os.path.abspath(name)
    return f"{ADDRESS}{name.rstrip('/')}"


def _chooser(include: Include | None) -> Callable[[str], bool]:
    if include is None:
        return lambda path: path.rpartition(".")[2].lower() in IMAGE_EXTENSIONS
    if callable(include):
        return include
    patterns = [include] if isinstance(include, str) else list(include)
    return lambda path: any(fnmatchcase(path, pattern) for pattern in patterns)


def _grouped(paths: Iterable[str], group_by: Literal["stem"] | Callable[[str], Any]) -> list[tuple[str, ...]]:
    """Items of several files, in order of their first paths."""
    groups: dict[Any, list[str]] = {}
    for path in sorted(paths):
        key = _stem(path) if group_by == "stem" else group_by(path)
        if key is not None:
            groups.setdefault(key, []).append(path)
    sizes = Counter(map(len, groups.values()))
    most = max(sizes, key=lambda size: (sizes[size], size), default=0)
    odd = [group for group in groups.values() if len(group) != most]
    if odd:
        log.warning("left out, not %d files each: %d groups, as that of %s", most, len(odd), odd[0][0])
    return [tuple(group) for group in groups.values() if len(group) == most]


def _stem(path: str) -> str:
    return path.rpartition("/")[2].rpartition(".")[0]


def _folder(path: str) -> str:
    return path.partition("/")[0] if "/" in path else ""


def _decoded(data: bytes, *, in_rgb: bool) -> Any:
    from PIL import Image

    with Image.open(io.BytesIO(data)) as image:
        if in_rgb:
            return image.convert("RGB")
        image.load()
        return image


def _described(name: str, source: Source) -> tuple[str, str]:
    """A file for a person, and its sample id, as far as it can be said."""
    try:
        sample_id = source.sample_id(name)
    except (OSError, LightlyFsError):
        sample_id = ""
    return f"{name} (sample {sample_id or 'unknown'})", sample_id


def _unreadable(what: str, name: str, source: Source, error: Exception) -> UnreadableSample:
    described, sample_id = _described(name, source)
    # of an OSError without the path, which the text begins with
    why = error.strerror if isinstance(error, OSError) and error.strerror else error
    unreadable = UnreadableSample(f"{described} {what}: {why}", name, sample_id)
    unreadable.__cause__ = error
    return unreadable


# items that are unpacked at once: some ten microseconds, where an image takes a millisecond
_ITEMS_AT_ONCE = 32
# neither can be part of a path
_BETWEEN_PATHS, _BETWEEN_ITEMS = "\0", "\0\0"


class PackedPaths:
    """A sequence of items, each of one path or several, compressed some at a time; cannot be changed.

    `digest` is the same for the same items in the same order.
    """

    def __init__(self, items: Iterable[tuple[str, ...]]) -> None:
        self._pieces: list[bytes] = []
        self._count = 0
        left = iter(items)
        digest = hashlib.blake2b(digest_size=8)
        while some := list(islice(left, _ITEMS_AT_ONCE)):
            piece = _BETWEEN_ITEMS.join(map(_BETWEEN_PATHS.join, some)).encode(errors="surrogateescape")
            digest.update(piece + b"\0\0")
            self._pieces.append(zlib.compress(piece))
            self._count += len(some)
        self.digest = digest.hexdigest()

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, number: int) -> tuple[str, ...]:
        if number < 0:
            number += self._count
        if not 0 <= number < self._count:
            raise IndexError(f"item {number} of {self._count}")
        piece, place = divmod(number, _ITEMS_AT_ONCE)
        return self._unpack(self._pieces[piece], place)[0]

    def __iter__(self) -> Iterator[tuple[str, ...]]:
        return chain.from_iterable(map(self._unpack, self._pieces))

    @staticmethod
    def _unpack(piece: bytes, place: int | None = None) -> list[tuple[str, ...]]:
        """The items of a piece, or the one at a place."""
        items = zlib.decompress(piece).decode(errors="surrogateescape").split(_BETWEEN_ITEMS)
        return [tuple(item.split(_BETWEEN_PATHS)) for item in (items if place is None else [items[place]])]
