"""The command line: commands, exit codes and every line a person reads.

0 is success, 1 a failure that is told in one line, 2 a wrong argument, 130 an interruption.
"""

from __future__ import annotations

from collections.abc import Sequence

# the descriptor on which the process of a mount tells the command that it is usable
READY_VARIABLE = "LIGHTLYFS_READY_FD"


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one command and exit with its code."""
    # here, for the process of a mount needs nothing of it
    from lightlyfs.cli.group import run

    run(arguments)
