"""The server as one ASGI application: the routing table and the middleware of each endpoint."""

import sys
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from .asgi import App, Receive, ReportedSend, Route, Router, Scope, Send, endpoint
from .client_connections import ClientConnections
from .endpoints import DatasetsApi, SamplesApi, TagsApi
from .object_endpoint import ObjectEndpoint
from .request_checks import AccessChecks
from .state_tables import ComputedDataset

DATASET = "/v1/datasets/{datasetId}"
SAMPLES = f"{DATASET}/samples"
TAGS = f"{DATASET}/tags"


@dataclass(frozen=True)
class Handlers:
    """The endpoint groups; `objects` is None if the objects are in a bucket."""

    samples: SamplesApi
    datasets: DatasetsApi
    tags: TagsApi
    objects: ObjectEndpoint | None


class Wrap(Protocol):
    """Middleware that the caller supplies."""

    def __call__(self, area: str, name: str, app: App, connections: ClientConnections) -> App:
        """Return `app` wrapped; `area` is `api` or `storage`, `name` the name of the endpoint."""
        ...


@dataclass(frozen=True)
class Extension:
    """Additions to the server that the caller supplies, as `lightlyfs.testing` does.

    `routes` require the API token and are not wrapped. `dataset` replaces the folder or bucket.
    """

    wrap: Wrap | None = None
    routes: Sequence[Route] = ()
    on_connect: Callable[[], None] | None = None
    dataset: ComputedDataset | None = None


@dataclass(frozen=True)
class Middleware:
    """The middleware of every endpoint."""

    wrap: Wrap | None
    connections: ClientConnections
    verbose: bool

    def endpoint(self, area: str, name: str, app: App) -> App:
        """Return `app` with the wrapper of the extension, tracebacks, and an access log if `verbose`."""
        if self.wrap is not None:
            app = self.wrap(area, name, app, self.connections)
        app = with_failures_printed(app)
        return with_access_log(app) if self.verbose else app


def with_failures_printed(app: App) -> App:
    """Return `app` with tracebacks on standard error, because uvicorn is configured to print none."""

    async def printed(scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await app(scope, receive, send)
        except Exception:
            traceback.print_exc(file=sys.stderr)
            raise

    return printed


def with_access_log(app: App) -> App:
    """Return `app` with one log line per request on standard error."""

    async def logged(scope: Scope, receive: Receive, send: Send) -> None:
        started = time.perf_counter()

        def log(status: int, sent: int) -> None:
            log_access(scope, status, sent, time.perf_counter() - started)

        reported = ReportedSend(send, log)
        try:
            await app(scope, receive, reported)
        finally:
            reported.finish()

    return logged


def log_access(scope: Scope, status: int, sent: int, took_s: float) -> None:
    """Write one line to standard error, without the query string, which holds tokens and signatures."""
    query = "?..." if scope["query_string"] else ""
    path = scope["raw_path"].decode("latin-1")
    line = f"{scope['method']} {path}{query} {status} {sent} bytes {took_s * 1000:.1f} ms\n"
    sys.stderr.write(line)
    sys.stderr.flush()


def build_application(
    handlers: Handlers, access: AccessChecks, middleware: Middleware, routes: Sequence[Route]
) -> App:
    """Return the ASGI application."""
    router = Router()
    for method, template, name, handler, check in api_table(handlers, access):
        router.add(method, template, middleware.endpoint("api", name, endpoint(handler, check)))
    for method, template, handler in routes:
        router.add(method, template, endpoint(handler, access.with_token))
    if handlers.objects is not None:
        for method in ("GET", "HEAD", "PUT"):
            name = f"storage.{method.lower()}"
            router.add(method, "/storage/{*key}", middleware.endpoint("storage", name, handlers.objects))
    return router


def api_table(handlers: Handlers, access: AccessChecks) -> list[tuple[str, str, str, Any, Any]]:
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
