"""Change the code of the intricate rooms in small ways, and see whether the tests notice.

    python tests/mutants.py [COUNT] [ROOM...] [--skip N] [--jobs N]

tries COUNT changes of each room, taken at random from all that Cosmic Ray knows, in copies of the project,
and prints the changes that no test noticed and a table. COUNT is 60; 0 stands for all, which takes a night.
The order of the changes depends on their text alone, so a sample stays the same until its lines change;
`--skip 60` takes the sample after the first 60. Changes of annotations are left out, for they are not
evaluated, and so is what is no longer Python. `mutants_explained.txt` lists changes that no caller can
observe, with the reason. A row of it that stands for no change any more is named, and makes the run fail.
"""

from __future__ import annotations

import argparse
import ast
import difflib
import hashlib
import itertools
import os
import queue
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]
EXPLAINED = Path(__file__).with_name("mutants_explained.txt")
# by room, the tests that know it; quick ones, for each change runs them
TESTS = {
    "catalog": [
        "tests/unit/catalog",
        "tests/contract/test_catalog_threads.py",
        "tests/unit/cache/test_sharing.py",
    ],
    "staging": [
        "tests/unit/staging",
        "tests/unit/fs",
        "tests/contract/test_journal_threads.py",
        "tests/contract/test_pictures.py",
    ],
    "fetch": [
        "tests/unit/fetch",
        "tests/contract/test_content_threads.py",
        "tests/contract/test_announcements.py",
    ],
    "cache": ["tests/unit/cache", "tests/contract/test_fetch_once.py", "tests/unit/fetch/test_reader.py"],
}
# those of them that take seconds
LEFT_OUT = [
    "tests/unit/fetch/test_url_store.py::test_a_full_disk_costs_memory_only_up_to_a_bound",
    "tests/unit/fetch/test_prefetcher.py::test_workers_that_take_batches_in_turn_find_most_there",
    "tests/unit/catalog/test_catalog_freshness.py::test_a_large_dataset_in_use_is_compared_once_an_hour",
    "tests/unit/catalog/test_odd_names.py::test_all_odd_names_at_once_are_listed_beside_good_ones",
    "tests/unit/catalog/test_odd_names.py::test_a_path_of_any_name_can_be_opened_and_costs_little",
    "tests/unit/staging/test_image_facts.py::test_an_image_as_large_as_any_that_is_decoded_costs_nobody_else",
    "tests/unit/staging/test_uploader.py::test_one_success_brings_back_all_that_waited_for_the_server",
]
# the same examples for each change; a failing one need not be made small
HYPOTHESIS = """
import hypothesis
hypothesis.settings.register_profile(
    "mutants", derandomize=True, database=None, deadline=None, max_examples=30,
    phases=[hypothesis.Phase.explicit, hypothesis.Phase.generate],
)
hypothesis.settings.load_profile("mutants")
"""
# a change whose tests take this many times as long as without it does not end, and counts as noticed
PATIENCE = 3.0
TIMED_OUT = -1000  # no code that a process ends with
WANTED = 0.85

_BARE_STAR = re.compile(r"\*\s*,")

Span = tuple[tuple[int, int], tuple[int, int]]


class Place(NamedTuple):
    """Where an operator of Cosmic Ray applies: its occurrence in a file, and the line there, stripped."""

    path: str
    operator: str
    occurrence: int
    line: str
    column: int
    choice: int

    def order(self) -> bytes:
        """Sort by what does not depend on other lines of the file, and yet is random."""
        words = [Path(self.path).name, self.operator, self.line, str(self.column), str(self.choice)]
        return hashlib.sha1("\n".join(words).encode()).digest()


class Mutant(NamedTuple):
    """One change: the lines that go and come, and the text of the whole file after it."""

    path: str
    line: int
    old: str
    new: str
    text: str


class Row(NamedTuple):
    """What became of the changes of a room."""

    room: str
    noticed: int
    survived: int
    explained: int


