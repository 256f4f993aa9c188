"""The imports between the rooms, as the code has them, drawn as the line in `.github/CONTRIBUTING.md`.

    python tests/rooms.py

prints who imports whom, and the rooms in order: a room imports only what stands to its right.
"""

from __future__ import annotations

import ast
import re
import sys
from pathlib import Path

PACKAGE = Path(__file__).parents[1] / "lightlyfs"
MAP = PACKAGE.parent / ".github" / "CONTRIBUTING.md"


def rooms() -> dict[str, set[str]]:
    """The folders of the package, each with those that it imports from."""
    names = sorted(path.parent.name for path in PACKAGE.glob("*/__init__.py"))
    return {name: (imported_by(name) & set(names)) - {name} for name in names}


def imported_by(room: str) -> set[str]:
    """What follows `lightlyfs.` in the imports of a room; those for the type checker alone are left out."""
    found = set()
    for path in (PACKAGE / room).rglob("*.py"):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and node.module is not None:
                parts = node.module.split(".")
                if parts == ["lightlyfs"]:
                    found |= {alias.name for alias in node.names}
                elif parts[0] == "lightlyfs":
                    found.add(parts[1])
    return found


def drawn() -> list[str]:
    """The rooms in the order of the map, from its line: what stands further right stands lower."""
    line = re.search(r"^ {4}(cli, .*)$", MAP.read_text(encoding="utf-8"), re.MULTILINE)
    assert line is not None
    return re.findall(r"[a-z]+", line[1])


def main() -> None:
    """Print the table and the order."""
    found = rooms()
    width = max(map(len, found))
    lines = [f"{name:<{width}}  {', '.join(sorted(others)) or '-'}" for name, others in found.items()]
    order = drawn()
    wrong = [
        f"{room} imports {other}"
        for room, others in found.items()
        for other in others
        if room in order and other in order and order.index(other) < order.index(room)
    ]
    sys.stdout.write("\n".join([*lines, "", "in the order of the map: " + " > ".join(order)]) + "\n")
    sys.exit("\n".join(wrong) or 0)


if __name__ == "__main__":
    main()
