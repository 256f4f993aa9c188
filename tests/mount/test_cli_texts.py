"""The man page and the shell completions, as the programs that read them take them."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from trees import environment

from lightlyfs.settings import SETTINGS
from lightlyfs.testing import LocalServer


def lightlyfs(*words: str, **environ: str) -> str:
    """What a command prints."""
    command = [sys.executable, "-m", "lightlyfs", *words]
    done = subprocess.run(
        command, env={**os.environ, **environ}, capture_output=True, text=True, check=True, timeout=60
    )
    return done.stdout


def test_the_man_page_names_every_option_and_command() -> None:
    page = lightlyfs("help", "man").replace(r"\-", "-")
    assert [row.flag for row in SETTINGS if f".B {row.flag}\n" not in page] == []
    assert all(
        f".B {name}\n" in page for name in ("mount", "umount", "warm", "uploads", "deploy", "completion")
    )


def test_the_man_page_is_clean() -> None:
    if shutil.which("man") is None or shutil.which("groff") is None:
        pytest.skip("no program here formats a man page (install man-db and groff)")
    done = subprocess.run(
        ["groff", "-man", "-Tutf8", "-ww"],
        input=lightlyfs("help", "man"),
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stderr == ""
    assert "LIGHTLYFS(1)" in done.stdout


@pytest.mark.parametrize(
    ("topic", "title"),
    [("semantics", "# What a mounted dataset promises"), ("scale", "# What a large dataset costs")],
)
def test_a_topic_is_printed(topic: str, title: str) -> None:
    assert lightlyfs("help", topic).startswith(title + "\n")


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_a_completion_is_one_the_shell_takes(shell: str) -> None:
    script = lightlyfs("completion", shell)
    assert "_LIGHTLYFS_COMPLETE" in script
    if shutil.which(shell) is not None:
        flag = "--no-execute" if shell == "fish" else "-n"
        subprocess.run([shell, flag], input=script, text=True, check=True)


@pytest.mark.parametrize(
    ("line", "offered"),
    [
        ("lightlyfs mo", {"mount", "mounts"}),
        ("lightlyfs mount --read-m", {"--read-mode"}),
        ("lightlyfs mount --read-mode ", {"url", "redirect"}),
        ("lightlyfs uploads ", {"discard", "export", "list", "retry", "send"}),
        ("lightlyfs index ", {"export", "import"}),
        ("lightlyfs deploy u", {"user-unit"}),
        ("lightlyfs help se", {"semantics", "serve", "service"}),
        ("lightlyfs completion ", {"bash", "zsh", "fish"}),
    ],
)
def test_bash_is_offered_what_may_come_next(line: str, offered: set[str]) -> None:
    words = line.split(" ")
    answer = lightlyfs(_LIGHTLYFS_COMPLETE="bash_complete", COMP_WORDS=line, COMP_CWORD=str(len(words) - 1))
    assert {entry.partition(",")[2] for entry in answer.splitlines()} == offered


def test_names_of_datasets_are_completed_without_a_request(server: LocalServer, tmp_path: Path) -> None:
    environ = environment(server, tmp_path / "cache")
    subprocess.run(
        [sys.executable, "-m", "lightlyfs", "ls", server.dataset_name], env=environ, check=True, timeout=60
    )
    line = f"lightlyfs mount {server.dataset_name[:2]}"
    asked = server.stats.snapshot()["requests"]
    offered = lightlyfs(
        _LIGHTLYFS_COMPLETE="bash_complete", COMP_WORDS=line, COMP_CWORD="2", **environ
    ).splitlines()
    assert offered == [f"plain,{server.dataset_name}"]
    assert server.stats.snapshot()["requests"] == asked
