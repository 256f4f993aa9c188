"""Command lines that nobody means: each gets an answer, none a traceback."""

from __future__ import annotations

import functools
import json
import os
import random
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import click
import pytest

from lightlyfs.api.retry import RetryPolicy
from lightlyfs.cli import group
from lightlyfs.errors import StartError
from lightlyfs.mountpoints import MOUNT_TYPE, MountEntry

# what a wrong command line is answered with: exit code, and a text that is in the answer
WRONG = [
    ("unmount /mnt", 2, "no such command 'unmount'; did you mean umount?"),
    (
        "my-dataset /mnt",
        2,
        "no such command 'my-dataset'; a dataset is mounted by: lightlyfs mount DATASET DIR",
    ),
    ("mont my-dataset /mnt", 2, "no such command 'mont'; did you mean mount?"),
    ("mount", 2, "missing argument 'DATASET'"),
    ("mount my-dataset", 2, "missing argument 'MOUNTPOINT'"),
    ("mount my-dataset /mnt --token abc", 2, "a token is never an argument"),
    ("mount my-dataset /mnt -o token=abc", 2, "set LIGHTLY_TOKEN to it, or name a file"),
    ("mount my-dataset /mnt --readonly", 2, "no such option --readonly; did you mean --read-only"),
    ("mount my-dataset /mnt -o read_onyl", 2, "-o read_onyl: no such option; did you mean read_only?"),
    ("mount my-dataset /mnt --jobs 100000", 2, "expected a whole number from 1 to 1024"),
    ("mount my-dataset /mnt --cache-size 1M", 2, "--cache-size is '1M'; expected 64M or more"),
    ("mount my-dataset /mnt --cache-size lots", 2, "expected a size such as 512M, 20G or 50%"),
    ("mount my-dataset /mnt --metadata-ttl soon", 2, "expected a time such as 90, 5m, 1h30m or infinite"),
    ("mount my-dataset /mnt --umask 999", 2, "expected octal digits up to 777, such as 022"),
    ("mount my-dataset /mnt --uid nobody-here", 2, "expected the name or number of a user of this machine"),
    ("mount my-dataset /mnt --read-only --write-back", 2, "--write-back contradicts --read-only"),
    ("mount my-dataset /mnt --server api.lightly.ai", 2, "expected an address that starts with https://"),
    ("ls my-dataset --server http://[", 2, "expected an address that starts with https://"),
    ("ls my-dataset --server http://x:99999", 2, "perhaps a port up to 65535"),
    ("ls my-dataset --server 'http://a b'", 2, "expected an address that starts with https://"),
    ("mount my-dataset /mnt --read-mode fast", 2, "it may be url, redirect"),
    ("umount", 2, "name the mounts to end, or all of them with --all"),
    ("umount /etc", 1, "no dataset is mounted on /etc"),
    ("status /nowhere", 1, "no dataset is mounted on /nowhere"),
    ("warm", 2, "name files or directories of a mount"),
    ("warm /etc/passwd", 1, "/etc/passwd is not in a dataset that you have mounted"),
    ("uploads forget x", 2, "no such command 'forget'; there are discard, export, list, retry, send"),
    ("uploads discard", 2, "name the files to discard"),
    ("mount my-dataset /mnt --profile wrk", 2, "there is no profile 'wrk'"),
    ("help everything", 2, "no such topic 'everything'; there are api-coverage, options"),
    ("help umont", 2, "no such topic 'umont'; did you mean umount?"),
    ("completion tcsh", 2, "invalid value for 'SHELL': 'tcsh' is not one of 'bash', 'zsh', 'fish'"),
    ("deploy helm", 2, "invalid value for 'NAME': 'helm' is not one of 'system-unit'"),
    ("status /mnt --watch --json", 2, "--watch contradicts --json"),
    ("warm /mnt --check --evict", 2, "--check contradicts --evict"),
    ("mount my-dataset ''", 2, "it is empty; name a file or a directory"),
    ("umount ''", 2, "it is empty; name a file or a directory"),
    ("cache clear ''", 2, "it is empty; name a file or a directory"),
    ("cp my-dataset/cars my-dataset/vans", 1, "my-dataset/vans is in a dataset, too; a path of this"),
    ("cp my-dataset/cars lightly://other/", 1, "lightly://other/ is in a dataset, too"),
    ("mount my-dataset /proc/none --read-only --upload all", 1, "nothing is uploaded from a read-only mount"),
    ("mount my-dataset /proc/none -o ro,upload=all", 1, "nothing is uploaded from a read-only mount"),
    ("mount my-dataset /mnt --allow-private-storage home", 2, "expected networks such as 10.0.0.0/8"),
    ("mount '' /mnt", 2, "it is empty; name a dataset or a path"),
    ("ls ''", 2, "it is empty; name a dataset or a path"),
    ("cat ''", 2, "it is empty; name a dataset or a path"),
    ("cp my-dataset/cars/0.jpg ''", 2, "it is empty; name a dataset or a path"),
    ("cp '' here/", 2, "it is empty; name a dataset or a path"),
    ("index export '' out", 2, "it is empty; name a dataset or a path"),
    ("serve", 2, "name one source: a folder"),
    ("serve . --url-lifetime nan", 2, "'nan' is not a number of seconds, 0 or more"),
    ("serve . --latency -1", 2, "'-1' is not a number of seconds, 0 or more"),
    ("--verbose", 2, "no such option --verbose"),
]


