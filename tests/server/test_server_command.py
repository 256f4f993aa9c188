"""`python -m lightlyfs.testing` as a process."""

import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import requests

COMMAND = [sys.executable, "-m", "lightlyfs.testing"]
EXPORT = re.compile(r"export (LIGHTLY_\w+)=(\S+)\n")


@contextmanager
def running(*arguments: str) -> Iterator[tuple[subprocess.Popen[str], dict[str, str]]]:
    """Run the command; give the process and the four exported values."""
    process = subprocess.Popen(
        [*COMMAND, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None
        matches = [EXPORT.fullmatch(process.stdout.readline()) for _ in range(4)]
        yield process, {match[1]: match[2] for match in matches if match}
    finally:
        process.kill()
        process.communicate()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_four_lines_then_service_then_a_clean_end(folder: Path, number: signal.Signals) -> None:
    with running(str(folder), "--dataset-name", "my images", "--token", "t") as (process, exported):
        assert list(exported) == [
            "LIGHTLY_SERVER_LOCATION",
            "LIGHTLY_TOKEN",
            "LIGHTLY_DATASET_ID",
            "LIGHTLY_PUBLIC_TOKEN",
        ]
        assert exported["LIGHTLY_TOKEN"] == "t"
        url = f"{exported['LIGHTLY_SERVER_LOCATION']}/v1/datasets/{exported['LIGHTLY_DATASET_ID']}"
        assert requests.get(url, params={"token": "t"}, timeout=5).json()["name"] == "my images"
        process.send_signal(number)
        out, err = process.communicate(timeout=10)
        assert (process.returncode, out, err) == (0, "", "")


def test_verbose_logs_requests_without_their_secrets(folder: Path) -> None:
    with running(str(folder), "--verbose", "--token", "secret-token") as (process, exported):
        dataset = f"{exported['LIGHTLY_SERVER_LOCATION']}/v1/datasets/{exported['LIGHTLY_DATASET_ID']}"
        token = {"token": "secret-token"}
        sample = requests.get(f"{dataset}/samples", params=token, timeout=5).json()[0]["id"]
        requests.get(
            requests.get(f"{dataset}/samples/{sample}/readurl", params=token, timeout=5).json(), timeout=5
        )
        process.terminate()
        _, err = process.communicate(timeout=10)
    assert len(err.splitlines()) == 3
    assert "/storage/" in err
    assert "secret-token" not in err
    assert "sig=" not in err


def test_a_taken_port_and_a_bad_folder_are_one_line_and_a_code(folder: Path) -> None:
    with running(str(folder)) as (_, exported):
        port = exported["LIGHTLY_SERVER_LOCATION"].rpartition(":")[2]
        for arguments, words in (
            ([str(folder), "--port", port], port),
            ([str(folder / "absent")], "absent"),
            ([str(folder), "--port", "99999"], "99999"),
            ([], "folder"),
        ):
            done = subprocess.run(
                [*COMMAND, *arguments], capture_output=True, text=True, timeout=20, check=False
            )
            assert done.returncode != 0
            assert done.stdout == ""
            assert len(done.stderr.splitlines()) == 1
            assert words in done.stderr


def test_fake_flags() -> None:
    with running("--fake", "7", "--fake-size", "5", "--fake-per-dir", "0", "--latency", "0.01") as (
        _,
        exported,
    ):
        samples = (
            f"{exported['LIGHTLY_SERVER_LOCATION']}/v1/datasets/{exported['LIGHTLY_DATASET_ID']}/samples"
        )
        rows = requests.get(samples, params={"token": exported["LIGHTLY_TOKEN"]}, timeout=5).json()
        assert [rows[6]["fileName"], rows[6]["metaData"]] == ["fake/img_0000006.jpg", {"sizeInBytes": 5}]
