"""What real tools leave on the server when they write to a mount: the expected samples, byte for byte."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image
from test_writing import stored
from trees import MountedTree, mounted, refused

from lightlyfs.testing import Latency, LocalServer

pytestmark = pytest.mark.fuse


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A folder of images on the local disk, with times of the past."""
    root = tmp_path / "source"
    for number, name in enumerate(["a.png", "b c.jpg", "deep/er/ü.png", "deep/d.webp"]):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.effect_noise((64 + number, 48), 60).save(path)
        os.utime(path, (1_600_000_000 + number, 1_600_000_000 + number))
    return root


@pytest.fixture
def tree(own_server: LocalServer, tmp_path: Path) -> Iterator[MountedTree]:
    """An empty dataset, mounted."""
    with mounted(own_server, tmp_path / "tree") as subject:
        yield subject


@pytest.fixture
def overwriting(own_server: LocalServer, tmp_path: Path) -> Iterator[MountedTree]:
    """An empty dataset, mounted so that images may be replaced."""
    with mounted(own_server, tmp_path / "tree", "3", "--allow-overwrite") as subject:
        yield subject


def run(*words: str | Path, cwd: Path | None = None, check: bool = True) -> subprocess.CompletedProcess[str]:
    """Run a tool, or skip with the reason where it is not installed."""
    if shutil.which(str(words[0])) is None:
        pytest.skip(f"{words[0]} is not installed")
    done = subprocess.run(
        [str(w) for w in words], cwd=cwd, capture_output=True, text=True, timeout=60, check=False
    )
    assert not check or done.returncode == 0, done.stdout + done.stderr
    return done


def files_of(root: Path) -> dict[str, bytes | None]:
    """Every file below a folder."""
    return {str(p.relative_to(root)): p.read_bytes() for p in root.rglob("*") if p.is_file()}


def every_image_has_facts(server: LocalServer) -> bool:
    """Each sample has the size, the shape and the thumbnail of its image."""
    return all(
        document["metaData"]["sizeInBytes"] == len(server.object_bytes(document["id"]) or b"")
        and len(document["metaData"]["shape"]) == 3
        and server.object_bytes(document["id"], thumbnail=True) is not None
        for document in server.samples()
    )


@pytest.mark.parametrize("options", [["-r"], ["-a"], ["-rp"]])
def test_cp(own_server: LocalServer, tree: MountedTree, source: Path, options: list[str]) -> None:
    run("cp", *options, f"{source}/.", tree.mountpoint)

    assert stored(own_server) == files_of(source)
    assert every_image_has_facts(own_server)
    if options != ["-r"]:
        assert (tree.mountpoint / "a.png").stat().st_mtime == 1_600_000_000


def test_mv_into_the_mount(own_server: LocalServer, tree: MountedTree, source: Path) -> None:
    expected = files_of(source)

    run("mv", source / "a.png", source / "b c.jpg", source / "deep", tree.mountpoint)

    assert stored(own_server) == expected
    assert files_of(source) == {}


def test_mv_within_the_mount(own_server: LocalServer, tree: MountedTree, source: Path) -> None:
    run("cp", source / "a.png", tree.mountpoint / "x.png")

    run("mv", tree.mountpoint / "x.png", tree.mountpoint / "y.png")
    run("mv", "-n", tree.mountpoint / "y.png", tree.mountpoint / "z.png")

    assert list(stored(own_server)) == ["z.png"]


def test_rsync_twice_moves_nothing_the_second_time(
    own_server: LocalServer, tree: MountedTree, source: Path
) -> None:
    run("rsync", "-a", f"{source}/", f"{tree.mountpoint}/")
    second = run("rsync", "-ai", f"{source}/", f"{tree.mountpoint}/")
    tree.refresh()
    third = run("rsync", "-ai", f"{source}/", f"{tree.mountpoint}/")

    assert stored(own_server) == files_of(source)
    assert every_image_has_facts(own_server)
    assert [line for line in (second.stdout + third.stdout).splitlines() if not line.startswith(".d")] == []


def test_rsync_over_a_changed_file(own_server: LocalServer, overwriting: MountedTree, source: Path) -> None:
    run("rsync", "-a", f"{source}/", f"{overwriting.mountpoint}/")
    Image.effect_noise((99, 99), 30).save(source / "a.png")

    run("rsync", "-a", f"{source}/", f"{overwriting.mountpoint}/")

    assert stored(own_server) == files_of(source)
    assert every_image_has_facts(own_server)


