"""`lightlyfs.mount(...)`: a mount from Python, served by a process of its own.

A mount inside the calling process would stop with it, and a program that reads its own mount can wait for
itself for ever.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from types import TracebackType
from typing import Any

from lightlyfs.control import ask
from lightlyfs.errors import SettingsError, StartError
from lightlyfs.places import socket_of
from lightlyfs.settings import BY_NAME


class Mounted:
    """A running mount; leaving the `with` block, or `unmount`, ends it.

    `path` is the directory it is mounted on. Any thread may call.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def __enter__(self) -> Mounted:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.unmount()

    def __repr__(self) -> str:
        return f"Mounted({str(self.path)!r})"

    def status(self) -> dict[str, Any]:
        """What `lightlyfs status --json` prints; StartError where the mount has ended."""
        return self._ask("status", 10.0)

    def refresh(self) -> dict[str, int]:
        """Ask the API for everything now; how many samples were added, changed and are gone."""
        return self._ask("refresh", 600.0)

    def warm(self, *names: str, jobs: int | None = None, tag: str | None = None) -> None:
        """Fetch files and directories, named as within the mount (none: everything), into its cache.

        Returns once they are there; StartError names those that cannot be had, and why.
        """
        words = [*([] if jobs is None else [f"--jobs={jobs}"]), *([] if tag is None else [f"--tag={tag}"])]
        _run("warm", *words, "--", *(str(self.path / name) for name in names or ("",)))

    def unmount(self) -> None:
        """End the mount; StartError where a program still uses it."""
        _run("umount", str(self.path))

    def _ask(self, command: str, timeout_s: float) -> dict[str, Any]:
        answer = ask(socket_of(self.path), command, timeout_s=timeout_s)
        if answer is None:
            raise StartError(f"the mount on {self.path} does not answer")
        if not answer.pop("ok"):
            raise StartError(str(answer["error"]))
        return answer


def mount(dataset: str, mountpoint: str | os.PathLike[str], **settings: object) -> Mounted:
    """Mount a dataset (id or name) on an empty directory and return when it is usable.

    `settings` are the options of `lightlyfs mount` (`cache_dir="/data/cache"`, `no_wait=True`). The token
    is taken from the environment. Raises StartError or SettingsError with the command's own line.
    """
    path = Path(mountpoint).absolute()
    _run("mount", *(_word(name, value) for name, value in settings.items()), "--", dataset, str(path))
    return Mounted(path)


def _word(name: str, value: object) -> str:
    row = BY_NAME.get(name)
    if row is None:
        raise SettingsError(f"unknown setting {name}; it may be {', '.join(BY_NAME)}")
    if row.is_switch:
        return f"-o{name}={'on' if value else 'off'}"
    return f"{row.flag}={value}"


def _run(*words: str) -> None:
    command = [sys.executable, "-m", "lightlyfs", *words]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, check=False)
    if done.returncode == 0:
        return
    text = done.stderr.strip().removeprefix("lightlyfs: ")
    raise (SettingsError if done.returncode == 2 else StartError)(text)
