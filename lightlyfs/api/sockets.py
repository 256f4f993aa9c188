"""A socket whose every wait asks a `Watch`: idle limits, total limits and cancellation for `http.client`.

`http.client` reads through a buffered file that is unusable after a time-out, so a short socket
time-out cannot be used to look up from a wait. Here the time-out ends below that file.
"""

from __future__ import annotations

import io
import socket
import ssl
from typing import TYPE_CHECKING, Any

from lightlyfs.api.watch import SLICE_S, Watch

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer, WriteableBuffer

# How much of an upload goes into one send: progress is noted between two of them.
_SEND_BYTES = 256 * 1024


class WatchedSocket:
    """Wraps a connected socket (TLS or not); used by one thread at a time.

    `watch` is that of the request under way and is set before each request.
    """

    def __init__(self, sock: socket.socket, watch: Watch) -> None:
        self._sock = sock
        self.watch = watch
        sock.settimeout(SLICE_S)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._sock, name)

    def settimeout(self, timeout_s: float | None) -> None:
        """Do nothing: the limits are those of `watch`."""

    def sendall(self, data: ReadableBuffer) -> None:
        """Send all of `data`, asking the watch whenever the peer takes none for a while."""
        view = memoryview(data).cast("B")
        while view:
            try:
                sent = self._sock.send(view[:_SEND_BYTES])
            except TimeoutError:
                self.watch.check()
                continue
            except ssl.SSLError as exc:
                raise _broken(exc) from exc
            view = view[sent:]
            self.watch.progress()
            self.watch.check()

    def recv_into(self, buffer: WriteableBuffer) -> int:
        """Receive into `buffer`, 0 at the end; asks the watch while nothing comes and after each chunk."""
        while True:
            try:
                count = self._sock.recv_into(buffer)
            except TimeoutError:
                self.watch.check()
                continue
            except ssl.SSLError as exc:
                raise _broken(exc) from exc
            self.watch.check()
            self.watch.progress()
            self.watch.answered()
            return count

    def makefile(self, *_args: Any, **_kwargs: Any) -> io.BufferedReader:
        """Return the buffered reader `http.client` parses from."""
        # The inner file keeps the socket open until it is closed, as `http.client` expects.
        return io.BufferedReader(_WatchedFile(self, self._sock.makefile("rb", buffering=0)), 64 * 1024)


def _broken(exc: ssl.SSLError) -> ConnectionResetError:
    # The handshake is over: this is a connection that broke, not a server that is not trusted.
    return ConnectionResetError(f"the TLS connection broke: {exc.reason or exc}")


class _WatchedFile(io.RawIOBase):
    def __init__(self, sock: WatchedSocket, inner: io.RawIOBase) -> None:
        self._watched = sock
        self._inner = inner

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: WriteableBuffer) -> int:
        return self._watched.recv_into(buffer)

    def close(self) -> None:
        if not self.closed:
            self._inner.close()
        super().close()
