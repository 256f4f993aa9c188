"""What differs between x86_64 and aarch64 is right on both; here the tests run on one of them."""

from __future__ import annotations

import importlib.util
import os
import re
import struct
from pathlib import Path
from typing import Any

import pytest
from trees import need_fuse

from lightlyfs.fs.attributes import Attr, Ownership
from lightlyfs.kernel import callers
from lightlyfs.kernel.binding import Packer

pytestmark = pytest.mark.fuse

# `struct stat` of each machine: size, and what is where (asm/stat.h, asm-generic/stat.h)
STAT = {
    "x86_64": (144, {"ino": "8Q", "nlink": "16Q", "mode": "24I", "uid": "28I", "gid": "32I", "size": "48q"}),
    "aarch64": (128, {"ino": "8Q", "mode": "16I", "nlink": "20I", "uid": "24I", "gid": "28I", "size": "48q"}),
}
MTIME = {"x86_64": 88, "aarch64": 88}
HEADERS = {
    "x86_64": Path("/usr/include/x86_64-linux-gnu/asm/unistd_64.h"),
    "aarch64": Path("/usr/include/asm-generic/unistd.h"),
}


def binding_for(machine: str, module: str, soname: str, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A binding of libfuse, imported once more as on a machine of that kind."""
    found = importlib.util.find_spec(module)
    assert found is not None
    assert found.origin is not None
    monkeypatch.setattr("platform.machine", lambda: machine)
    monkeypatch.setenv("FUSE_LIBRARY_PATH", soname)
    spec = importlib.util.spec_from_file_location(f"{module}_{machine}", found.origin)
    assert spec is not None
    assert spec.loader is not None
    made = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(made)
    return made


@pytest.mark.parametrize(("module", "version"), [("mfusepy", "3"), ("fuse", "2")])
@pytest.mark.parametrize("machine", STAT)
def test_attributes_are_packed_as_the_kernel_of_the_machine_has_them(
    module: str, version: str, machine: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    library = need_fuse(version)
    stat_type = binding_for(machine, module, library.soname, monkeypatch).c_stat
    size, fields = STAT[machine]
    packer = Packer(stat_type, Ownership(uid=1001, gid=1002, umask=0o022))
    packed = packer.pack(Attr(77, False, 12_345, 1_700_000_000))
    # fusepy leaves out the reserved words at the end
    assert len(packed) == size if module == "mfusepy" else MTIME[machine] + 32 <= len(packed) <= size
    values = {}
    for name, place in fields.items():
        at, code = re.fullmatch(r"(\d+)(\w)", place).groups()  # type: ignore[union-attr]
        (values[name],) = struct.unpack_from(f"={code}", packed, int(at))
    assert values == {"ino": 77, "nlink": 1, "mode": 0o100644, "uid": 1001, "gid": 1002, "size": 12_345}
    assert struct.unpack_from("=q", packed, MTIME[machine]) == (1_700_000_000,)


@pytest.mark.parametrize("machine", HEADERS)
def test_calls_that_remove_and_rename_have_the_numbers_of_the_headers(machine: str) -> None:
    if not HEADERS[machine].exists():
        pytest.skip(f"{HEADERS[machine]} is not installed (linux-libc-dev)")
    numbers = dict(re.findall(r"^#define __NR_(\w+) (\d+)$", HEADERS[machine].read_text(), re.MULTILINE))
    for known, names in (
        (callers._UNLINKS, ("unlink", "unlinkat")),
        (callers._RENAMES, ("rename", "renameat", "renameat2")),
    ):
        assert set(known[machine]) == {int(numbers[name]) for name in names if name in numbers}


@pytest.mark.parametrize(
    ("shown", "machine", "unlinks"),
    [("87 0x1", "x86_64", True), ("35 0x1", "aarch64", True), ("276 0x1", "aarch64", False),
     ("87 0x1", "aarch64", None), ("running", "aarch64", None)],
)  # fmt: skip
def test_a_call_is_known_by_the_number_it_has_on_the_machine(
    shown: str, machine: str, unlinks: bool | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("platform.machine", lambda: machine)
    monkeypatch.setattr(Path, "read_text", lambda _path: shown)
    assert callers.is_unlinking(os.getpid()) is unlinks
