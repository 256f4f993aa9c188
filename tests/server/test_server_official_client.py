"""The official generated client, whose models refuse unknown fields, is content with every answer."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import platformdirs
import pytest

from lightlyfs.testing import LocalServer

REQUIREMENTS = ("pydantic>=2,<3", "aenum", "python-dateutil", "urllib3")
"""What `lightly.openapi_generated` imports; the package itself would bring torch."""


def pip(*arguments: str) -> None:
    """Run pip, or skip with what it says."""
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "-q", *arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    except subprocess.TimeoutExpired:
        pytest.skip(f"pip {arguments[0]} took more than a minute")
    if done.returncode != 0:
        pytest.skip(f"the official client cannot be had: pip {arguments[0]}: {done.stderr.strip()[-300:]}")


@pytest.fixture(scope="session")
def official_client(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder to import the generated client from, kept in the user's cache between runs."""
    version = f"py{sys.version_info[0]}{sys.version_info[1]}"
    home = Path(platformdirs.user_cache_dir("lightlyfs-tests")) / f"official-client-{version}"
    if not (home / "lightly").is_dir():
        wheels = tmp_path_factory.mktemp("wheels")
        pip("download", "--no-deps", "--only-binary=:all:", "-d", str(wheels), "lightly==1.5.*")
        pip("install", "--target", str(home), *REQUIREMENTS)
        staging = home / "unpacked"
        with zipfile.ZipFile(next(wheels.glob("lightly-*.whl"))) as wheel:
            wheel.extractall(
                staging, [n for n in wheel.namelist() if n.startswith("lightly/openapi_generated/")]
            )
        # Last, and in one step: the folder's presence says that everything else is there.
        (staging / "lightly").rename(home / "lightly")
    return home


def test_the_official_client_is_content(server: LocalServer, official_client: Path) -> None:
    script = Path(__file__).with_name("official_session.py")
    arguments = [server.url, server.token, server.dataset_id, server.dataset_name]
    environment = {**os.environ, "PYTHONPATH": str(official_client), "NO_PROXY": "*"}
    done = subprocess.run(
        [sys.executable, str(script), *arguments],
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert server.stats.count("create", 201) == 1
