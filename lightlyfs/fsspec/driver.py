"""`lightly://DATASET/PATH` for fsspec, and so for pandas, pyarrow, Dask, Ray and whatever else stands on it.

The same names, cache and uploads as a mount, without one: no FUSE, nothing for root to install. The token is
read from the environment or a token file wherever the file system is used, and never pickled.

The first part of a path is the dataset, by id or name; without one the datasets are listed. `storage_options`
are the options of `lightlyfs mount`, as `cache_dir="/data/cache"` or `profile="work"`; what they leave open
the configuration file of the machine says.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, nullcontext
from datetime import UTC, datetime
from itertools import chain, groupby, pairwise
from pathlib import Path
from typing import Any

from fsspec import available_protocols
from fsspec.callbacks import DEFAULT_CALLBACK, Callback
from fsspec.spec import AbstractBufferedFile
from fsspec.utils import isfilelike, tokenize

from lightlyfs import app
from lightlyfs.blocks import BLOCK_BYTES
from lightlyfs.errors import (
    BadName,
    NotADirectory,
    NotFound,
    ReadOnly,
    SettingsError,
    SizeUnknown,
    StartError,
)
from lightlyfs.fs.attributes import UNKNOWN_SIZE, Attr
from lightlyfs.fs.changes import sample_name
from lightlyfs.fs.filesystem import Filesystem
from lightlyfs.fsspec.base import AskingFileSystem, opening
from lightlyfs.fsspec.files import COPY_BYTES, ReadFile, WriteFile, as_os_error, let_go_of_dropped, looking_up
from lightlyfs.fsspec.parts import dataset_names, parts_of
from lightlyfs.settings import BY_NAME, text_of

# reads at once of `cat_ranges` and of `cat` of many files, besides what the mount fetches at once
_PARALLEL = 32
_SECRET_OPTIONS = {"token", "bearer", "bearer_token", "public_token"}


class LightlyFileSystem(AskingFileSystem):
    """Lightly datasets as an fsspec file system; any thread, process or forked child may use one.

    Raises ValueError for an unknown storage option, and for a token among them: it would travel in pickles.
    `token` may be a function that gives the token; it is called for each request, and once more after a
    refusal, so it should remember. Other processes have it by its name, as `pickle` has functions.
    """

    protocol = "lightly"
    root_marker = ""

    def __init__(self, **storage_options: Any) -> None:
        self._token: Callable[[], str] | None = storage_options.get("token")
        secret = _SECRET_OPTIONS & storage_options.keys() - ({"token"} if callable(self._token) else set())
        if secret:
            raise ValueError(
                f"{min(secret)} is not taken as an option, for options are pickled; "
                "set LIGHTLY_TOKEN, token_file to a file that each worker has, or token to a function"
            )
        unknown = [
            name
            for name, value in storage_options.items()
            if name not in (*BY_NAME, "profile") and name not in _OF_FSSPEC and not _of_another(name, value)
        ]
        if unknown:
            raise ValueError(f"unknown storage option {unknown[0]}; it may be {', '.join(BY_NAME)}")
        super().__init__(**storage_options)
        given = {name: value for name, value in storage_options.items() if value is not None}
        try:
            self._flags = {
                name: text_of(BY_NAME[name], value, name) for name, value in given.items() if name in BY_NAME
            }
        except SettingsError as error:
            raise ValueError(str(error)) from None
        if "profile" in given:
            self._flags["profile"] = str(given["profile"])

    # names

    def ls(self, path: str, detail: bool = True, **kwargs: Any) -> list[Any]:
        """What is in a directory; the datasets that the token may see, without a path."""
        path = self._strip_protocol(path)
        if not path:
            found = self._datasets()
        else:
            parts, inside = self._at(path)
            with looking_up(parts.filesystem, path, inside):
                found = self._listed(parts.filesystem, path, inside)
        return found if detail else [one["name"] for one in found]

    def samples(self, path: str, tags: Sequence[str] = ()) -> Iterator[tuple[str, int]]:
        """Yield every sample below a path, as its path below that, from the catalogue.

        With `tags`, by name or id, those that one of them holds, each with the number of the first that does;
        without, the number is 0. FileNotFoundError where there is no such path or tag.
        """
        path = self._strip_protocol(path)
        parts, inside = self._at(path)
        begin = len(inside) + 1 if inside else 0
        with as_os_error(path):
            members = [parts.members(tag) for tag in tags]
            for name, sample_id in parts.samples_below(inside):
                number = next((n for n, ids in enumerate(members) if sample_id in ids), None if tags else 0)
                if number is not None:
                    yield name[begin:], number

    def _listed(self, files: Filesystem, path: str, inside: str) -> list[dict[str, Any]]:
        try:
            entries = files.list_directory(inside).entries
        except NotADirectory:
            return [self._described(path, files.getattr(inside))]
        except NotFound as error:  # of the dataset: that says nothing of the path
            raise StartError(str(error)) from error
        return [self._described(f"{path}/{name}", one) for name, one in entries]

    def info(self, path: str, **kwargs: Any) -> dict[str, Any]:
        """Name, size, type, times, and of a sample its id and version."""
        path = self._strip_protocol(path)
        if not path:
            return {"name": "", "size": 0, "type": "directory"}
        parts, inside = self._at(path)
        with looking_up(parts.filesystem, path, inside):
            described = self._described(path, parts.filesystem.getattr(inside))
            sample = parts.filesystem.sample(inside)
        if sample is not None:
            described |= {"sample_id": sample.sample_id, "etag": sample.etag}
        return described

    def _datasets(self) -> list[dict[str, Any]]:
        with opening(""):
            names = dataset_names(self._flags, self._token)
        return [{"name": name, "size": 0, "type": "directory"} for name in names]

    def _described(self, path: str, attr: Attr) -> dict[str, Any]:
        size: int | None = attr.size
        if size == UNKNOWN_SIZE:
            parts, inside = self._at(path)
            try:
                size = parts.filesystem.getattr(inside).size
            except SizeUnknown:
                size = None  # the name is listed all the same
        kind = "directory" if attr.is_directory else "file"
        return {"name": path, "size": size, "type": kind, "mtime": attr.mtime, "ino": attr.ino}

    def created(self, path: str) -> datetime:
        """The time of a path; the API tells no other one for a file than that of its last change."""
        return self.modified(path)

    def modified(self, path: str) -> datetime:
        """When a path was last changed, in UTC and whole seconds."""
        return datetime.fromtimestamp(self.info(path)["mtime"], UTC)

    def ukey(self, path: str) -> str:
        """A text that changes when the content does, as far as the API and storage told."""
        found = self.info(path)
        return str(tokenize(*(found.get(key) for key in ("sample_id", "etag", "size", "mtime", "ino"))))

    def checksum(self, path: str) -> int:
        """`ukey` as a number."""
        return int(self.ukey(path), 16)

    # bytes

    def _open(
        self, path: str, mode: str = "rb", block_size: int | None = None, **kwargs: Any
    ) -> AbstractBufferedFile:
        path = self._strip_protocol(path)
        files, inside = self.files_at(path)
        kind = ReadFile if mode == "rb" else WriteFile
        kwargs.pop("size", None)  # `blockcache` tells what it took from `info`; the open file knows better
        kwargs = {"cache_type": "readahead", **kwargs}
        return kind(self, path, mode, block_size or BLOCK_BYTES, files=files, inside=inside, **kwargs)

    def cat_file(self, path: str, start: int | None = None, end: int | None = None, **kwargs: Any) -> bytes:
        """The bytes of a file, or [start, end) of them; negative numbers count from its end."""
        path = self._strip_protocol(path)
        parts, inside = self._at(path)
        with looking_up(parts.filesystem, path, inside):
            whole = parts.filesystem.read_whole(inside) if start is None and end is None else None
        if whole is not None:
            return whole
        with looking_up(parts.filesystem, path, inside), _opened(parts, inside) as handle:
            size = parts.filesystem.getattr_open(handle).size
            lo, hi, _ = slice(start, end).indices(size)
            return parts.filesystem.read(handle, lo, max(0, hi - lo))

    def cat_ranges(
        self,
        paths: list[str],
        starts: int | list[int | None] | None,
        ends: int | list[int | None] | None,
        max_gap: int | None = None,
        on_error: str = "return",
        **kwargs: Any,
    ) -> list[Any]:
        """Ranges of many files, fetched in parallel; an error takes the place of its bytes, or is raised."""
        wanted = list(zip(paths, _spread(starts, len(paths)), _spread(ends, len(paths)), strict=True))
        whole = [path for path, start, end in wanted if start is None and end is None]
        with self.ahead(whole) if whole else nullcontext():
            return self._in_parallel(lambda one: self.cat_file(*one), wanted, on_error)

    def cat(self, path: Any, recursive: bool = False, on_error: str = "raise", **kwargs: Any) -> Any:
        """The bytes of one file, or of many by path, fetched in parallel."""
        paths = self.expand_path(path, recursive=recursive)
        if (
            len(paths) == 1
            and not recursive
            and isinstance(path, str)
            and paths[0] == self._strip_protocol(path)
        ):
            return self.cat_file(paths[0])
        files = [one for one in paths if not self.isdir(one)]
        with self.ahead(files) if files else nullcontext():
            found = self._in_parallel(self.cat_file, files, "raise" if on_error == "raise" else "return")
        kept = dict(zip(files, found, strict=True))
        return kept if on_error != "omit" else {k: v for k, v in kept.items() if isinstance(v, bytes)}

    def ahead(self, paths: Iterable[str]) -> app.Announcement:
        """Fetch files of one dataset in this order before they are read; see `lightlyfs.ahead`."""
        at_once = [paths] if isinstance(paths, list) else ([path] for path in paths)
        return self.ahead_by_batches(at_once)

    def ahead_by_batches(self, batches: Iterable[Sequence[str]]) -> app.Announcement:
        """Fetch files as `ahead` does; the paths of a batch are looked up together, which costs less."""
        left = iter(batches)
        named = next((paths for paths in left if paths), None)
        if named is None:
            raise ValueError("no path is named")
        first = self._strip_protocol(named[0])
        parts, inside = self._at(first)
        dataset = first.removesuffix(inside)

        def within(paths: Sequence[str]) -> list[str]:
            names = map(self._strip_protocol, paths)
            return [name.removeprefix(dataset) for name in names if name.startswith(dataset)]

        return parts.ahead(map(within, chain([named], left)))

    def get_file(
        self,
        rpath: str,
        lpath: Any,
        callback: Callback = DEFAULT_CALLBACK,
        outfile: Any = None,
        **kwargs: Any,
    ) -> None:
        """Copy a file, or make a directory, to the local disk; directories above it are made."""
        rpath = self._strip_protocol(rpath)
        if isfilelike(lpath):
            outfile = lpath
        elif self.isdir(rpath):
            os.makedirs(lpath, exist_ok=True)
            return
        else:
            os.makedirs(os.path.dirname(lpath) or ".", exist_ok=True)
        with self.open(rpath) as source, _target(lpath, outfile) as target:
            callback.set_size(source.size)
            while data := source.read(COPY_BYTES):
                target.write(data)
                callback.relative_update(len(data))

    def put_file(
        self,
        lpath: Any,
        rpath: str,
        callback: Callback = DEFAULT_CALLBACK,
        mode: str = "overwrite",
        **kwargs: Any,
    ) -> None:
        """Upload a file, or make a directory."""
        if os.path.isdir(lpath):
            self.makedirs(rpath, exist_ok=True)
            return
        callback.set_size(os.path.getsize(lpath))
        with open(lpath, "rb") as source, self.open(rpath, "xb" if mode == "create" else "wb") as target:
            while data := source.read(COPY_BYTES):
                target.write(data)
                callback.relative_update(len(data))

    def put_once(self, lpath: str | os.PathLike[str], rpath: str) -> bool:
        """Upload a file from a task that may run twice: one name and content make one sample.

        False where the sample holds these bytes already; FileExistsError where it holds others. A worker that
        is killed leaves nothing owed, and the repeated task goes on where it was. The same name at the same
        time is waited for on one machine with one `cache_dir`; across machines nothing can exclude it.
        This process lists the name after its next look at the dataset.
        """
        path = self._strip_protocol(rpath)
        parts, inside = self._at(path)
        with as_os_error(path):
            if parts.uploads is None:
                raise ReadOnly("opened with read_only, or for a tag")
            name = sample_name(inside)
            if not name:
                raise BadName(f"no new sample can be called so: {inside}")
            parts.filesystem.need_directories_above(inside)
            sent = parts.uploads.put_once(Path(lpath), name)
            if sent:
                parts.catalog.expect_changes()
        return sent

    # changes

    def mv(self, path1: str, path2: str, **kwargs: Any) -> None:
        """Rename a file or directory within one dataset."""
        (parts, old), (other, new) = (self._at(self._strip_protocol(path)) for path in (path1, path2))
        if parts is not other:
            raise OSError(f"from one dataset to another nothing is moved, only copied: {path1} to {path2}")
        with looking_up(parts.filesystem, path1, old):
            parts.filesystem.need_directories_above(new)
            parts.filesystem.rename(old, new, 0)

    def rm_file(self, path: str) -> None:
        """Remove a file that is not on the server; PermissionError for a sample, which has no delete."""
        parts, inside = self._at(self._strip_protocol(path))
        with looking_up(parts.filesystem, path, inside):
            parts.filesystem.unlink(inside)

    def cp_file(self, path1: str, path2: str, **kwargs: Any) -> None:
        """Copy a file through this machine, for the API copies none."""
        if self.isdir(path1):
            self.makedirs(path2, exist_ok=True)
            return
        with self.open(path1) as source, self.open(path2, "wb") as target:
            while data := source.read(COPY_BYTES):
                target.write(data)

    def mkdir(self, path: str, create_parents: bool = True, **kwargs: Any) -> None:
        """Make a directory, which lasts once a sample is in it."""
        self.makedirs(path, exist_ok=False)

    def makedirs(self, path: str, exist_ok: bool = False) -> None:
        """Make a directory; those above it come along."""
        path = self._strip_protocol(path)
        if self.exists(path):
            if exist_ok and self.isdir(path):
                return
            raise FileExistsError(path)
        parts, inside = self._at(path)
        with as_os_error(path):
            parts.filesystem.need_directories_above(inside)
            parts.filesystem.make_directory(inside)

    def rmdir(self, path: str) -> None:
        """Remove an empty directory."""
        parts, inside = self._at(self._strip_protocol(path))
        with looking_up(parts.filesystem, path, inside):
            parts.filesystem.remove_directory(inside)

    def _at(self, path: str) -> tuple[app.Dataset, str]:
        """The parts of a path's dataset, and the path within it."""
        let_go_of_dropped()
        dataset, _, inside = path.partition("/")
        if not dataset:
            raise ValueError("the path names no dataset; it is lightly://DATASET/PATH")
        with opening(path):
            return parts_of(dataset, self._flags, self._token), inside

    def files_at(self, path: str) -> tuple[Filesystem, str]:
        """What serves a path in this process, and the path within its dataset."""
        parts, inside = self._at(path)
        return parts.filesystem, inside

    @staticmethod
    def _in_parallel(job: Callable[[Any], bytes], wanted: Sequence[Any], on_error: str) -> list[Any]:
        def guarded(one: Any) -> bytes | Exception:
            try:
                return job(one)
            except Exception as error:
                if on_error == "raise":
                    raise
                return error

        with ThreadPoolExecutor(max(1, min(_PARALLEL, len(wanted)))) as pool:
            return list(pool.map(guarded, wanted))


