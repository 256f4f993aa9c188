"""The trips of every day enter no more of our modules than the table allows; `make house` prints them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import house


def test_no_trip_enters_more_modules_than_it_may() -> None:
    """In a process of its own, which no other test has warmed up or left threads in."""
    environ = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    words = [sys.executable, str(Path(house.__file__)), "--json"]
    done = subprocess.run(words, env=environ, capture_output=True, text=True, timeout=100, check=True)
    entered = {name: modules for name, (_, modules) in json.loads(done.stdout).items()}
    assert entered.keys() == house.MOST_MODULES.keys()
    assert {name: n for name, n in entered.items() if n > house.MOST_MODULES[name]} == {}
