"""One read-write mount that many small cases share, each in a directory of its own."""

from __future__ import annotations

import contextlib
import io
import os
import shutil
import subprocess
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import requests
from PIL import Image
from trees import REQUIRE_FUSE, MountedTree, mounted

from lightlyfs.testing import LocalServer, ServerOptions

UPLOAD_IMAGES = ("--upload", "images")
OVERWRITE = "--allow-overwrite"
DELAY_S = 2.0  # how long a new image whose name looks like a temporary waits for its real name
REPLACED = ".lightlyfs-replaced/"  # where the server keeps a sample whose bytes went to another one
TAG = "held"
CUSTOM = {"scene": "night"}


def jpeg(seed: int, side: int = 48) -> bytes:
    """A real JPEG; no other seed has its bytes or its length."""
    out = io.BytesIO()
    colour = (40 * seed % 256, 90, 200 - 30 * seed % 200)
    image = Image.new("RGB", (side + seed, side), colour)
    image.putpixel((seed, 3), (255, 255, 255))
    image.save(out, "JPEG", quality=90, comment=b"seed " + b"s" * seed)
    return out.getvalue()


def png(seed: int, side: int = 48) -> bytes:
    """A real PNG that takes more bytes than it needs to."""
    out = io.BytesIO()
    Image.new("RGB", (side + seed, side), (9, 40 * seed % 256, 90)).save(out, "PNG", compress_level=0)
    return out.getvalue()


def gif(seed: int, side: int = 16) -> bytes:
    """A real GIF."""
    out = io.BytesIO()
    Image.new("P", (side + seed, side), seed).save(out, "GIF")
    return out.getvalue()


def need_tool(program: str, package: str) -> None:
    """Skip the test where a tool is missing, or fail it where CI wants no skip."""
    if shutil.which(program) is None:
        reason = f"{program} is not installed; apt-get install {package}"
        (pytest.fail if REQUIRE_FUSE else pytest.skip)(reason)


def run_tool(*words: str | Path, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Run a program, whose exit code is for the caller to judge."""
    environ = {**os.environ, "LC_ALL": "C"}
    return subprocess.run(
        [str(word) for word in words],
        cwd=cwd,
        env=environ,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


class SharedMount:
    """A mount over a dataset whose samples are in a tag.

    What each case left is remembered, and looked at again when nothing can be on its way any more.
    """

    def __init__(self, server: LocalServer, tree: MountedTree, ids: Mapping[str, str], tag_id: str) -> None:
        self.server = server
        self.tree = tree
        self.ids = ids
        self._tag_id = tag_id
        self._cases: set[str] = set()
        self._left: dict[str, dict[str, bytes | None]] = {}

    def path(self, directory: str) -> Path:
        """The directory of a case, made where it is missing."""
        self._cases.add(directory)
        path = self.tree.mountpoint / directory
        path.mkdir(parents=True, exist_ok=True)
        return path

    def samples(self, directory: str) -> dict[str, bytes | None]:
        """What the server holds below a directory, by name; fails where a name is there twice."""
        prefix = directory + "/"
        found = [one for one in self.server.samples() if one["fileName"].startswith(prefix)]
        names = [one["fileName"][len(prefix) :] for one in found]
        assert len(set(names)) == len(names), names
        return dict(zip(names, (self.server.object_bytes(one["id"]) for one in found), strict=True))

    def count(self) -> int:
        """How many samples the server has, wherever they are."""
        return len(self.server.samples())

    def replaced(self) -> list[str]:
        """The names of the samples whose bytes went to another one."""
        return [one["fileName"] for one in self.server.samples() if one["fileName"].startswith(REPLACED)]

    def remember(self, directory: str) -> dict[str, bytes | None]:
        """Take what a case left as what has to be there at the end too."""
        self._left[directory] = self.samples(directory)
        return self._left[directory]

    def check_old(self, directory: str) -> None:
        """The samples that were there before have their ids, names, metadata and tag."""
        old = {name: i for name, i in self.ids.items() if name.startswith(directory + "/")}
        for name, sample_id in old.items():
            document: dict[str, Any] = self.server.sample(sample_id)
            assert document["fileName"] == name
            assert document["customMetaData"] == CUSTOM
        assert set(old) <= set(self.tagged())

    def tagged(self) -> list[str]:
        """The names of the samples in the tag, as the API exports them."""
        dataset = f"{self.server.url}/v1/datasets/{self.server.dataset_id}"
        url = f"{dataset}/tags/{self._tag_id}/export/basic/filenames"
        answer = requests.get(url, params={"token": self.server.token, "format": "JSON"}, timeout=10)
        return [str(name) for name in answer.json()]

    def check_nothing_came_later(self) -> None:
        """What waited for a moment after close was sent by now, and nothing of it was."""
        time.sleep(DELAY_S + 1)
        assert {directory: self.samples(directory) for directory in self._left} == self._left
        known = (REPLACED, *(f"{directory}/" for directory in self._cases))
        others = [one["fileName"] for one in self.server.samples() if not one["fileName"].startswith(known)]
        assert set(others) <= set(self.ids)


@contextlib.contextmanager
def shared_mount(directory: Path, samples: Mapping[str, bytes], *options: str) -> Iterator[SharedMount]:
    """Serve these samples, all of them in one tag, and mount them read-write."""
    root = directory / "own"
    root.mkdir()
    with LocalServer(ServerOptions(source=root, dataset_name="own")) as server:
        ids = {
            name: server.add_sample(name, data, {"customMetaData": CUSTOM}) for name, data in samples.items()
        }
        tag_id = server.add_tag(TAG, list(ids.values()))
        with mounted(server, directory / "tree", "3", *UPLOAD_IMAGES, *options) as tree:
            yield SharedMount(server, tree, ids, tag_id)
