"""The commands for mounts that run: `umount`, `status`, `refresh`, `mounts`, `log`."""

from __future__ import annotations

import json
import os
import pwd
import shlex
import time
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import click

from lightlyfs import mountpoints
from lightlyfs.api.redaction import visible
from lightlyfs.cli.options import complete_mount, given_path
from lightlyfs.cli.output import progress_bar, size_text
from lightlyfs.control import NoAnswer, process_state, request, session
from lightlyfs.errors import StartError, counted
from lightlyfs.mountpoints import MountEntry, mount_at, other_places, our_mounts
from lightlyfs.places import mount_above, socket_of

# a mount that ends waits for callbacks under way, and those end within a minute
_END_WAIT_S = 70.0
# a command that waits longer than this says for what
_SILENT_S = 3.0
# a mount that does not answer a question by then is stopped or stuck
_ANSWER_S = 3.5
# a refresh lists the whole dataset
_REFRESH_WAIT_S = 600.0
# an umount waits for uploads this long while none of them moves
_DRAIN_STALLED_S = 10.0
_SHOWN_FILES = 10
_WATCH_S = 1.0
_NAMED_FILES = 3
_NAME_COLUMNS = 11

# not `click.Path`, which asks a mount for its root, and one that hangs never answers
_mountpoint = click.argument("mountpoint", type=given_path, shell_complete=complete_mount)


def mount_of(path: Path) -> Path:
    """The mountpoint of the mount that a path is in, or the path itself where it is in none."""
    path = mountpoints.without_links(path)
    return mount_above(path) or path


@click.command()
@click.argument(
    "directories", nargs=-1, type=given_path, metavar="MOUNTPOINT...", shell_complete=complete_mount
)
@click.option("--all", "everything", is_flag=True, help="All mounts of this user.")
@click.option(
    "--lazy",
    is_flag=True,
    help="Detach it now, also where it does not answer or programs use it.",
)
def umount(directories: tuple[Path, ...], everything: bool, lazy: bool) -> None:
    """End the mounts at MOUNTPOINT...; fails while anything is owed to the server."""
    if everything == bool(directories):
        raise click.UsageError("name the mounts to end, or all of them with --all")
    if everything:
        directories = tuple(path for path, one in our_mounts().items() if one.owner == os.getuid())
    errors = []
    for directory in directories:
        try:
            _umount(mountpoints.without_links(directory), lazy)
        except StartError as error:
            errors.append(str(error))
    for told in errors[:-1]:
        click.echo(f"lightlyfs: {visible(told)}", err=True)
    if errors:
        raise StartError(errors[-1])


def _umount(mountpoint: Path, lazy: bool) -> None:
    try:
        answer = _request(mountpoint, "status", _ANSWER_S)
    except NoAnswer as error:
        if not lazy:
            raise StartError(_unanswered(mountpoint, error.pid)) from None
        mountpoints.unmount(mountpoint, lazy=True)
        click.echo(
            f"lightlyfs: process {error.pid} does not answer and is still there; what it owes to the server "
            f"shows: lightlyfs uploads list",
            err=True,
        )
        return
    if answer is None or not answer.get("ok"):
        _unmount_unasked(mountpoint, lazy=lazy)
        return
    if answer["uploads"]["under_way"]:
        _drain(mountpoint, answer["uploads"]["under_way"])
        answer = _request(mountpoint, "status", _ANSWER_S) or answer
    mounted = mount_at(mountpoint)
    mountpoints.unmount(mountpoint, lazy=lazy)
    device = "" if mounted is None else mounted.device
    if lazy:
        for place in other_places(device):
            click.echo(f"lightlyfs: the same mount is still at {visible(place)}", err=True)
    else:
        _wait_for_end(int(answer["pid"]), device)
        _note_owed(answer["uploads"])
    _tell_left(answer["uploads"], answer["cache_dir"])


def _unmount_unasked(mountpoint: Path, *, lazy: bool) -> None:
    """End a mount that cannot be asked what it owes: its process is gone, or its socket is."""
    from lightlyfs.app import owed_files

    _need_mount(mountpoint, to_end=True)
    before = {owed.spool for owed in owed_files(None) if owed.in_use}
    dead = mountpoints.probe(mountpoint) is mountpoints.Health.DEAD
    mountpoints.unmount(mountpoint, lazy=lazy or dead)
    if dead:
        click.echo(f"lightlyfs: the process of the mount on {mountpoint} was gone; cleared", err=True)
    left = [
        owed for owed in owed_files(None) if owed.record.owed and (owed.spool in before or not owed.in_use)
    ]
    if left:
        click.echo(
            f"lightlyfs: {counted(len(left), 'file')} on this machine not on the server yet; the next mount "
            "of their dataset uploads what is pending. To see them: lightlyfs uploads list",
            err=True,
        )


