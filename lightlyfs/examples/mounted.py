"""What the examples over a mount share: the mount, its pictures, and what Lightly knows of each."""

from __future__ import annotations

import argparse
import contextlib
import errno
import json
import os
import re
import signal
import sys
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import lightlyfs
from lightlyfs.errors import StartError
from lightlyfs.name_rules import IMAGE_EXTENSIONS

_CUSTOM = "user.lightly.custom_metadata"
# questions to the API at once: the custom metadata of each sample are one
_ASKED_AT_ONCE = 32


def parser(doc: str) -> argparse.ArgumentParser:
    """The arguments that all of them take; an example adds its own."""
    made = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("dataset", help="a dataset, by name or id, or DATASET/FOLDER")
    made.add_argument("--at", type=Path, help="where to mount it [~/lightly/DATASET]")
    return made


@contextlib.contextmanager
def opened(given: argparse.Namespace, *, read_only: bool = True) -> Iterator[Path]:
    """Mount the dataset for the time of the block, always in one place: tools remember absolute paths."""
    at = given.at or Path.home() / "lightly" / re.sub(r"[^\w.-]", "_", given.dataset)
    at.mkdir(parents=True, exist_ok=True)
    # as by Ctrl-C: what was mounted is unmounted
    signal.signal(signal.SIGTERM, lambda number, _frame: sys.exit(128 + number))
    try:
        with lightlyfs.mount(given.dataset, at, read_only=read_only) as mounted:
            yield mounted.path
    except KeyboardInterrupt:
        # the usual end of those that show something
        raise SystemExit(128 + signal.SIGINT) from None
    except StartError as error:
        raise SystemExit(f"it stopped: {error}") from None


def pictures(root: Path) -> list[Path]:
    """The images of a mount, in order."""
    return sorted(path for path in root.rglob("*") if path.suffix.lower()[1:] in IMAGE_EXTENSIONS)


def tags_of(root: Path) -> dict[Path, list[str]]:
    """The tags of each sample that has any."""
    found: dict[Path, list[str]] = {}
    tags = root / ".lightlyfs" / "tags"
    for tag in sorted(os.listdir(tags)):
        for directory, _, names in os.walk(tags / tag):
            for name in names:
                inside = Path(directory, name).relative_to(tags / tag)
                found.setdefault(root / inside, []).append(tag)
    return found


def custom_metadata(paths: Iterable[Path]) -> dict[Path, dict[str, Any]]:
    """The custom metadata of samples; one request each, many at once."""
    given = list(paths)
    with ThreadPoolExecutor(_ASKED_AT_ONCE) as pool:
        return dict(zip(given, pool.map(_custom_metadata_of, given), strict=True))


def add_custom_metadata(path: Path, values: dict[str, Any]) -> None:
    """Set some of a sample's custom metadata, and keep the others."""
    before = _custom_metadata_of(path)
    if before != (after := before | values):
        os.setxattr(path, _CUSTOM, json.dumps(after).encode())


def _custom_metadata_of(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(os.getxattr(path, _CUSTOM))
    except OSError as error:
        if error.errno != errno.ENODATA:
            raise
        return {}
    return found if isinstance(found, dict) else {}
