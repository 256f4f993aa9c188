"""The running server: HTTP in a thread of its own, and a blocking call for the command line."""

import shlex
import signal
import socket
import sys
import threading
from collections.abc import Callable
from types import TracebackType
from typing import Any, Self

import uvicorn

from .application import Extension, ServerParts, assemble
from .asgi import LocalServerError, watched_protocol
from .serve_options import ServeOptions
from .served_dataset import DatasetFacts

_BACKLOG = 256
_KEEP_ALIVE_S = 75
"""Longer than clients keep idle connections, so that a pooled connection rarely closes during a request."""
_SHUTDOWN_S = 2
_START_S = 30.0


class ApiServer:
    """A Lightly API on a local port. `start` and `stop` once each, or use it in `with`.

    Any thread may call any method.
    """

    def __init__(self, options: ServeOptions, extension: Extension | None = None) -> None:
        self.options = options
        self._socket = bind(options)
        self.url = options.public_url or url_of(options.host, self._socket.getsockname()[1])
        try:
            self._parts: ServerParts = assemble(options, self.url, extension or Extension())
        except BaseException:
            self._socket.close()
            raise
        self._server = _ReadyServer(uvicorn_config(self._parts))
        self._thread = threading.Thread(target=self._run, name="lightly-server", daemon=True)

    @property
    def token(self) -> str:
        """The API token."""
        return self._parts.token

    @property
    def public_token(self) -> str:
        """A public token that does not expire, for redirect links."""
        return self._parts.public_token

    @property
    def dataset_id(self) -> str:
        """The id of the dataset."""
        return self._facts.id

    @property
    def dataset_name(self) -> str:
        """The name of the dataset."""
        return self._facts.name

    def start(self) -> Self:
        """Start the server; return once it accepts requests."""
        self._thread.start()
        if not self._server.ready.wait(_START_S):
            raise LocalServerError("the local server did not start")
        return self

    def stop(self) -> None:
        """Stop listening, end all requests, release the port. Idempotent."""
        self._server.should_exit = True
        if self._thread.is_alive():
            self._thread.join()
        self._socket.close()
        self._parts.close()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    @property
    def _facts(self) -> DatasetFacts:
        return self._parts.dataset.facts

    def _run(self) -> None:
        self._server.run(sockets=[self._socket])


class _ReadyServer(uvicorn.Server):
    """A uvicorn server with an event that is set once it accepts connections."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.ready = threading.Event()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets=sockets)
        self.ready.set()


def bind(options: ServeOptions) -> socket.socket:
    """Return a listening socket; raise `LocalServerError` if the address cannot be used."""
    family = socket.AF_INET6 if ":" in options.host else socket.AF_INET
    # explicit, because asyncio sets TCP_NODELAY only then; without it small responses take 40 ms
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((options.host, options.port))
        listener.listen(_BACKLOG)
    except (OSError, OverflowError) as error:
        listener.close()
        reason = getattr(error, "strerror", None) or error
        where = f"{options.host}:{options.port}"
        raise LocalServerError(
            f"cannot listen on {where}: {reason}; choose another --port or --host"
        ) from error
    return listener


def url_of(host: str, port: int) -> str:
    """Return the address clients use; for a wildcard host, the name of this machine."""
    if host in ("0.0.0.0", "::", ""):
        host = socket.gethostname()
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def uvicorn_config(parts: ServerParts) -> uvicorn.Config:
    """Return a configuration in which uvicorn prints nothing: the output of the command is for users."""
    return uvicorn.Config(
        parts.app,
        http=watched_protocol(http_protocol(), parts.connections),
        ws="none",
        lifespan="off",
        log_config=None,
        log_level="critical",
        access_log=False,
        server_header=False,
        timeout_keep_alive=_KEEP_ALIVE_S,
        timeout_graceful_shutdown=_SHUTDOWN_S,
    )


def http_protocol() -> type[Any]:
    """Return the protocol class of httptools if it is installed, else that of h11."""
    try:
        from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

        return HttpToolsProtocol
    except ImportError:
        from uvicorn.protocols.http.h11_impl import H11Protocol

        return H11Protocol


def serve_until_signal(create: Callable[[], ApiServer]) -> None:
    """Create a server and serve until SIGTERM or SIGINT; print four `export` lines once it is ready.

    Main thread only. Raises `LocalServerError`, whose text is one line for the user, if the server cannot
    start.
    """
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    with create() as server:
        sys.stdout.write(
            f"export LIGHTLY_SERVER_LOCATION={server.url}\n"
            f"export LIGHTLY_TOKEN={shlex.quote(server.token)}\n"
            f"export LIGHTLY_DATASET_ID={server.dataset_id}\n"
            f"export LIGHTLY_PUBLIC_TOKEN={server.public_token}\n"
        )
        sys.stdout.flush()
        stop.wait()
