"""An open of a name that is gone, which the kernel sends only where it still knows the name."""

from __future__ import annotations

import errno
import os
from types import SimpleNamespace
from typing import Any

import pytest

from lightlyfs.errors import NoSuchFile
from lightlyfs.fs.attributes import Ownership
from lightlyfs.fs.namespace import Part
from lightlyfs.kernel.operations import Operations


class Empty:
    """A file system without files."""

    def place_of(self, path: str) -> str:
        return path

    def open(self, path: str, flags: int) -> Any:
        raise NoSuchFile(f"no such file: {path}")


def test_the_kernel_is_made_to_look_the_name_up_again() -> None:
    """With ENOENT a program that would create the file fails, as on kernels that cannot be told of names."""
    subject = Operations(Empty(), Ownership(0, 0, 0o022, read_only=False), Part(""))  # type: ignore[arg-type]
    with pytest.raises(OSError, match=os.strerror(errno.ESTALE)):
        subject.open("/gone.jpg", SimpleNamespace(flags=os.O_WRONLY, fh=0))  # type: ignore[arg-type]
