"""The command line: commands, exit codes and every line a person reads.

0 is success, 1 a failure reported in one line, 2 a wrong argument, 130 an interruption.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

# the descriptor on which the process of a mount tells the command that it is usable
READY_VARIABLE = "LIGHTLYFS_READY_FD"


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one command and exit with its code."""
    _open_standard_files()
    # here, for the process of a mount needs nothing of it
    try:
        from lightlyfs.cli.group import run
    except KeyboardInterrupt:
        sys.exit(130)
    run(arguments)


def _open_standard_files() -> None:
    """Open the null device as stdin, stdout and stderr where the caller closed them.

    The next file that is opened would have that number, and texts for a person would be written to it.
    """
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            null = os.open(os.devnull, os.O_RDWR)  # the lowest number that is free
            os.set_inheritable(null, True)
            setattr(sys, name, os.fdopen(null, "w" if number else "r", closefd=False))
