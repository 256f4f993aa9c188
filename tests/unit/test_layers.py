"""Imports go one way, and modules and functions stay small."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest
from rooms import drawn, rooms

PACKAGE = Path(__file__).parents[2] / "lightlyfs"
MODULES = sorted(PACKAGE.rglob("*.py"))

# which layer may import which; every layer above may import the same
ALLOWED = {
    "errors": set(),
    "settings": {"name_rules", "errors", "memory"},
    "profiles": {"settings", "errors"},
    "forks": set(),
    "database": {"forks"},
    "tree": set(),
    "name_rules": set(),
    "blocks": set(),
    "locks": set(),
    "memory": set(),
    "cores": set(),
    "mountpoints": {"errors"},
    "places": {"locks", "mountpoints", "errors"},
    "api": {"forks", "errors"},
    "catalog": {"api", "forks", "database", "tree", "errors"},
    "readahead": {"blocks"},
    "cache": {"blocks", "locks", "database", "errors"},
    "fetch": {"readahead", "cache", "blocks", "api", "locks", "database", "errors"},
    "staging": {"api", "database", "tree", "name_rules", "cores", "errors"},
    "desktop": {"catalog", "api", "database", "errors"},
    "fs": {
        *("desktop", "catalog", "fetch", "cache", "readahead", "staging", "blocks", "api"),
        *("tree", "name_rules", "errors"),
    },
    "kernel": {"fs", "mountpoints", "memory", "errors"},
    "control": {"places", "errors"},
    "app": {
        *("kernel", "fs", "desktop", "catalog", "fetch", "cache", "staging", "blocks", "api"),
        *("forks", "database", "tree", "places", "locks", "cores"),
        *("settings", "name_rules", "errors"),
    },
    "cli": {
        *("app", "control", "kernel", "fs", "api", "places", "mountpoints", "settings", "errors"),
        *("blocks", "server", "testing", "profiles", "cores"),
    },
    "server": set(),
    "testing": {"server"},
    "library": {"fsspec", "control", "places", "mountpoints", "settings", "errors"},
    "fsspec": {"app", "fs", "blocks", "places", "profiles", "settings", "errors"},
    "examples": {"fsspec", "torch", "name_rules", "errors"},
    "__main__": {"cli"},
    "training": {"fsspec", "library", "name_rules", "cores", "memory", "errors"},
    "torch": {"training", "memory"},
    "__init__": {"library", "training", "api", "errors"},
}
ONLY_IMPORTER = {
    "requests": {"api/over_requests.py"},
    "urllib3": {"api/over_requests.py"},
    "pycurl": {"api/curl.py", "api/curl_exchange.py", "api/curl_loop.py"},
    "torch": {"torch.py"},
    "fuse": {"kernel/binding.py"},
    "mfusepy": {"kernel/binding.py"},
}
PURE = [
    "blocks.py",
    "catalog/entries.py",
    "catalog/freshness.py",
    "catalog/names.py",
    "tree.py",
    "name_rules.py",
    "staging/record.py",
    "readahead/within_file.py",
    "readahead/in_order.py",
    "readahead/epochs.py",
]
IMPURE_IMPORTS = {"time", "threading", "os", "socket", "sqlite3", "pathlib", "random"}
MAX_MODULE_LINES = 600
MAX_FUNCTION_LINES = 60


def layer_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported(path: Path) -> set[str]:
    """Every module a file imports, with relative imports made absolute."""
    names: set[str] = set()
    package = ["lightlyfs", *path.relative_to(PACKAGE).parts[:-1]]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*base, node.module] if node.module else base)
            names.add(module)
            names.update(f"{module}.{alias.name}" for alias in node.names)
    return names


def layers_imported(path: Path) -> set[str]:
    parts = (name.split(".") for name in imported(path) if name.startswith("lightlyfs."))
    known = {layer_of(module) for module in MODULES}
    return {part[1] for part in parts if part[1] in known}


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_a_module_imports_only_what_stands_below_it(path: Path) -> None:
    layer = layer_of(path)

    assert layers_imported(path) - {layer} <= ALLOWED[layer]


@pytest.mark.parametrize(("library", "importers"), ONLY_IMPORTER.items())
def test_a_third_party_library_has_one_importer(library: str, importers: set[str]) -> None:
    found = {
        str(path.relative_to(PACKAGE))
        for path in MODULES
        if any(name == library or name.startswith(library + ".") for name in imported(path))
    }

    assert found <= importers


@pytest.mark.parametrize("name", PURE)
def test_a_pure_module_imports_no_clock_lock_or_disk(name: str) -> None:
    assert not imported(PACKAGE / name) & IMPURE_IMPORTS


def test_errno_is_chosen_in_one_module() -> None:
    users = {str(path.relative_to(PACKAGE)) for path in MODULES if "errno" in imported(path)}

    # the others read errno of the operating system, or answer where libfuse takes nothing else
    assert users <= {
        "errors.py",
        "kernel/operations.py",
        "kernel/fuse_sessions.py",
        "mountpoints.py",
        "server/storage.py",
        "server/object_endpoint.py",
        "library.py",
        "examples/mounted.py",
        "database.py",
        "places.py",
        "staging/local_files.py",
        "staging/journal.py",
        "staging/spool.py",
        "cache/block_cache.py",
        "api/curl.py",
        "api/over_requests.py",
    }


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_modules_and_functions_stay_small(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    functions = [
        n for n in ast.walk(ast.parse(text)) if isinstance(n, (ast.FunctionDef, ast.AsyncFunctionDef))
    ]

    assert len(text.splitlines()) <= MAX_MODULE_LINES
    assert [f.name for f in functions if (f.end_lineno or 0) - f.lineno >= MAX_FUNCTION_LINES] == []


def test_nine_functions_of_ten_stay_under_thirty_lines() -> None:
    lengths = sorted(
        (node.end_lineno or 0) - node.lineno + 1
        for path in MODULES
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))
    )

    assert lengths[len(lengths) * 9 // 10] <= 30


# what is made with more parameters than this: plain values, which are read and not run, and parts that are
# still to be taken apart; the second list only shrinks
MAX_PARAMETERS = 7
VALUES = {"Settings", "ServeOptions", "MountOptions", "Record", "Request", "TransportConfig", "LightlyImages"}
LARGE_PARTS = {"Room", "Filesystem", "Samples"}


def test_a_part_is_made_of_at_most_seven_others() -> None:
    large = {
        node.name
        for path in MODULES
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.ClassDef) and parameters_of(node) > MAX_PARAMETERS
    }

    assert large - VALUES == LARGE_PARTS


def parameters_of(made: ast.ClassDef) -> int:
    """How many parameters a class is made with."""
    for node in made.body:
        if isinstance(node, ast.FunctionDef) and node.name == "__init__":
            return len(node.args.args) + len(node.args.kwonlyargs) - 1
    if not any("dataclass" in ast.unparse(one) for one in made.decorator_list):
        return 0
    fields = [node for node in made.body if isinstance(node, ast.AnnAssign)]
    return sum("init=False" not in ast.unparse(field) for field in fields)


def test_the_map_for_contributors_names_files_that_are_there_and_about_as_long() -> None:
    text = (PACKAGE.parent / ".github" / "CONTRIBUTING.md").read_text(encoding="utf-8")
    named = dict(re.findall(r"`([a-z_0-9/]+)` \((\d+)\)", text))

    assert named
    for name, lines in named.items():
        found = len((PACKAGE / f"{name}.py").read_text(encoding="utf-8").splitlines())
        assert abs(found - int(lines)) <= max(40, found // 5), name


def test_no_file_and_no_public_class_has_the_name_of_another() -> None:
    """One name, one thing: a reader who meets `Progress` knows which."""
    places: dict[str, list[str]] = {}
    for path in MODULES:
        name = str(path.relative_to(PACKAGE))
        if path.stem not in ("__init__", "__main__"):
            places.setdefault(f"{path.stem}.py", []).append(name)
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                places.setdefault(node.name, []).append(name)

    assert {name: found for name, found in places.items() if len(found) > 1} == {}


def test_the_map_of_the_rooms_is_what_the_code_imports() -> None:
    """Every room is on the map, in an order in which each imports only what comes behind it."""
    found, order = rooms(), drawn()

    assert set(order) == set(found) - {"server", "testing", "examples"}
    assert [
        (room, other)
        for room in order
        for other in found[room]
        if other in order and order.index(other) < order.index(room)
    ] == []
