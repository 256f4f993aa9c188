"""A server of raw sockets for the transport contract: it says exactly the bytes a test wants it to say."""

from __future__ import annotations

import contextlib
import os
import socket
import ssl
import struct
import threading
from collections.abc import Callable
from dataclasses import dataclass, field


@dataclass
class Received:
    """One request as it came over the wire."""

    method: str
    target: str
    headers: dict[str, str]
    body: bytes = b""
    lines: list[str] = field(default_factory=list)


class Connection:
    """One accepted connection, in its own thread."""

    def __init__(self, server: RawServer, sock: socket.socket) -> None:
        self.server = server
        self.sock = sock
        self._file = sock.makefile("rb")

    def read_head(self) -> Received | None:
        """Read one request without its body, None at the end of the connection."""
        lines = []
        while True:
            line = self._file.readline()
            if not line:
                return None
            if line == b"\r\n":
                break
            lines.append(line.decode("latin-1").rstrip("\r\n"))
        method, target, _ = lines[0].split(" ", 2)
        pairs = (line.partition(":") for line in lines[1:])
        headers = {name.lower(): value.strip() for name, _, value in pairs}
        received = Received(method, target, headers, lines=lines)
        self.server.received.append(received)
        return received

    def read(self) -> Received | None:
        """Read one request with its body."""
        received = self.read_head()
        if received is not None:
            received.body = self._file.read(int(received.headers.get("content-length", 0)))
        return received

    def say(self, status: str, body: bytes = b"", *headers: str) -> None:
        """Send a whole answer with its Content-Length."""
        lines = [f"HTTP/1.1 {status}", f"Content-Length: {len(body)}", *headers, "", ""]
        self.raw("\r\n".join(lines).encode() + body)

    def raw(self, data: bytes) -> None:
        """Send `data` as it is."""
        self.sock.sendall(data)

    def wait_closed(self, limit_s: float = 10.0) -> None:
        """Say nothing until the client goes away or the server stops."""
        self.sock.settimeout(0.05)
        for _ in range(int(limit_s / 0.05)):
            if self.server.stopping.is_set():
                return
            try:
                if not self.sock.recv(65536):
                    return
            except TimeoutError:
                continue
            except OSError:
                return

    def cut(self) -> None:
        """Close the connection with a reset, without a word of TLS."""
        linger = struct.pack("ii", 1, 0)
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        self._file.close()
        os.close(self.sock.detach())

    def upgrade(self, context: ssl.SSLContext) -> Connection:
        """Speak TLS from here on, as a proxy's far end does."""
        tls = context.wrap_socket(self.sock, server_side=True)
        self.server.open_sockets.add(tls)
        return Connection(self.server, tls)


Handler = Callable[[Connection], None]


class RawServer:
    """Listens on a free port of this machine; each connection is given to `handler` in a thread of its own.

    `received` and `connections` say what came. Use as a context manager.
    """

    def __init__(self, handler: Handler, tls: ssl.SSLContext | None = None, host: str = "127.0.0.1") -> None:
        self.handler = handler
        self.received: list[Received] = []
        self.connections = 0
        self.stopping = threading.Event()
        self._tls = tls
        self.host = host
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self._listener = socket.create_server((host, 0), family=family)
        self.port: int = self._listener.getsockname()[1]
        self._threads = [threading.Thread(target=self._accept, daemon=True)]
        self.open_sockets: set[socket.socket] = set()

    @property
    def url(self) -> str:
        """The address of the server, without a path."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{'https' if self._tls else 'http'}://{host}:{self.port}"

    def __enter__(self) -> RawServer:
        self._threads[0].start()
        return self

    def __exit__(self, *_exc: object) -> None:
        self.stopping.set()
        with contextlib.suppress(OSError):
            socket.create_connection((self.host, self.port), 1).close()
        self._threads[0].join(5)
        self._listener.close()
        for sock in list(self.open_sockets):
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(5)

    def _accept(self) -> None:
        while True:
            try:
                sock, _ = self._listener.accept()
            except OSError:
                return
            if self.stopping.is_set():
                sock.close()
                return
            self.connections += 1
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            thread = threading.Thread(target=self._serve, args=(sock,), daemon=True)
            self._threads.append(thread)
            thread.start()

    def _serve(self, sock: socket.socket) -> None:
        self.open_sockets.add(sock)
        # A client that goes away in the middle is what many tests are about.
        with contextlib.suppress(OSError), sock:
            if self._tls is None:
                self.handler(Connection(self, sock))
            else:
                with self._tls.wrap_socket(sock, server_side=True) as tls:
                    self.open_sockets.add(tls)
                    self.handler(Connection(self, tls))
        self.open_sockets.discard(sock)


def answering(reply: Callable[[Connection, Received], None]) -> Handler:
    """Return a handler that keeps the connection and gives each whole request to `reply`."""

    def handler(connection: Connection) -> None:
        while (received := connection.read()) is not None:
            reply(connection, received)

    return handler


def saying(data: bytes, *, then_wait: bool = False) -> Handler:
    """Return a handler that reads one request, says `data` and closes (or stalls first)."""

    def handler(connection: Connection) -> None:
        if connection.read() is None:
            return
        connection.raw(data)
        if then_wait:
            connection.wait_closed()

    return handler
