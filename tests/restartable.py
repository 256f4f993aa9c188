"""A server of the test's own process that goes away and comes back on the same port."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Self

from trees import free_port

from lightlyfs.testing import LocalServer, ServerOptions


class RestartableServer:
    """A server whose samples outlive it; in a `with` block it runs."""

    def __init__(self, directory: Path) -> None:
        folder = directory / "own"
        folder.mkdir(parents=True)
        self._options = ServerOptions(
            source=folder,
            dataset_name="own",
            port=free_port(),
            token="first-token",
            state=directory / "server-state",
        )
        self.now = LocalServer(self._options)

    def start(self, token: str | None = None) -> None:
        """Be there again, after `stop`; with another token, if one is given."""
        if token is not None:
            self._options = replace(self._options, token=token)
        self.now = LocalServer(self._options).start()

    def stop(self) -> None:
        """Be gone: connections are refused."""
        self.now.stop()

    def __enter__(self) -> Self:
        self.now.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.now.stop()
