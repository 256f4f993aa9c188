"""How long the decoders are fuzzed: a moment each, or `LIGHTLYFS_FUZZ_S` seconds shared by all tests here."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

HERE = Path(__file__).parent


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> None:
    """Run a test again, with other examples each time, until its share of the time is over."""
    total_s = float(os.environ.get("LIGHTLYFS_FUZZ_S", "0"))
    if not total_s or HERE not in pyfuncitem.path.parents:
        return
    ours = [item for item in pyfuncitem.session.items if HERE in item.path.parents]
    end = time.monotonic() + total_s / len(ours)
    arguments = {name: pyfuncitem.funcargs[name] for name in pyfuncitem._fixtureinfo.argnames}
    while time.monotonic() < end:
        pyfuncitem.obj(**arguments)