@pytest.fixture(autouse=True)
def alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A user with nothing: no token, no mounts, and no command that starts a process."""
    for name in ("CACHE_HOME", "STATE_HOME", "CONFIG_HOME", "RUNTIME_DIR"):
        (tmp_path / name).mkdir(mode=0o700)
        monkeypatch.setenv(f"XDG_{name}", str(tmp_path / name))
    # `umount --all` is among the random lines
    monkeypatch.setattr("lightlyfs.mountpoints.mount_table", lambda _process="self": [])
    monkeypatch.setenv("LIGHTLY_SERVER_LOCATION", "http://127.0.0.1:9")
    monkeypatch.setenv("LIGHTLY_TOKEN", "no-such-token")
    for name in ("lightlyfs.app.resolving.quick_policy", "lightlyfs.app.quick_policy"):
        monkeypatch.setattr(name, lambda: RetryPolicy(attempts=1, budget_s=1.0, doubt_s=0.0))
    monkeypatch.chdir(tmp_path)


def run(words: list[str], capfd: pytest.CaptureFixture[str]) -> tuple[int, str]:
    """The exit code of a command, and what it said on stderr."""
    with pytest.raises(SystemExit) as ended:
        group.run(words)
    assert isinstance(ended.value.code, int)
    return ended.value.code, capfd.readouterr().err


@pytest.mark.parametrize(("line", "code", "text"), WRONG, ids=[line for line, _, _ in WRONG])
def test_a_wrong_command_line_is_answered(
    line: str, code: int, text: str, capfd: pytest.CaptureFixture[str]
) -> None:
    found, said = run(shlex.split(line), capfd)
    assert (found, text in said) == (code, True), said
    assert said.startswith("lightlyfs: ")
    assert len(said.splitlines()) <= 2
    assert "abc" not in said


@pytest.mark.parametrize("command", ["status", "refresh", "log", "umount", "umount --lazy"])
def test_a_mount_of_another_user_is_told_from_one_that_hangs(
    command: str, capfd: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What helps against a hanging one would end theirs, or fail with a reason that is none."""
    theirs = MountEntry(tmp_path / "theirs", MOUNT_TYPE, "lightly:data", "0:99", 2_000_000_000)
    monkeypatch.setattr("lightlyfs.mountpoints.mount_table", lambda _process="self": [theirs])
    monkeypatch.setattr(os, "geteuid", lambda: 4321)
    found, said = run([*command.split(), str(theirs.mountpoint)], capfd)
    assert (found, said) == (
        1,
        f"lightlyfs: the mount on {theirs.mountpoint} belongs to user 2000000000; ask as that user\n",
    )


def test_the_help_of_a_command_is_that_of_its_option(capfd: pytest.CaptureFixture[str]) -> None:
    for words in (["help", "umount"], ["umount", "--help"]):
        with pytest.raises(SystemExit) as ended:
            group.run(words)
        assert ended.value.code == 0
        if words[0] == "help":
            shown = capfd.readouterr().out
    assert shown == capfd.readouterr().out
    assert shown.startswith("Usage: lightlyfs umount [OPTIONS] MOUNTPOINT...")


