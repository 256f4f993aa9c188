"""The documents and the command lines in them."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]
README = ROOT / "README.md"
DOCUMENTS = [README, *sorted((ROOT / "lightlyfs/docs").glob("*.md"))]
# lines of blocks that are no command of a shell, or that a test cannot run, and why
_LEFT_OUT = {
    r"export LIGHTLY_TOKEN=": "the token of a person",
    r"pipx |python3 -m venv|~/\.venvs/": "tests/contract/test_package.py builds what it installs",
    r"python -m lightlyfs\.examples": "tests/ecosystem, tests/mount/test_studio_examples.py run the examples",
    r"label-studio |export LABEL_STUDIO": "a server of many packages, not run here",
    r"(Found|File processing result:) |Open the|train: |\d+ (images|epochs) ": "what a program printed",
    r"App launched|100% |\d+ samples, tags": "what FiftyOne and its example printed",
    r"my-dataset +/mnt/images +fuse": "a line of fstab: tests/mount/test_fstab.py",
    r"make( |$)": "the tests are part of it",
}
# the examples of semantics are compared with their output by tests/mount/test_semantics.py
_OF_OTHER_TESTS = {"semantics.md", "scale.md", "troubleshooting.md"}


class Lines(NamedTuple):
    """The lines of a document to run, in blocks, and those that are left out, each with why."""

    blocks: list[list[str]]
    left_out: list[tuple[str, str]]


def lines_to_run(path: Path) -> Lines:
    """The command lines in the blocks of a document."""
    if path.name in _OF_OTHER_TESTS:
        return Lines([], [])
    blocks, left_out = [], []
    for block in command_lines(path.read_text(encoding="utf-8")):
        lines = []
        for command in block:
            reason = next((why for pattern, why in _LEFT_OUT.items() if re.match(pattern, command)), None)
            if reason is None:
                lines.append(command)
            else:
                left_out.append((command, reason))
        if lines:
            blocks.append(lines)
    return Lines(blocks, left_out)


def command_lines(text: str) -> list[list[str]]:
    """The command lines in the blocks of a text, without prompts and comments."""
    fenced = re.findall(r"^```console\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    without = re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)
    indented = re.findall(r"(?:^    \S.*\n)+", without, re.MULTILINE)
    return [
        [re.sub(r"\s+# .*$", "", line.strip().removeprefix("$ ")) for line in block.splitlines()]
        for block in [*fenced, *indented]
    ]


def python_blocks(path: Path) -> list[str]:
    """The Python in a document."""
    return re.findall(r"^```python\n(.*?)^```", path.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
