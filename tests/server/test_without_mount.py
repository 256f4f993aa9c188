"""`datasets`, `ls`, `cat` and `cp`: a dataset by command, with nothing mounted."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from shared_mount import jpeg
from trees import environment, lightlyfs_here

from lightlyfs.cli.options import split_source
from lightlyfs.errors import SettingsError
from lightlyfs.testing import Empty, Fault, LocalServer, ServerOptions, Status

ID = "0123456789abcdef01234567"


@pytest.fixture
def served(tmp_path: Path) -> Iterator[LocalServer]:
    """Three images in two directories."""
    (tmp_path / "served/cars").mkdir(parents=True)
    (tmp_path / "served/top.jpg").write_bytes(jpeg(1))
    for number in range(2):
        (tmp_path / f"served/cars/{number}.jpg").write_bytes(jpeg(2 + number))
    with LocalServer(ServerOptions(source=tmp_path / "served", dataset_name="fleet")) as server:
        yield server


def run(server: LocalServer, home: Path, *words: str, code: int = 0) -> str:
    """What a command prints; with a failure what it says of it."""
    done = lightlyfs_here(*words, environ=environment(server, home / "cache"), check=False)
    assert done.returncode == code, done.stderr
    return done.stderr if code else done.stdout


def test_datasets_are_listed(served: LocalServer, tmp_path: Path) -> None:
    line = run(served, tmp_path, "datasets").split()
    assert line[:3] == ["fleet", served.dataset_id, "3"]
    (row,) = json.loads(run(served, tmp_path, "datasets", "--json"))
    assert (row["name"], row["id"], row["files"]) == ("fleet", served.dataset_id, 3)
    assert row["bytes"] == sum(len(jpeg(seed)) for seed in (1, 2, 3))


@pytest.mark.parametrize(
    "fault",
    [
        *(Status(target="api", status=status, count=1) for status in (401, 403, 404, 500)),
        Empty(target="api", count=1),
    ],
    ids=["401", "403", "404", "500", "empty"],
)
@pytest.mark.parametrize("words", [("ls", "fleet"), ("ls", "ID"), ("datasets",)], ids=" ".join)
def test_one_odd_answer_at_the_start_ends_no_command(
    served: LocalServer, tmp_path: Path, words: tuple[str, ...], fault: Fault
) -> None:
    served.faults.add(fault)
    shown = run(served, tmp_path, *(served.dataset_id if word == "ID" else word for word in words))
    assert "top.jpg" in shown or "fleet" in shown
    assert served.faults.armed() == []


def test_ls_lists_directories_and_patterns(served: LocalServer, tmp_path: Path) -> None:
    assert run(served, tmp_path, "ls", "fleet").splitlines() == ["cars/", "top.jpg"]
    assert run(served, tmp_path, "ls", "-r", f"lightly://{served.dataset_id}").splitlines() == [
        *("cars/", "cars/0.jpg", "cars/1.jpg", "top.jpg")
    ]
    assert run(served, tmp_path, "ls", "fleet/c*/1*").splitlines() == ["cars/1.jpg"]
    found = json.loads(run(served, tmp_path, "ls", "--json", "fleet/cars"))
    assert [(one["path"], one["bytes"]) for one in found] == [
        ("cars/0.jpg", len(jpeg(2))),
        ("cars/1.jpg", len(jpeg(3))),
    ]
    assert "there is no lorries" in run(served, tmp_path, "ls", "fleet/lorries", code=1)


def test_files_are_copied_down_and_up(
    served: LocalServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    run(served, tmp_path, "cp", "fleet/cars/*", "down/")
    assert {path.name: path.read_bytes() for path in Path("down").iterdir()} == {
        "0.jpg": jpeg(2),
        "1.jpg": jpeg(3),
    }
    assert "is a directory; copy it with --recursive" in run(
        served, tmp_path, "cp", "fleet/cars", "x", code=1
    )
    Path("file").write_bytes(b"kept")
    for words in (("fleet/cars/*",), ("-r", "fleet/cars"), ("fleet/cars/0.jpg", "fleet/top.jpg")):
        told = run(served, tmp_path, "cp", *words, "file", code=1)
        assert "file is not a directory; name a target that is one" in told
    assert Path("file").read_bytes() == b"kept"
    os.mkfifo("pipe")
    assert "pipe is not a regular file" in run(served, tmp_path, "cp", "fleet/top.jpg", "pipe", code=1)
    assert Path("pipe").is_fifo()
    run(served, tmp_path, "cp", "-r", "fleet", "all")
    assert sorted(path.name for path in Path("all").rglob("*.jpg")) == ["0.jpg", "1.jpg", "top.jpg"]

    Path("new/deep").mkdir(parents=True)
    Path("new/a.jpg").write_bytes(jpeg(7))
    Path("new/deep/b.jpg").write_bytes(jpeg(8))
    Path("new/notes.txt").write_text("x")
    told = run(served, tmp_path, "cp", "-r", "new", "fleet/")
    assert told.startswith("2 files copied")
    assert {one["fileName"] for one in served.samples()} >= {"new/a.jpg", "new/deep/b.jpg"}
    assert len(served.samples()) == 5
    assert "new/deep/b.jpg" in run(served, tmp_path, "ls", "-r", "fleet")
    # again: what is there is left, and not counted as copied
    Path("new/c.jpg").write_bytes(jpeg(5))
    told = run(served, tmp_path, "cp", "-r", "new", "fleet/")
    assert told.startswith("1 file copied, 2 there already, ")
    assert len(served.samples()) == 6
    assert "1 file not copied" in run(served, tmp_path, "cp", "new/notes.txt", "fleet", code=1)
    Path("other.jpg").write_bytes(jpeg(9))
    refused = run(served, tmp_path, "cp", "other.jpg", "fleet/top.jpg", code=1)
    assert "mount with --allow-overwrite" in refused
    run(served, tmp_path, "cp", "--allow-overwrite", "other.jpg", "fleet/top.jpg")
    assert run(served, tmp_path, "ls", "-l", "fleet/top.jpg").split()[0] == f"{len(jpeg(9)):,}"


@pytest.mark.skipif(
    os.getuid() == 0 and shutil.which("setpriv") is None,
    reason="root reads all, but by setpriv of util-linux",
)
def test_what_this_user_may_not_look_at_is_named_and_the_rest_copied(
    served: LocalServer, tmp_path: Path
) -> None:
    for place in ("a.jpg", "dark/b.jpg", "listed/c.jpg"):
        (tmp_path / "new" / place).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "new" / place).write_bytes(jpeg(4))
    command = [sys.executable, "-m", "lightlyfs", "cp", "-r", "new", "fleet/"]
    if os.getuid() == 0:
        command = ["setpriv", "--bounding-set=-dac_override,-dac_read_search", *command]
    modes = {"dark": 0o000, "listed": 0o444}
    for name, mode in modes.items():
        (tmp_path / "new" / name).chmod(mode)
    try:
        done = subprocess.run(
            command,
            cwd=tmp_path,
            env=environment(served, tmp_path / "cache"),
            capture_output=True,
            text=True,
            check=False,
        )
    finally:
        for name in modes:
            (tmp_path / "new" / name).chmod(0o700)

    assert done.stdout.startswith("1 file copied")
    assert sorted(done.stderr.splitlines()) == [
        "lightlyfs: 2 files not copied",
        "new/dark: Permission denied",
        "new/listed/c.jpg: Permission denied",
    ]
    assert done.returncode == 1
    assert {one["fileName"] for one in served.samples()} & {"new/a.jpg", "new/dark/b.jpg"} == {"new/a.jpg"}


def test_a_source_that_is_also_a_local_path_is_told_apart(
    served: LocalServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here/fleet").mkdir(parents=True)
    (tmp_path / "here/fleet/top.jpg").write_bytes(b"local")
    monkeypatch.chdir(tmp_path / "here")
    told = run(served, tmp_path, "cp", "fleet/top.jpg", "copy.jpg", code=1)
    assert "for the sample of that name write lightly://fleet/top.jpg" in told
    run(served, tmp_path, "cp", "lightly://fleet/top.jpg", "copy.jpg")
    assert Path("copy.jpg").read_bytes() == jpeg(1)


def test_a_copy_of_the_same_size_is_not_taken_for_the_same(
    served: LocalServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("new.jpg").write_bytes(jpeg(1)[:-1] + b"?")
    assert "mount with --allow-overwrite" in run(served, tmp_path, "cp", "new.jpg", "fleet/top.jpg", code=1)
    run(served, tmp_path, "cp", "--allow-overwrite", "new.jpg", "fleet/top.jpg")
    run(served, tmp_path, "cp", "fleet/top.jpg", "back.jpg")
    assert Path("back.jpg").read_bytes() == Path("new.jpg").read_bytes()


def test_two_files_are_not_copied_to_one(
    served: LocalServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("vans", "lorries"):
        Path(name).mkdir()
        Path(name, "0.jpg").write_bytes(jpeg(9))
    said = run(served, tmp_path, "cp", "vans/0.jpg", "lorries/0.jpg", "fleet/cars/", code=1)
    assert "vans/0.jpg and lorries/0.jpg would both become cars/0.jpg; copy them apart" in said
    run(served, tmp_path, "cp", "vans/0.jpg", "fleet/vans/")
    Path("down").mkdir()
    said = run(served, tmp_path, "cp", "fleet/*/0.jpg", "down", code=1)
    assert "fleet/cars/0.jpg and fleet/vans/0.jpg would both become down/0.jpg" in said
    assert not list(Path("down").iterdir())
    # one file twice is one file
    assert run(served, tmp_path, "cp", "fleet/top.jpg", "fleet/top.jpg", "down").startswith("1 file")
    assert [path.name for path in Path("down").iterdir()] == ["top.jpg"]


def test_a_name_as_long_as_may_be_is_copied(
    served: LocalServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    name = "x" * 251 + ".jpg"
    Path(name).write_bytes(jpeg(9))
    run(served, tmp_path, "cp", name, "fleet/")
    run(served, tmp_path, "cp", f"fleet/{name}", "down/")
    assert Path("down", name).read_bytes() == jpeg(9)
    assert "there is no missing.jpg" in run(served, tmp_path, "cp", "./missing.jpg", "fleet/", code=1)


def test_without_a_server_a_command_ends_with_its_output(tmp_path: Path) -> None:
    (tmp_path / "served").mkdir()
    (tmp_path / "served/top.jpg").write_bytes(jpeg(1))
    with LocalServer(ServerOptions(source=tmp_path / "served", dataset_name="fleet")) as server:
        run(server, tmp_path, "ls", "fleet")
        environ = environment(server, tmp_path / "cache")
    settings = tmp_path / "cache/config/lightlyfs/config.toml"
    settings.parent.mkdir(parents=True)
    settings.write_text(
        "metadata_ttl = 0.001\n"
    )  # the names are asked for again, which takes a minute to fail
    words = [sys.executable, "-m", "lightlyfs", "ls", "fleet"]
    done = subprocess.run(words, env=environ, capture_output=True, text=True, timeout=25, check=True)
    assert done.stdout == "top.jpg\n"


def test_cat_writes_the_bytes(served: LocalServer, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "lightlyfs", "cat", "fleet/top.jpg", "fleet/cars/0.jpg"],
        env=environment(served, tmp_path / "cache"),
        capture_output=True,
        check=True,
    )
    assert done.stdout == jpeg(1) + jpeg(2)
    assert "is a directory" in run(served, tmp_path, "cat", "fleet/cars", code=1)


@pytest.mark.parametrize("words", [["datasets"], ["ls", "fleet"], ["cat", "fleet/x"], ["cp", "fleet/x", "y"]])
def test_a_refused_token_says_the_way_out(served: LocalServer, tmp_path: Path, words: list[str]) -> None:
    environ = {**environment(served, tmp_path / "cache"), "LIGHTLY_TOKEN": "another"}
    done = lightlyfs_here(*words, environ=environ, check=False)
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert "does not accept the token; check LIGHTLY_TOKEN" in line


@pytest.mark.parametrize(
    ("text", "dataset", "inside"),
    [
        ("cars", "cars", ""),
        ("cars/", "cars", ""),
        ("cars/red/1.jpg", "cars", "red/1.jpg"),
        ("lightly:cars", "cars", ""),
        ("lightly://cars/red", "cars", "red"),
        (f"https://app.lightly.ai/dataset/{ID}/embedding?x=1", ID, ""),
        (f"https://app.lightly.ai/dataset?datasetId={ID}", ID, ""),
    ],
)
def test_what_names_a_dataset(text: str, dataset: str, inside: str) -> None:
    assert split_source(text) == (dataset, inside)


def test_an_address_without_a_dataset_is_refused() -> None:
    with pytest.raises(SettingsError, match="names no dataset"):
        split_source("https://app.lightly.ai/preferences")
