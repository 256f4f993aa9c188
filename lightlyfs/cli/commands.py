"""The commands for a mount that runs: `umount`, `status`, `refresh`."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

import click

from lightlyfs.control import ask
from lightlyfs.errors import StartError
from lightlyfs.kernel import mounts
from lightlyfs.places import socket_path

# a mount that ends waits for callbacks under way, and those end within a minute
_END_WAIT_S = 70.0
# a refresh lists the whole dataset
_REFRESH_WAIT_S = 600.0

_mountpoint = click.argument("mountpoint", type=click.Path(path_type=Path))


@click.command()
@_mountpoint
def umount(mountpoint: Path) -> None:
    """End the mount at MOUNTPOINT."""
    mountpoint = mounts.resolve_mountpoint(mountpoint)
    if mounts.is_stale(mountpoint):
        mounts.unmount(mountpoint, lazy=True)
        return
    _need_mount(mountpoint)
    answer = ask(socket_path(mountpoint), "status")
    mounts.unmount(mountpoint)
    if answer is not None and answer.get("ok"):
        _wait_for_end(int(answer["pid"]))


@click.command()
@_mountpoint
@click.option("--json", "as_json", is_flag=True, help="As JSON, for programs.")
def status(mountpoint: Path, as_json: bool) -> None:
    """Show how fresh the names are, what is cached, and what was asked of the API."""
    answer = _ask(mounts.resolve_mountpoint(mountpoint), "status")
    if as_json:
        click.echo(json.dumps(answer, indent=2))
    else:
        click.echo(_status_text(answer))


@click.command()
@_mountpoint
def refresh(mountpoint: Path) -> None:
    """Ask the API for everything now, whatever the TTL, and show the changes at once."""
    answer = _ask(mounts.resolve_mountpoint(mountpoint), "refresh", timeout_s=_REFRESH_WAIT_S)
    click.echo(f"{answer['added']:,} added, {answer['changed']:,} changed, {answer['gone']:,} gone")


def _need_mount(mountpoint: Path) -> None:
    entry = mounts.mount_at(mountpoint)
    if entry is None or entry.type != mounts.MOUNT_TYPE:
        raise StartError(
            f"no dataset is mounted on {mountpoint}; `mount -t {mounts.MOUNT_TYPE}` lists those that are"
        )


def _ask(mountpoint: Path, command: str, timeout_s: float = 10.0) -> dict[str, Any]:
    _need_mount(mountpoint)
    answer = ask(socket_path(mountpoint), command, timeout_s=timeout_s)
    if answer is None:
        raise StartError(
            f"the mount on {mountpoint} does not answer; if its process is gone, clear it with: "
            f"lightlyfs umount {mountpoint}"
        )
    if not answer.pop("ok"):
        raise StartError(str(answer["error"]))
    return answer


def _wait_for_end(pid: int) -> None:
    end = time.monotonic() + _END_WAIT_S
    while time.monotonic() < end:
        try:
            os.kill(pid, 0)
        except OSError:
            return
        time.sleep(0.02)
    raise StartError(f"unmounted, but process {pid} has not ended yet; its log says what it waits for")


def _status_text(answer: dict[str, Any]) -> str:
    names, cache, content = answer["catalogue"], answer["cache"], answer["content"]
    samples, directories, unverified = names["samples"], names["directories"], names["unverified"]
    requests = ", ".join(f"{name} {count:,}" for name, count in answer["requests"].items())
    rows = {
        "dataset": f"{answer['dataset']['name']} ({answer['dataset']['id']}) at {answer['server']}",
        "names": f"{samples:,} samples in {directories:,} directories, {_freshness(names)}",
        "sizes": f"{_size(names['bytes'])} in all; {unverified:,} files not yet confirmed by storage",
        "cache": f"{_size(cache['bytes'])} of {_size(cache['budget_bytes'])} in {cache['directory']}",
        "reads": f"{cache['hits']:,} from the cache, {_size(content['fetched_bytes'])} fetched, "
        f"{content['under_way']} under way, {content['failures']} failed",
        "open": f"{answer['open_files']} files",
        "requests": requests or "none",
        "uploads": f"{answer['uploads']['pending']} pending",
    }
    return "\n".join(f"{name:<10} {text}" for name, text in rows.items())


def _size(count: float) -> str:
    for unit in ("bytes", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:,.1f} {unit}" if unit != "bytes" else f"{count:,.0f} bytes"
        count /= 1000
    return f"{count:,.1f} TB"


def _freshness(names: dict[str, Any]) -> str:
    if not names["complete"]:
        return f"being listed: {names['listed']:,} of {names['expected']:,}"
    age = f"checked {names['age_s']:,.0f} s ago" if names["age_s"] is not None else "never checked"
    if names["stopped"]:
        return f"{age}; no longer refreshed: {names['error']}"
    return f"{age}; the last check failed: {names['error']}" if names["error"] else age
