"""A server that listens: in a thread for tests and demos, or as a command until a signal."""

import signal
import socket
import sys
import threading
from types import TracebackType
from typing import Any, Self

import uvicorn

from .assembly import Parts, assemble
from .dataset import DatasetFacts
from .errors import LocalServerError
from .faults import Faults
from .options import ServerOptions
from .stats import Stats
from .tag_store import mask_of
from .transport import watched_protocol

_BACKLOG = 256
_KEEP_ALIVE_S = 75
"""Longer than clients keep idle connections, so that a pooled connection is rarely closed under a request."""
_SHUTDOWN_S = 2
_START_S = 30.0


class LocalServer:
    """A Lightly API on a local port. `start` and `stop` once each, or use it in `with`.

    After `start` returns the server answers. All methods may be called from any thread.
    """

    def __init__(self, options: ServerOptions) -> None:
        self.options = options
        self._socket = bind(options)
        self.url = options.public_url or url_of(options.host, self._socket.getsockname()[1])
        try:
            self._parts: Parts = assemble(options, self.url)
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
        """A public token without end, for redirect links."""
        return self._parts.public_token

    @property
    def dataset_id(self) -> str:
        """The id of the one dataset."""
        return self._facts.id

    @property
    def dataset_name(self) -> str:
        """The name of the one dataset."""
        return self._facts.name

    @property
    def faults(self) -> Faults:
        """The faults that are armed."""
        return self._parts.faults

    @property
    def stats(self) -> Stats:
        """Counts of what was asked."""
        return self._parts.stats

    def start(self) -> Self:
        """Start answering; returns once requests are accepted."""
        self._thread.start()
        if not self._server.ready.wait(_START_S):
            raise LocalServerError("the local server did not start")
        return self

    def stop(self) -> None:
        """Stop listening, end all requests, free the port; harmless if called twice."""
        self._parts.connections.close_stalls()
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

    def add_sample(
        self, file_name: str, data: bytes | None = None, meta: dict[str, Any] | None = None
    ) -> str:
        """Add a sample without a request and return its id; any name is possible, no data means no object.

        `meta` holds fields of a create request; with data and no `metaData` given, the true size is recorded.
        """
        fields: dict[str, Any] = {"fileName": file_name, **(meta or {})}
        if data is not None and "metaData" not in fields:
            fields["metaData"] = {"sizeInBytes": len(data)}
        row = self._parts.dataset.create(fields)
        if data is not None:
            self._parts.dataset.storage.write_bytes(row.key, data)
        return row.id

    def replace_object(self, sample_id: str, data: bytes) -> None:
        """Store other bytes for a sample, past the API: its record does not change."""
        row = self._parts.dataset.catalog.get(sample_id)
        if row is None:
            raise KeyError(sample_id)
        self._parts.dataset.storage.write_bytes(row.key, data)

    def add_tag(self, name: str, sample_ids: list[str]) -> str:
        """Add a tag of these samples and return its id."""
        catalog = self._parts.dataset.catalog
        rows = [catalog.get(sample_id) for sample_id in sample_ids]
        mask = mask_of([row.seq - 1 for row in rows if row is not None], catalog.count())
        tags = self._parts.tags
        return tags.add(name, mask, tags.root_id(), self._facts.created_ms)

    def remove_tag(self, tag_id: str) -> None:
        """Forget a tag, as DELETE of it would."""
        self._parts.tags.remove(tag_id)

    def sample(self, sample_id: str) -> dict[str, Any]:
        """Return the document of a sample; KeyError if there is none."""
        row = self._parts.dataset.catalog.get(sample_id)
        if row is None:
            raise KeyError(sample_id)
        return row.document

    def samples(self) -> list[dict[str, Any]]:
        """Return all documents in order."""
        return self._parts.dataset.documents()

    def object_bytes(self, sample_id: str, thumbnail: bool = False) -> bytes | None:
        """Return the stored bytes of a sample, past the API; None without an object."""
        return self._parts.dataset.object_bytes(sample_id, thumbnail)

    @property
    def _facts(self) -> DatasetFacts:
        return self._parts.dataset.facts

    def _run(self) -> None:
        self._server.run(sockets=[self._socket])


class _ReadyServer(uvicorn.Server):
    """uvicorn's server, telling when it accepts connections."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.ready = threading.Event()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets=sockets)
        self.ready.set()


def bind(options: ServerOptions) -> socket.socket:
    """Return a listening socket; binding here makes the port known and its failure a plain sentence."""
    family = socket.AF_INET6 if ":" in options.host else socket.AF_INET
    # Named, not defaulted: asyncio sets TCP_NODELAY only then, and without it small answers take 40 ms.
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((options.host, options.port))
        listener.listen(_BACKLOG)
    except (OSError, OverflowError) as error:
        listener.close()
        reason = getattr(error, "strerror", None) or error
        where = f"{options.host}:{options.port}"
        raise LocalServerError(f"cannot listen on {where}: {reason}; choose another --port") from error
    return listener


def url_of(host: str, port: int) -> str:
    """Return the address clients use; a wildcard host is reached by this machine's name."""
    if host in ("0.0.0.0", "::", ""):
        host = socket.gethostname()
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def uvicorn_config(parts: Parts) -> uvicorn.Config:
    """Return a configuration with uvicorn silent: people read this program's output."""
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
    """Return the faster HTTP parser if it is installed, else the one that always is."""
    try:
        from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

        return HttpToolsProtocol
    except ImportError:
        from uvicorn.protocols.http.h11_impl import H11Protocol

        return H11Protocol


def run(options: ServerOptions) -> None:
    """Serve until SIGTERM or SIGINT; prints four `export` lines once ready. Main thread only.

    Raises `LocalServerError`, whose text is one line for the user, if the server cannot start.
    """
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    with LocalServer(options) as server:
        sys.stdout.write(
            f"export LIGHTLY_SERVER_LOCATION={server.url}\n"
            f"export LIGHTLY_TOKEN={server.token}\n"
            f"export LIGHTLY_DATASET_ID={server.dataset_id}\n"
            f"export LIGHTLY_PUBLIC_TOKEN={server.public_token}\n"
        )
        sys.stdout.flush()
        stop.wait()
