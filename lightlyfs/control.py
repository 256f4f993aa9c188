"""The control channel of a running mount: lines of JSON over a Unix socket, and descriptors with them.

A command is one line each way. A session lasts for as long as both sides want: `warm` reports its progress,
and `open_cached` asks for one file after another. The server side runs in the mount; `ask` and the other
functions are for commands and programs, which print as much of an answer as they want.
"""

from __future__ import annotations

import array
import json
import logging
import os
import select
import socket
import struct
import threading
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from lightlyfs.errors import LightlyFsError, StartError
from lightlyfs.places import socket_of

log = logging.getLogger(__name__)

# of `sockaddr_un`, without its final zero
_MAX_ADDRESS_BYTES = 107
# a hundred of the longest paths, spelled in the longest way
_MAX_LINE = 4 << 20
_CHUNK_BYTES = 64 << 10
# one comes with a message
_MAX_DESCRIPTORS = 4
_MAX_CONNECTIONS = 256
# sessions beside which there is always room for commands
_MAX_SESSIONS = 192
# a client that sends or reads nothing for this long is disconnected; it may connect again
_SILENCE_S = 60.0
_CALL_AGAIN_S = 0.01
_ACCEPT_AGAIN_S = 0.5

_UNKNOWN = "this mount does not know that command"

Command = Callable[[], Mapping[str, Any]]


class Channel:
    """One end of a connection; used by one thread. Methods raise OSError once the other end has gone."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._buffer = bytearray()
        self._descriptors: list[int] = []

    def __del__(self) -> None:
        self.close()

    def close(self) -> None:
        """Hang up; idempotent."""
        for descriptor in self._descriptors:
            os.close(descriptor)
        self._descriptors.clear()
        self._connection.close()

    def hang_up(self) -> None:
        """End what another thread waits for at this end; that thread closes it."""
        with suppress(OSError):
            self._connection.shutdown(socket.SHUT_RDWR)

    def send(self, message: Mapping[str, Any], descriptor: int | None = None) -> None:
        """Send a message, and a descriptor with it."""
        data = json.dumps(message).encode() + b"\n"
        if descriptor is None:
            self._connection.sendall(data)
            return
        beside = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [descriptor]))]
        sent = self._connection.sendmsg([data], beside)
        if sent < len(data):
            self._connection.sendall(data[sent:])

    def receive(self) -> dict[str, Any] | None:
        """Return the next message, or None at the end; ValueError where it is none."""
        while (end := self._buffer.find(b"\n")) < 0:
            if len(self._buffer) > _MAX_LINE:
                raise ValueError("the line is too long")
            data = self._receive_some()
            if not data:
                return None
            self._buffer += data
        try:
            message = json.loads(self._buffer[:end])
        except RecursionError as error:
            raise ValueError("the message is nested too deeply") from error
        del self._buffer[: end + 1]
        if not isinstance(message, dict):
            raise ValueError("a message is an object")
        return message

    def _receive_some(self) -> bytes:
        descriptors = array.array("i")
        # not `socket.recv_fds`, which forgets its flags
        room = socket.CMSG_SPACE(_MAX_DESCRIPTORS * descriptors.itemsize)
        data, beside, _, _ = self._connection.recvmsg(_CHUNK_BYTES, room, socket.MSG_CMSG_CLOEXEC)
        for level, kind, packed in beside:
            if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
                descriptors.frombytes(packed[: len(packed) // descriptors.itemsize * descriptors.itemsize])
        self._descriptors += descriptors
        return data

    def take_descriptor(self) -> int | None:
        """Return the descriptor of the last message, now the caller's to close; None without one."""
        return self._descriptors.pop(0) if self._descriptors else None

    def peer_pid(self) -> int:
        """Return the process that listened where this connection leads."""
        return _peer_of(self._connection).pid

    def has_ended(self) -> bool:
        """Return whether the other end has hung up; does not wait."""
        poll = select.poll()  # not `select`, which knows 1,024 descriptors only
        poll.register(self._connection, select.POLLIN)
        return bool(poll.poll(0)) and not self._connection.recv(1, socket.MSG_PEEK)


Session = Callable[[Mapping[str, Any], Channel], None]