@click.command()
@_mountpoint
@click.option("--json", "as_json", is_flag=True, help="As JSON, for programs.")
@click.option("--problems", is_flag=True, help="Odd records, and images that cannot be read, one a line.")
@click.option("--watch", is_flag=True, help="Again each second, until Ctrl-C.")
def status(mountpoint: Path, as_json: bool, problems: bool, watch: bool) -> None:
    """Show how fresh the names are, what is cached, and what was asked of the API.

    MOUNTPOINT may be any path in the mount.
    """
    if watch and (as_json or problems):
        raise click.UsageError("--watch contradicts --json and --problems; leave one of them out")
    mountpoint = mount_of(mountpoint)
    answer = _ask(mountpoint, "status")
    while watch:
        click.clear()
        click.echo(_status_text(answer))
        time.sleep(_WATCH_S)
        answer = _ask(mountpoint, "status")
    if as_json:
        click.echo(json.dumps(answer, indent=2))
    elif problems:
        for problem in answer["problems"]:
            click.echo(visible(f"{problem['name']}: {problem['reason']}"))
    else:
        click.echo(_status_text(answer))


@click.command()
@_mountpoint
def refresh(mountpoint: Path) -> None:
    """Ask the API for everything now, whatever the TTL, and show the changes at once."""
    mountpoint = mount_of(mountpoint)
    _ask(mountpoint, "status")  # fails soon if the mount hangs; a listing may take much longer
    answer = _ask(mountpoint, "refresh", timeout_s=_REFRESH_WAIT_S)
    click.echo(f"{answer['added']:,} added, {answer['changed']:,} changed, {answer['gone']:,} gone")


def _drain(mountpoint: Path, expected: int) -> None:
    """Wait for the uploads under way, as long as they move; not for those that begin meanwhile."""
    # a mount that closes the connection is ending; the caller waits for the end, and reports a failure
    with progress_bar() as shown, suppress(StartError):
        task = shown.add_task("uploading", total=expected)
        moved, since = -1, time.monotonic()
        answers = session(mountpoint, {"command": "drain"}, (), timeout_s=_DRAIN_STALLED_S)
        with closing(answers):
            for answer in answers:
                left, now = int(answer["under_way"]), int(answer["moved"])
                if now != moved:
                    moved, since = now, time.monotonic()
                    shown.update(task, completed=max(0, expected - left))
                if not left or time.monotonic() - since >= _DRAIN_STALLED_S:
                    return


def _note_owed(uploads: dict[str, Any]) -> None:
    """Read what is owed from the journal: the mount went on uploading after it answered, and has ended."""
    staged_in, known = uploads["staged_in"], [file for file in uploads["files"] if file["owed"]]
    if staged_in is None or not (known or _has_files(Path(staged_in, "files"))):
        return
    from lightlyfs.app import owed_at_the_end  # most ends of a mount owe nothing

    uploads["files"] = owed_at_the_end(Path(staged_in)) + [
        file for file in uploads["files"] if not file["owed"]
    ]


def _has_files(directory: Path) -> bool:
    try:
        return bool(os.listdir(directory))
    except OSError:
        return False


def _tell_left(uploads: dict[str, Any], cache_dir: str | None) -> None:
    """Report what is on this machine only; StartError while some of it is owed."""
    owed = [file for file in uploads["files"] if file["owed"]]
    local = [file["path"] for file in uploads["files"] if not file["owed"]]
    command = "lightlyfs uploads list" + (
        "" if cache_dir is None else f" --cache-dir {shlex.quote(cache_dir)}"
    )
    if uploads["local"]:
        named = ", ".join(local[:_NAMED_FILES]) + (", ..." if uploads["local"] > _NAMED_FILES else "")
        click.echo(
            f"lightlyfs: on this machine only: {counted(uploads['local'], 'local file')}: {named}", err=True
        )
    for file in owed[:_SHOWN_FILES]:
        reason = f" ({file['error']})" if file["error"] else ""
        click.echo(visible(f"  {file['path']}: {file['state']}{reason}"), err=True)
    if owed:
        raise StartError(
            f"{counted(len(owed), 'file is', 'files are')} not on the server yet; the next mount of this "
            f"dataset uploads what is pending. To see them: {command}"
        )


