"""The server shares no code with the client it is used to test, nor does what tests add to it."""

import ast
from pathlib import Path

import pytest

import lightlyfs.server
import lightlyfs.testing

SERVER = sorted(Path(lightlyfs.server.__file__).parent.glob("*.py"))
TESTING = sorted(Path(lightlyfs.testing.__file__).parent.glob("*.py"))


def imported(module: Path) -> set[str]:
    """Return what a module imports, `.` for its own package."""
    found = set()
    for node in ast.walk(ast.parse(module.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add("." * node.level + ("" if node.level else str(node.module)))
    return found


@pytest.mark.parametrize(("modules", "allowed"), [(SERVER, ()), (TESTING, ("lightlyfs.server",))])
def test_nothing_of_lightlyfs_is_imported_but_this_package(
    modules: list[Path], allowed: tuple[str, ...]
) -> None:
    assert modules
    for module in modules:
        names = {name for name in imported(module) if ".".join(name.split(".")[:2]) not in allowed}
        assert not any(name.split(".")[0] == "lightlyfs" or name.startswith("..") for name in names), (
            module.name
        )
