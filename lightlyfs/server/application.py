"""The server as one ASGI application: storage, secrets and tables, the routes, and the middleware of each.

`assemble` is the composition root: it builds everything from the options of a server.
"""

from __future__ import annotations

import os
import re
import secrets
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from .asgi import (
    App,
    ClientConnections,
    LocalServerError,
    Receive,
    ReportedSend,
    Route,
    Router,
    Scope,
    Send,
    endpoint,
)
from .endpoints import DatasetsApi, SamplesApi, TagsApi
from .object_endpoint import ObjectEndpoint
from .request_checks import OBJECT_ID, AccessChecks, PublicTokens, UrlSigner, derive
from .serve_options import ServeOptions
from .served_dataset import DatasetFacts, ServedDataset, now_ms
from .state_tables import ComputedDataset, ComputedSamples, SampleTable, StateFile, TagTable, derived_id
from .storage import RESERVED, FolderStorage, LocalStorage, S3Storage, Storage

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


STATE_FILE = "lightly-server.sqlite"


@dataclass(frozen=True)
class ServerParts:
    """One assembled server, not yet listening."""

    app: App
    dataset: ServedDataset
    tags: TagTable
    connections: ClientConnections
    token: str = field(repr=False)
    public_token: str = field(repr=False)
    resources: ExitStack

    def close(self) -> None:
        """Close the state file and remove the temporary directory."""
        self.resources.close()


def assemble(options: ServeOptions, base_url: str, extension: Extension) -> ServerParts:
    """Build all parts and import the stored objects.

    Raises `LocalServerError` for a mistake that the user can correct.
    """
    check(options, extension.dataset)
    with ExitStack() as resources:
        directory = options.state
        if extension.dataset is not None and directory is None:
            # uploads to a computed dataset need a directory
            temporary = tempfile.TemporaryDirectory(prefix="lightly-server-")
            directory = Path(resources.enter_context(temporary))
        state = StateFile(options.state / STATE_FILE if options.state else None)
        resources.callback(state.close)
        return _assembled(options, base_url, extension, state, directory, resources)


def check(options: ServeOptions, computed: ComputedDataset | None) -> None:
    """Reject options that contradict each other or the formats of the API."""
    if (options.source is None) == (computed is None):
        raise LocalServerError("name one source: a folder or an s3:// URL")
    if state_is_served(options):
        raise LocalServerError(f"state in {options.state} would be served: keep it outside or in .lightly")
    if options.dataset_id is not None and OBJECT_ID.fullmatch(options.dataset_id) is None:
        raise LocalServerError(f"dataset id {options.dataset_id} is not 24 digits of 0-9 and a-f")
    if options.dataset_name is not None and name_from(options.dataset_name) != options.dataset_name:
        raise LocalServerError(
            f"dataset name {options.dataset_name!r}: use 3 or more letters, digits, blanks, _ and -"
        )


def state_is_served(options: ServeOptions) -> bool:
    """Return whether the state file would be imported as a sample."""
    if options.state is None or options.source is None or is_bucket(options):
        return False
    state, root = Path(os.path.realpath(options.state)), Path(os.path.realpath(options.source))
    return state.is_relative_to(root) and not state.is_relative_to(root / RESERVED)


def name_from(text: str) -> str:
    """Return `text` as a dataset name the API allows."""
    name = re.sub(r"[^a-zA-Z0-9 _-]", "-", text).lstrip(" _-")
    return name if len(name) >= 3 else f"dataset-{name}".rstrip("-")


def dataset_facts(options: ServeOptions, computed: ComputedDataset | None, state: StateFile) -> DatasetFacts:
    """Return id, name and creation time of the dataset, from the state file or else from the options."""
    if computed is not None:
        place, label = computed.place, computed.name
    elif is_bucket(options):
        place = label = str(options.source).rstrip("/")
    else:
        place = os.path.realpath(str(options.source))
        label = os.path.basename(place)
    dataset_id = state.fact("dataset_id", options.dataset_id or derived_id(os.fsencode(place)))
    if options.dataset_id not in (None, dataset_id):
        raise LocalServerError(f"{options.state} holds dataset {dataset_id}, not {options.dataset_id}")
    name = options.dataset_name or name_from(label.removeprefix("s3://"))
    return DatasetFacts(dataset_id, name, int(state.fact("created_ms", str(now_ms()))))


def is_bucket(options: ServeOptions) -> bool:
    """Return whether the source is an S3 URL."""
    return str(options.source).startswith("s3://")


def local_storage(
    options: ServeOptions,
    computed: ComputedDataset | None,
    dataset_id: str,
    signer: UrlSigner,
    directory: Path | None,
) -> tuple[LocalStorage, ComputedSamples | None]:
    """Return the storage that this server sends and receives itself, and the computed samples if any."""
    if computed is None:
        return FolderStorage(Path(str(options.source)), signer), None
    assert directory is not None
    uploads = directory / "uploads"
    uploads.mkdir(parents=True, exist_ok=True)
    samples, storage = computed.open(dataset_id, options.reported_sizes, FolderStorage(uploads, signer))
    return storage, samples


def _assembled(
    options: ServeOptions,
    base_url: str,
    extension: Extension,
    state: StateFile,
    directory: Path | None,
    resources: ExitStack,
) -> ServerParts:
    facts = dataset_facts(options, extension.dataset, state)
    secret = bytes.fromhex(state.fact("secret", secrets.token_hex(32)))
    token = options.token or state.fact("token", secrets.token_hex(24))
    signer = UrlSigner(derive(secret, "url"), base_url, options.url_lifetime_s, time.time)
    public = PublicTokens(derive(secret, "public"), facts.id, time.time)
    local: LocalStorage | None = None
    computed: ComputedSamples | None = None
    storage: Storage
    if is_bucket(options):
        storage = S3Storage(
            str(options.source), options.s3_endpoint, options.s3_public_endpoint, options.url_lifetime_s
        )
    else:
        local, computed = local_storage(options, extension.dataset, facts.id, signer, directory)
        storage = local
    rescan_s = None if is_bucket(options) else options.rescan_s  # listing a bucket is slow and costs money
    samples = SampleTable(state, facts.id, computed)
    dataset = ServedDataset(facts, samples, storage, options.reported_sizes, rescan_s)
    with state.transaction():
        dataset.import_objects()
    tags = TagTable(state, facts.id)
    tags.ensure_initial(dataset.samples.count(), now_ms())
    connections = ClientConnections(options.limits, extension.on_connect)
    handlers = Handlers(
        samples=SamplesApi(dataset, options),
        datasets=DatasetsApi(dataset, options),
        tags=TagsApi(dataset, tags, public, base_url, options.response_cap_bytes),
        objects=ObjectEndpoint(local, signer) if local else None,
    )
    middleware = Middleware(extension.wrap, connections, options.verbose)
    app = build_application(handlers, AccessChecks(token, public, facts.id), middleware, extension.routes)
    return ServerParts(app, dataset, tags, connections, token, public.mint(), resources.pop_all())
