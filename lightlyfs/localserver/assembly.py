"""From options to running parts: the one place that knows which storage and which secrets a server has."""

import os
import re
import secrets
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

from .access import Access
from .application import Around, Handlers, build_application
from .asgi import App
from .catalog import Catalog, derived_id
from .control_api import ControlApi
from .database import Database
from .dataset import Dataset, DatasetFacts, now_ms
from .datasets_api import DatasetsApi
from .errors import LocalServerError
from .fault_kinds import Latency
from .faults import Faults
from .folder import FolderStorage
from .generated import GeneratedSamples, GeneratedStorage
from .keys import RESERVED
from .objects import ObjectEndpoint
from .options import ServerOptions
from .params import OBJECT_ID
from .s3 import S3Storage
from .samples_api import SamplesApi
from .signing import PublicTokens, UrlSigner, derive
from .stats import Stats
from .storage import BlobStore, Storage
from .tag_store import TagStore
from .tags_api import TagsApi
from .transport import Connections

STATE_FILE = "lightly-server.sqlite"


@dataclass(frozen=True)
class Parts:
    """One assembled server, not yet listening."""

    app: App
    dataset: Dataset
    tags: TagStore
    faults: Faults
    stats: Stats
    connections: Connections
    token: str = field(repr=False)
    public_token: str = field(repr=False)
    database: Database
    scratch: tempfile.TemporaryDirectory[str] | None

    def close(self) -> None:
        """Close the state and remove what was temporary."""
        self.database.close()
        if self.scratch is not None:
            self.scratch.cleanup()


def assemble(options: ServerOptions, base_url: str) -> Parts:
    """Build all parts and import what the storage holds; `LocalServerError` is for what a person can fix."""
    check(options)
    database = Database(options.state / STATE_FILE if options.state else None)
    scratch = tempfile.TemporaryDirectory(prefix="lightly-server-") if needs_scratch(options) else None
    try:
        return _assembled(options, base_url, database, scratch)
    except BaseException:
        database.close()
        if scratch is not None:
            scratch.cleanup()
        raise


def check(options: ServerOptions) -> None:
    """Refuse options that contradict each other or the API's formats."""
    if (options.source is None) == (options.fake_samples is None):
        raise LocalServerError("name a folder or an s3:// URL, or ask for fake samples, not both")
    if state_is_served(options):
        raise LocalServerError(f"state in {options.state} would be served: keep it outside or in .lightly")
    if options.dataset_id is not None and OBJECT_ID.fullmatch(options.dataset_id) is None:
        raise LocalServerError(f"dataset id {options.dataset_id} is not 24 digits of 0-9 and a-f")
    if options.dataset_name is not None and name_from(options.dataset_name) != options.dataset_name:
        raise LocalServerError(
            f"dataset name {options.dataset_name!r}: use 3 or more letters, digits, blanks, _ and -"
        )


def state_is_served(options: ServerOptions) -> bool:
    """Say whether the state would itself be imported as a sample."""
    if options.state is None or options.source is None or is_bucket(options):
        return False
    state, root = Path(os.path.realpath(options.state)), Path(os.path.realpath(options.source))
    return state.is_relative_to(root) and not state.is_relative_to(root / RESERVED)


def needs_scratch(options: ServerOptions) -> bool:
    """Say whether uploads need a place that lasts only as long as the server."""
    return options.fake_samples is not None and options.state is None


def name_from(text: str) -> str:
    """Return `text` as a dataset name the API allows."""
    name = re.sub(r"[^a-zA-Z0-9 _-]", "-", text).lstrip(" _-")
    return name if len(name) >= 3 else f"dataset-{name}".rstrip("-")


