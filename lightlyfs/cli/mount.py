"""`lightlyfs mount`: the checks, and the way into the background.

The mount is another program (`background`). In the foreground the command becomes that; else it starts it in
a session of its own, and waits until that says the mount is usable. So nothing forks after threads exist, and
every failure at start reaches the terminal before the command returns.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any, NoReturn

import click

from lightlyfs import mountpoints, places
from lightlyfs.cli import READY_VARIABLE
from lightlyfs.cli.options import (
    GroupedCommand,
    complete_dataset,
    complete_directory,
    given_path,
    given_text,
    merge,
    setting_options,
    split_fstab_options,
    split_part,
)
from lightlyfs.cli.output import tell
from lightlyfs.errors import StartError
from lightlyfs.kernel import binding
from lightlyfs.settings import Settings, exposure_of, read_secrets, resolve


@click.command(cls=GroupedCommand, context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("dataset", type=given_text, shell_complete=complete_dataset)
@click.argument(
    "mountpoint", type=given_path, shell_complete=complete_directory
)  # not `click.Path`, which asks a mount that is there for its root
@click.option("--foreground", "-f", is_flag=True, help="Stay, and log to the terminal.")
@click.option("-o", "fstab", metavar="OPT[,OPT]", multiple=True, help="Options as in /etc/fstab, such as ro.")
@setting_options()
def mount(dataset: str, mountpoint: Path, foreground: bool, fstab: tuple[str, ...], **flags: Any) -> None:
    """Mount DATASET (its name, its id or its address in the web app) on the empty directory MOUNTPOINT.

    DATASET/FOLDER mounts a folder of it.

    Returns once the mount is usable and goes on in the background. The API token is read from
    LIGHTLY_TOKEN or --token-file.
    """
    source = "/".join(split_part(dataset))
    from_fstab, kernel_options = split_fstab_options(fstab)
    texts = merge(flags, from_fstab)
    settings = resolve(texts, os.environ)
    if settings.read_only and (flags["upload"] or from_fstab.get("upload") or "none") != "none":
        tell("nothing is uploaded from a read-only mount, whatever --upload says")
    read_secrets(os.environ, settings.token_file, settings.read_mode)
    if exposed := exposure_of(settings.token_file):
        tell(exposed)
    mountpoint = mountpoints.without_links(mountpoint)
    # errors that need no network are reported first
    binding.check_device()
    binding.find_library(settings.fuse)  # type: ignore[arg-type]
    if mountpoints.prepare_mountpoint(mountpoint):
        click.echo(f"lightlyfs: cleared a dead mount on {mountpoint}, whose process is gone", err=True)
    _refuse_files_inside(settings, mountpoint)
    # never a token, which the environment carries
    words = [
        word for name, text in texts.items() if text is not None for word in ("--setting", f"{name}={text}")
    ]
    words += [word for option in kernel_options for word in ("--kernel", option)]
    # -P: nothing is imported from the directory that the command is run in
    command = [sys.executable, "-P", "-m", "lightlyfs.cli.serving", source, str(mountpoint), *words]
    if foreground:
        from lightlyfs.kernel.runner import block_signals

        block_signals()  # across execv: Ctrl-C while it imports modules is kept for the mount, which ends
        os.execv(sys.executable, command)
    _mount_in_background(command, mountpoint)


def _mount_in_background(command: list[str], mountpoint: Path) -> None:
    ready, told = os.pipe()
    environ = {**os.environ, READY_VARIABLE: str(told)}
    child = subprocess.Popen(
        command, pass_fds=(told,), env=environ, stdin=subprocess.DEVNULL, start_new_session=True
    )
    os.close(told)
    signal.signal(signal.SIGTERM, _exit_on)
    try:
        answer = os.read(ready, 16)
    except (KeyboardInterrupt, SystemExit):
        child.send_signal(signal.SIGTERM)
        child.wait()
        raise
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    if not answer:
        sys.exit(child.wait() or 1)
    if mountpoints.probe(mountpoint) is not mountpoints.Health.ANSWERS:
        raise StartError(f"{mountpoint} was mounted but does not answer")


def _exit_on(number: int, _frame: object) -> NoReturn:
    """End by a signal as by Ctrl-C: what was started ends first."""
    raise SystemExit(128 + number)


def _refuse_files_inside(settings: Settings, mountpoint: Path) -> None:
    """StartError where the mount would keep files below itself, and so wait for its own answer."""

    def is_inside(path: Path) -> bool:
        return path.resolve().is_relative_to(mountpoint)

    for directory in filter(is_inside, places.wanted_directories(settings.cache_dir)):
        raise StartError(
            f"the cache directory {directory} lies inside {mountpoint}; choose one outside with --cache-dir"
        )
    if settings.log_file is not None and is_inside(settings.log_file):
        raise StartError(f"the log file {settings.log_file} lies inside {mountpoint}; choose one outside")