def test_rsync_keeps_a_replaced_image_elsewhere_and_the_sample_where_it_was(
    own_server: LocalServer, overwriting: MountedTree, source: Path
) -> None:
    """rsync renames what it may not link; what it deletes is moved, as on a disk."""
    options = ("-a", "--delete", "--filter=protect /old", "--backup", "--backup-dir=old")
    run("rsync", "-a", f"{source}/", f"{overwriting.mountpoint}/")
    before, ids = files_of(source), {one["fileName"]: one["id"] for one in own_server.samples()}
    deleted = next(name for name in before if "/" not in name and name != "a.png")
    Image.effect_noise((99, 99), 30).save(source / "a.png")
    (source / deleted).unlink()

    for _ in range(2):
        run("rsync", *options, f"{source}/", f"{overwriting.mountpoint}/")

    kept = {"old/a.png": before["a.png"], f"old/{deleted}": before[deleted]}
    assert stored(own_server) == files_of(source) | kept
    now = {one["fileName"]: one["id"] for one in own_server.samples()}
    assert now["a.png"] == ids["a.png"]
    assert now[f"old/{deleted}"] == ids[deleted]


def test_rsync_in_place(own_server: LocalServer, overwriting: MountedTree, source: Path) -> None:
    run("rsync", "-a", "--inplace", f"{source}/", f"{overwriting.mountpoint}/")
    assert stored(own_server) == files_of(source)
    data = (source / "a.png").read_bytes()
    (source / "a.png").write_bytes(data[:20] + b"####" + data[24:])

    run("rsync", "-a", "--inplace", "--no-whole-file", f"{source}/", f"{overwriting.mountpoint}/")

    assert stored(own_server) == files_of(source)


def test_tar(own_server: LocalServer, tree: MountedTree, source: Path, tmp_path: Path) -> None:
    run("tar", "cf", tmp_path / "x.tar", "-C", source, ".")

    run("tar", "xf", tmp_path / "x.tar", "-C", tree.mountpoint)

    assert stored(own_server) == files_of(source)
    assert (tree.mountpoint / "a.png").stat().st_mtime == 1_600_000_000


def test_unzip(own_server: LocalServer, tree: MountedTree, source: Path, tmp_path: Path) -> None:
    run("zip", "-qr", tmp_path / "x.zip", ".", cwd=source)

    run("unzip", "-q", tmp_path / "x.zip", "-d", tree.mountpoint)

    assert stored(own_server) == files_of(source)


def test_dd_and_install(own_server: LocalServer, tree: MountedTree, source: Path) -> None:
    run("dd", f"if={source / 'a.png'}", f"of={tree.mountpoint / 'dd.png'}", "bs=100", "conv=fsync")
    run("install", "-m", "600", source / "a.png", tree.mountpoint / "installed.png")

    data = (source / "a.png").read_bytes()
    assert stored(own_server) == {"dd.png": data, "installed.png": data}


def test_programs_that_remove_before_they_write_replace_the_image(
    own_server: LocalServer, overwriting: MountedTree, source: Path, tmp_path: Path
) -> None:
    """Also one that was sent a moment ago, which no listing holds yet."""
    archive, zipped = tmp_path / "all.tar", tmp_path / "all.zip"
    ids = []
    for number in range(2):
        Image.effect_noise((70 + number, 40), 60).save(source / "a.png")
        run("tar", "-C", source, "-cf", archive, ".")
        zipped.unlink(missing_ok=True)
        run("zip", "-qr", zipped, ".", cwd=source)
        for directory in ("tar", "zip", "one"):
            (overwriting.mountpoint / directory).mkdir(exist_ok=True)
        run("tar", "-xf", archive, cwd=overwriting.mountpoint / "tar")
        run("unzip", "-qo", zipped, cwd=overwriting.mountpoint / "zip")
        run("install", source / "a.png", overwriting.mountpoint / "one")
        ids.append(sorted(sample["id"] for sample in own_server.samples()))

    assert ids[0] == ids[1]
    data = (source / "a.png").read_bytes()
    held = stored(own_server)
    assert [held[name] for name in ("tar/a.png", "zip/a.png", "one/a.png")] == [data] * 3
    assert files_of(overwriting.mountpoint / "tar") == files_of(source)
    assert files_of(overwriting.mountpoint / "zip") == files_of(source)


