"""`lightlyfs uploads`: what is on this machine only, with or without a mount."""

from __future__ import annotations

import json
import shutil
import sys
import time
from pathlib import Path
from typing import Any

import click

from lightlyfs.api.redaction import visible
from lightlyfs.app import OwedFile, discard_owed, owed_files
from lightlyfs.cli.cache import by_mount
from lightlyfs.cli.options import CommandGroup, cache_dir_of, given_path
from lightlyfs.cli.output import size_text
from lightlyfs.control import ask, session
from lightlyfs.errors import StartError, counted
from lightlyfs.fs.views import describe
from lightlyfs.places import sockets

# an upload may take as long as a file is large
_SEND_WAIT_S = 3600.0
_LOOK_WAIT_S = 2.0

_cache_dir = click.option(
    "--cache-dir",
    type=click.Path(path_type=Path),
    help="Only what a mount with this --cache-dir left [all that were used on this machine].",
)
_profile = click.option("--profile", help="Only what a mount with the cache_dir of this profile left.")
_dataset = click.option("--dataset", help="Only files of this dataset, by its id.")


@click.group(cls=CommandGroup)
def uploads() -> None:
    """Show, retry, send, export or discard files that the server does not have."""


@uploads.command("list")
@_cache_dir
@_profile
@_dataset
@click.option("--json", "as_json", is_flag=True, help="As JSON, for programs.")
def list_uploads(cache_dir: Path | None, profile: str | None, dataset: str | None, as_json: bool) -> None:
    """List the files on this machine only: path, state and why, bytes, age, dataset, server.

    The age is the time since a file was last changed or renamed here.
    """
    unreadable: list[StartError] = []
    found = _found(cache_dir, profile, dataset, unreadable)
    if as_json:
        click.echo(json.dumps([_values(owed) for owed in found], indent=2))
    else:
        for owed in found:
            values = _values(owed)
            shown = [values["path"], values["shown"], values["size"], _age(values["age_s"])]
            click.echo("\t".join(visible(str(value)) for value in [*shown, owed.dataset_id, owed.server]))
    if unreadable:
        raise StartError("\n".join(map(str, unreadable)))


@uploads.command()
@_cache_dir
@_profile
def retry(cache_dir: Path | None, profile: str | None) -> None:
    """Retry everything that is pending or failed now, in the running mounts."""
    answers = [ask(path, "retry") for path in sockets()]
    retried = sum(int(answer["retried"]) for answer in answers if answer and answer.get("ok"))
    waiting = [owed for owed in _found(cache_dir, profile, None) if not owed.in_use and owed.record.owed]
    click.echo(f"{counted(retried, 'file is', 'files are')} tried again")
    if waiting:
        click.echo(f"{counted(len(waiting), 'file waits', 'files wait')} for their dataset to be mounted")


@uploads.command()
@click.argument("paths", nargs=-1, required=True, type=given_path)
def send(paths: tuple[Path, ...]) -> None:
    """Upload PATHS, local files of a mount, whatever their names are; they become samples for good."""
    sent, failed = 0, 0
    for mountpoint, names in by_mount(map(str, paths), ordered=False):
        for name, reason in _send(mountpoint, names).items():
            failed += 1
            click.echo(visible(f"{mountpoint / name}: {reason}"), err=True)
        sent += len(names)
    click.echo(f"{counted(sent - failed, 'file')} sent")
    if failed:
        raise StartError(f"{counted(failed, 'file')} not sent, and still here")


def _send(mountpoint: Path, names: list[str]) -> dict[str, str]:
    messages = session(mountpoint, {"command": "send"}, names, timeout_s=_SEND_WAIT_S)
    refused: dict[str, str] = next(messages)["refused"]
    messages.close()
    return refused


