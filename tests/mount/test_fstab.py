"""A line of fstab, as `mount -a` takes it at boot: in a mount namespace that leaves nothing behind."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from trees import need_fuse, wait_until

from lightlyfs.testing import LocalServer

pytestmark = pytest.mark.fuse

OPTIONS = Path(__file__).parents[2] / "lightlyfs/docs/options.md"
# what mount(8) finds in the system's own directories: a helper of this type, or a program for that of libfuse
HELPERS = ["mount.fuse.lightlyfs", "lightlyfs"]
SCRIPT = """
set -e
mount -t overlay overlay -o lowerdir="$1":/usr/sbin /usr/sbin
mount -a $4 -T "$2"
findmnt -n -o FSTYPE,OPTIONS "$3"
find "$3" -type f -exec cat {} +
umount "$3"
"""


@pytest.fixture
def fstab(own_server: LocalServer, tmp_path: Path) -> Path:
    """The documented line, for a server of the test's own."""
    need_fuse("3")
    missing = [name for name in ("unshare", "findmnt", "mount.fuse3") if shutil.which(name) is None]
    if missing or os.getuid() != 0:
        pytest.skip(f"needs root, util-linux and fuse3 for mount(8): {missing}")
    if not Path("/sbin").is_symlink():
        pytest.skip("here /sbin is a directory of its own, which the test does not lay its helper over")
    own_server.add_sample("a.bin", b"content of a")
    token = tmp_path / "token"
    token.write_text(own_server.token)
    token.chmod(0o600)
    (tmp_path / "mnt").mkdir()
    (line,) = re.findall(
        r"^    my-dataset +/mnt/images .*$", OPTIONS.read_text(encoding="utf-8"), re.MULTILINE
    )
    _, _, kind, options, *rest = line.split()
    options = options.replace("/etc/lightly.token", str(token))
    options += f",server={own_server.url},cache_dir={tmp_path / 'cache'}"
    file = tmp_path / "fstab"
    file.write_text(" ".join([own_server.dataset_name, str(tmp_path / "mnt"), kind, options, *rest]) + "\n")
    return file


def run_at_boot(helper: str, fstab: Path, *flags: str) -> subprocess.CompletedProcess[str]:
    """`mount -a` with an environment as bare as that of boot, and what the mount holds."""
    place = fstab.parent
    (place / "sbin").mkdir()
    (place / "sbin" / helper).symlink_to(Path(sys.executable).with_name(helper))
    command = [
        "unshare",
        "--mount",
        "sh",
        "-c",
        SCRIPT,
        "sh",
        str(place / "sbin"),
        str(fstab),
        str(place / "mnt"),
    ]
    environ = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "TMPDIR": str(place)}
    try:
        return subprocess.run(
            [*command, *flags], env=environ, capture_output=True, text=True, timeout=60, check=False
        )
    finally:
        end_servers(place / "mnt")


def end_servers(mountpoint: Path) -> None:
    """See that the process behind a mount ended with it; one that did not is ended."""
    words = os.fsencode(mountpoint)
    left = lambda: [  # noqa: E731
        int(path.parent.name) for path in Path("/proc").glob("[0-9]*/cmdline") if is_server(path, words)
    ]
    try:
        wait_until(lambda: not left(), 20)
    finally:
        for pid in left():
            os.kill(pid, signal.SIGKILL)


def is_server(cmdline: Path, mountpoint: bytes) -> bool:
    """Whether this is the command line of a mount in the background."""
    with contextlib.suppress(OSError):
        words = cmdline.read_bytes().split(b"\0")
        return b"lightlyfs.cli.serving" in words and mountpoint in words
    return False


@pytest.mark.parametrize("helper", HELPERS)
def test_mount_a_mounts_a_line_of_fstab(helper: str, fstab: Path) -> None:
    done = run_at_boot(helper, fstab)
    assert done.returncode == 0, done.stderr
    kind, options, content = re.split(r"\s+", done.stdout, maxsplit=2)
    assert kind == "fuse.lightlyfs"
    assert {"ro", "allow_other"} <= set(options.split(","))
    assert content == "content of a"


def test_the_flags_of_mount_8_reach_no_option_of_ours(fstab: Path) -> None:
    """`mount -v` hands its flag on to the helper."""
    done = run_at_boot("mount.fuse.lightlyfs", fstab, "-v")
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("content of a")


def test_a_line_that_cannot_be_mounted_fails_in_one_line(own_server: LocalServer, fstab: Path) -> None:
    fstab.write_text(fstab.read_text().replace(own_server.dataset_name, "no-such-dataset"))
    done = run_at_boot("mount.fuse.lightlyfs", fstab)
    assert done.returncode != 0
    assert "no dataset of name 'no-such-dataset'" in done.stderr
