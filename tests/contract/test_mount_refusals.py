"""What a user is told where this machine does not let them mount."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from lightlyfs.errors import StartError
from lightlyfs.kernel import binding
from lightlyfs.kernel.binding import MountOptions


def options(*, allow_other: bool) -> MountOptions:
    """Those of a mount of somebody who is not root."""
    return MountOptions(Path("/mnt/images"), "dataset", allow_other=allow_other)


@pytest.fixture(autouse=True)
def _not_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)


def test_a_device_that_only_root_may_open_is_told_with_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Any, *args: Any) -> int:
        raise PermissionError(13, "Permission denied", path)

    with monkeypatch.context() as patched:
        patched.setattr(os, "open", refuse)
        with pytest.raises(StartError) as refused:
            binding.check_device()
    assert str(refused.value).startswith(
        "this user may not open /dev/fuse; allow it with: sudo chmod 666 /dev/fuse"
    )


@pytest.mark.parametrize("text", [None, "", "# user_allow_other\n", "mount_max = 1000\n"])
def test_other_users_without_the_line_of_the_configuration_are_told_with_it(
    text: str | None, tmp_path: Path
) -> None:
    configuration = tmp_path / "fuse.conf"
    if text is not None:
        configuration.write_text(text)
    told = str(binding.failed_mount(options(allow_other=True), 4, configuration))
    assert told.startswith(f"--allow-other needs user_allow_other in {configuration};")


# a process without the right to mount, which it cannot gain; numbers of linux/prctl.h and linux/capability.h
WITHOUT_RIGHTS = """
import ctypes, sys
from pathlib import Path
from lightlyfs.kernel import binding
libc = ctypes.CDLL(None, use_errno=True)
PR_SET_NO_NEW_PRIVS, PR_CAPBSET_DROP, CAP_SYS_ADMIN, CAPABILITY_VERSION_3 = 38, 24, 21, 0x20080522
if sys.argv[1] == "no_new_privs":
    assert libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0
else:
    assert libc.prctl(PR_CAPBSET_DROP, CAP_SYS_ADMIN, 0, 0, 0) == 0
assert libc.capset((ctypes.c_uint32 * 2)(CAPABILITY_VERSION_3, 0), (ctypes.c_uint32 * 6)()) == 0
print(binding.failed_mount(binding.MountOptions(Path("/mnt/images"), "dataset"), 4))
"""


@pytest.mark.parametrize(
    ("without", "text"),
    [
        ("no_new_privs", "no_new_privs is set, so fusermount gets no right to mount; mount from"),
        pytest.param(
            "CAP_SYS_ADMIN",
            "this container may not mount; start it with: --cap-add SYS_ADMIN",
            marks=pytest.mark.skipif(os.getuid() != 0, reason="only root may give up a right for good"),
        ),
    ],
)
def test_who_may_not_mount_at_all_is_told_the_way_out(without: str, text: str) -> None:
    command = [sys.executable, "-c", WITHOUT_RIGHTS, without]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert text in done.stdout, done.stderr


def test_a_helper_that_is_not_set_uid_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    helper, status = tmp_path / "fusermount3", tmp_path / "status"
    helper.touch(mode=0o755)
    status.write_text("NoNewPrivs:\t0\nCapEff:\t0000000000000000\nCapBnd:\t000001ffffffffff\n")
    monkeypatch.setattr(binding, "_STATUS", status)
    monkeypatch.setenv("PATH", str(tmp_path))
    told = str(binding.failed_mount(options(allow_other=False), 4))
    assert told.startswith(f"{helper} is not set-uid root, so only root may mount; mend it with: sudo")


@pytest.mark.parametrize(("allow_other", "user"), [(False, 1000), (True, 1000), (True, 0)])
def test_other_refusals_point_to_the_line_of_libfuse(
    allow_other: bool, user: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    configuration = tmp_path / "fuse.conf"
    if user:
        configuration.write_text("# for the demo\n  user_allow_other  \n")
    monkeypatch.setattr(os, "geteuid", lambda: user)
    told = str(binding.failed_mount(options(allow_other=allow_other), 4, configuration))
    assert told == "libfuse could not mount /mnt/images (code 4); its own line is above"
