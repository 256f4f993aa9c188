"""What `lightlyfs mount` starts in the background; not for people.

`python -m lightlyfs.cli.background DATASET MOUNTPOINT [--setting NAME=VALUE]...`
"""

from __future__ import annotations

import sys

from lightlyfs.cli import main


def _words(arguments: list[str]) -> list[str]:
    dataset, mountpoint, *rest = arguments
    words = ["mount"]
    for setting in rest[1::2]:
        name, _, value = setting.partition("=")
        words += ["-o", name] if not value else _flag(name, value)
    return [*words, "--", dataset, mountpoint]


def _flag(name: str, value: str) -> list[str]:
    from lightlyfs.settings import BY_NAME

    row = BY_NAME[name]
    if row.is_switch:
        return ["-o", f"{name}={value}"]
    return [f"{row.flag}={value}"]


if __name__ == "__main__":
    main(_words(sys.argv[1:]))
