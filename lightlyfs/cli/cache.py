"""`lightlyfs cache` and `lightlyfs warm`: what is kept on this machine, by dataset, folder or tag.

Each path is in a running mount, which does the work and reports its progress.
"""

from __future__ import annotations

import codecs
import json
import os
import sys
import time
from collections.abc import Iterable, Iterator
from functools import lru_cache
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import Any, BinaryIO

import click

from lightlyfs.api.redaction import visible
from lightlyfs.app.kept import clear_unused, kept_datasets
from lightlyfs.cli.commands import need_answer
from lightlyfs.cli.options import CommandGroup, cache_dir_of, complete_mount, given_path
from lightlyfs.cli.output import progress_bar, size_text
from lightlyfs.control import session
from lightlyfs.errors import StartError, counted
from lightlyfs.mountpoints import without_links
from lightlyfs.places import mount_above

# a file that was being evicted when it was pinned is fetched once more
_PIN_ROUNDS = 5
_paths = click.argument("paths", nargs=-1, type=given_path, shell_complete=complete_mount)
_some_paths = click.argument("paths", nargs=-1, required=True, type=given_path, shell_complete=complete_mount)
_tag = click.option("--tag", help="Only the samples of this tag.")
_cache_dir = click.option(
    "--cache-dir", type=click.Path(path_type=Path), help="The --cache-dir of the mounts [the user's]."
)
_profile = click.option("--profile", help="The profile of the mounts, whose cache_dir counts.")


@click.group(cls=CommandGroup)
def cache() -> None:
    """Show, check, empty or pin what is kept on this machine."""


@cache.command()
@_paths
@_tag
@_cache_dir
@_profile
@click.option("--json", "as_json", is_flag=True, help="As JSON, for programs.")
def show(
    paths: tuple[Path, ...], tag: str | None, cache_dir: Path | None, profile: str | None, as_json: bool
) -> None:
    """Show what is cached of PATHS in mounts; without any, of each dataset on this machine."""
    rows = [row for path in paths for row in of_cache("check", [str(path)], tag)]
    if not paths:
        found = kept_datasets(cache_dir_of(cache_dir, profile))
        rows = [
            {"directory": str(kept.directory), "files": kept.files, "bytes": kept.bytes} for kept in found
        ]
    if as_json:
        click.echo(json.dumps(rows, indent=2))
        return
    for row in rows:
        if paths:
            files = f"{row['cached_files']:,} of {counted(row['files'], 'file')}"
            text = f"{row['path']}: {files}, {size_text(row['cached_bytes'])}, {row['pinned_files']:,} pinned"
        else:
            text = f"{row['directory']}: {counted(row['files'], 'file')}, {size_text(row['bytes'])}"
        click.echo(visible(text))


@cache.command()
@_paths
@_tag
@_cache_dir
@_profile
@click.option("--all", "everything", is_flag=True, help="All that no mount and no program uses.")
def clear(
    paths: tuple[Path, ...], tag: str | None, cache_dir: Path | None, profile: str | None, everything: bool
) -> None:
    """Delete what is cached of PATHS in mounts, or of every dataset that is not in use; pinned files, too."""
    if everything == bool(paths):
        raise click.UsageError("name paths in mounts, or use --all")
    if not everything:
        for row in of_cache("evict", map(str, paths), tag):
            click.echo(visible(f"{row['path']}: {counted(row['done_files'], 'file')} deleted from the cache"))
        return
    for kept in kept_datasets(cache_dir_of(cache_dir, profile)):
        if clear_unused(kept):
            click.echo(visible(f"{kept.directory}: {size_text(kept.bytes)} deleted"))
        else:
            click.echo(visible(f"lightlyfs: in use, and kept: {kept.directory}"), err=True)


@cache.command()
@_some_paths
@_tag
def verify(paths: tuple[Path, ...], tag: str | None) -> None:
    """Compare all that is cached of PATHS with its checksums; what is damaged is deleted."""
    damaged = 0
    for row in of_cache("verify", map(str, paths), tag):
        damaged += row["cached_files"] - row["done_files"]
        click.echo(visible(f"{row['path']}: {counted(row['done_files'], 'file')} as fetched"))
    if damaged:
        raise StartError(f"{counted(damaged, 'damaged file')} deleted from the cache")


