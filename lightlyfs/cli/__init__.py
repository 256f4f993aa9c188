"""The command line: commands, exit codes and every line a person reads.

0 is success, 1 a failure that is told in one line, 2 a wrong argument, 130 an interruption.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

import click

from lightlyfs.cli.commands import refresh, status, umount
from lightlyfs.cli.demo import demo
from lightlyfs.cli.deploy import deploy
from lightlyfs.cli.doctor import doctor
from lightlyfs.cli.index import index
from lightlyfs.cli.mount import mount
from lightlyfs.cli.serve import serve
from lightlyfs.cli.topics import completion, help_topic
from lightlyfs.cli.uploads import uploads
from lightlyfs.cli.warm import warm
from lightlyfs.errors import LightlyFsError, SettingsError
from lightlyfs.visible import visible

__all__ = ["main"]

_COMPLETING = "_LIGHTLYFS_COMPLETE"
_MOUNT_HELPER = "mount.fuse.lightlyfs"
# flags that mount(8) hands on to its helper: sloppy, no mtab, verbose
_MOUNT_FLAGS = {"-s", "-n", "-v"}


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="lightlyfs", message="%(prog)s %(version)s")
def commands() -> None:
    """Mount a Lightly dataset as a folder of images.

    `lightlyfs DATASET DIR -o OPTIONS`, the form of /etc/fstab, is the same as `lightlyfs mount`.
    """


for command in (
    mount,
    umount,
    status,
    warm,
    refresh,
    uploads,
    index,
    serve,
    demo,
    deploy,
    doctor,
    completion,
    help_topic,
):
    commands.add_command(command)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one command and exit with its code."""
    if _COMPLETING in os.environ:
        # the shell asks for what may come next; click answers, and ends the program
        commands.main([], prog_name="lightlyfs", complete_var=_COMPLETING)
    words = list(sys.argv[1:] if arguments is None else arguments)
    if arguments is None and os.path.basename(sys.argv[0]) == _MOUNT_HELPER:
        words = _words_of_mount(words)
    # the form that mount(8) uses has no command word
    if len(words) >= 2 and not words[0].startswith("-") and words[0] not in commands.commands:
        words.insert(0, "mount")
    try:
        code = commands.main(words, prog_name="lightlyfs", standalone_mode=False)
    except click.UsageError as error:
        error.show()
        code = 2
    except (click.Abort, KeyboardInterrupt):
        code = 130
    except LightlyFsError as error:
        click.echo(f"lightlyfs: {visible(str(error))}", err=True)
        code = 2 if isinstance(error, SettingsError) else 1
    sys.exit(code if isinstance(code, int) else 0)


def _words_of_mount(words: list[str]) -> list[str]:
    """What mount(8) says to its helper, as the command that does it; its `-f` asks for nothing to be done."""
    if "-f" in words:
        sys.exit(0)
    return ["mount", *(word for word in words if word not in _MOUNT_FLAGS)]
