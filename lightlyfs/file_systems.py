"""Which file systems other machines may write to at the same time.

No lock and no shared memory of this machine keeps those apart.
"""

from __future__ import annotations

import ctypes
import os
from pathlib import Path

# what statfs(2) calls those that may be remote; linux/magic.h and the headers of each
_REMOTE = {
    0x6969: "NFS",
    0x517B: "SMB",
    0xFF534D42: "CIFS",
    0xFE534D42: "SMB",
    0x65735546: "FUSE",
    0x01021997: "9p",
    0x0BD00BD0: "Lustre",
    0x47504653: "GPFS",
    0x19830326: "BeeGFS",
    0xAAD7AAEA: "PanFS",
    0x00C36400: "Ceph",
    0x5346414F: "AFS",
    0x6B414653: "AFS",
    0x73757245: "Coda",
    0x01161970: "GFS2",
    0x7461636F: "OCFS2",
}
_STATFS_BYTES = 256  # more than `struct statfs` has anywhere


def remote_kind(path: Path) -> str:
    """What the file system of a directory is called where other machines may use it, else ""."""
    return _REMOTE.get(type_of(path), "")


def type_of(path: Path) -> int:
    """The number of the file system's type; 0 where it cannot be told."""
    found = ctypes.create_string_buffer(_STATFS_BYTES)
    try:
        if ctypes.CDLL(None).statfs(os.fsencode(path), found) != 0:
            return 0
    except (AttributeError, OSError):
        return 0
    # the first field, a word; some types have its highest bit set
    return ctypes.c_ulong.from_buffer(found).value & 0xFFFFFFFF