def main(count: int, rooms: list[str], skip: int, jobs: int) -> int:
    """Print the table; 1 where a room has fewer noticed changes than wanted, or an explanation is stale."""
    gone = [f"no {name} has this line any more: {line}" for name, line in stale()]
    gone += [f"no change of {name} gives this line: {line}" for room in rooms for name, line in unmade(room)]
    for text in gone:
        print(f"{EXPLAINED.name}: {text}", flush=True)
    rows = [try_room(room, count, skip, jobs) for room in rooms]
    print("\n| room | changes | cannot be observed | noticed | |\n| --- | --- | --- | --- | --- |")
    for room, noticed, survived, explained in rows:
        tried = noticed + survived
        print(f"| {room} | {tried + explained} | {explained} | {noticed} | {noticed / max(1, tried):.0%} |")
    few = any(row.noticed < (row.noticed + row.survived) * WANTED for row in rows)
    return int(few or bool(gone))


def try_room(room: str, count: int, skip: int, jobs: int) -> Row:
    """Run the tests of a room for each change of a sample; print those that no test noticed."""
    ordered = sorted(places(room), key=Place.order)
    changes = (it for it in map(mutate, ordered) if it is not None and runs(it))
    sample = list(itertools.islice(changes, skip, skip + count if count else None))
    why = explanations()
    tried = [it for it in sample if not explained(it, why)]
    noticed = survived = 0
    with tempfile.TemporaryDirectory() as place, ThreadPoolExecutor(jobs) as pool:
        copies: queue.SimpleQueue[Path] = queue.SimpleQueue()
        for number in range(jobs):
            copies.put(copy_project(Path(place) / str(number)))
        took = unchanged(room, copies)

        def survives(mutant: Mutant) -> bool:
            copy = copies.get()
            try:
                (copy / mutant.path).write_text(mutant.text)
                code = run_tests(room, copy, took * PATIENCE + 20)
                if code == TIMED_OUT:
                    print(f"\n{mutant.path}:{mutant.line} does not end:\n+ {mutant.new}", flush=True)
                return code == 0
            finally:
                shutil.copy(ROOT / mutant.path, copy / mutant.path)
                copies.put(copy)

        for mutant, alive in zip(tried, pool.map(survives, tried), strict=True):
            noticed += not alive
            survived += alive
            print(f"{room}: {noticed} of {noticed + survived} noticed", file=sys.stderr, end="\r", flush=True)
            if alive:
                print(f"\n{mutant.path}:{mutant.line}\n- {mutant.old}\n+ {mutant.new}", flush=True)
    print(f"\n{room}: {noticed} of {len(tried)} noticed", flush=True)
    return Row(room, noticed, survived, len(sample) - len(tried))


def copy_project(copy: Path) -> Path:
    """Copy what the tests need, with the profile of Hypothesis for them."""
    ignored = shutil.ignore_patterns(".git", ".venv", "build", ".*_cache", "__pycache__")
    shutil.copytree(ROOT, copy, ignore=ignored)
    with (copy / "tests/conftest.py").open("a") as conftest:
        conftest.write(HYPOTHESIS)
    return copy


def unchanged(room: str, copies: queue.SimpleQueue[Path]) -> float:
    """Return the seconds that the tests take without a change; they must pass, or all count as noticed."""
    copy = copies.get()
    began = time.monotonic()
    if run_tests(room, copy, 600) != 0:
        sys.exit(f"the tests of {room} fail without any change")
    copies.put(copy)
    return time.monotonic() - began