def dataset_facts(options: ServerOptions, database: Database) -> DatasetFacts:
    """Return id, name and birth of the dataset, as the state knows them or else as options say."""
    if options.source is None:
        place, label = f"fake {options.fake_samples}", f"fake-{options.fake_samples}"
    elif is_bucket(options):
        place = label = str(options.source).rstrip("/")
    else:
        place = os.path.realpath(options.source)
        label = os.path.basename(place)
    dataset_id = database.fact("dataset_id", options.dataset_id or derived_id(os.fsencode(place)))
    if options.dataset_id not in (None, dataset_id):
        raise LocalServerError(f"{options.state} holds dataset {dataset_id}, not {options.dataset_id}")
    name = options.dataset_name or name_from(label.removeprefix("s3://"))
    return DatasetFacts(dataset_id, name, int(database.fact("created_ms", str(now_ms()))))


def is_bucket(options: ServerOptions) -> bool:
    """Say whether the source is an S3 URL."""
    return str(options.source).startswith("s3://")


def generated_samples(options: ServerOptions, dataset_id: str) -> GeneratedSamples | None:
    """Return the generated part of the dataset, if there is one."""
    if options.fake_samples is None:
        return None
    reported = {"true": options.fake_bytes, "wrong": options.fake_bytes + 1, "omitted": None}
    return GeneratedSamples(
        count=options.fake_samples,
        size=options.fake_bytes,
        per_directory=options.fake_per_directory,
        prefix=options.fake_prefix,
        dataset_id=dataset_id,
        reported_size=reported[options.reported_sizes],
    )


def local_store(
    options: ServerOptions,
    signer: UrlSigner,
    generated: GeneratedSamples | None,
    scratch: tempfile.TemporaryDirectory[str] | None,
) -> FolderStorage | GeneratedStorage:
    """Return the storage whose bytes pass through this server."""
    if generated is None:
        return FolderStorage(Path(str(options.source)), signer)
    uploads = Path(scratch.name) if scratch else options.state / "uploads"  # type: ignore[operator]
    uploads.mkdir(parents=True, exist_ok=True)
    return GeneratedStorage(generated, FolderStorage(uploads, signer))


def _assembled(
    options: ServerOptions,
    base_url: str,
    database: Database,
    scratch: tempfile.TemporaryDirectory[str] | None,
) -> Parts:
    facts = dataset_facts(options, database)
    secret = bytes.fromhex(database.fact("secret", secrets.token_hex(32)))
    token = options.token or database.fact("token", secrets.token_hex(24))
    signer = UrlSigner(derive(secret, "url"), base_url, options.url_lifetime_s, time.time)
    public = PublicTokens(derive(secret, "public"), facts.id, time.time)
    generated = generated_samples(options, facts.id)
    blobs: BlobStore | None = None
    storage: Storage
    if is_bucket(options):
        storage = S3Storage(str(options.source), options.s3_endpoint, options.url_lifetime_s)
    else:
        storage = blobs = local_store(options, signer, generated, scratch)
    rescan_s = None if is_bucket(options) else options.rescan_s  # to list a bucket takes long and costs
    catalog = Catalog(database, facts.id, generated)
    dataset = Dataset(facts, catalog, storage, options.reported_sizes, rescan_s)
    with database.transaction():
        dataset.import_objects()
    tags = TagStore(database, facts.id)
    tags.ensure_initial(dataset.catalog.count(), now_ms())
    stats = Stats()
    connections = Connections(stats.connected, options.limits)
    faults = Faults(connections)
    faults.add(*latencies(options))
    handlers = Handlers(
        samples=SamplesApi(dataset, options),
        datasets=DatasetsApi(dataset, options),
        tags=TagsApi(dataset, tags, public, base_url, options.response_cap_bytes),
        control=ControlApi(faults, stats),
        objects=ObjectEndpoint(blobs, signer) if blobs else None,
    )
    app = build_application(
        handlers, Access(token, public, facts.id), Around(faults, stats, connections, options.verbose)
    )
    return Parts(app, dataset, tags, faults, stats, connections, token, public.mint(), database, scratch)


def latencies(options: ServerOptions) -> list[Latency]:
    """Return the standing delays as faults without an end."""
    delays = (("api", options.api_latency_s), ("storage", options.storage_latency_s))
    return [Latency(target=area, delay_s=delay_s) for area, delay_s in delays if delay_s > 0]
