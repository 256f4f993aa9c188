"""What happens to a file once the server has it: its bytes become the cached content of a sample."""

from __future__ import annotations

import logging
import os
from pathlib import Path

from lightlyfs.catalog.catalog import Catalog
from lightlyfs.content.cache import BlockCache
from lightlyfs.content.identity import ContentId, etag_of
from lightlyfs.content.ranges import BLOCK_BYTES, block_count, block_length
from lightlyfs.content.reader import Reader
from lightlyfs.errors import LightlyFsError
from lightlyfs.fs.times import SetTimes
from lightlyfs.staging.record import Record
from lightlyfs.staging.spool import Spool

log = logging.getLogger(__name__)

# larger files are read back from the server like any other, should anybody read them
_MAX_ADOPTED_BYTES = 64 << 20
_IDENTIFY_S = 30.0


class Adoption:
    """Called in an uploader's thread for each file that is uploaded."""

    def __init__(
        self, catalog: Catalog, reader: Reader, cache: BlockCache, spool: Spool, times: SetTimes
    ) -> None:
        self._catalog = catalog
        self._reader = reader
        self._cache = cache
        self._spool = spool
        self._times = times

    def __call__(self, record: Record) -> Record:
        """Keep what is known of the upload; returns the record with its version as contents are called."""
        content = self._identify(record)
        record = record.changed(etag=content.etag)
        sample_id = content.sample_id
        if content.size == record.size:
            self._fill_cache(content, self._spool.path(record.key, record.generation))
        self._catalog.record_facts(sample_id, content.size, content.etag)
        try:
            self._times.put(sample_id, content.size, content.etag, record.mtime)
        except OSError as error:
            log.warning("the time of an uploaded file is not kept: %s", error)  # the upload stands
        return record

    def _identify(self, record: Record) -> ContentId:
        """The version storage gave it: from the answer to the PUT, else by asking."""
        assert record.sample_id is not None
        etag = etag_of({"etag": record.etag})
        if etag:
            return ContentId(record.sample_id, etag, record.size)
        future = self._reader.identify(record.sample_id, size_hint=record.size, for_reading=False)
        try:
            return future.result(_IDENTIFY_S)
        except (LightlyFsError, TimeoutError) as error:
            log.info("the version of an uploaded file is not known yet: %s", error)
            return ContentId(record.sample_id, "", record.size)

    def _fill_cache(self, content: ContentId, path: Path) -> None:
        if content.size > _MAX_ADOPTED_BYTES or not content.etag:
            return
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except OSError:
            return
        try:
            for block in range(block_count(content.size)):
                length = block_length(block, content.size)
                self._cache.write(content, block, os.pread(descriptor, length, block * BLOCK_BYTES))
        finally:
            os.close(descriptor)
            # a program writes thousands, and reads few of them again
            self._cache.let_go(content)