class ControlServer:
    """Answers the mount's owner on a socket of mode 0600; a bounded number of connections, a thread each.

    A session is called with the message that began it and its channel, and may raise LightlyFsError.
    """

    def __init__(
        self, path: Path, commands: Mapping[str, Command], sessions: Mapping[str, Session] | None = None
    ) -> None:
        self._path = path
        self._commands = commands
        self._sessions = sessions or {}
        self._sockets: list[socket.socket] = []
        self._thread = threading.Thread(target=self._serve, name="lightlyfs-control", daemon=True)
        self._closed = False
        self._connections = threading.BoundedSemaphore(_MAX_CONNECTIONS)
        self._session_slots = threading.BoundedSemaphore(_MAX_SESSIONS)

    def start(self, lasting_name: str | None = None) -> None:
        """Begin to answer; takes the place of a socket that a killed mount left.

        Also on an abstract name, which stays when the directory of the socket goes.
        """
        self._path.unlink(missing_ok=True)
        with _short(self._path) as address:
            self._listen(address)
        if lasting_name is not None:
            try:
                self._listen(lasting_name)
            except OSError as error:
                log.warning("commands find this mount for as long as %s is there: %s", self._path, error)
        self._thread.start()

    def _listen(self, address: str) -> None:
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            listener.bind(address)
            if not address.startswith("\0"):
                # before `listen`, so that no client connects earlier; a umask would affect all threads
                os.chmod(address, 0o600)
            listener.listen(128)
            # one that hangs up between `poll` and `accept` must not be waited for
            listener.setblocking(False)
        except BaseException:
            listener.close()
            raise
        self._sockets.append(listener)

    def close(self) -> None:
        """Stop answering, and remove the socket."""
        self._closed = True
        self._path.unlink(missing_ok=True)
        for listener in self._sockets:
            # wakes the thread that accepts; closing alone would not
            with suppress(OSError):
                listener.shutdown(socket.SHUT_RDWR)
            listener.close()

    def _serve(self) -> None:
        poll = select.poll()
        listeners = {listener.fileno(): listener for listener in self._sockets}
        for number in listeners:
            poll.register(number, select.POLLIN)
        while True:
            ready = poll.poll()
            if self._closed:
                return
            for number, _ in ready:
                self._accept(listeners[number])

    def _accept(self, listener: socket.socket) -> None:
        try:
            connection, _ = listener.accept()
        except BlockingIOError:
            return
        except OSError as error:
            if not self._closed:
                log.warning("no command can be answered now: %s", error)  # no descriptors are left
                time.sleep(_ACCEPT_AGAIN_S)
            return
        if _peer_of(connection).uid not in (os.getuid(), 0):
            connection.close()  # an abstract name has no mode
        elif not self._connections.acquire(blocking=False):
            connection.close()  # the client sees the closed connection, and may connect again
        else:
            try:
                threading.Thread(target=self._answer, args=(connection,), daemon=True).start()
            except RuntimeError as error:
                log.warning("no command can be answered now: %s", error)  # no threads are left
                connection.close()
                self._connections.release()

    def _answer(self, connection: socket.socket) -> None:
        connection.settimeout(_SILENCE_S)
        channel = Channel(connection)
        try:
            self._answer_on(channel)
        except OSError:
            pass  # the client has gone
        finally:
            channel.close()
            self._connections.release()

    def _answer_on(self, channel: Channel) -> None:
        message: dict[str, Any] = {}
        session, command = None, None
        try:
            received = channel.receive()
            if received is None:
                return
            message, name = received, received["command"]
            session, command = self._sessions.get(name), self._commands.get(name)
        except (ValueError, KeyError, TypeError):
            pass  # as if it were not known
        try:
            if session is not None:
                self._hold(session, message, channel)
                return
            reply = failure(_UNKNOWN) if command is None else {"ok": True, **command()}
        except LightlyFsError as error:
            reply = failure(str(error))
        except OSError:
            raise
        except Exception:
            log.exception("a command failed")
            reply = failure("the mount failed; its log says why")
        channel.send(reply)

    def _hold(self, session: Session, message: Mapping[str, Any], channel: Channel) -> None:
        if not self._session_slots.acquire(blocking=False):
            channel.send(failure("the mount is busy with others", busy=True))
            return
        try:
            session(message, channel)
        finally:
            self._session_slots.release()


def failure(text: str, **more: Any) -> dict[str, Any]:
    """Return the message that reports a failure."""
    return {"ok": False, "error": text, **more}


