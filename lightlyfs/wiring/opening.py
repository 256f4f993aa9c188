"""The directories of a dataset on this machine, opened for a mount or for a listing."""

from __future__ import annotations

import logging

from lightlyfs import places
from lightlyfs.settings import Settings
from lightlyfs.wiring.connections import Connections
from lightlyfs.wiring.index import import_index
from lightlyfs.wiring.parts import Parts

log = logging.getLogger(__name__)


def open_spool(settings: Settings, dataset_id: str) -> places.SpoolPlace:
    """The directory for what a mount owes, with what earlier ones left, locked."""
    state = places.state_root(settings.cache_dir)
    places.remember_state_root(state)
    return places.SpoolPlace(places.server_directory(state, settings.server), dataset_id)


def open_place(settings: Settings, dataset_id: str) -> places.DatasetPlace:
    """The directory of a dataset on this machine; a private one with `--no-cache`.

    With an index it begins with that, unless another process uses it, for then its names count. StartError
    where it is not one of this dataset.
    """
    if where := places.elsewhere(settings.cache_dir):
        log.warning("%s", where)
    root = places.server_directory(places.cache_root(settings.cache_dir), settings.server)
    place = places.DatasetPlace(root, dataset_id, temporary=settings.no_cache)
    if settings.index is not None:
        try:
            import_index(settings.index, place, settings.tag, dataset_id)
        except BaseException:
            place.close()
            raise
    return place


def list_once(settings: Settings, connections: Connections, dataset_id: str) -> None:
    """List a dataset into this machine's catalogue; raises what the API raised."""
    with open_place(settings, dataset_id) as place:
        parts = Parts(settings, connections, dataset_id, place)
        try:
            parts.catalog.refresher.list_now()
        finally:
            parts.close()
