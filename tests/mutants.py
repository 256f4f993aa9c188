"""Change the code of the intricate rooms in small ways, and see whether the tests notice.

    python tests/mutants.py [COUNT] [ROOM...]

tries COUNT changes of each room, taken at random from all that Cosmic Ray knows, in a copy of the project,
and prints a table and the changes that no test noticed. COUNT is 40; 0 stands for all, which takes a night.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
# by room, the tests that know it; quick ones, for each change runs them
TESTS = {
    "catalog": [
        "tests/unit/catalog",
        "tests/contract/test_catalog_threads.py",
        "tests/unit/cache/test_sharing.py",
    ],
    "staging": ["tests/unit/staging", "tests/contract/test_journal_threads.py"],
    "fetch": ["tests/unit/fetch", "tests/contract/test_content_threads.py"],
    "cache": ["tests/unit/cache", "tests/unit/fetch/test_reader.py"],
}
# of all tests of a room; one that goes round for ever counts as noticed
LIMIT_S = 300.0
WANTED = 0.85


def main(count: int, rooms: list[str]) -> int:
    """Print the table; 1 where a room has fewer noticed changes than wanted."""
    rows = []
    for room in rooms:
        with tempfile.TemporaryDirectory() as place:
            copy = Path(place) / "project"
            shutil.copytree(ROOT, copy, ignore=shutil.ignore_patterns(".git", ".venv", "build", ".*_cache"))
            begin(copy, room, count)
            noticed, survivors = 0, []
            for killed, text in outcomes(copy):
                noticed += killed
                if not killed:
                    survivors.append(text)
        rows.append((room, noticed, noticed + len(survivors)))
        print(f"{room}: {noticed} of {noticed + len(survivors)} noticed", flush=True)
        for text in survivors:
            print(f"\n{text}\n", flush=True)
    print("\n| room | changes | noticed | |\n| --- | --- | --- | --- |")
    for room, noticed, total in rows:
        print(f"| {room} | {total} | {noticed} | {noticed / max(1, total):.0%} |")
    return int(any(noticed < total * WANTED for _, noticed, total in rows))


def begin(copy: Path, room: str, count: int) -> None:
    """List the changes of a room in a session, some of them at random."""
    command = " ".join([sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *TESTS[room]])
    (copy / "session.toml").write_text(
        "[cosmic-ray]\n"
        f'module-path = "lightlyfs/{room}"\n'
        f"timeout = {LIMIT_S}\n"
        "excluded-modules = []\n"
        f"test-command = {json.dumps(command)}\n"
        '[cosmic-ray.distributor]\nname = "local"\n'
    )
    cosmic_ray(copy, "init", "session.toml", "session.sqlite")
    with sqlite3.connect(copy / "session.sqlite") as db:
        # annotations are not evaluated, and `|` stands for little else
        query = "SELECT job_id FROM mutation_specs WHERE operator_name NOT LIKE '%BitOr%' ORDER BY job_id"
        jobs = [job for (job,) in db.execute(query)]
        kept = random.Random(room).sample(jobs, min(count or len(jobs), len(jobs)))
        for table in ("mutation_specs", "work_items"):
            marks = ",".join("?" * len(kept))
            db.execute(f"DELETE FROM {table} WHERE job_id NOT IN ({marks})", kept)
    cosmic_ray(copy, "exec", "session.toml", "session.sqlite")


def cosmic_ray(copy: Path, *words: str) -> str:
    """Run a command of Cosmic Ray in the copy, whose code is the one that is imported; what it prints."""
    command = Path(sys.executable).with_name("cosmic-ray")
    environ = {**os.environ, "PYTHONPATH": str(copy)}
    done = subprocess.run(
        [command, *words], cwd=copy, env=environ, check=True, capture_output=True, text=True
    )
    return done.stdout


def outcomes(copy: Path) -> Iterator[tuple[bool, str]]:
    """Whether each change was noticed, and the change."""
    for line in cosmic_ray(copy, "dump", "session.sqlite").splitlines():
        _, result = json.loads(line)
        if result is not None:
            yield result["test_outcome"] != "survived", str(result["diff"])


if __name__ == "__main__":
    arguments = sys.argv[1:]
    number = int(arguments.pop(0)) if arguments and arguments[0].isdigit() else 40
    sys.exit(main(number, arguments or list(TESTS)))
