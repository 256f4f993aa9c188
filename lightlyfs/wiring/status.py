"""What a mount says of itself, as plain values."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from lightlyfs import places
from lightlyfs.content.budget import bytes_beside
from lightlyfs.wiring.uploads import uploads_status

if TYPE_CHECKING:
    from lightlyfs.wiring.parts import Parts


def status_of(parts: Parts) -> dict[str, Any]:
    """What `lightlyfs status` shows, as plain values."""
    refresher = parts.catalog.refresher
    record = parts.catalog.dataset()
    totals = parts.catalog.totals()
    cache = parts.cache.stats()
    reader = parts.reader.stats()
    return {
        "pid": os.getpid(),
        "dataset": {"id": parts.dataset_id, "name": record.name if record else None},
        "tag": parts.settings.tag,
        "server": parts.settings.server,
        "catalogue": {
            "complete": refresher.complete,
            "age_s": refresher.age_s(),
            "stopped": refresher.stopped,
            "error": None if refresher.error is None else str(refresher.error),
            "listed": refresher.progress.listed,
            "expected": refresher.progress.expected,
            **totals._asdict(),
            "problems": parts.problems.count(),
        },
        "problems": [problem._asdict() for problem in parts.problems.all()],
        "cache": {
            "directory": str(parts.place.path),
            "private": parts.place.temporary,
            "why_there": places.elsewhere(parts.settings.cache_dir),
            "shared": parts.place.locks.has_company(),
            "beside_bytes": bytes_beside(parts.place.path),
            **cache._asdict(),
        },
        "content": reader._asdict(),
        "prefetch": parts.prefetch_stats()._asdict(),
        "reads_by_path": parts.filesystem.reads_by_path,
        "urls": parts.url_stats(),
        "open_files": parts.filesystem.open_files,
        "requests": parts.requests.counts(),
        "read_only": parts.uploads is None,
        "upload": parts.settings.upload.text,
        "cache_dir": None if parts.settings.cache_dir is None else str(parts.settings.cache_dir),
        "uploads": uploads_status(parts.uploads),
    }
