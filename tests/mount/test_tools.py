"""What programs that expect plain files make of a mount: each against the folder that is served."""

from __future__ import annotations

import hashlib
import mmap
import os
import random
import shutil
import subprocess
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image
from trees import MountedTree, mounted, wait_until

from lightlyfs.testing import LocalServer

pytestmark = pytest.mark.fuse

VIDEO = "videos/drive 01/front.mp4"
VIDEO_BYTES = 30_000_000
NOTE = "notes/Über uns.txt"
# where ImageFolder looks: two splits of the same classes, one name that needs quoting in a shell
SPLITS = ("train", "val")
CLASSES = ("cat", "dog", "grüne Bäume", "it's a $car")
FORMATS = {
    ".jpg": ("RGB", "L", "CMYK"),
    ".png": ("RGB", "L", "P", "RGBA", "1"),
    ".webp": ("RGB", "RGBA"),
    ".tiff": ("RGB", "L", "P", "CMYK", "RGBA"),
    ".gif": ("P", "L"),
    ".bmp": ("RGB", "L", "P"),
}
# what torchvision.datasets.folder takes for an image
IMAGE_FOLDER_EXTENSIONS = (
    ".jpg",
    ".jpeg",
    ".png",
    ".ppm",
    ".bmp",
    ".pgm",
    ".tif",
    ".tiff",
    ".webp",
)