_OF_FSSPEC = {
    "token",
    "skip_instance_cache",
    "use_listings_cache",
    "listings_expiry_time",
    "max_paths",
    "asynchronous",
    "loop",
    "batch_size",
}


def _of_another(name: str, value: object) -> bool:
    """Whether an option holds those of another file system: `datasets` hands all it has to each of them."""
    return isinstance(value, dict) and name in available_protocols()


@contextmanager
def _opened(parts: app.Dataset, path: str) -> Iterator[int]:
    handle = parts.filesystem.open(path, os.O_RDONLY).handle
    try:
        yield handle
    finally:
        parts.filesystem.release(handle)


def _target(lpath: Any, outfile: Any) -> AbstractContextManager[Any]:
    """What to write to: an open file, which stays the caller's, or a new one."""
    return open(lpath, "wb") if outfile is None else nullcontext(outfile)


def _spread(value: Any, count: int) -> Iterable[Any]:
    return value if isinstance(value, list) else [value] * count


def by_directory(paths: Iterable[str], *, most: int = 256) -> list[list[str]]:
    """Each directory's files as partitions of at most `most`, in order.

    A partition never spans directories, so that one reader goes through it in order and the next files are
    fetched before it asks. The parts of a large directory differ by one file at most.
    """
    if most < 1:
        raise ValueError(f"a partition holds at least one file, not {most}")
    found = []
    in_order = sorted(set(paths), key=lambda path: (_directory(path), path))
    for _, group in groupby(in_order, key=_directory):
        found += _evenly(list(group), most)
    return found


def by_tag(members: Mapping[str, Iterable[str]], *, most: int = 256) -> list[list[str]]:
    """What each tag holds as partitions of at most `most` files, tags in the order given.

    A file that several tags hold is in the first of them alone, so that nothing counts twice.
    """
    seen: set[str] = set()
    found = []
    for paths in members.values():
        mine = set(paths) - seen
        seen |= mine
        found += by_directory(mine, most=most)
    return found


def _directory(path: str) -> str:
    return path.rpartition("/")[0]


def _evenly(paths: list[str], most: int) -> list[list[str]]:
    count = -(-len(paths) // most)
    bounds = [len(paths) * number // count for number in range(count + 1)]
    return [paths[start:end] for start, end in pairwise(bounds)]
