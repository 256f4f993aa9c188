"""Run the unit tests on each Python from 3.11 on that this machine has, and on the lowest versions we allow.

    python tests/pythons.py [PYTEST-WORD...]

makes an environment for each below build/pythons, and prints a line for each. Fails where one of them fails.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import time
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]
PLACE = ROOT / "build" / "pythons"
VERSIONS = ("3.11", "3.12", "3.13", "3.14")
LOWEST = "lowest"


def interpreters() -> dict[str, str]:
    """The Pythons that start, by version; a shim of pyenv may stand for one that is not chosen."""
    found = {}
    of_pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"
    for version in VERSIONS:
        on_path = shutil.which(f"python{version}")
        others = sorted(map(str, of_pyenv.glob(f"{version}.*/bin/python")), reverse=True)
        for command in [*([] if on_path is None else [on_path]), *others]:
            if says_version(command, version):
                found[version] = command
                break
    return found


def says_version(command: str, version: str) -> bool:
    """Whether an interpreter runs and is of a version."""
    program = "import sys; print('%d.%d' % sys.version_info[:2])"
    done = subprocess.run([command, "-c", program], capture_output=True, text=True, check=False, cwd="/")
    return done.stdout.strip() == version


def lowest_versions() -> str:
    """Constraints that pin what the package needs to the lowest version that it allows."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    wanted = [*project["dependencies"], *project["optional-dependencies"]["fsspec"]]
    pins = [re.match(r"([A-Za-z0-9_.-]+)>=([0-9.]+)", one) for one in wanted]
    return "".join(f"{pin[1]}=={pin[2]}.*\n" for pin in pins if pin is not None)


def tested(name: str, command: str, words: list[str]) -> bool:
    """Make an environment and run the tests in it; whether all passed."""
    place = PLACE / name
    started = time.monotonic()
    python = place / "bin" / "python"
    limits = []
    if name == LOWEST:
        constraints = PLACE / "lowest.txt"
        constraints.write_text(lowest_versions(), encoding="utf-8")
        limits = ["--constraint", str(constraints)]
    subprocess.run([command, "-m", "venv", "--clear", str(place)], check=True)
    install = [str(python), "-m", "pip", "install", "--quiet", *limits, "--editable", ".[dev]"]
    if subprocess.run(install, cwd=ROOT, check=False).returncode:
        sys.stdout.write(f"Python {name}: FAILED, the package cannot be installed\n")
        return False
    done = subprocess.run([str(python), "-m", "pytest", "-q", *words], cwd=ROOT, check=False)
    outcome = "passed" if done.returncode == 0 else "FAILED"
    sys.stdout.write(f"Python {name}: {outcome} in {time.monotonic() - started:.0f} s\n")
    sys.stdout.flush()
    return done.returncode == 0


def main() -> None:
    """Test all of them, the lowest versions on the oldest Python."""
    found = interpreters()
    if not found:
        sys.exit("no Python from 3.11 on was found")
    PLACE.mkdir(parents=True, exist_ok=True)
    words = sys.argv[1:] or ["-n", "2", "--dist", "loadfile", "tests/unit"]
    runs = {**found, LOWEST: next(iter(found.values()))}
    outcomes = {name: tested(name, command, words) for name, command in runs.items()}
    missing = [version for version in VERSIONS if version not in found]
    if missing:
        sys.stdout.write(f"not on this machine: {', '.join(missing)}\n")
    sys.exit(0 if all(outcomes.values()) else 1)


if __name__ == "__main__":
    main()
