"""The composition root: builds the running parts from settings, and starts and stops them in order.

No other package builds parts. The mounts of the demo, of a test and of a user differ only in their settings.
"""

from lightlyfs.app.connections import Connections, RequestCounter, connect, quick_policy
from lightlyfs.app.dataset import Dataset, list_once, open_place, open_spool
from lightlyfs.app.exported_index import export_index, import_for_later
from lightlyfs.app.kernel_interface import fit_descriptors
from lightlyfs.app.metrics import serve_metrics, status_of
from lightlyfs.app.uploading import OwedFile, discard_owed, owed_at_the_end, owed_files
from lightlyfs.fetch.prefetcher import Announcement

__all__ = [
    "Announcement",
    "Connections",
    "Dataset",
    "OwedFile",
    "RequestCounter",
    "connect",
    "discard_owed",
    "export_index",
    "fit_descriptors",
    "import_for_later",
    "list_once",
    "open_place",
    "open_spool",
    "owed_at_the_end",
    "owed_files",
    "quick_policy",
    "serve_metrics",
    "status_of",
]
