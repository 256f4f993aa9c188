"""Mount a Lightly dataset as a folder of images.

    with lightlyfs.mount("my-dataset", "/mnt/images") as mounted:
        ...

    with lightlyfs.open_cached("/mnt/images/cars/red.jpg") as file:  # past the kernel, from the local disk
        ...

`LightlyClient` is the typed client of the Samples API that it stands on.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lightlyfs.api.client import LightlyClient
    from lightlyfs.library import Mounted, mount, open_cached

__all__ = ["LightlyClient", "Mounted", "mount", "open_cached"]

_HOMES = {
    "LightlyClient": "lightlyfs.api.client",
    "Mounted": "lightlyfs.library",
    "mount": "lightlyfs.library",
    "open_cached": "lightlyfs.library",
}


def __getattr__(name: str) -> Any:
    # on first use, so that a command does not import what another one needs
    if name not in _HOMES:
        raise AttributeError(f"module 'lightlyfs' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_HOMES[name]), name)
