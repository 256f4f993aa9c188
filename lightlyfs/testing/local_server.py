"""A server for tests: `lightlyfs.server` with faults, counts, generated samples and direct access."""

from dataclasses import dataclass
from typing import Any

from lightlyfs.server import ApiServer, Extension, LocalServerError, ServeOptions
from lightlyfs.server.state_tables import mask_of

from .faults import Faults, Latency
from .generated import GeneratedDataset
from .instrumentation import Instruments, Stats


@dataclass(frozen=True)
class ServerOptions(ServeOptions):
    """The options of `lightlyfs.server`, a generated dataset in place of a source, and standing delays."""

    fake_samples: int | None = None
    fake_bytes: int = 100_000
    fake_per_directory: int | None = 1000
    fake_prefix: str = "fake"

    api_latency_s: float = 0.0
    storage_latency_s: float = 0.0


class LocalServer(ApiServer):
    """A Lightly API on a local port for tests. `start` and `stop` once each, or use it in `with`.

    Any thread may call any method.
    """

    def __init__(self, options: ServerOptions) -> None:
        self.stats = Stats()
        self.faults = Faults()
        self.faults.add(*latencies(options))
        instruments = Instruments(self.faults, self.stats)
        extension = Extension(
            wrap=instruments.wrap,
            routes=instruments.routes(),
            on_connect=self.stats.connected,
            dataset=generated_dataset(options),
        )
        super().__init__(options, extension)

    def stop(self) -> None:
        """End stalled requests, then stop the server."""
        self.faults.held.release()
        super().stop()

    def add_sample(
        self, file_name: str, data: bytes | None = None, meta: dict[str, Any] | None = None
    ) -> str:
        """Add a sample of any name without a request and return its id; without `data` it has no object.

        `meta` holds fields of a create request; with `data` and no `metaData`, the true size is recorded.
        """
        fields: dict[str, Any] = {"fileName": file_name, **(meta or {})}
        if data is not None and "metaData" not in fields:
            fields["metaData"] = {"sizeInBytes": len(data)}
        row = self._parts.dataset.create(fields)
        if data is not None:
            self._parts.dataset.storage.write_bytes(row.key, data)
        return row.id

    def replace_object(self, sample_id: str, data: bytes) -> None:
        """Replace the bytes of a sample without a request: its document does not change."""
        row = self._parts.dataset.samples.get(sample_id)
        if row is None:
            raise KeyError(sample_id)
        self._parts.dataset.storage.write_bytes(row.key, data)

    def add_tag(self, name: str, sample_ids: list[str]) -> str:
        """Add a tag of these samples and return its id."""
        samples = self._parts.dataset.samples
        rows = [samples.get(sample_id) for sample_id in sample_ids]
        mask = mask_of([row.seq - 1 for row in rows if row is not None], samples.count())
        tags = self._parts.tags
        return tags.add(name, mask, tags.root_id(), self._facts.created_ms)

    def remove_tag(self, tag_id: str) -> None:
        """Remove a tag, as DELETE does."""
        self._parts.tags.remove(tag_id)

    def sample(self, sample_id: str) -> dict[str, Any]:
        """Return the document of a sample; KeyError if there is none."""
        row = self._parts.dataset.samples.get(sample_id)
        if row is None:
            raise KeyError(sample_id)
        return row.document

    def samples(self) -> list[dict[str, Any]]:
        """Return all documents in order."""
        return self._parts.dataset.documents()

    def object_bytes(self, sample_id: str, thumbnail: bool = False) -> bytes | None:
        """Return the stored bytes of a sample without a request; None without an object."""
        return self._parts.dataset.object_bytes(sample_id, thumbnail)


def generated_dataset(options: ServerOptions) -> GeneratedDataset | None:
    """Return the generated dataset, if the options ask for one in place of a source."""
    if (options.source is None) == (options.fake_samples is None):
        raise LocalServerError("name a folder or an s3:// URL, or ask for fake samples, not both")
    if options.fake_samples is None:
        return None
    return GeneratedDataset(
        count=options.fake_samples,
        file_bytes=options.fake_bytes,
        per_directory=options.fake_per_directory,
        prefix=options.fake_prefix,
    )


def latencies(options: ServerOptions) -> list[Latency]:
    """Return the standing delays as faults that do not end."""
    delays = (("api", options.api_latency_s), ("storage", options.storage_latency_s))
    return [Latency(target=area, delay_s=delay_s) for area, delay_s in delays if delay_s > 0]
