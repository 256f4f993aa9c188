"""The composition root: settings in, running parts out; the order of start and stop.

Nothing else builds parts. A mount of the demo, of a test and of a user differ in their settings only.
"""

from lightlyfs.wiring.connections import Connections, connect, quick_policy
from lightlyfs.wiring.counting import RequestCounter
from lightlyfs.wiring.index import export_index, import_for_later
from lightlyfs.wiring.kernel import fit_descriptors
from lightlyfs.wiring.metrics import serve_metrics
from lightlyfs.wiring.opening import list_once, open_place, open_spool
from lightlyfs.wiring.owed import OwedFile, discard_owed, owed_files
from lightlyfs.wiring.parts import Parts
from lightlyfs.wiring.status import status_of

__all__ = [
    "Connections",
    "OwedFile",
    "Parts",
    "RequestCounter",
    "connect",
    "discard_owed",
    "export_index",
    "fit_descriptors",
    "import_for_later",
    "list_once",
    "open_place",
    "open_spool",
    "owed_files",
    "quick_policy",
    "serve_metrics",
    "status_of",
]