def _need_mount(mountpoint: Path, *, to_end: bool = False) -> None:
    entry = our_mounts().get(mountpoint)
    if entry is None:
        raise StartError(f"no dataset is mounted on {mountpoint}; `lightlyfs mounts` lists those that are")
    # a mount answers its user alone; root may end it all the same
    may = entry.owner in (None, os.getuid()) or (to_end and os.geteuid() == 0)
    if entry.owner is not None and not may:
        raise StartError(f"the mount on {mountpoint} belongs to {_user(entry.owner)}; ask as that user")


def _user(number: int) -> str:
    try:
        return pwd.getpwuid(number).pw_name
    except KeyError:
        return f"user {number}"


def _request(mountpoint: Path, command: str, timeout_s: float) -> dict[str, Any] | None:
    return request(socket_of(mountpoint), command, timeout_s=timeout_s)


def _unanswered(mountpoint: Path, pid: int) -> str:
    """What to do about a mount whose process does not answer."""
    detach = f"detach it with `lightlyfs umount --lazy {shlex.quote(str(mountpoint))}`"
    if process_state(pid) == "T":
        return (
            f"the mount on {mountpoint} does not answer: process {pid} is stopped; continue it with "
            f"`kill -CONT {pid}`, or {detach}"
        )
    return (
        f"the mount on {mountpoint} does not answer: process {pid} hangs, perhaps on a disk; its log may say "
        f"why. Where it does not come back, {detach} and end it with `kill -KILL {pid}`"
    )


def _ask(mountpoint: Path, command: str, timeout_s: float = _ANSWER_S) -> dict[str, Any]:
    try:
        # asked before the mount table is read, for that can miss an entry while others come and go
        answer = _request(mountpoint, command, timeout_s)
    except NoAnswer as error:
        raise StartError(_unanswered(mountpoint, error.pid)) from None
    if answer is None:
        _need_mount(mountpoint)
        dead = mountpoints.probe(mountpoint) is mountpoints.Health.DEAD
        raise StartError(
            f"the mount on {mountpoint} "
            + ("is dead, for its process is gone" if dead else "does not answer")
            + f"; clear it with: lightlyfs umount {shlex.quote(str(mountpoint))}"
        )
    if not answer.pop("ok"):
        raise StartError(str(answer["error"]))
    return answer


def _wait_for_end(pid: int, device: str) -> None:
    """Wait until the process of a mount that was unmounted has ended; say what keeps it."""
    started = time.monotonic()
    silent = True
    while not _has_ended(pid):
        waited_s = time.monotonic() - started
        if waited_s > _END_WAIT_S:
            raise StartError(
                f"unmounted, but process {pid} has not ended yet; its log says what it waits for"
            )
        if silent and waited_s > _SILENT_S:
            silent = False
            click.echo(f"lightlyfs: {_what_keeps(pid, device)}", err=True)
        time.sleep(0.02)


def _what_keeps(pid: int, device: str) -> str:
    places = other_places(device)
    if not places:
        return f"waiting for process {pid} to end; its log says what it does"
    shown = visible(", ".join(places[:_NAMED_FILES])) + (", ..." if len(places) > _NAMED_FILES else "")
    return (
        f"waiting for process {pid}, whose mount is still at {shown}; unmount that, or end this with Ctrl-C"
    )


def need_answer(mountpoint: Path) -> None:
    """StartError, within seconds, where a mount does not answer; it says what can be done."""
    _ask(mountpoint, "status")


def _has_ended(pid: int) -> bool:
    """Whether a process is gone; one that its parent did not reap, as in many containers, counts as gone."""
    try:
        os.kill(pid, 0)
    except OSError:
        return True
    return process_state(pid) in ("Z", "X")


