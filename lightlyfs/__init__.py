"""Mount a Lightly dataset as a folder of images.

    with lightlyfs.mount("my-dataset", "/mnt/images") as mounted:
        ...

    with lightlyfs.open_cached("/mnt/images/cars/red.jpg") as file:  # past the kernel, from the local disk
        ...

    with lightlyfs.ahead(paths):  # the order in which a program is about to read them
        ...

`LightlyClient` is the typed client of the Samples API that it stands on.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lightlyfs.announcing import Announced, ahead
    from lightlyfs.api.client import LightlyClient
    from lightlyfs.library import Mounted, mount, open_cached

__all__ = ["Announced", "LightlyClient", "Mounted", "ahead", "mount", "open_cached"]

_HOMES = {
    "LightlyClient": "lightlyfs.api.client",
    "Announced": "lightlyfs.announcing",
    "Mounted": "lightlyfs.library",
    "ahead": "lightlyfs.announcing",
    "mount": "lightlyfs.library",
    "open_cached": "lightlyfs.library",
}


def __getattr__(name: str) -> Any:
    # on first use, so that a command does not import what another one needs
    if name not in _HOMES:
        raise AttributeError(f"module 'lightlyfs' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_HOMES[name]), name)
