"""A TCP proxy whose connections can be frozen, as they are after a change of networks."""

from __future__ import annotations

import contextlib
import socket
import threading
from types import TracebackType


class FreezingProxy:
    """Forwards to a port of this machine; `freeze` silences the connections there are, not those to come."""

    def __init__(self, back: int = 0) -> None:
        self.back = back
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=256)
        self.port: int = self._listener.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self.connections = 0
        self._generation = 0
        self._sockets: set[socket.socket] = set()

    def freeze(self) -> None:
        """Let nothing through on the connections that are open now; no end of one is told, either."""
        self._generation += 1

    def __enter__(self) -> FreezingProxy:
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for one in list(self._sockets):
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                front, _ = self._listener.accept()
                self.connections += 1
                back = socket.create_connection(("127.0.0.1", self.back))
                self._sockets |= {front, back}
                for source, target in ((front, back), (back, front)):
                    job = (source, target, self._generation)
                    threading.Thread(target=self._forward, args=job, daemon=True).start()

    def _forward(self, source: socket.socket, target: socket.socket, generation: int) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(1 << 16):
                if generation == self._generation:
                    target.sendall(data)
            if generation == self._generation:
                target.shutdown(socket.SHUT_WR)