def test_programs_that_remove_before_they_write_replace_what_is_still_on_its_way(
    own_server: LocalServer, source: Path, tmp_path: Path
) -> None:
    own_server.faults.add(Latency(target="storage", delay_s=0.5))
    archive = tmp_path / "all.tar"
    with mounted(own_server, tmp_path / "tree", "3", "--allow-overwrite", "--write-back") as tree:
        for number in range(2):
            Image.effect_noise((70 + number, 40), 60).save(source / "a.png")
            run("tar", "-C", source, "-cf", archive, ".")
            run("tar", "-xf", archive, cwd=tree.mountpoint)
            run("install", source / "a.png", tree.mountpoint / "installed.png")

    held = files_of(source)
    assert stored(own_server) == held | {"installed.png": held["a.png"]}


def test_imagemagick(own_server: LocalServer, tree: MountedTree, source: Path) -> None:
    if "ImageMagick" not in run("convert", "-version", check=False).stdout:
        pytest.skip("convert of ImageMagick is not installed")
    run("cp", source / "a.png", tree.mountpoint)

    run("convert", tree.mountpoint / "a.png", "-resize", "50%", tree.mountpoint / "small.png")

    assert sorted(stored(own_server)) == ["a.png", "small.png"]
    with Image.open(tree.mountpoint / "small.png") as image:
        assert image.width == 32
    assert every_image_has_facts(own_server)


def test_python_writes(own_server: LocalServer, tree: MountedTree, source: Path) -> None:
    shutil.copytree(source, tree.mountpoint / "copied")
    Image.new("RGB", (10, 10)).save(tree.mountpoint / "saved.png")
    with (tree.mountpoint / "lines.txt").open("w") as file:
        for number in range(1000):
            print(number, file=file)

    held = stored(own_server)
    assert {name: data for name, data in held.items() if name.startswith("copied/")} == {
        f"copied/{name}": data for name, data in files_of(source).items()
    }
    assert held["lines.txt"] == "".join(f"{number}\n" for number in range(1000)).encode()
    assert held["saved.png"] == (tree.mountpoint / "saved.png").read_bytes()


def test_the_shell_appends_and_two_programs_write_one_file(
    own_server: LocalServer, tree: MountedTree
) -> None:
    run("sh", "-c", "{ echo one; echo two; cat /dev/null; } > both.txt", cwd=tree.mountpoint)

    assert stored(own_server) == {"both.txt": b"one\ntwo\n"}


def test_the_shell_appends_to_a_sample(own_server: LocalServer, overwriting: MountedTree) -> None:
    run("sh", "-c", "echo one > log.txt; echo two >> log.txt", cwd=overwriting.mountpoint)

    assert stored(own_server) == {"log.txt": b"one\ntwo\n"}


def test_gio_copies_saves_and_trashes_nothing(
    own_server: LocalServer, tree: MountedTree, source: Path
) -> None:
    run("gio", "copy", source / "a.png", tree.mountpoint / "copied.png")
    run("sh", "-c", f"gio save '{tree.mountpoint}/saved.txt' < /dev/null", check=False)
    run("sh", "-c", f"echo hello | gio save '{tree.mountpoint}/saved.txt'")
    expected = {"copied.png": (source / "a.png").read_bytes(), "saved.txt": b"hello\n"}
    assert stored(own_server) == expected

    assert run("gio", "trash", tree.mountpoint / "copied.png", check=False).returncode != 0
    assert run("gio", "remove", tree.mountpoint / "copied.png", check=False).returncode != 0

    assert stored(own_server) == expected


def test_vim_saves(own_server: LocalServer, overwriting: MountedTree) -> None:
    editor = next((name for name in ("vim", "vim.tiny") if shutil.which(name)), None)
    if editor is None:
        pytest.skip("vim is not installed")
    target = overwriting.mountpoint / "notes.txt"

    run(editor, "-es", "-c", "normal ifirst", "-c", "wq", target, check=False)
    run(editor, "-es", "-c", "normal Asecond", "-c", "wq", target, check=False)

    assert stored(own_server) == {"notes.txt": b"firstsecond\n"}
    assert os.listdir(overwriting.mountpoint) == ["notes.txt"]


def test_a_shared_mapping_is_written(own_server: LocalServer, tree: MountedTree) -> None:
    # in a process of its own: Python keeps its lock while it flushes a mapping, and the server needs it
    program = """
import mmap
with open("mapped.bin", "w+b") as file:
    file.truncate(10_000)
    with mmap.mmap(file.fileno(), 10_000) as mapped:
        mapped[5_000:5_005] = b"hello"
        mapped.flush()
"""
    run(sys.executable, "-c", program, cwd=tree.mountpoint)

    expected = b"\0" * 5_000 + b"hello" + b"\0" * 4_995
    assert stored(own_server) == {"mapped.bin": expected}


