"""The server shares no code with the client it is used to test."""

import ast
from pathlib import Path

import lightlyfs.localserver

MODULES = sorted(Path(lightlyfs.localserver.__file__).parent.glob("*.py"))


def imported(module: Path) -> set[str]:
    """Return what a module imports, `.` for its own package."""
    found = set()
    for node in ast.walk(ast.parse(module.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add("." * node.level + ("" if node.level else str(node.module)))
    return found


def test_nothing_of_lightlyfs_is_imported_but_this_package() -> None:
    assert MODULES
    for module in MODULES:
        names = imported(module)
        assert not any(name.split(".")[0] == "lightlyfs" or name.startswith("..") for name in names), (
            module.name
        )
