"""The commands that need no mount: `datasets`, `ls`, `cat`, `cp` and `index`.

They use the same catalogue, cache and uploads as a mount, for as long as the command runs.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import NamedTuple, TypeVar

import click

from lightlyfs import app, places
from lightlyfs.api.redaction import visible
from lightlyfs.app import Dataset
from lightlyfs.app.resolving import find_dataset, list_datasets
from lightlyfs.cli.options import (
    CONNECTION,
    CommandGroup,
    complete_dataset,
    given_text,
    merge,
    setting_options,
    split_fstab_options,
    split_source,
)
from lightlyfs.cli.output import progress_bar, size_text, tell
from lightlyfs.errors import LightlyFsError, NoSuchDataset, NoSuchFile, StartError, counted
from lightlyfs.fs.attributes import UNKNOWN_SIZE, Attr
from lightlyfs.fs.filesystem import Filesystem
from lightlyfs.settings import Secrets, Settings, exposure_of, read_secrets, resolve


def settings_of(
    flags: Mapping[str, str | None], fstab: tuple[str, ...] = (), **fixed: str
) -> tuple[Settings, Secrets]:
    """The settings and tokens of a command from its options."""
    texts = merge(flags, split_fstab_options(fstab)[0])
    settings = resolve({**texts, **fixed}, os.environ)
    secrets = read_secrets(os.environ, settings.token_file, settings.read_mode)
    if exposed := exposure_of(settings.token_file):
        tell(exposed)
    return settings, secrets


@contextmanager
def opened(dataset: str, settings: Settings, secrets: Secrets) -> Iterator[app.Dataset]:
    """The parts of a dataset, its names listed; uploads under way at the end are waited for."""
    closing = threading.Event()  # a check of the names that gets no answer ends with the command
    connections = app.connect(settings, secrets, os.environ, cancelled=closing.is_set)
    found = find_dataset(connections.client, settings, secrets, dataset, tell)
    with app.open_place(settings, found.id) as place:
        spool = app.open_spool(settings, found.id)
        settings = replace(settings, read_only=spool is None)
        parts = app.Dataset(settings, connections, found.id, place, closing=closing, spool_place=spool)
        parts.start()
        try:
            yield parts
        finally:
            parts.drain()
            parts.close()


@click.command()
@click.option("--json", "as_json", is_flag=True, help="As JSON, for programs.")
@setting_options(*CONNECTION)
def datasets(as_json: bool, **flags: str | None) -> None:
    """List the datasets that the token may see: name, id, files, size, day of creation."""
    settings, secrets = settings_of(flags)
    client = app.connect(settings, secrets, os.environ).client
    found = sorted(list_datasets(client, settings), key=lambda one: (one.name or one.id, one.id))
    if as_json:
        rows = [
            {
                "name": one.name,
                "id": one.id,
                "files": one.n_samples,
                "bytes": one.size_in_bytes,
                "created": one.created_at and one.created_at // 1000,
            }
            for one in found
        ]
        click.echo(json.dumps(rows, indent=2))
        return
    for one in found:
        created = "-" if not one.created_at else time.strftime("%Y-%m-%d", time.gmtime(one.created_at / 1000))
        files = "-" if one.n_samples is None else f"{one.n_samples:,}"
        size = "-" if one.size_in_bytes is None else size_text(one.size_in_bytes)
        click.echo(visible(f"{one.name or one.id:<32}  {one.id}  {files:>11}  {size:>9}  {created}"))


@click.group(cls=CommandGroup)
def index() -> None:
    """Share the names of a dataset as one file."""


@index.command("export")
@click.argument("dataset", type=given_text, shell_complete=complete_dataset)
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False))
@click.option("-o", "fstab_options", multiple=True, metavar="NAME=VALUE", help="Options of `mount`.")
@setting_options(*CONNECTION, "cache_dir", "tag", "page_size")
def export(dataset: str, file: Path, fstab_options: tuple[str, ...], **flags: str | None) -> None:
    """Write the names and sizes of DATASET, as this machine knows them, to FILE.

    Mounts and fsspec take it with `--index FILE`, and list nothing then. The samples are listed first where
    no mount did that yet.
    """
    settings, secrets = settings_of(flags, fstab_options)
    connections = app.connect(settings, secrets, os.environ)
    dataset, _ = split_source(dataset)
    found = find_dataset(connections.client, settings, secrets, dataset, tell)
    root = places.server_cache(settings.cache_dir, settings.server)
    catalogue = root / found.id / places.catalogue_name(settings.tag)
    if not catalogue.exists():
        app.list_once(settings, connections, found.id)
    started = time.monotonic()
    samples = app.export_index(catalogue, file.absolute(), found.id)
    size = size_text(file.stat().st_size)
    click.echo(f"{counted(samples, 'sample')}, {size}, in {time.monotonic() - started:.1f} s: {file}")


@index.command("import")
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False, exists=True))
@click.option("-o", "fstab_options", multiple=True, metavar="NAME=VALUE", help="Options of `mount`.")
@setting_options("server", "cache_dir", "tag")
def import_(file: Path, fstab_options: tuple[str, ...], **flags: str | None) -> None:
    """Let later mounts on this machine start with the names and sizes in FILE, an index of one dataset.

    Asks no network. Give `--cache-dir`, `--server` and `--tag` as to `mount`.
    """
    settings = resolve(merge(flags, split_fstab_options(fstab_options)[0]), os.environ)
    root = places.server_cache(settings.cache_dir, settings.server)
    started = time.monotonic()
    header, taken = app.import_for_later(file.absolute(), root, settings.tag)
    names = f"the names of dataset {header.dataset_id}, checked {time.time() - header.checked_at:,.0f} s ago"
    if taken:
        click.echo(f"{names}, are on this machine, in {time.monotonic() - started:.1f} s")
    else:
        click.echo(f"{names}: this machine has newer ones, which stay")


_CHUNK_BYTES = 4 << 20
# files at once; the parts below prefetch, and limit their own requests
_MAX_THREADS = 32
_READING = ("server", "token_file", "ca_certs", "allow_private_storage", "cache_dir", "no_cache", "tag")


Job = TypeVar("Job")


class _Unchanged(int):
    """The size in bytes of a file that the target held already."""


class _Found(NamedTuple):
    path: str
    attr: Attr


@click.command()
@click.argument("source", type=given_text, shell_complete=complete_dataset)
@click.option("-l", "long", is_flag=True, help="With size and time.")
@click.option("-r", "--recursive", is_flag=True, help="Everything below, too.")
@click.option("--json", "as_json", is_flag=True, help="As JSON, for programs.")
@setting_options(*_READING)
def ls(source: str, long: bool, recursive: bool, as_json: bool, **flags: str | None) -> None:
    """List what is in SOURCE, which is DATASET, DATASET/DIRECTORY, or a pattern such as 'DATASET/cars/*'."""
    dataset, inside = split_source(source)
    with opened(dataset, *settings_of(flags, read_only="on")) as parts:
        files = parts.filesystem
        found = [one for match in _matches(files, inside) for one in _in(files, match, recursive)]
        if as_json:
            click.echo(json.dumps([_values(files, one) for one in found], indent=2))
            return
        for path, attr in found:
            name = path + "/" * attr.is_directory
            if long:
                size = "" if attr.is_directory else f"{_size(files, path, attr):,}"
                when = time.strftime("%Y-%m-%d %H:%M", time.localtime(attr.mtime))
                name = f"{size:>14}  {when}  {name}"
            click.echo(visible(name))


@click.command()
@click.argument(
    "sources",
    nargs=-1,
    required=True,
    type=given_text,
    metavar="DATASET/PATH...",
    shell_complete=complete_dataset,
)
@setting_options(*_READING)
def cat(sources: tuple[str, ...], **flags: str | None) -> None:
    """Write the bytes of files of a dataset to stdout."""
    settings, secrets = settings_of(flags, read_only="on")
    for source in sources:
        dataset, inside = split_source(source)
        with opened(dataset, settings, secrets) as parts:
            for path, attr in _matches(parts.filesystem, inside):
                if attr.is_directory:
                    raise StartError(f"{path or dataset} is a directory; `lightlyfs ls` lists it")
                for data in _bytes_of(parts.filesystem, path):
                    sys.stdout.buffer.write(data)
    sys.stdout.buffer.flush()


@click.command()
@click.argument(
    "sources", nargs=-1, required=True, type=given_text, metavar="SOURCE...", shell_complete=complete_dataset
)
@click.argument("target", type=given_text, shell_complete=complete_dataset)
@click.option("-r", "--recursive", is_flag=True, help="Directories with all that is below them.")
@setting_options(*_READING, "jobs", "upload", "allow_overwrite")
def cp(sources: tuple[str, ...], target: str, recursive: bool, **flags: str | None) -> None:
    """Copy files from a dataset to this machine, or from this machine into a dataset.

    An argument that exists on this machine is a local path, any other is DATASET/PATH;
    `lightly://DATASET/PATH` always names a dataset.
    Uploads send images and videos, unless --upload says otherwise.
    """
    local = [_is_local(source) for source in sources]
    if any(local) != all(local):
        raise StartError("the sources are partly here and partly in a dataset; copy them apart")
    if not any(local) and _is_in_dataset(target, sources):
        raise StartError(f"{target} is in a dataset, too; a path of this machine begins with ./")
    if not any(local):
        failed = _download([split_source(one) for one in sources], target, recursive, flags)
    elif _is_local(target):
        raise StartError(f"{target} is here, too; name the target lightly://DATASET/PATH")
    else:
        try:
            failed = _upload([Path(one) for one in sources], target, recursive, flags)
        except NoSuchDataset as error:
            raise StartError(
                f"{error}; {sources[0]} was found on this machine, so it would be uploaded: "
                f"for the sample of that name write lightly://{sources[0]}"
            ) from None
    if failed:
        raise StartError(f"{counted(failed, 'file')} not copied")


def _is_local(text: str) -> bool:
    return not text.startswith("lightly:") and (
        text.startswith(("/", "./", "../", "~", ".")) or os.path.lexists(text)
    )


def _is_in_dataset(target: str, sources: Sequence[str]) -> bool:
    """Whether a target that does not exist here names a dataset: by its form, or because the sources do."""
    if target.startswith("lightly:"):
        return True
    return not _is_local(target) and split_source(target)[0] in {split_source(one)[0] for one in sources}


def _need_distinct(targets: Iterable[tuple[str, object]], seen: dict[str, str]) -> None:
    """Note which source is copied to which target; StartError where two would be copied to one."""
    for source, target in targets:
        other = seen.setdefault(str(target), source)
        if other != source:
            raise StartError(f"{other} and {source} would both become {target}; copy them apart")


# down


def _download(
    groups: Sequence[tuple[str, str]], target: str, recursive: bool, flags: dict[str, str | None]
) -> int:
    failed = 0
    settings, secrets = settings_of({**flags, "upload": None, "allow_overwrite": None}, read_only="on")
    into = target.endswith("/") or Path(target).is_dir() or len(groups) > 1
    targets: dict[str, str] = {}
    for dataset, inside in groups:
        with opened(dataset, settings, secrets) as parts:
            files = parts.filesystem
            matches = _matches(files, inside)
            work: list[tuple[_Found, Path]] = []
            for match in matches:
                _need_recursive(match.path or dataset, match.attr.is_directory, recursive)
                if into or len(matches) > 1 or match.attr.is_directory:
                    _need_directory(target)
                below = os.path.basename(match.path) or dataset if into or len(matches) > 1 else ""
                work += [
                    (one, Path(target, below, os.path.relpath(one.path or ".", match.path or ".")))
                    for one in _in(files, match, recursive)
                    if not one.attr.is_directory
                ]

            _need_distinct(((f"{dataset}/{found.path}", path) for found, path in work), targets)

            def fetch(job: tuple[_Found, Path], files: Filesystem = files) -> int:
                return _fetch(files, job[0].path, job[1])

            size = sum(max(0, found.attr.size) for found, _ in work)
            failed += _copy_all(work, fetch, lambda job: job[0].path, size, settings.jobs)
    return failed


def _need_recursive(name: str, is_directory: bool, recursive: bool) -> None:
    if is_directory and not recursive:
        raise StartError(f"{name} is a directory; copy it with --recursive")


def _need_directory(target: str) -> None:
    if os.path.exists(target) and not os.path.isdir(target):
        raise StartError(f"{target} is not a directory; name a target that is one")


def _fetch(files: Filesystem, path: str, target: Path) -> int:
    if target.exists() and not target.is_file():
        # a device or a pipe would be replaced by a file
        raise StartError(f"{target} is not a regular file; write to it with `lightlyfs cat`")
    target.parent.mkdir(parents=True, exist_ok=True)
    # of fixed length, because the name of the target may be as long as names can be; the next try reuses it
    partial = target.with_name(f".{hashlib.sha256(os.fsencode(target.name)).hexdigest()[:16]}.part")
    done = 0
    try:
        with partial.open("wb") as file:
            for data in _bytes_of(files, path):
                done += file.write(data)
        mtime = files.getattr(path).mtime
        os.utime(partial, (mtime, mtime))
        partial.replace(target)
    finally:
        partial.unlink(missing_ok=True)
    return done


# up


def _upload(sources: list[Path], target: str, recursive: bool, flags: dict[str, str | None]) -> int:
    dataset, inside = split_source(target)
    settings, secrets = settings_of({**flags, "tag": None})
    with opened(dataset, settings, secrets) as parts:
        if parts.uploads is None:
            raise StartError("nothing can be uploaded, for what is written cannot be kept on this machine")
        into = target.endswith("/") or len(sources) > 1 or _is_directory(parts.filesystem, inside)
        chosen: list[tuple[Path, str]] = []
        hidden: list[OSError] = []
        for source in sources:
            if not source.exists():
                raise StartError(f"there is no {source}")
            _need_recursive(str(source), source.is_dir(), recursive)
            root = f"{inside}/{source.resolve().name}".strip("/") if into else inside
            below = _files_below(source, hidden) if source.is_dir() else [source]
            chosen += [
                (path, os.path.normpath(f"{root}/{path.relative_to(source)}")) for path in sorted(below)
            ]
        _need_distinct(((str(path), name) for path, name in chosen), {})
        work = [(path, name) for path, name in chosen if settings.upload.counts(name)]
        if left := len(chosen) - len(work):
            text = f"not copied, for only names of images are (--upload all): {counted(left, 'file')}"
            click.echo(f"lightlyfs: {text}", err=True)
        size = sum(path.stat().st_size for path, _ in work)
        failed = _copy_all(work, lambda job: _send(parts, *job), lambda job: str(job[0]), size, settings.jobs)
        if failed < len(work):
            parts.refresh()  # the next command lists what this one sent
        for error in hidden:
            click.echo(visible(f"{error.filename}: {error.strerror}"), err=True)
        return (failed if work else left) + len(hidden)


def _files_below(directory: Path, hidden: list[OSError]) -> list[Path]:
    """Return the files below a directory; errors of what this user may not read go to `hidden`."""
    found: list[Path] = []
    # unlike `rglob`, which passes over directories that cannot be read
    for above, _, names in os.walk(directory, onerror=hidden.append):
        for path in (Path(above, name) for name in names):
            try:
                if path.is_file():
                    found.append(path)
            except OSError as error:
                hidden.append(error)
    return found


def _is_directory(files: Filesystem, path: str) -> bool:
    try:
        return files.getattr(path).is_directory
    except NoSuchFile:
        return False


def _send(parts: Dataset, source: Path, name: str) -> int:
    files = parts.filesystem
    if _holds(files, name, source):
        return _Unchanged(source.stat().st_size)  # as an interrupted copy left it
    handle = files.create(name, os.O_WRONLY | os.O_TRUNC).handle
    offset = 0
    try:
        with source.open("rb") as file:
            while data := file.read(_CHUNK_BYTES):
                offset += files.write(handle, offset, data)
        files.flush(handle)
    finally:
        files.release(handle)
    return offset


def _holds(files: Filesystem, name: str, source: Path) -> bool:
    """Whether a sample has the bytes of a file already."""
    size = source.stat().st_size
    try:
        if files.getattr(name).size != size:
            return False
    except NoSuchFile:
        return False
    if not size:
        return True
    with source.open("rb") as file:
        same = all(data == file.read(len(data)) for data in _bytes_of(files, name))
        return same and file.tell() == size


# both


def _copy_all(
    jobs: Sequence[Job],
    copy: Callable[[Job], int],
    name: Callable[[Job], str],
    total: int,
    threads: int,
) -> int:
    """Copy all, in threads, with progress; return how many failed, after a line about each.

    `copy` returns the bytes of a file, as `_Unchanged` where they were there already.
    """
    started, failed, unchanged = time.monotonic(), 0, 0
    copied_bytes = passed_bytes = 0

    def tried(job: Job) -> int | str:
        try:
            return copy(job)
        except OSError as error:
            return error.strerror or str(error)
        except LightlyFsError as error:
            return str(error)

    with progress_bar(of_bytes=True) as bar, _pool(threads) as pool:
        task = bar.add_task("copying", total=total or None)
        for job, result in zip(jobs, pool.map(tried, jobs), strict=True):
            if isinstance(result, str):
                failed += 1
                click.echo(visible(f"{name(job)}: {result}"), err=True)
                continue
            if isinstance(result, _Unchanged):
                unchanged += 1
            else:
                copied_bytes += result
            passed_bytes += result
            bar.update(task, completed=passed_bytes)
    files = counted(len(jobs) - failed - unchanged, "file")
    left = f", {unchanged:,} there already" if unchanged else ""
    click.echo(f"{files} copied{left}, {size_text(copied_bytes)} in {time.monotonic() - started:,.1f} s")
    return failed


@contextmanager
def _pool(threads: int) -> Iterator[ThreadPoolExecutor]:
    """Threads; what waits is dropped at an interrupt."""
    pool = ThreadPoolExecutor(min(threads, _MAX_THREADS))
    try:
        yield pool
    except BaseException:
        pool.shutdown(wait=False, cancel_futures=True)
        raise
    pool.shutdown()


def _matches(files: Filesystem, pattern: str) -> list[_Found]:
    """What a path or a pattern stands for; a name that is there is no pattern."""
    try:
        return [_Found(pattern, files.getattr(pattern))]
    except NoSuchFile:
        if not any(sign in pattern for sign in "*?["):
            raise StartError(f"there is no {pattern} in the dataset") from None
    found = [_Found("", files.getattr(""))]
    for part in pattern.split("/"):
        found = [
            _Found(f"{above.path}/{name}".strip("/"), attr)
            for above in found
            if above.attr.is_directory
            for name, attr in files.list_directory(above.path).entries
            if fnmatchcase(name, part)
        ]
    if not found:
        raise StartError(f"nothing in the dataset matches {pattern}")
    return found


def _in(files: Filesystem, found: _Found, recursive: bool) -> Iterable[_Found]:
    """What is in a directory, or a file itself."""
    if not found.attr.is_directory:
        yield found
        return
    for name, attr in files.list_directory(found.path).entries:
        one = _Found(f"{found.path}/{name}".strip("/"), attr)
        yield one
        if recursive and attr.is_directory:
            yield from _in(files, one, recursive)


def _bytes_of(files: Filesystem, path: str) -> Iterator[bytes]:
    handle = files.open(path, os.O_RDONLY).handle
    try:
        offset = 0
        while data := files.read(handle, offset, _CHUNK_BYTES):
            yield data
            offset += len(data)
    finally:
        files.release(handle)


def _size(files: Filesystem, path: str, attr: Attr) -> int:
    return files.getattr(path).size if attr.size == UNKNOWN_SIZE else attr.size


def _values(files: Filesystem, found: _Found) -> dict[str, object]:
    path, attr = found
    kind = "directory" if attr.is_directory else "file"
    size = 0 if attr.is_directory else _size(files, path, attr)
    return {"path": path, "type": kind, "bytes": size, "mtime": attr.mtime}
