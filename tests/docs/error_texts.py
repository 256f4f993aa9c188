"""The error texts that the command line can print, as the source has them: `…` stands for what varies."""

from __future__ import annotations

import ast
from pathlib import Path

PACKAGE = Path(__file__).parents[2] / "lightlyfs"
_CLASSES = {"StartError", "SettingsError", "NoSuchDataset", "UsageError"}
# functions that return a text for one of these, instead of raising it
_MAKERS = {"_start_text", "_unanswered"}
# what no command of a user prints: the server for tests, and what is never shown as it is
_APART = ("testing/", "examples/")


def texts() -> dict[str, str]:
    """Each text, and the module it is in."""
    found: dict[str, str] = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        name = path.relative_to(PACKAGE).as_posix()
        if name.startswith(_APART):
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            for text in _texts_of(node):
                found.setdefault(text, name)
    return found


def _texts_of(node: ast.AST) -> list[str]:
    if isinstance(node, ast.FunctionDef) and node.name in _MAKERS:
        returned = [one.value for one in ast.walk(node) if isinstance(one, ast.Return) and one.value]
        return [text for value in returned if (text := _template(value))]
    if isinstance(node, ast.Call) and node.args and _name(node.func) in _CLASSES:
        text = _template(node.args[0])
        return [text] if text else []
    return []


def _name(node: ast.expr) -> str:
    return node.id if isinstance(node, ast.Name) else node.attr if isinstance(node, ast.Attribute) else ""


def _template(node: ast.expr) -> str:
    """A text with `…` for what varies; "" where all of it does."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if isinstance(node, ast.JoinedStr):
        parts = [str(part.value) if isinstance(part, ast.Constant) else "…" for part in node.values]
        text = "".join(parts)
        return text if text.strip("…; :()") else ""
    if isinstance(node, ast.BinOp):
        text = _template(node.left) + (_template(node.right) or "…")
        return text if text.strip("…; :()") else ""
    return ""
