"""Somebody new: an empty home, a clean environment, a copy of the clone, and every line of the README.

    python tests/docs/newcomer.py

installs from the package index, as the README says, and prints what the newcomer sees. The test of it takes
the dependencies from the environment that runs it. Installing comes first, and a mount is there where a line
needs one; otherwise the order is that of the text. What a command prints is compared with `EXPECTED`.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[1]))

from docs_kit import README, ROOT, command_lines, python_blocks
from shared_mount import jpeg

from lightlyfs.testing import LocalServer, ServerOptions

# what each line prints, by its beginning; the first that fits counts, and "" is nothing at all
EXPECTED = (
    ("export LIGHTLY_TOKEN=", ""),
    ("pipx install", "installed package lightlyfs 0.1.0"),
    ("python3 -m venv", ""),
    (r"~/\.venvs/lightlyfs/bin/pip install", "Successfully installed .*lightlyfs-0.1.0"),
    (r"(~/\.venvs/lightlyfs/bin/)?lightlyfs doctor", r"ok       API        http://\S+ answers, 1 dataset"),
    ("lightlyfs datasets", r"my-dataset +[0-9a-f]{24} +1 "),
    ("mkdir -p", ""),
    ("lightlyfs mount", ""),
    ("ls ~/images", "^cars$"),
    ("lightlyfs umount", ""),
    ("lightlyfs demo", r"(?s)It is a folder\n    colours  dir\n.*Unmounting it\n"),
    ("rsync -a ~/images/cars/ cars/", ""),
    ("lightlyfs cp -r new-images my-dataset/", "^1 file copied, 720 bytes in "),
    ("lightlyfs warm", r"^1 file, 721 bytes; .*\n1 file is in the cache; "),
)


class Seen(NamedTuple):
    """A line of the README, what it printed, and its exit code."""

    line: str
    printed: str
    code: int

    @property
    def as_expected(self) -> bool:
        """Whether the README may say so."""
        wanted = next((text for begin, text in EXPECTED if re.match(begin, self.line)), None)
        if wanted is None or self.code:
            return False
        return bool(re.search(wanted, self.printed, re.MULTILINE)) if wanted else not self.printed


class Newcomer:
    """A user with a clone, a token, a dataset called `my-dataset` and a folder of new images."""

    def __init__(self, place: Path, server: LocalServer, *, borrow: bool) -> None:
        self.home = place / "home"
        self.clone = place / "clone"
        (self.home / "new-images").mkdir(parents=True)
        (self.home / "new-images/b.jpg").write_bytes(jpeg(2))
        (self.home / ".local/bin").mkdir(parents=True)
        self._token = server.token
        self._borrow = borrow
        path = [str(self.home / ".local/bin"), *os.environ["PATH"].split(os.pathsep)]
        # the environment that runs this is not the newcomer's
        path = [one for one in path if not Path(one).is_relative_to(sys.prefix)]
        self.environ = {
            "HOME": str(self.home),
            "PATH": os.pathsep.join(path),
            "LANG": "C.UTF-8",
            "TMPDIR": str(place),
            "LIGHTLY_SERVER_LOCATION": server.url,
        }
        if borrow:
            self.environ |= {"PIP_NO_DEPS": "1", "PIP_NO_COMPILE": "1", "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
            self.environ["LIGHTLYFS_CACHE_MIN_FREE"] = "64M"  # whatever else fills the disk of the machine
        kept = [name for name in os.environ if name.startswith(("PIP_", "PYENV_")) or "CA_BUNDLE" in name]
        self.environ |= {name: os.environ[name] for name in [*kept, "SSL_CERT_FILE"] if name in os.environ}

    def play(self) -> Iterator[Seen]:
        """Run the README."""
        sections = re.split(r"^## ", README.read_text(encoding="utf-8"), flags=re.MULTILINE)
        sections.sort(key=lambda text: not text.startswith("Install"))
        for section in sections:
            blocks = command_lines(section)
            if blocks and blocks[0][0].startswith("pipx") and not self._has_pipx():
                # "Without pipx", the README goes on; what comes behind pipx works then, too
                blocks = [*blocks[1:], blocks[0][1:]]
            for block in blocks:
                self._prepare(block)
                for line in block:
                    yield self._type(line)

    def run_python(self, code: str) -> Seen:
        """Run a program of the README, with the Python that lightlyfs is installed in."""
        self.mount(wanted=False)
        done = self._run(f"~/.venvs/lightlyfs/bin/python - <<'END'\n{code}\nEND", self.home)
        return Seen(code, done.stdout + done.stderr, done.returncode)

    def mount(self, *, wanted: bool) -> None:
        """See to it that the dataset is mounted, or is not."""
        is_mounted = "fuse.lightlyfs" in self._run("findmnt -n -o FSTYPE ~/images", self.home).stdout
        if is_mounted != wanted:
            words = "mount my-dataset ~/images" if wanted else "umount ~/images"
            self._run(f"lightlyfs {words}", self.home)

    def _has_pipx(self) -> bool:
        return shutil.which("pipx", path=self.environ["PATH"]) is not None

    def _prepare(self, block: list[str]) -> None:
        text = "\n".join(block)
        if "lightlyfs mount" in text:
            self.mount(wanted=False)
        elif "~/images" in text:
            self.mount(wanted=True)

    def _type(self, line: str) -> Seen:
        installs = re.match(r"pipx|python3 -m venv|~/\.venvs/lightlyfs/bin/pip", line)
        if line.startswith("export LIGHTLY_TOKEN="):
            self.environ["LIGHTLY_TOKEN"] = self._token
            return Seen(line, "", 0)
        if "doctor" in line:  # which needs a token that only the next section speaks of
            self.environ["LIGHTLY_TOKEN"] = self._token
        venv = self.home / ".venvs/lightlyfs"
        if line.startswith("python3 -m venv") and self._borrow:
            return self._borrow_environment(line, venv)
        done = self._run(line, self.clone if installs else self.home)
        program = self.home / ".local/bin/lightlyfs"
        if (venv / "bin/lightlyfs").exists() and not program.exists():
            program.symlink_to(venv / "bin/lightlyfs")
        return Seen(line, done.stdout + done.stderr, done.returncode)

    def _borrow_environment(self, line: str, venv: Path) -> Seen:
        """Make the environment without a pip of its own, which takes longer than all the rest."""
        done = self._run(f"{line} --without-pip", self.home)
        (site,) = venv.glob("lib/python*/site-packages")
        (site / "borrowed.pth").write_text(sysconfig.get_path("purelib") + "\n")
        pip = venv / "bin/pip"
        pip.write_text(f'#!/bin/sh\nexec {venv}/bin/python -m pip "$@"\n')
        pip.chmod(0o755)
        return Seen(line, done.stdout + done.stderr, done.returncode)

    def _run(self, command: str, directory: Path) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["bash", "-c", command],
            cwd=directory,
            env=self.environ,
            capture_output=True,
            text=True,
            check=False,
            timeout=600,
        )


def copy_clone(target: Path) -> None:
    """What is in the clone, as it is now, without what was made there."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        check=True,
    ).stdout.decode()
    for name in filter(None, listed.split("\0")):
        if not name.startswith("tests/") and (ROOT / name).is_file():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, target / name)


def main() -> int:
    """Be the newcomer, and say what is not as expected."""
    wrong = 0
    with tempfile.TemporaryDirectory(prefix="lightlyfs-newcomer-") as directory:
        place = Path(directory)
        (place / "served/cars").mkdir(parents=True)
        (place / "served/cars/red.jpg").write_bytes(jpeg(1))
        copy_clone(place / "clone")
        with LocalServer(ServerOptions(source=place / "served", dataset_name="my-dataset")) as server:
            newcomer = Newcomer(place, server, borrow=False)
            try:
                for seen in newcomer.play():
                    wrong += not seen.as_expected
                    told = "" if seen.as_expected else f"  <- exit code {seen.code}, not as expected"
                    sys.stdout.write(f"$ {seen.line}{told}\n{seen.printed}")
                    sys.stdout.flush()
                for code in python_blocks(README):
                    seen = newcomer.run_python(code)
                    wrong += bool(seen.printed or seen.code)
                    sys.stdout.write(f">>> {code}{seen.printed}")
            finally:
                newcomer.mount(wanted=False)
    sys.stdout.write(f"{wrong} lines are not as expected\n")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
