"""What a user is told where this machine does not let them mount."""

from __future__ import annotations

import os
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