class _Peer(NamedTuple):
    """The process at the other end of a connection: for a connected socket, the one that called `listen`."""

    pid: int
    uid: int
    gid: int


def _peer_of(connection: socket.socket) -> _Peer:
    size = struct.calcsize("3i")
    return _Peer._make(
        struct.unpack("3i", connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, size))
    )


@contextmanager
def _short(address: Path | str) -> Iterator[str]:
    """Give the address of a socket to bind or connect to; a longer path by a descriptor of its directory."""
    text = str(address)
    if isinstance(address, str) or len(os.fsencode(text)) <= _MAX_ADDRESS_BYTES:
        yield text
        return
    directory = os.open(address.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{directory}/{address.name}"
    finally:
        os.close(directory)


def dial(address: Path | str, *, timeout_s: float) -> Channel | None:
    """Return a channel to the mount behind a socket, None without one; time-outs are per answer."""
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    connection.settimeout(timeout_s)
    end = time.monotonic() + timeout_s
    while True:
        try:
            with _short(address) as short:
                connection.connect(short)
        except BlockingIOError:
            # many connect at once, and a Unix socket does not queue connections that have a time-out
            if time.monotonic() < end:
                time.sleep(_CALL_AGAIN_S)
                continue
            connection.close()
            return None
        except OSError:
            connection.close()
            return None
        if isinstance(address, str) and _peer_of(connection).uid != os.getuid():
            connection.close()  # any user may take an abstract name
            return None
        return Channel(connection)


class NoAnswer(StartError):
    """A process listens on the socket but does not answer."""

    def __init__(self, pid: int) -> None:
        super().__init__(f"process {pid} does not answer")
        self.pid = pid


def ask(address: Path | str, command: str, *, timeout_s: float = 10.0) -> dict[str, Any] | None:
    """Send a command to the mount behind a socket; None where no mount answers there."""
    try:
        return request(address, command, timeout_s=timeout_s)
    except NoAnswer:
        return None


def request(address: Path | str, command: str, *, timeout_s: float) -> dict[str, Any] | None:
    """Send a command as `ask` does; NoAnswer where the mount is stopped or does not answer in time."""
    channel = dial(address, timeout_s=timeout_s)
    if channel is None:
        return None
    pid = channel.peer_pid()
    try:
        if process_state(pid) == "T":
            raise NoAnswer(pid)
        channel.send({"command": command})
        return channel.receive()
    except TimeoutError:
        raise NoAnswer(pid) from None
    except OSError:
        return None
    finally:
        channel.close()


def process_state(pid: int) -> str:
    """Return the letter that the kernel shows for what a process does; "" where that cannot be said."""
    try:
        told = Path(f"/proc/{pid}/stat").read_text(errors="replace")
    except OSError:
        return ""
    return told.rpartition(")")[2].split()[0]


# a mount may need a minute to look up a million files before its first answer
_ANSWER_WAIT_S = 600.0
_NAMES_AT_ONCE = 100


def session(
    mountpoint: Path, begin: Mapping[str, Any], names: Iterable[str], *, timeout_s: float = _ANSWER_WAIT_S
) -> Generator[dict[str, Any], None, None]:
    """Begin something with `begin` and the names it is for; each message that the mount answers.

    The caller stops at the last one it waits for. Raises StartError where the mount refuses or ends.
    """
    channel = dial(socket_of(mountpoint), timeout_s=timeout_s)
    if channel is None:
        raise StartError(f"the mount on {mountpoint} does not answer")
    try:
        with suppress(BrokenPipeError):  # it has refused already, and says why
            channel.send(begin)
            for batch in _batches(names):
                channel.send({"names": batch})
        while True:
            message = channel.receive()
            if message is None:
                raise StartError(f"the mount on {mountpoint} ended before all was done; run it again")
            if not message["ok"]:
                raise StartError(str(message["error"]))
            yield message
    except OSError as error:
        raise StartError(f"the mount on {mountpoint} hung up: {error}") from None
    finally:
        channel.close()


def _batches(names: Iterable[str]) -> Iterator[list[str]]:
    """The names in messages of some each, and an empty one at the end."""
    left = iter(names)
    while batch := list(islice(left, _NAMES_AT_ONCE)):
        yield batch
    yield []