def test_doctor_reports_a_broken_configuration_among_the_rest(
    capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    path = tmp_path / "CONFIG_HOME/lightlyfs/config.toml"
    path.parent.mkdir(mode=0o700)
    path.write_text("jobs = \n")
    with pytest.raises(SystemExit) as ended:
        group.run(["doctor", "--json"])
    rows = {row["check"]: row for row in json.loads(capfd.readouterr().out)}
    assert ended.value.code == 1
    assert not rows["settings"]["ok"]
    assert str(path) in rows["settings"]["answer"]
    assert rows["libfuse"]["ok"]


@pytest.mark.parametrize(
    "words", ["help semantics", "--help", "mounts", "ls my-dataset", "mount my-dataset /mnt"]
)
def test_closed_standard_files_are_no_fault(words: str) -> None:
    # as some supervisors start programs; a shell, for there is no other way to close all three
    script = f"exec {shlex.quote(sys.executable)} -m lightlyfs {words} <&- >&- 2>&-"
    code = subprocess.run(["sh", "-c", script], check=False, timeout=60).returncode
    assert code == (1 if "my-dataset" in words else 0)


def test_what_is_opened_is_never_stderr() -> None:
    script = "import os, lightlyfs.cli as c; c._open_standard_files(); os._exit(os.open('/etc/passwd', 0))"
    line = f"exec {shlex.quote(sys.executable)} -c {shlex.quote(script)} <&- >&- 2>&-"
    assert subprocess.run(["sh", "-c", line], check=False, timeout=60).returncode > 2


def test_every_command_without_words_says_what_it_needs(capfd: pytest.CaptureFixture[str]) -> None:
    for name in group._COMMANDS:
        if name not in ("demo", "doctor", "help"):
            code, said = run([name], capfd)
            assert code in (0, 1, 2), said
            assert "fault of lightlyfs" not in said


def test_doctor_reports_all_that_a_mount_needs_as_json(
    capfd: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(SystemExit) as ended:
        group.run(["doctor", "--json"])
    rows = {row["check"]: row for row in json.loads(capfd.readouterr().out)}
    assert list(rows) == [
        *("Python", "packages", "libfuse", "/dev/fuse", "fusermount", "limits", "cache", "state", "runtime"),
        *("settings", "TLS", "CAs", "token", "API"),
    ]
    assert ended.value.code == 1
    assert not rows["API"]["ok"]
    assert "http://127.0.0.1:9 cannot be reached" in rows["API"]["answer"]
    assert rows["cache"]["answer"] == str(tmp_path / "CACHE_HOME/lightlyfs")
    assert rows["state"]["answer"] == str(tmp_path / "STATE_HOME/lightlyfs")
    assert "libcurl/" in rows["TLS"]["answer"]
    for package in ("click", "msgspec", "pillow", "pycurl", "requests"):
        assert f", {package} " in rows["packages"]["answer"]


@pytest.mark.parametrize(
    ("absent", "answer"),
    [("pycurl", ", without pycurl, "), ("msgspec", "msgspec is not installed; install it with: pip install")],
)
def test_doctor_says_which_package_is_missing(
    absent: str, answer: str, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    found = metadata.version

    def version(name: str) -> str:
        if name == absent:
            raise metadata.PackageNotFoundError(name)
        return found(name)

    monkeypatch.setattr("importlib.metadata.version", version)
    with pytest.raises(SystemExit):
        group.run(["doctor", "--json"])
    row = json.loads(capfd.readouterr().out)[1]
    assert answer in row["answer"]
    assert row["ok"] is (absent == "pycurl")


@pytest.mark.skipif(
    os.getuid() == 0 and shutil.which("setpriv") is None,
    reason="root reads all, but by setpriv of util-linux",
)
@pytest.mark.parametrize(
    ("line", "variable", "text"),
    [
        (
            "doctor --cache-dir DARK/c",
            "",
            "missing  cache      DARK/c cannot be used as a directory: Permission",
        ),
        ("doctor", "XDG_CONFIG_HOME", "ok       settings   no DARK/x/lightlyfs/config.toml"),
        ("doctor", "REQUESTS_CA_BUNDLE", "is DARK/x, which cannot be read: Permission denied"),
        ("doctor --ca-certs DARK/x", "", "--ca-certs is 'DARK/x'; expected a file that exists"),
        ("mount my-dataset /nowhere --cache-size 50%", "XDG_CACHE_HOME", "lightlyfs: /"),  # or /dev/fuse
        ("umount DARK/a/b", "", "no dataset is mounted on DARK/a/b"),
    ],
)
def test_a_path_below_a_directory_that_this_user_may_not_search_is_answered(
    line: str, variable: str, text: str, tmp_path: Path
) -> None:
    """Such as one of root's home, where HOME is still that."""
    dark = tmp_path / "dark"
    dark.mkdir()
    command = [sys.executable, "-m", "lightlyfs", *shlex.split(line.replace("DARK", str(dark)))]
    if os.getuid() == 0:
        command = ["setpriv", "--bounding-set=-dac_override,-dac_read_search", *command]
    environ = os.environ | ({variable: f"{dark}/x"} if variable else {})
    dark.chmod(0)
    try:
        done = subprocess.run(command, env=environ, capture_output=True, text=True, timeout=60, check=False)
    finally:
        dark.chmod(0o700)
    assert text.replace("DARK", str(dark)) in done.stdout + done.stderr
    assert "Errno" not in done.stderr


@functools.cache
def _known_words() -> tuple[list[str], list[str]]:
    """The names of all commands, and all flags."""
    commands = [*group._COMMANDS, "list", "export", "import", "discard", "send", "show", "clear", "pin"]
    flags = sorted({flag for command in _all_commands() for one in command.params for flag in one.opts})
    return commands, flags


def _words(chance: random.Random) -> list[str]:
    """A command line that somebody might type by mistake, or a cat by walking."""
    commands, flags = _known_words()
    odd = [
        "",
        " ",
        "-",
        "--",
        "-o",
        "0",
        "-1",
        "9" * 400,
        "a" * 5_000,
        "../..",
        "/",
        "~",
        "x=y",
        "=",
        ",",
        "%s",
    ]
    odd += [
        "\udcff",
        "caf\u00e9",
        "\x1b[31m",
        "a\nb",
        "http://[",
        "s3://",
        "lightly://x/*",
        "{",
        "/dev/null",
        ".",
    ]
    kinds: list[Callable[[], str]] = [
        lambda: chance.choice(commands),
        lambda: chance.choice(flags),
        lambda: chance.choice(odd),
        lambda: f"{chance.choice(flags)}={chance.choice(odd)}",
        lambda: "".join(chance.choices("abz019-=/.,*\u20ac\t", k=chance.randrange(1, 12))),
    ]
    first = [chance.choice(commands)] if chance.random() < 0.8 else []
    return first + [chance.choice(kinds)() for _ in range(chance.randrange(6))]


def _all_commands() -> list[click.Command]:
    context = click.Context(group.commands)
    found = [group.commands.get_command(context, name) for name in group._COMMANDS]
    below = [
        one for command in found if isinstance(command, click.Group) for one in command.commands.values()
    ]
    return [command for command in [*found, *below] if command is not None]


def test_no_command_line_ends_in_a_traceback(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Two thousand random ones; what would start a process, or serve, is said to be impossible."""

    def refuse(*_args: Any, **_keywords: Any) -> Any:
        raise StartError("not in this test")

    for name in ("subprocess.Popen", "subprocess.run", "os.execv", "lightlyfs.server.serve_until_signal"):
        monkeypatch.setattr(name, refuse)
    monkeypatch.setattr("lightlyfs.kernel.binding.check_device", refuse)
    monkeypatch.setattr("sys.stdin", open("/dev/null"))  # noqa: SIM115 - for the whole test
    chance = random.Random(20)
    for _ in range(2_000):
        words = _words(chance)
        code, said = run(words, capfd)
        assert code in (0, 1, 2), (words, said)
        assert "fault of lightlyfs" not in said, (words, said)
        assert "Traceback" not in said, (words, said)


@pytest.mark.parametrize("words", ["status .", "mount my-dataset .", "uploads send a.jpg"])
def test_a_command_in_a_removed_directory_says_so(tmp_path: Path, words: str) -> None:
    command = 'mkdir gone && cd gone && rmdir "$PWD" && exec "$0" -P -m lightlyfs ' + words
    done = subprocess.run(
        ["sh", "-c", command, sys.executable], cwd=tmp_path, capture_output=True, check=False, text=True
    )
    assert done.returncode == 1
    assert "the current directory was removed" in done.stderr


@pytest.mark.parametrize("words", ["mounts", "status", "refresh", "log", "config show", "help speed"])
def test_a_command_that_only_tells_something_imports_nothing_of_a_mount(words: str) -> None:
    """It would take three times as long."""
    code = (
        "import sys; from lightlyfs.cli import group\n"
        "try:\n    group.run(sys.argv[1:])\nexcept SystemExit:\n    pass\n"
        "parts = {'lightlyfs.app', 'lightlyfs.fs', 'msgspec', 'requests', 'PIL'}\n"
        "print('imported:', *sorted(parts & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *words.split()], capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines()[-1] == "imported:"


@pytest.mark.parametrize("writable", [True, False])
def test_a_mount_that_fails_by_a_fault_of_ours_says_where_it_is_told(tmp_path: Path, writable: bool) -> None:
    log = tmp_path / "mount.log" if writable else Path("/proc/none/mount.log")
    code = (
        "import os, sys\n"
        "os.environ['LIGHTLYFS_READY_FD'] = str(os.pipe()[1])\n"
        "from lightlyfs.cli import serving\n"
        "def fail(*_): raise ValueError('on purpose')\n"
        "serving._serve = fail\n"
        "serving.serve_mount('cars', serving.Path('/mnt'), serving.resolve({'log_file': sys.argv[1]}, {}),"
        " None, None, ())"
    )
    done = subprocess.run([sys.executable, "-c", code, str(log)], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    where = str(log) if writable else "the text above"
    assert done.stderr.endswith(
        f"lightlyfs: the mount failed, and this is a fault of lightlyfs; {where} says where\n"
    )
    told = log.read_text() if writable else done.stderr
    assert "ValueError: on purpose" in told
    assert ("Traceback" in done.stderr) != writable
