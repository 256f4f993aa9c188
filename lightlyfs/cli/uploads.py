"""`lightlyfs uploads`: what this machine owes to a server, with or without a mount."""

from __future__ import annotations

import shutil
from pathlib import Path

import click

from lightlyfs.control import ask
from lightlyfs.errors import StartError
from lightlyfs.fs.xattrs import describe
from lightlyfs.places import runtime_roots
from lightlyfs.wiring import OwedFile, discard_owed, owed_files

_cache_dir = click.option(
    "--cache-dir", type=click.Path(path_type=Path), help="The directory that the mount was given."
)


@click.group()
def uploads() -> None:
    """Show, retry, export or discard files that the server does not have yet."""


@uploads.command("list")
@_cache_dir
def list_uploads(cache_dir: Path | None) -> None:
    """List the files on this machine only: name, state and why, size in bytes."""
    for owed in owed_files(_absolute(cache_dir)):
        click.echo(f"{owed.record.path}\t{describe(owed.record)}\t{_size_of(owed)}")


@uploads.command()
@_cache_dir
def retry(cache_dir: Path | None) -> None:
    """Try everything that is pending or failed again now, in the mounts that run."""
    answers = [ask(path, "retry") for root in runtime_roots() for path in root.glob("*.sock")]
    retried = sum(int(answer["retried"]) for answer in answers if answer and answer.get("ok"))
    waiting = [owed for owed in owed_files(_absolute(cache_dir)) if not owed.in_use and owed.record.owed]
    click.echo(f"{retried} files are tried again")
    if waiting:
        click.echo(f"{len(waiting)} files wait for their dataset to be mounted")


@uploads.command()
@click.argument("directory", type=click.Path(path_type=Path))
@_cache_dir
def export(directory: Path, cache_dir: Path | None) -> None:
    """Copy the files to DIRECTORY, by dataset and name; they stay owed."""
    found = owed_files(_absolute(cache_dir))
    for owed in found:
        target = directory / owed.dataset_id / owed.record.path
        target.parent.mkdir(parents=True, exist_ok=True)
        if owed.staged.exists():
            shutil.copyfile(owed.staged, target)
    click.echo(f"{len(found)} files copied to {directory}")


@uploads.command()
@click.argument("names", nargs=-1)
@click.option("--all", "everything", is_flag=True, help="Discard every one.")
@_cache_dir
def discard(names: tuple[str, ...], everything: bool, cache_dir: Path | None) -> None:
    """Delete files (by NAME as `list` shows them) that the server will then never get."""
    if not names and not everything:
        raise click.UsageError("name the files to discard, or use --all")
    chosen = [owed for owed in owed_files(_absolute(cache_dir)) if everything or owed.record.path in names]
    in_use = [owed for owed in chosen if owed.in_use]
    if in_use:
        raise StartError(f"{in_use[0].record.path} belongs to a mount that runs; unmount it first")
    unknown = set(names) - {owed.record.path for owed in chosen}
    if unknown:
        raise StartError(f"no file of this name is owed: {sorted(unknown)[0]}")
    for owed in chosen:
        discard_owed(owed)
    click.echo(f"{len(chosen)} files discarded")


def _absolute(cache_dir: Path | None) -> Path | None:
    return None if cache_dir is None else cache_dir.absolute()


def _size_of(owed: OwedFile) -> int:
    return owed.staged.stat().st_size if owed.staged.exists() else owed.record.size
