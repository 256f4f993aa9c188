"""Mount a Lightly dataset as a folder of images.

    with lightlyfs.mount("my-dataset", "/mnt/images") as mounted:
        ...

    with lightlyfs.open_cached("/mnt/images/cars/red.jpg") as file:  # past the kernel, from the local disk
        ...

    with lightlyfs.ahead(paths):  # the order in which a program is about to read them
        ...

    for batch in lightlyfs.batches(paths, 64):  # lists of paths and bytes, fetched ahead
        ...

`LightlyClient` is the typed client of the Samples API that it stands on. What fails raises a subclass of
`LightlyFsError`: `StartError`, or `SettingsError` for a wrong argument.
"""

from __future__ import annotations

from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lightlyfs.api.client import LightlyClient
    from lightlyfs.errors import LightlyFsError, SettingsError, StartError
    from lightlyfs.library import Announced, Mounted, MountSettings, ahead, mount, open_cached
    from lightlyfs.training.reading import batches

    __version__: str

_HOMES = {
    "Announced": "lightlyfs.library",
    "LightlyClient": "lightlyfs.api.client",
    "LightlyFsError": "lightlyfs.errors",
    "MountSettings": "lightlyfs.library",
    "Mounted": "lightlyfs.library",
    "SettingsError": "lightlyfs.errors",
    "StartError": "lightlyfs.errors",
    "ahead": "lightlyfs.library",
    "batches": "lightlyfs.training.reading",
    "mount": "lightlyfs.library",
    "open_cached": "lightlyfs.library",
}

__all__ = [
    "Announced",
    "LightlyClient",
    "LightlyFsError",
    "MountSettings",
    "Mounted",
    "SettingsError",
    "StartError",
    "__version__",
    "ahead",
    "batches",
    "mount",
    "open_cached",
]


def __getattr__(name: str) -> Any:
    # on first use, so that a command does not import what another one needs
    if name == "__version__":
        from importlib.metadata import version

        return version("lightlyfs")
    if name not in _HOMES:
        raise AttributeError(f"module 'lightlyfs' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    imported = [name for name, value in globals().items() if isinstance(value, ModuleType)]
    return sorted({*__all__, *imported})
