"""The server as one ASGI application: the routing table, counting and faults around each endpoint."""

import sys
import time
import traceback
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote

from .access import Access
from .asgi import App, Message, Receive, Router, Scope, Send, endpoint
from .control_api import ControlApi
from .datasets_api import DatasetsApi
from .fault_kinds import HungUp
from .faults import Faults
from .objects import ObjectEndpoint
from .samples_api import SamplesApi
from .stats import Stats
from .tags_api import TagsApi
from .transport import HANG_UP, Connections

DATASET = "/v1/datasets/{datasetId}"
SAMPLES = f"{DATASET}/samples"
TAGS = f"{DATASET}/tags"


@dataclass(frozen=True)
class Handlers:
    """The endpoint groups; `objects` is None where another server holds the bytes."""

    samples: SamplesApi
    datasets: DatasetsApi
    tags: TagsApi
    control: ControlApi
    objects: ObjectEndpoint | None


@dataclass(frozen=True)
class Around:
    """What every endpoint is wrapped in."""

    faults: Faults
    stats: Stats
    connections: Connections
    verbose: bool

    def endpoint(self, area: str, name: str, app: App) -> App:
        """Return `app` counted, logged if asked for, and open to faults."""

        async def counted(scope: Scope, receive: Receive, send: Send) -> None:
            answer = _Answer(send, self, name, scope)
            self.stats.begin(storage_key(scope) if area == "storage" else None)
            try:
                await self.faults.wrap_request(area, name, app)(scope, receive, answer.send)
            except HungUp:
                await answer.send({"type": HANG_UP})
            except Exception:
                # uvicorn is silent here, so a mistake of the server's own must show itself.
                traceback.print_exc(file=sys.stderr)
                raise
            finally:
                answer.finish()

        return counted


class _Answer:
    """Counts one answer on its way out, before its last byte: who has the answer finds it counted."""

    def __init__(self, send: Send, around: Around, name: str, scope: Scope) -> None:
        self._send = send
        self._around = around
        self._name = name
        self._scope = scope
        self._started = time.perf_counter()
        self._status = self._sent = 0
        self._finished = False

    async def send(self, message: Message) -> None:
        """Pass a message on, or hang up if that is the message."""
        if message["type"] == HANG_UP:
            self.finish()
            self._around.connections.abort(self._scope)
            return
        if message["type"] == "http.response.start":
            self._status = message["status"]
        else:
            self._sent += len(message.get("body", b""))
            if not message.get("more_body", False):
                self.finish()
        await self._send(message)

    def finish(self) -> None:
        """Count and log, once."""
        if self._finished:
            return
        self._finished = True
        self._around.stats.end(self._name, self._status, self._sent)
        if self._around.verbose:
            log_access(self._scope, self._status, self._sent, time.perf_counter() - self._started)


def storage_key(scope: Scope) -> str:
    """Return the object key of a storage request."""
    return unquote(scope["path_params"]["key"], errors="surrogateescape")


def log_access(scope: Scope, status: int, sent: int, took_s: float) -> None:
    """Write one line to standard error, without the query: it holds tokens and signatures."""
    query = "?..." if scope["query_string"] else ""
    path = scope["raw_path"].decode("latin-1")
    line = f"{scope['method']} {path}{query} {status} {sent} bytes {took_s * 1000:.1f} ms\n"
    sys.stderr.write(line)
    sys.stderr.flush()


def build_application(handlers: Handlers, access: Access, around: Around) -> App:
    """Return the ASGI application."""
    router = Router()
    for method, template, name, handler, check in api_table(handlers, access):
        router.add(method, template, around.endpoint("api", name, endpoint(handler, check)))
    for method, template, handler in control_table(handlers.control):
        router.add(method, template, endpoint(handler, access.with_token))
    if handlers.objects is not None:
        for method in ("GET", "HEAD", "PUT"):
            name = f"storage.{method.lower()}"
            router.add(method, "/storage/{*key}", around.endpoint("storage", name, handlers.objects))
    return router


def api_table(handlers: Handlers, access: Access) -> list[tuple[str, str, str, Any, Any]]:
    """Return method, path, endpoint name, handler and access check of every API endpoint."""
    samples, datasets, tags = handlers.samples, handlers.datasets, handlers.tags
    inside, token = access.for_dataset, access.with_token
    sample = f"{SAMPLES}/{{sampleId}}"
    export = f"{TAGS}/{{tagId}}/export/basic"
    return [
        ("POST", SAMPLES, "create", samples.create, inside),
        ("GET", sample, "get", samples.get, inside),
        ("GET", f"{sample}/readurl", "readurl", samples.read_url, inside),
        ("GET", f"{sample}/readurlRedirect", "redirect", samples.redirect, access.for_redirect),
        ("GET", f"{sample}/writeurl", "writeurl", samples.write_url, inside),
        ("GET", f"{sample}/writeurls", "writeurls", samples.write_urls, inside),
        ("GET", SAMPLES, "list", samples.list_full, inside),
        ("GET", f"{SAMPLES}/partial", "partial", samples.list_partial, inside),
        ("PUT", sample, "update", samples.update, inside),
        ("POST", f"{SAMPLES}/withWriteUrls", "withWriteUrls", samples.create_with_write_urls, inside),
        ("GET", DATASET, "dataset", datasets.get, inside),
        ("GET", "/v1/datasets", "datasets", datasets.list_all, token),
        ("GET", "/v1/datasets/query/name/{name}", "datasetByName", datasets.by_name, token),
        ("GET", f"{DATASET}/mappings", "mappings", datasets.mappings, inside),
        ("GET", f"{DATASET}/datasource", "datasource", datasets.datasource, inside),
        ("GET", TAGS, "tags", tags.list_all, inside),
        ("POST", TAGS, "createTag", tags.create, inside),
        ("POST", f"{TAGS}/initial", "createInitialTag", tags.create_initial, inside),
        ("GET", f"{TAGS}/{{tagId}}", "tag", tags.get, inside),
        ("GET", f"{export}/filenames", "tagFilenames", tags.filenames, inside),
        ("GET", f"{export}/filenamesAndReadUrls", "tagReadUrls", tags.filenames_and_read_urls, inside),
        ("GET", "/v1/quota", "quota", datasets.quota, token),
        ("GET", "/v1/versions/pip/latest", "version", datasets.version, access.anyone),
        ("GET", "/v1/versions/pip/minimum", "version", datasets.version, access.anyone),
    ]


def control_table(control: ControlApi) -> list[tuple[str, str, Any]]:
    """Return method, path and handler of the control endpoints: not counted, never faulty."""
    return [
        ("POST", "/__control__/faults", control.add_faults),
        ("GET", "/__control__/stats", control.stats),
        ("POST", "/__control__/reset", control.reset),
    ]
