"""Each example by its one command, against the server that it starts itself."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.ecosystem


def run(name: str, *words: str, home: Path) -> subprocess.CompletedProcess[str]:
    """The command, with no account and a cache of its own."""
    environ = {key: value for key, value in os.environ.items() if not key.startswith("LIGHTLY_")}
    environ |= {"XDG_CACHE_HOME": str(home), "HF_HOME": str(home), "HF_HUB_DISABLE_TELEMETRY": "1"}
    command = [sys.executable, "-m", f"lightlyfs.examples.{name}", *words]
    return subprocess.run(command, env=environ, capture_output=True, text=True, timeout=100, check=False)


@pytest.mark.parametrize("name", ["dask_stats", "ray_stats", "hf_imagefolder"])
def test_an_example_prints_its_rate_and_finds_what_one_process_does(name: str, tmp_path: Path) -> None:
    done = run(name, "--images=40", "--workers=2", "--compare", home=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "one process: mean 0.5" in done.stdout
    assert done.stdout.count("  40 files in ") == done.stdout.count(" files/s, ") == 2
    assert "the same result, " in done.stdout


def test_a_folder_is_served_and_read_in_one_process(pictures: Path, tmp_path: Path) -> None:
    done = run("dask_stats", f"--serve={pictures}", "--single", "--shuffle", home=tmp_path)
    assert "64 files" in done.stdout, done.stderr


def test_without_a_token_a_dataset_is_refused_in_one_line(tmp_path: Path) -> None:
    done = run("dask_stats", "my-dataset", home=tmp_path)
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert "LIGHTLY_TOKEN" in line


def test_a_missing_package_is_one_line(tmp_path: Path) -> None:
    hidden = "import sys; sys.modules['torch'] = None; import runpy; "
    hidden += "runpy.run_module('lightlyfs.examples.torch_dataset', run_name='__main__')"
    done = subprocess.run([sys.executable, "-c", hidden], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.strip() == "torch is not installed; install it with: pip install torch"