@cache.command()
@_some_paths
@_tag
def pin(paths: tuple[Path, ...], tag: str | None) -> None:
    """Fetch PATHS, and keep them in the cache until they are unpinned."""
    names = [str(path) for path in paths]
    for _ in range(_PIN_ROUNDS):
        fetch(names, None, tag, pin=True)
        rows = of_cache("check", names, tag)
        if all(row["pinned_files"] == row["files"] for row in rows):
            break
    for row in rows:
        click.echo(visible(f"{row['path']}: {counted(row['pinned_files'], 'file')} pinned"))
    if left := sum(row["files"] - row["pinned_files"] for row in rows):
        raise StartError(
            f"{counted(left, 'file is', 'files are')} displaced again and again; see --cache-size"
        )


@cache.command()
@_some_paths
@_tag
def unpin(paths: tuple[Path, ...], tag: str | None) -> None:
    """Let PATHS leave the cache again where it needs the room."""
    for row in of_cache("unpin", map(str, paths), tag):
        click.echo(visible(f"{row['path']}: {counted(row['done_files'], 'file')} unpinned"))


_LINE_EVERY_S = 5.0
_SHOWN_FAILURES = 1_000


@click.command()
@click.argument("paths", nargs=-1, type=given_path)
@click.option("--jobs", type=click.IntRange(min=1), help="Downloads at once [three quarters of the mount's].")
@click.option(
    "--files",
    "--from",
    "files",
    type=click.File("rb"),
    help="Names of files, one a line, in the order to fetch; - is stdin.",
)
@click.option("--tag", help="Fetch only the samples of this tag.")
@click.option("--check", is_flag=True, help="Fetch nothing; exit 1 where something is missing.")
@click.option("--evict", is_flag=True, help="Delete them from the cache instead.")
def warm(
    paths: tuple[Path, ...],
    jobs: int | None,
    files: BinaryIO | None,
    tag: str | None,
    check: bool,
    evict: bool,
) -> None:
    """Fetch PATHS, files or directories of a mount, into its cache.

    What is cached already is skipped, so that it may be interrupted and run again.
    """
    if not paths and files is None:
        raise click.UsageError("name files or directories of a mount, or a list of them with --files")
    if check and evict:
        raise click.UsageError("--check contradicts --evict; leave one of them out")
    listed = [] if files is None else listed_names(files.read())
    names = [*listed, *map(str, paths)]
    if check:
        rows = of_cache("check", names, tag)
        missing = sum(row["files"] - row["cached_files"] for row in rows)
        click.echo(
            f"{counted(sum(row['files'] for row in rows), 'file')}, {missing:,} of them not in the cache"
        )
        raise SystemExit(1 if missing else 0)
    if evict:
        done = sum(row["done_files"] for row in of_cache("evict", names, tag))
        click.echo(f"{counted(done, 'file')} deleted from the cache")
        return
    fetch(names, jobs, tag)


def fetch(names: Iterable[str], jobs: int | None, tag: str | None, *, pin: bool = False) -> None:
    """Fetch files and directories of mounts into the caches of these, to stay there with `pin`.

    StartError where some are not there.
    """
    failed = sum(_Run(mountpoint).warm(within, jobs, tag, pin=pin) for mountpoint, within in by_mount(names))
    if failed:
        raise StartError(f"{counted(failed, 'file is', 'files are')} not in the cache")


def of_cache(do: str, names: Iterable[str], tag: str | None) -> list[dict[str, Any]]:
    """Run a cache command in the mounts of these paths; return the counts of each mount."""
    rows = []
    for mountpoint, within in by_mount(names):
        need_answer(mountpoint)
        answers = session(mountpoint, {"command": "cache", "do": do, "tag": tag}, within)
        row = next(answer for answer in answers if "files" in answer)
        answers.close()
        rows.append({"path": str(mountpoint / within[0] if len(within) == 1 else mountpoint), **row})
    return rows


def listed_names(data: bytes) -> list[str]:
    """Return the names in a list from any system: with BOM, UTF-16, CRLF or backslashes in paths.

    Raises StartError for truncated UTF-16.
    """
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        try:
            data = data.decode("utf-16", "surrogatepass").encode("utf-8", "surrogatepass")
        except UnicodeError as error:
            raise StartError(f"the list of names cannot be read: {error}") from error
    lines = data.removeprefix(codecs.BOM_UTF8).split(b"\n")
    return [_spelled_here(os.fsdecode(line.rstrip(b"\r"))) for line in lines if line.strip()]


def _spelled_here(name: str) -> str:
    """A name whose backslashes are slashes, unless there is a file that has them in its name."""
    return name if "\\" not in name or os.path.lexists(name) else name.replace("\\", "/")