def draw(seed: str, mode: str, size: tuple[int, int]) -> Image.Image:
    """A picture of noise, so that no format makes it small and no two are alike."""
    image = Image.frombytes("RGB", size, random.Random(seed).randbytes(3 * size[0] * size[1]))
    return image.convert(mode)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Some 160 images of all formats in class folders, three large ones, a video and a text."""
    root = tmp_path_factory.mktemp("gallery")
    for split in SPLITS:
        for number, name in enumerate(CLASSES):
            directory = root / split / name
            directory.mkdir(parents=True)
            for extension, modes in FORMATS.items():
                for mode in modes:
                    path = directory / f"{mode} {number}{extension}"
                    draw(str(path.relative_to(root)), mode, (40 + 3 * number, 30)).save(path)
    large = root / "large"
    large.mkdir()
    draw("one megabyte", "RGB", (600, 583)).save(large / "around a block.bmp")  # 1,049,454 bytes
    draw("small", "RGB", (1100, 1000)).save(large / "fetched whole.tiff")
    draw("ranges", "RGB", (1500, 1400)).save(large / "in ranges.bmp")
    video = root / VIDEO
    video.parent.mkdir(parents=True)
    video.write_bytes(random.Random("video").randbytes(VIDEO_BYTES))
    (root / NOTE).parent.mkdir()
    (root / NOTE).write_text("a needle lies in this text\n" * 50)
    for number, path in enumerate(sorted(root.rglob("*"))):
        # times as a camera leaves them: apart, old and not in whole seconds
        os.utime(path, ns=(0, 1_500_000_000_250_000_000 + number * 3_600_500_000_000))
    return root


@pytest.fixture(scope="module")
def tree(server: LocalServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[MountedTree]:
    """The folder as a mount."""
    with mounted(server, tmp_path_factory.mktemp("tree")) as subject:
        yield subject


@pytest.fixture
def mount(tree: MountedTree) -> Path:
    """Where it is mounted."""
    return tree.mountpoint


def files_of(root: Path) -> dict[str, Path]:
    """Every file below a directory by its relative path."""
    return {str(path.relative_to(root)): path for path in root.rglob("*") if path.is_file()}


def digests(root: Path) -> dict[str, str]:
    """The sha256 of every file below a directory."""
    return {name: hashlib.sha256(path.read_bytes()).hexdigest() for name, path in files_of(root).items()}


def tool(*words: str | Path, cwd: Path | None = None, stdin: bytes | None = None) -> str:
    """Run a program as a shell in the C locale would, and take what it prints; skips where it is missing."""
    if shutil.which(str(words[0])) is None:
        pytest.skip(f"{words[0]} is not installed")
    environ = {**os.environ, "LC_ALL": "C", "TZ": "UTC"}
    done = subprocess.run(
        [str(word) for word in words],
        cwd=cwd,
        env=environ,
        input=stdin,
        capture_output=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stderr == b""
    return done.stdout.decode()


def test_parallel_cold_readers_get_the_bytes_of_every_file(
    server: LocalServer, folder: Path, tmp_path: Path
) -> None:
    names = "\0".join(files_of(folder)).encode()
    with mounted(server, tmp_path / "cold") as cold:
        found = tool("xargs", "-0", "-P", "8", "-n", "7", "sha256sum", cwd=cold.mountpoint, stdin=names)

    lines = [line.split("  ", 1) for line in found.splitlines()]
    assert {name: digest for digest, name in lines} == digests(folder)


def test_every_file_has_its_bytes(folder: Path, mount: Path) -> None:
    assert digests(mount) == digests(folder)


def test_ls_shows_the_same_tree(folder: Path, mount: Path) -> None:
    def listed(root: Path) -> list[str]:
        lines = tool("ls", "-lR", "--time-style=+%s", cwd=root).splitlines()
        rows = [line.split(None, 6) for line in lines]
        # mode and owner are the mount's own; times of directories are those of their newest image
        return [
            " ".join([row[1], *row[4:]]) if line.startswith("-") else line
            for line, row in zip(lines, rows, strict=True)
            if not line.startswith(("d", "total "))
        ]

    assert listed(mount) == listed(folder)


def test_find_shows_the_same_files_sizes_and_times(folder: Path, mount: Path) -> None:
    def found(root: Path) -> list[str]:
        seconds = r"%P\t%s\t%Ts\n"
        return sorted(tool("find", ".", "-type", "f", "-printf", seconds, cwd=root).splitlines())

    assert found(mount) == found(folder)
    assert sorted(tool("find", ".", "-type", "d", cwd=mount).splitlines()) == sorted(
        tool("find", ".", "-type", "d", cwd=folder).splitlines()
    )


def test_du_counts_the_bytes_of_the_files(folder: Path, mount: Path) -> None:
    sizes = {name: path.stat().st_size for name, path in files_of(folder).items()}

    rows = [line.split("\t") for line in tool("du", "-a", "-b", cwd=mount).splitlines()]

    counted = {name.removeprefix("./"): int(size) for size, name in rows}
    assert sizes.items() <= counted.items()
    assert counted["."] == sum(sizes.values())


def test_tar_packs_the_same_tree(folder: Path, mount: Path, tmp_path: Path) -> None:
    archive = tmp_path / "all.tar"
    tool("tar", "-cf", archive, "-C", mount, ".")

    assert len(tool("tar", "-tf", archive).splitlines()) == 1 + len(list(folder.rglob("*")))
    (tmp_path / "out").mkdir()
    tool("tar", "-xf", archive, "-C", tmp_path / "out")
    assert tool("diff", "-r", folder, tmp_path / "out") == ""


def test_cp_keeps_bytes_and_times(folder: Path, mount: Path, tmp_path: Path) -> None:
    tool("cp", "-a", mount, tmp_path / "copy")

    assert tool("diff", "-r", folder, tmp_path / "copy") == ""
    for name, path in files_of(folder).items():
        assert (tmp_path / "copy" / name).stat().st_mtime == path.stat().st_mtime_ns // 1_000_000_000


def test_cp_keeps_extended_attributes(mount: Path, tmp_path: Path) -> None:
    try:
        os.setxattr(tmp_path, "user.probe", b"")
    except OSError as error:
        pytest.skip(f"{tmp_path} keeps no extended attributes: {error.strerror}")

    tool("cp", "-a", mount / NOTE, tmp_path / "note")

    for name in os.listxattr(mount / NOTE):
        assert os.getxattr(tmp_path / "note", name) == os.getxattr(mount / NOTE, name)
    assert os.getxattr(tmp_path / "note", "user.lightly.file_name") == NOTE.encode()


def test_rsync_copies_once_and_then_nothing(folder: Path, mount: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    tool("rsync", "-a", f"{mount}/", copy)

    assert tool("rsync", "-ai", f"{mount}/", copy) == ""
    assert tool("rsync", "-aHi", "--checksum", "--dry-run", f"{mount}/", copy) == ""
    assert tool("diff", "-r", folder, copy) == ""


def test_rsync_sees_what_differs(folder: Path, mount: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(folder, tmp_path / "copy")
    (copy / NOTE).write_text("something else")

    differing = tool("rsync", "-rni", "--checksum", "--8-bit-output", f"{mount}/", copy).splitlines()

    assert [line.split(" ", 1)[1] for line in differing if line.startswith(">f")] == [NOTE]


def test_diff_and_cmp_find_no_difference(folder: Path, mount: Path) -> None:
    assert tool("diff", "-r", folder, mount) == ""
    assert tool("cmp", folder / VIDEO, mount / VIDEO) == ""
    assert tool("cmp", "-i", "29999990", folder / VIDEO, mount / VIDEO) == ""


def test_stat_file_and_md5sum_agree(folder: Path, mount: Path) -> None:
    names = sorted(files_of(folder))

    for words in (["stat", "-c", "%s %Y %F %h %n"], ["file"], ["md5sum"]):
        assert tool(*words, *names, cwd=mount) == tool(*words, *names, cwd=folder)


def test_grep_finds_the_needle(folder: Path, mount: Path) -> None:
    assert tool("grep", "-rl", "a needle lies", ".", cwd=mount) == f"./{NOTE}\n"
    assert tool("grep", "-c", "needle", NOTE, cwd=mount) == "50\n"


def test_zip_packs_the_same_bytes(folder: Path, mount: Path, tmp_path: Path) -> None:
    tool("zip", "-q", "-0", "-r", tmp_path / "all.zip", ".", cwd=mount)

    with zipfile.ZipFile(tmp_path / "all.zip", metadata_encoding="utf-8") as archive:
        packed = {
            info.filename: hashlib.sha256(archive.read(info)).hexdigest()
            for info in archive.infolist()
            if not info.is_dir()
        }
    assert packed == digests(folder)


def test_a_file_can_be_mapped(folder: Path, mount: Path) -> None:
    with (
        (mount / VIDEO).open("rb") as file,
        mmap.mmap(file.fileno(), 0, mmap.MAP_SHARED, mmap.PROT_READ) as mapped,
    ):
        assert mapped[VIDEO_BYTES - 5 :] == (folder / VIDEO).read_bytes()[-5:]
        assert hashlib.sha256(mapped).digest() == hashlib.sha256((folder / VIDEO).read_bytes()).digest()


def test_a_file_can_be_sent_by_the_kernel(folder: Path, mount: Path, tmp_path: Path) -> None:
    with (mount / VIDEO).open("rb") as source, (tmp_path / "sent").open("wb") as sink:
        sent = 0
        while count := os.sendfile(sink.fileno(), source.fileno(), sent, 1 << 20):
            sent += count

    assert sent == VIDEO_BYTES
    assert tool("cmp", tmp_path / "sent", folder / VIDEO) == ""


@pytest.mark.parametrize(
    "words",
    [
        ["head", "-c", "1000001"],
        ["tail", "-c", "1000001"],
        ["tail", "-c", "+29000000"],
        ["dd", "status=none", "bs=4k", "skip=1111", "count=33", "if="],
        ["dd", "status=none", "bs=1M", "iflag=fullblock", "if="],
        ["cat"],
    ],
    ids=" ".join,
)
def test_parts_of_a_file_are_the_right_ones(words: list[str], folder: Path, mount: Path) -> None:
    def taken(path: Path) -> bytes:
        command = [*words[:-1], words[-1] + str(path)] if words[-1] == "if=" else [*words, str(path)]
        return subprocess.run(command, capture_output=True, check=True, timeout=60).stdout

    assert taken(mount / VIDEO) == taken(folder / VIDEO)


def test_a_file_has_no_holes(mount: Path) -> None:
    with (mount / VIDEO).open("rb") as file:
        assert os.lseek(file.fileno(), 7, os.SEEK_DATA) == 7
        assert os.lseek(file.fileno(), 0, os.SEEK_HOLE) == VIDEO_BYTES


def test_pillow_opens_every_image(folder: Path, mount: Path) -> None:
    opened = 0
    for name in files_of(folder):
        if not name.startswith(("train", "val", "large")):
            continue
        with Image.open(mount / name) as ours, Image.open(folder / name) as theirs:
            assert (ours.format, ours.mode, ours.size) == (theirs.format, theirs.mode, theirs.size)
            assert ours.tobytes() == theirs.tobytes()
        opened += 1

    assert opened == len(SPLITS) * len(CLASSES) * sum(map(len, FORMATS.values())) + 3


def test_opencv_reads_what_it_can_read(folder: Path, mount: Path) -> None:
    cv2 = pytest.importorskip("cv2", reason="OpenCV is not installed: pip install opencv-python-headless")
    read = set()
    for name in files_of(folder / "train"):
        theirs = cv2.imread(str(folder / "train" / name), cv2.IMREAD_UNCHANGED)
        ours = cv2.imread(str(mount / "train" / name), cv2.IMREAD_UNCHANGED)
        assert (ours is None) == (theirs is None)
        if theirs is not None:
            assert (ours == theirs).all()
            read.add(Path(name).suffix)

    assert read >= {".jpg", ".png", ".webp", ".tiff", ".bmp"}


def image_folder(root: Path) -> tuple[list[str], list[tuple[str, int]]]:
    """Classes and samples exactly as `torchvision.datasets.ImageFolder` finds them."""
    with os.scandir(root) as entries:
        classes = sorted(entry.name for entry in entries if entry.is_dir())
    samples = []
    for number, name in enumerate(classes):
        for directory, _, files in sorted(os.walk(root / name, followlinks=True)):
            for file in sorted(files):
                path = os.path.join(directory, file)
                if path.lower().endswith(IMAGE_FOLDER_EXTENSIONS):
                    samples.append((os.path.relpath(path, root), number))
    return classes, samples


@pytest.mark.parametrize("split", SPLITS)
def test_an_image_folder_has_its_classes_and_samples(split: str, folder: Path, mount: Path) -> None:
    classes, samples = image_folder(mount / split)

    assert (classes, samples) == image_folder(folder / split)
    assert classes == sorted(CLASSES)
    assert len(samples) == len(CLASSES) * (sum(map(len, FORMATS.values())) - len(FORMATS[".gif"]))


def test_scandir_tells_kinds_and_inodes_without_stat(mount: Path) -> None:
    for directory, _, _ in os.walk(mount):
        with os.scandir(directory) as entries:
            for entry in entries:
                assert entry.inode() == os.stat(entry.path).st_ino
                assert entry.is_dir(follow_symlinks=False) == os.path.isdir(entry.path)


def test_copytree_and_rglob_see_every_file(folder: Path, mount: Path, tmp_path: Path) -> None:
    shutil.copytree(mount, tmp_path / "copy")

    assert tool("diff", "-r", folder, tmp_path / "copy") == ""
    for pattern in ("*.png", "**/*Bäume/*", "*"):
        assert sorted(str(p.relative_to(mount)) for p in mount.rglob(pattern)) == sorted(
            str(p.relative_to(folder)) for p in folder.rglob(pattern)
        )


def test_getfattr_shows_what_the_api_knows(server: LocalServer, mount: Path) -> None:
    (document,) = [one for one in server.samples() if one["fileName"] == VIDEO]

    shown = tool("getfattr", "-d", "--absolute-names", mount / VIDEO)

    assert f'user.lightly.sample_id="{document["id"]}"' in shown.splitlines()
    assert f'user.lightly.file_name="{VIDEO}"' in shown.splitlines()
    name = tool("getfattr", "--only-values", "-n", "user.lightly.file_name", "--absolute-names", mount / NOTE)
    assert name == NOTE


def test_nothing_of_all_that_sends_head(server: LocalServer, mount: Path) -> None:
    """A signed GET refuses HEAD on S3, so sizes are found otherwise."""
    assert (mount / NOTE).read_bytes()

    assert server.stats.count("storage.get") > 0
    assert server.stats.count("storage.head") == 0


def test_a_second_ls_asks_the_api_for_nothing(server: LocalServer, tree: MountedTree) -> None:
    tree.refresh()  # the time for which answers count begins here
    first = tool("ls", "-l", tree.mountpoint / "train" / "cat")
    wait_until(lambda: server.stats.snapshot()["in_flight"] == 0, 10)
    server.stats.reset()

    assert tool("ls", "-l", tree.mountpoint / "train" / "cat") == first
    assert server.stats.total() == 0
