"""`lightlyfs mounts` and `lightlyfs log`: the mounts of this user, and what one of them wrote down."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

import click

from lightlyfs.api.redaction import visible
from lightlyfs.cli.commands import mount_of, need_answer
from lightlyfs.cli.completing import mounts as offered
from lightlyfs.control import NoAnswer, process_state, request
from lightlyfs.kernel import mountpoints
from lightlyfs.mountinfo import MountEntry, our_mounts
from lightlyfs.places import socket_of

_ANSWER_S = 3.5


@click.command()
@click.option("--json", "as_json", is_flag=True, help="As JSON, for programs.")
def mounts(as_json: bool) -> None:
    """List the mounts of this user: directory, dataset, since when, process, state, files owed."""
    rows = [_row(entry) for path, entry in sorted(our_mounts().items()) if entry.owner == os.getuid()]
    if as_json:
        click.echo(json.dumps(rows, indent=2))
        return
    for row in rows:
        since = "-" if row["since"] is None else time.strftime("%Y-%m-%d %H:%M", time.localtime(row["since"]))
        shown = [row["mountpoint"], row["dataset"], since, row["pid"], row["state"], f"{row['owed']} owed"]
        click.echo(visible("  ".join("-" if one is None else str(one) for one in shown)))


@click.command()
@click.argument("path", type=Path, shell_complete=offered)
@click.option("-n", "--lines", type=click.IntRange(1), default=50, help="How many lines [50].")
def log(path: Path, lines: int) -> None:
    """Show the last lines that the mount at or above PATH logged."""
    mountpoint = mount_of(path)
    need_answer(mountpoint)
    text = (mountpoint / ".lightlyfs" / "log").read_text(encoding="utf-8", errors="replace")
    for line in text.splitlines()[-lines:]:
        click.echo(visible(line))


def _row(entry: MountEntry) -> dict[str, Any]:
    row: dict[str, Any] = {
        "mountpoint": str(entry.mountpoint),
        "dataset": entry.source.removeprefix("lightly:"),
        "since": None,
        "pid": None,
        "state": "",
        "owed": 0,
    }
    try:
        answer = request(socket_of(entry.mountpoint), "status", timeout_s=_ANSWER_S)
    except NoAnswer as error:
        state = "stopped" if process_state(error.pid) == "T" else "hangs"
        return {**row, "pid": error.pid, "since": _started(error.pid), "state": state}
    if answer is None or not answer.get("ok"):
        dead = mountpoints.probe(entry.mountpoint) is mountpoints.Health.DEAD
        return {**row, "state": "dead" if dead else "does not answer"}
    uploads = answer["uploads"]
    owed = uploads["pending"] + uploads["failed"] + uploads["under_way"]
    state = "read-only" if answer["read_only"] else "read-write"
    return {**row, "pid": answer["pid"], "since": _started(answer["pid"]), "state": state, "owed": owed}


def _started(pid: int) -> int | None:
    """When a process began, in seconds of the clock."""
    try:
        ticks = int(Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()[19])
    except (OSError, ValueError, IndexError):
        return None
    return int(time.time() - time.clock_gettime(time.CLOCK_BOOTTIME) + ticks / os.sysconf("SC_CLK_TCK"))
