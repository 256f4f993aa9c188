"""What is built for installation: its licence, its size, and that it works on wheels alone."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import tomllib
import zipfile
from email.parser import Parser
from pathlib import Path

import pytest

from lightlyfs.errors import StartError
from lightlyfs.kernel import binding

ROOT = Path(__file__).parents[2]
MAX_WHEEL_BYTES = 1_000_000


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    """The wheel, built from a copy: a build leaves files where it works."""
    place = tmp_path_factory.mktemp("wheel")
    shutil.copytree(ROOT / "lightlyfs", place / "lightlyfs", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, place)
    done = subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "-w", str(place), str(place)],
        capture_output=True,
        text=True,
        check=False,
    )
    if "No matching distribution found for setuptools" in done.stderr:
        pytest.skip("setuptools cannot be fetched to build with")
    assert done.returncode == 0, done.stderr
    (built,) = place.glob("*.whl")
    return zipfile.ZipFile(built)


def test_the_wheel_is_small_and_holds_no_test_equipment(wheel: zipfile.ZipFile) -> None:
    names = wheel.namelist()
    assert Path(str(wheel.filename)).stat().st_size < MAX_WHEEL_BYTES
    assert [name for name in names if "test" in name.partition("/")[2].split("/")[0]] == []
    assert {name.partition("/")[0] for name in names} == {"lightlyfs", "lightlyfs-0.1.0.dist-info"}
    data = {path.relative_to(ROOT).as_posix() for path in (ROOT / "lightlyfs").rglob("*.md")}
    assert data | {"lightlyfs/py.typed", "lightlyfs/deploy/kubernetes.yaml"} <= set(names)


def test_the_wheel_tells_its_licence(wheel: zipfile.ZipFile) -> None:
    told = Parser().parsestr(wheel.read("lightlyfs-0.1.0.dist-info/METADATA").decode())
    assert told["License-Expression"] == "MIT"
    assert told["License-File"] == "LICENSE"
    assert told["Author"] == "lightlyfs contributors"
    assert "Typing :: Typed" in told.get_all("Classifier", [])
    assert b"MIT License" in wheel.read("lightlyfs-0.1.0.dist-info/licenses/LICENSE")


def test_no_address_is_named_that_does_not_exist_yet() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert "urls" not in project


@pytest.mark.parametrize(("major", "package"), [(2, "fusepy"), (3, "mfusepy")])
def test_a_missing_binding_is_named_with_the_command_that_installs_it(
    monkeypatch: pytest.MonkeyPatch, major: int, package: str
) -> None:
    monkeypatch.setitem(sys.modules, "fuse", None)
    monkeypatch.setitem(sys.modules, "mfusepy", None)
    load = binding.load_fusepy if major == 2 else binding.load_mfusepy
    with pytest.raises(StartError, match=rf"needs {package}; install it with: pip install {package}$"):
        load(binding.Library(f"libfuse{major}.so", (major, 9)))


def test_libfuse_3_needs_no_fusepy() -> None:
    """Where only wheels may be installed there is none of fusepy."""
    code = "import sys; sys.modules['fuse'] = None\nimport lightlyfs.cli.serving, lightlyfs.cli.mount\n"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


def test_what_is_in_the_wheel_works_by_itself(wheel: zipfile.ZipFile, tmp_path: Path) -> None:
    """What needs test equipment says where that is; tests/docs/test_newcomer.py runs the demo without any."""
    wheel.extractall(tmp_path / "site")
    environ = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(tmp_path / "site"), sysconfig.get_path("purelib")]),
        "HOME": str(tmp_path),
        "TMPDIR": str(tmp_path),
    }

    def run(*words: str) -> subprocess.CompletedProcess[str]:
        # without `site` the clone, which is installed here to be edited, does not lend what the wheel lacks
        command = [sys.executable, "-S", "-m", "lightlyfs", *words]
        return subprocess.run(
            command, cwd=tmp_path, env=environ, capture_output=True, text=True, timeout=90, check=False
        )

    assert run("help", "troubleshooting").stdout.startswith("# Troubleshooting\n")
    refused = run("serve", "--fake", "3")
    assert (refused.returncode, "from a clone of the repository" in refused.stderr) == (1, True)