def by_mount(names: Iterable[str], *, ordered: bool = True) -> Iterator[tuple[Path, list[str]]]:
    """Yield each mountpoint with the paths within it, once all were looked up; StartError for one in none.

    A mountpoint comes again where the order of the paths says so, unless they need not be `ordered`.
    """
    found = [_within_mount(name) for name in names]
    for mountpoint, pairs in groupby(found if ordered else sorted(found), key=itemgetter(0)):
        yield mountpoint, [name for _, name in pairs]


def _within_mount(name: str) -> tuple[Path, str]:
    """The mount that a path is in, and its path within it; texts, for a list may have a million."""
    directory, base = os.path.split(os.path.abspath(name))
    path = os.path.join(_real(directory), base)
    mountpoint = _mount_of(_real(directory)) or _mount_of(path)
    if mountpoint is None:
        raise StartError(f"{path} is not in a dataset that you have mounted")
    return mountpoint, path[len(str(mountpoint)) + 1 :]


@lru_cache(maxsize=10_000)
def _real(directory: str) -> str:
    # links within a mount are the mount's to follow: one that hangs is not to be asked from here
    return str(without_links(Path(directory), last=True))


@lru_cache(maxsize=10_000)
def _mount_of(directory: str) -> Path | None:
    return mount_above(Path(directory))


class _Run:
    """The files of one mount on their way into its cache."""

    def __init__(self, mountpoint: Path) -> None:
        self._mountpoint = mountpoint
        self._failed = 0
        self._started = time.monotonic()
        self._next_line = self._started + _LINE_EVERY_S

    def warm(self, names: Iterable[str], jobs: int | None, tag: str | None, *, pin: bool) -> int:
        """Fetch them; how many failed."""
        need_answer(self._mountpoint)
        request = {"command": "warm", "jobs": jobs, "tag": tag, "pin": pin}
        messages = session(self._mountpoint, request, names)
        try:
            plan = next(messages)["plan"]
            self._tell_plan(plan)
            with progress_bar(of_bytes=True) as bar:
                task = bar.add_task("warming", total=plan["bytes"] or None)
                while "done" not in (message := next(messages)):
                    self._list_failures(message.get("failed", ()))
                    if "progress" in message:
                        progress = message["progress"]
                        bar.update(task, completed=progress["bytes"])
                        self._tell_progress(progress, plan)
        except KeyboardInterrupt:
            click.echo("lightlyfs: stopped; what was fetched stays, and is skipped the next time", err=True)
            raise
        finally:
            messages.close()
        self._tell_end(progress)
        return self._failed

    def _tell_plan(self, plan: dict[str, int]) -> None:
        cached = f"{plan['cached_files']:,} ({size_text(plan['cached_bytes'])}) of them in the cache already"
        click.echo(f"{counted(plan['files'], 'file')}, {size_text(plan['bytes'])}; {cached}")
        if plan["bytes"] > plan["budget_bytes"]:
            budget = size_text(plan["budget_bytes"])
            said = f"lightlyfs: the cache holds {budget}, less than all of them"
            click.echo(f"{said}: see --cache-size and --cache-min-free", err=True)

    def _tell_progress(self, progress: dict[str, int], plan: dict[str, int]) -> None:
        now = time.monotonic()
        if sys.stderr.isatty() or now < self._next_line:
            return
        self._next_line = now + _LINE_EVERY_S
        rate = progress["fetched_bytes"] / (now - self._started)
        left = f", {(plan['bytes'] - progress['bytes']) / rate:,.0f} s left" if rate else ""
        done = f"{progress['files']:,} of {counted(plan['files'], 'file')}, {size_text(progress['bytes'])}"
        click.echo(f"lightlyfs: {done}, {size_text(rate)}/s{left}", err=True)

    def _list_failures(self, failures: Iterable[tuple[str, str]]) -> None:
        for path, reason in failures:
            self._failed += 1
            if self._failed <= _SHOWN_FAILURES:
                click.echo(visible(f"{self._mountpoint / path}: {reason}"), err=True)

    def _tell_end(self, progress: dict[str, int]) -> None:
        seconds = time.monotonic() - self._started
        fetched = f"{progress['fetched_files']:,} fetched ({size_text(progress['fetched_bytes'])})"
        files = counted(progress["files"], "file is", "files are")
        click.echo(f"{files} in the cache; {fetched} in {seconds:,.1f} s")