@uploads.command()
@click.argument("directory", type=click.Path(path_type=Path))
@_cache_dir
@_profile
@_dataset
def export(directory: Path, cache_dir: Path | None, profile: str | None, dataset: str | None) -> None:
    """Copy the files to DIRECTORY, by dataset and name; they stay what they are."""
    copied = 0
    for owed in _found(cache_dir, profile, dataset):
        if owed.staged.exists():
            target = directory / owed.dataset_id / owed.record.path
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(owed.staged, target)
            copied += 1
    click.echo(f"{counted(copied, 'file')} copied to {directory}")


@uploads.command()
@click.argument("names", nargs=-1)
@click.option("--all", "everything", is_flag=True, help="Discard every one of --dataset.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@_cache_dir
@_profile
@_dataset
def discard(
    names: tuple[str, ...],
    everything: bool,
    yes: bool,
    cache_dir: Path | None,
    profile: str | None,
    dataset: str | None,
) -> None:
    """Delete files (by NAME as `list` shows them) that are not on the server; they are lost."""
    if not names and not everything:
        raise click.UsageError("name the files to discard, or use --all with --dataset")
    if everything and dataset is None:
        raise click.UsageError("--all needs --dataset, with an id that `lightlyfs uploads list` shows")
    chosen = [owed for owed in _found(cache_dir, profile, dataset) if everything or owed.record.path in names]
    _need_unique(chosen, names, everything)
    in_use = [owed for owed in chosen if owed.in_use]
    if in_use:
        raise StartError(f"{in_use[0].record.path} belongs to a mount that runs; unmount it first")
    for owed in chosen:
        values = _values(owed)
        shown = f"{values['path']}: {values['shown']}, {size_text(values['size'])}"
        click.echo(visible(f"{shown}, dataset {owed.dataset_id}"))
    if not yes:
        if not sys.stdin.isatty():
            raise StartError("nothing was discarded; without a terminal to ask on, --yes is needed")
        click.confirm(f"Delete {counted(len(chosen), 'file')} for good?", abort=True)
    for owed in chosen:
        discard_owed(owed)
    click.echo(f"{counted(len(chosen), 'file')} discarded")


def _need_unique(chosen: list[OwedFile], names: tuple[str, ...], everything: bool) -> None:
    unknown = set(names) - {owed.record.path for owed in chosen}
    if unknown:
        raise StartError(f"there is no local file of this name: {sorted(unknown)[0]}")
    if everything:
        return
    for name in names:
        datasets = sorted({owed.dataset_id for owed in chosen if owed.record.path == name})
        if len(datasets) > 1:
            raise StartError(f"{name} is in several datasets; choose one with --dataset {datasets[0]}")


def _found(
    cache_dir: Path | None,
    profile: str | None,
    dataset: str | None,
    unreadable: list[StartError] | None = None,
) -> list[OwedFile]:
    """The files that mounts left: of all mounts, unless a directory or a profile is named."""
    chosen = cache_dir_of(cache_dir, profile) if cache_dir or profile else None
    for socket in sockets():
        # a mount whose state directory a cleaner emptied writes down what it lost
        ask(socket, "status", timeout_s=_LOOK_WAIT_S)
    found = owed_files(chosen, unreadable)
    return [owed for owed in found if dataset in (None, owed.dataset_id)]


def _values(owed: OwedFile) -> dict[str, Any]:
    record = owed.record
    size = owed.staged.stat().st_size if owed.staged.exists() else record.size
    return {
        "path": record.path,
        "state": "leftover" if owed.leftover else record.state.value,
        "shown": f"leftover: a sample that cannot be deleted, hidden as {owed.leftover}"
        if owed.leftover
        else describe(record),
        "error": record.error,
        "size": size,
        # a copy may have the time of its original; this is when it got its content and name here
        "age_s": max(0, int(time.time() - record.ctime_ns / 1e9)) if record.ctime_ns else None,
        "owed": record.owed,
        "dataset": owed.dataset_id,
        "server": owed.server,
        "in_use": owed.in_use,
    }


def _age(seconds: int | None) -> str:
    if seconds is None:
        return "-"
    for unit, length in (("d", 86_400), ("h", 3_600), ("min", 60)):
        if seconds >= length:
            return f"{seconds // length} {unit}"
    return f"{seconds} s"