def run_tests(room: str, copy: Path, limit_s: float) -> int:
    """Run the tests of a room on a copy, and end all their processes; 0 where all pass, or TIMED_OUT."""
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *TESTS[room]]
    command += [word for test in LEFT_OUT for word in ("--deselect", test)]
    environ = {**os.environ, "PYTHONPATH": str(copy), "PYTHONDONTWRITEBYTECODE": "1"}
    tests = subprocess.Popen(
        command,
        cwd=copy,
        env=environ,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    try:
        return tests.wait(limit_s)
    except subprocess.TimeoutExpired:
        return TIMED_OUT
    finally:
        try:
            os.killpg(tests.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        tests.wait()


def places(room: str) -> Iterator[Place]:
    """Every change of a room that Cosmic Ray knows, but those of annotations."""
    from cosmic_ray.ast import ast_nodes, get_ast
    from cosmic_ray.plugins import get_operator, operator_names

    operators = {name: get_operator(name) for name in operator_names()}
    for file in sorted((ROOT / "lightlyfs" / room).glob("*.py")):
        source = file.read_text()
        nodes, spans, lines = list(ast_nodes(get_ast(source))), annotations(source), source.split("\n")
        for name, operator in operators.items():
            if operator.arguments():
                continue
            starts = [start for node in nodes for start, _ in operator().mutation_positions(node)]
            for occurrence, (row, column) in enumerate(starts):
                line = lines[row - 1]
                if _BARE_STAR.match(line, column):
                    continue  # before parameters that are given by name: `/` only allows more
                if not any(first <= (row, column) < last for first, last in spans):
                    indent = len(line) - len(line.lstrip())
                    choice = starts[:occurrence].count((row, column))
                    path = str(file.relative_to(ROOT))
                    yield Place(path, name, occurrence, line.strip(), column - indent, choice)


def mutate(place: Place) -> Mutant | None:
    """Make the change; None where Cosmic Ray cannot, as with `except` of a name with a dot."""
    from cosmic_ray.mutating import mutate_code
    from cosmic_ray.plugins import get_operator

    source = (ROOT / place.path).read_text()
    try:
        text = mutate_code(source, get_operator(place.operator)(), place.occurrence)
    except AttributeError:
        return None
    return None if text is None else Mutant(place.path, *difference(source, text), text)


def runs(mutant: Mutant) -> bool:
    """Whether the change is Python at all; `+` for the `*` before parameters is not."""
    try:
        ast.parse(mutant.text)
    except SyntaxError:
        return False
    return True


def annotations(source: str) -> list[Span]:
    """Where the annotations stand, which `from __future__ import annotations` leaves unevaluated."""
    found: list[ast.expr | None] = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.AnnAssign | ast.arg):
            found.append(node.annotation)
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            found.append(node.returns)
    return [
        ((it.lineno, it.col_offset), (it.end_lineno or it.lineno, it.end_col_offset or 0))
        for it in found
        if it is not None
    ]


def difference(source: str, text: str) -> tuple[int, str, str]:
    """The number of the first line that differs, and the lines that go and come, without indentation."""
    before, after = source.split("\n"), text.split("\n")
    changes = difflib.SequenceMatcher(None, before, after, autojunk=False).get_opcodes()
    changes = [it for it in changes if it[0] != "equal"]
    old = " ".join(line.strip() for _, first, last, _, _ in changes for line in before[first:last])
    new = " ".join(line.strip() for _, _, _, first, last in changes for line in after[first:last])
    return changes[0][1] + 1, old, new


def explanations() -> list[tuple[str, str, list[str]]]:
    """The rows of explained changes: file name, line before, lines after (none stands for any)."""
    rows: list[tuple[str, str, list[str]]] = []
    for line in EXPLAINED.read_text().splitlines() if EXPLAINED.exists() else []:
        if line.startswith("- "):
            rows[-1] = (rows[-1][0], line[2:], [])
        elif line.startswith("+ "):
            rows[-1][2].append(line[2:])
        elif line and not line.startswith("#"):
            rows.append((line, "", []))
    return rows


def explained(mutant: Mutant, rows: list[tuple[str, str, list[str]]]) -> bool:
    """Whether a row says why nobody can notice a change."""
    name = Path(mutant.path).name
    return any(
        name == file and mutant.old == old and mutant.new in (new or [mutant.new]) for file, old, new in rows
    )


def stale() -> list[tuple[str, str]]:
    """The explained lines that are in no file of that name."""
    lines: dict[str, set[str]] = {}
    for file in (ROOT / "lightlyfs").rglob("*.py"):
        lines.setdefault(file.name, set()).update(map(str.strip, file.read_text().splitlines()))
    return [(name, old) for name, old, _ in explanations() if old not in lines.get(name, ())]


def unmade(room: str) -> list[tuple[str, str]]:
    """The explained changes of lines of a room that Cosmic Ray does not make."""
    here = {file.name for file in (ROOT / "lightlyfs" / room).glob("*.py")}
    rows = [row for row in explanations() if row[0] in here]
    lines = {(name, old) for name, old, _ in rows}
    found = (mutate(it) for it in places(room) if (Path(it.path).name, it.line) in lines)
    made = {(Path(it.path).name, it.old, it.new) for it in found if it is not None}
    return [(name, new) for name, old, news in rows for new in news if (name, old, new) not in made]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("count", nargs="?", type=int, default=60)
    parser.add_argument("rooms", nargs="*", default=list(TESTS))
    parser.add_argument("--skip", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=2)
    given = parser.parse_args()
    sys.exit(main(given.count, given.rooms, given.skip, given.jobs))