def _status_text(answer: dict[str, Any]) -> str:
    names, cache, content = answer["catalogue"], answer["cache"], answer["content"]
    samples, directories, unverified = names["samples"], names["directories"], names["unverified"]
    requests = ", ".join(f"{name} {count:,}" for name, count in answer["requests"].items())
    lines = {
        "dataset": f"{answer['dataset']['name']} ({answer['dataset']['id']}) at {answer['server']}"
        + "".join(f", {shown}" for shown in _shown_of_dataset(answer)),
        "names": f"{counted(samples, 'sample')} in {counted(directories, 'directory')}"
        f"{_counted_beyond(answer)}, {_freshness(names)}"
        + (f"; {names['problems']:,} odd or unreadable (--problems)" if names["problems"] else ""),
        "sizes": f"{size_text(names['bytes'])} in all; {counted(unverified, 'file')} not yet confirmed "
        "by storage",
        "reads": f"{cache['hits']:,} from the cache, {size_text(content['fetched_bytes'])} fetched, "
        f"{content['under_way']} under way, {content['failures']} failed",
        "URLs": f"{answer['urls']['stored']:,} kept, {answer['urls']['got']:,} got before they were needed",
        "open": "not told: files are read by their path"
        if answer["reads_by_path"]
        else counted(answer["open_files"], "file"),
        "requests": requests or "none",
    }
    rows = {name: [line] for name, line in lines.items()}
    rows["reads"] += _ahead_lines(answer["ahead"])
    rows |= {"cache": _cache_lines(cache), "uploads": _uploads_lines(answer)}
    shown = {name: [visible(line) for line in lines] for name, lines in rows.items()}
    between = "\n" + " " * _NAME_COLUMNS
    return "\n".join(f"{name:<{_NAME_COLUMNS - 1}} {between.join(lines)}" for name, lines in shown.items())


def _shown_of_dataset(answer: dict[str, Any]) -> list[str]:
    """Which part of the dataset the mount shows; "" for all of it."""
    shown = [f"{what} {', '.join(answer[what])}" for what in ("include", "exclude") if answer[what]]
    if answer["tag"] is not None:
        shown.insert(0, f"tag {answer['tag']}")
    return [f"its folder {answer['part']}", *shown] if answer["part"] else shown


def _counted_beyond(answer: dict[str, Any]) -> str:
    """Return what the counts cover if the mount shows only a part of that."""
    if not (answer["part"] or answer["include"] or answer["exclude"]):
        return ""
    return " of the whole dataset" if answer["tag"] is None else " of the whole tag"


def _ahead_lines(ahead: dict[str, int]) -> list[str]:
    if not ahead["files"]:
        return []
    fetched = f"{counted(ahead['files'], 'file')} ({size_text(ahead['bytes'])}) fetched ahead of readers"
    return [f"{fetched}, {ahead['files_read']:,} of them read, {ahead['unread']:,} given up unread"]


def _cache_lines(cache: dict[str, Any]) -> list[str]:
    kept = cache["bytes"] + cache.get("beside_bytes", 0)
    shared = ", shared with another process" if cache["shared"] else ""
    line = f"{size_text(kept)} of {size_text(cache['budget_bytes'])} in {cache['directory']}{shared}"
    lines = [line]
    if cache.get("disk_nearly_full"):
        limit = size_text(cache["limit_bytes"])
        lines.append(f"its disk is nearly full: at most {limit} are kept; see --cache-min-free")
    if why := cache.get("why_there"):
        lines.append(why)
    return lines


def _uploads_lines(answer: dict[str, Any]) -> list[str]:
    if answer["read_only"]:
        return ["none, the mount is read-only"]
    uploads = answer["uploads"]
    lines = [
        f"{uploads['uploaded']:,} done, {uploads['pending']:,} pending, {uploads['failed']:,} failed, "
        f"{counted(uploads['local'], 'file')} on this machine only (--upload {answer['upload']})"
    ]
    if uploads["offline"]:
        lines.append(f"the server cannot be reached: {uploads['offline']}")
    if uploads["renames_off"]:
        lines.append(f"samples are not renamed: {uploads['renames_off']}")
    if uploads["refused"]:
        lines.append(f"not replaced, for want of --allow-overwrite: {', '.join(uploads['refused'])}")
    lines += [
        f"{file['path']}: {file['error']}" for file in uploads["files"] if file["owed"] and file["error"]
    ]
    if uploads["leftovers"]:
        lines.append(f"{counted(len(uploads['leftovers']), 'replaced sample')} hidden")
    return lines[:_SHOWN_FILES] + list(uploads["kept"])


def _freshness(names: dict[str, Any]) -> str:
    if not names["complete"]:
        return f"being listed: {names['listed']:,} of {names['expected']:,}"
    age = f"checked {names['age_s']:,.0f} s ago" if names["age_s"] is not None else "never checked"
    if names["stopped"]:
        return f"{age}; no longer refreshed: {names['error']}"
    return f"{age}; the last check failed: {names['error']}" if names["error"] else age


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
@click.argument("path", type=given_path, shell_complete=complete_mount)
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
