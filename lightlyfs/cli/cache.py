"""`lightlyfs cache`: what is kept on this machine, by dataset, folder or tag, and what happens to it."""

from __future__ import annotations

import json
from pathlib import Path

import click

from lightlyfs.api.redaction import visible
from lightlyfs.app.kept import clear_unused, kept_datasets
from lightlyfs.cli.completing import mounts
from lightlyfs.cli.options import CommandGroup, cache_dir_of
from lightlyfs.cli.output import size_text
from lightlyfs.cli.warm import fetch, of_cache
from lightlyfs.errors import StartError
from lightlyfs.wording import counted

# what was on its way out when it was pinned is fetched once more
_PIN_ROUNDS = 5
_paths = click.argument("paths", nargs=-1, type=Path, shell_complete=mounts)
_some_paths = click.argument("paths", nargs=-1, required=True, type=Path, shell_complete=mounts)
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