def test_an_open_file_can_be_removed_and_goes_on(own_server: LocalServer, tree: MountedTree) -> None:
    path = tree.mountpoint / "scratch.tmp"
    with path.open("w+b", buffering=0) as file:
        file.write(b"before")
        path.unlink()
        assert os.listdir(tree.mountpoint) == []
        file.write(b" after")
        file.seek(0)
        assert file.read() == b"before after"
        file.truncate(3)
        assert os.fstat(file.fileno()).st_size == 3

    assert stored(own_server) == {}


def test_a_name_that_exists_is_not_taken_by_a_move_that_may_not_replace(
    own_server: LocalServer, tree: MountedTree, source: Path
) -> None:
    run("cp", source / "a.png", tree.mountpoint / "x.png")
    run("cp", source / "b c.jpg", tree.mountpoint / "y.tmp")

    with contextlib.suppress(AssertionError):
        run("mv", "-n", tree.mountpoint / "y.tmp", tree.mountpoint / "x.png")

    assert stored(own_server) == {"x.png": (source / "a.png").read_bytes()}
    assert (tree.mountpoint / "y.tmp").exists()


def test_a_desktop_session_leaves_exactly_the_samples_it_should(
    own_server: LocalServer, tmp_path: Path
) -> None:
    """Trash, remove, copy, save, rsync, an editor, "new folder" and undo, one after the other."""
    for tool in ("gio", "rsync"):
        if shutil.which(tool) is None:
            pytest.skip(f"{tool} is not installed")
    before = {f"photos/{number}.jpg": os.urandom(2_000) for number in range(5)}
    for name, data in before.items():
        own_server.add_sample(name, data)
    source = tmp_path / "source"
    source.mkdir()
    new = {f"{number}.png": os.urandom(3_000) for number in range(3)}
    for name, data in new.items():
        (source / name).write_bytes(data)
    edit = "echo edited > edited.txt"
    if shutil.which("vim") is not None:
        edit = "vim -u NONE -es -c 'normal iedited' -c wq edited.txt < /dev/null"
    script = f"""
        ! gio trash photos/0.jpg
        ! gio remove photos/1.jpg
        ! rm -f photos/2.jpg
        ! mkdir .Trash-0
        ! gio move photos/3.jpg {tmp_path}/out.jpg
        mkdir "New Folder" && rmdir "New Folder"
        mkdir Renamed && mv Renamed Again && rmdir Again
        gio copy {source}/0.png copied.png
        printf saved | gio save saved.txt
        rsync -a {source}/ synced/ && rsync -a {source}/ synced/
        cp {source}/1.png dropped.png
        {edit}
        mv dropped.png undone.png && mv undone.png dropped.png
    """
    with mounted(own_server, tmp_path / "tree") as tree:
        for line in filter(None, map(str.strip, script.splitlines())):
            done = subprocess.run(
                ["bash", "-c", line], cwd=tree.mountpoint, capture_output=True, text=True, check=False
            )
            assert done.returncode == 0, f"{line}: {done.stderr}"
    expected = before | {f"synced/{name}": data for name, data in new.items()}
    expected |= {
        "copied.png": new["0.png"],
        "saved.txt": b"saved",
        "dropped.png": new["1.png"],
        "edited.txt": b"edited\n",
    }
    assert {one["fileName"]: own_server.object_bytes(one["id"]) for one in own_server.samples()} == expected


def test_a_rename_over_an_open_sample_that_is_refused_leaves_it_where_it_was(
    own_server: LocalServer, tmp_path: Path
) -> None:
    """libfuse hides an open file that is to be replaced, and knows it by the hidden name from then on."""
    for name in ("a.jpg", "b.jpg"):
        own_server.add_sample(name, b"0123456789")
    with mounted(own_server, tmp_path / "tree", "3", "--allow-overwrite") as tree:
        root = tree.mountpoint
        with (root / "a.jpg").open("rb") as still_open:
            assert still_open.read(4) == b"0123"
            with refused(errno.EPERM):
                (root / "b.jpg").rename(root / "a.jpg")
            (root / "a.jpg").write_bytes(b"new")
            assert tree.names() == ["a.jpg", "b.jpg"]
        with (root / "a.jpg").open("ab") as file:
            file.write(b"er")
        os.truncate(root / "a.jpg", 7)
        assert ((root / "a.jpg").stat().st_size, tree.read("a.jpg")) == (7, b"newer\0\0")
        (root / "a.jpg").rename(root / "c.jpg")
        assert tree.names() == ["b.jpg", "c.jpg"]
        assert tree.read("c.jpg") == b"newer\0\0"

    assert stored(own_server) == {"b.jpg": b"0123456789", "c.jpg": b"newer\0\0"}
