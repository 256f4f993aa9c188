"""Opens the local directories of a dataset for a mount or for a listing."""

from __future__ import annotations

import logging
import sqlite3

from lightlyfs import database, places
from lightlyfs.app.connections import Connections
from lightlyfs.app.dataset import Dataset
from lightlyfs.app.exported_index import import_index
from lightlyfs.cache.block_files import shed
from lightlyfs.errors import SettingsError
from lightlyfs.settings import Settings

log = logging.getLogger(__name__)

# the logs of five databases, and what they are told while a mount starts
_FREE_BYTES = 16 << 20


def open_spool(settings: Settings, dataset_id: str) -> places.SpoolPlace | None:
    """Open and lock the directory for a mount's pending uploads, with those of earlier mounts.

    None for a read-only mount, and where the disk takes nothing, which is logged.
    """
    if settings.read_only:
        return None
    place = None
    try:
        state = places.state_root(settings.cache_dir)
        places.remember_state_root(state)
        place = places.SpoolPlace(places.server_directory(state, settings.server), dataset_id)
        database.see_writable(place.path / "journal.db")
    except (OSError, sqlite3.OperationalError, SettingsError) as error:
        if place is not None:
            place.close()
        if isinstance(error, SettingsError) and not places.is_passing(error.__cause__):
            raise
        log.warning("this mount is read-only, for what is written cannot be kept: %s", error)
        return None
    return place


def open_place(settings: Settings, dataset_id: str) -> places.DatasetPlace:
    """Return the directory of a dataset on this machine; a private one with `--no-cache`.

    On a full disk the cache shrinks first, for databases need some room. With an index it begins with that,
    unless another process uses it, for then its names count. StartError where it is not one of this dataset.
    """
    if where := places.elsewhere(settings.cache_dir):
        log.warning("%s", where)
    root = places.server_cache(settings.cache_dir, settings.server)
    place = places.DatasetPlace(root, dataset_id, temporary=settings.no_cache)
    try:
        shed(place.path / "blocks", _FREE_BYTES)
        if settings.index is not None:
            import_index(settings.index, place, settings.tag, dataset_id)
    except BaseException:
        place.close()
        raise
    return place


def list_once(settings: Settings, connections: Connections, dataset_id: str) -> None:
    """List a dataset into this machine's catalogue; raises what the API raised."""
    with open_place(settings, dataset_id) as place:
        parts = Dataset(settings, connections, dataset_id, place)
        try:
            parts.catalog.refresher.list_now()
        finally:
            parts.close()
