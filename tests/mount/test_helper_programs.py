"""Real programs on a read-write mount, twice in a row: as on a local disk, or one honest error.

Whatever they do, the server has not one sample more than the images that were meant, and each keeps its id.
"""

from __future__ import annotations

import functools
import http.server
import importlib.util
import os
import shutil
import subprocess
import sys
import tarfile
import threading
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import shared_mount
from shared_mount import OVERWRITE, SharedMount, gif, jpeg, need_tool, png
from trees import REQUIRE_FUSE

pytestmark = pytest.mark.fuse

TOOLS = {
    "exiftool": "libimage-exiftool-perl",
    "mogrify": "imagemagick",
    "aria2c": "aria2",
    **{
        name: name
        for name in ("optipng", "pngcrush", "jpegoptim", "gifsicle", "exiv2", "rsync", "zip", "unzip")
    },
    **{name: name for name in ("sed", "perl", "unison", "git", "sqlite3", "tar")},
}
OK, FAILS, ONCE = (True, True), (False, False), (True, False)
Ends = tuple[bool, bool]


@dataclass(frozen=True)
class Program:
    """A script, run by `sh -e` in a directory of its own, and how its two runs end.

    `old` are samples that are there before, `new` the ones it means to make. Where both runs end well, the
    directory is as on a local disk; a run that fails changes no sample.
    """

    script: str
    needs: tuple[str, ...] = ()  # programs of TOOLS, or modules of Python
    old: tuple[str, ...] = ()
    new: tuple[str, ...] = ()
    on_disk: Ends = OK
    default: Ends | None = None  # as on the disk, where it is not said
    allowed: Ends | None = None  # with --allow-overwrite; as by default, where it is not said

    def ends(self, is_allowed: bool) -> Ends:
        """How the two runs end on a mount."""
        default = self.on_disk if self.default is None else self.default
        return default if not is_allowed or self.allowed is None else self.allowed


def changing(script: str, needs: str, image: str = "b.jpg") -> Program:
    """A program that replaces the image of a sample, where that is allowed."""
    return Program(script, (needs,), old=(image,), default=FAILS, allowed=OK)


def never(script: str, needs: str, image: str = "b.jpg") -> Program:
    """A program that moves the old image away first, which no mount lets it do."""
    return Program(script, (needs,), old=(image,), default=FAILS, allowed=FAILS)


def rsync(options: str) -> Program:
    """An rsync of one changed and one new image."""
    script = f"rsync {options} $SOURCE/changed/ ./"
    return Program(script, ("rsync",), old=("b.jpg",), new=("new.jpg",), default=FAILS, allowed=OK)


def python(program: str, *modules: str, new: tuple[str, ...] = ()) -> Program:
    """A program of Python."""
    return Program(f"$PYTHON - <<'END'\n{program}\nEND", modules, new=new)


PICTURES = ("a.jpg", "c.png", "deep/d.jpg")

UNISON = """
    cp -au $SOURCE/pictures $HOME
    unison -batch -silent $HOME/pictures $PWD
    diff -r $HOME/pictures .
"""

SQLITE = """
    sqlite3 x.db "PRAGMA journal_mode=MODE; CREATE TABLE IF NOT EXISTS t(n)" > mode
    sqlite3 x.db "BEGIN; INSERT INTO t VALUES(1),(2); INSERT INTO t VALUES(3); COMMIT"
    for i in 1 2 3 4; do
        sqlite3 -cmd '.timeout 20000' x.db 'INSERT INTO t VALUES(7)' & writers="$writers $!"
    done
    for one in $writers; do wait $one; done
    sqlite3 x.db 'SELECT n, count(*) FROM t GROUP BY n; PRAGMA integrity_check' > result
"""

GIT = """
    [ -d repo ] || git init -q -b main repo
    echo more >> repo/a.txt
    git -C repo add .
    git -C repo commit -qm more
    if [ -d copy ]; then git -C copy pull -q; else git clone -q repo copy; fi
    git -C repo gc -q
    git -C copy fsck --strict
    cmp repo/a.txt copy/a.txt
    test -z "$(git -C copy status --porcelain)"
"""

LABEL_CACHE = """
import numpy
from pathlib import Path
path = Path("labels.cache")
if path.exists():
    path.unlink()
numpy.save(str(path), {"labels": [1, 2], "version": "1.0"})
path.with_suffix(".cache.npy").rename(path)
assert numpy.load(str(path), allow_pickle=True).item()["labels"] == [1, 2]
"""

DOWNLOAD = """
import fcntl, os, shutil
from pathlib import Path
target, folder = Path("x.jpg"), Path(".cache/huggingface/download")
folder.mkdir(parents=True, exist_ok=True)
(folder / ".gitignore").write_text("*")
metadata = folder / "x.jpg.metadata"
with (folder / "x.jpg.lock").open("w") as lock:
    fcntl.flock(lock, fcntl.LOCK_EX)
    if not (target.exists() and metadata.exists()):
        data = Path(os.environ["SOURCE"], "pictures/a.jpg").read_bytes()
        incomplete = folder / "x.jpg.abcdef.incomplete"
        with incomplete.open("ab") as file:
            file.write(data[:100])
        with incomplete.open("ab") as file:
            file.write(data[100:])
        incomplete.chmod(0o644)
        shutil.move(str(incomplete), target)
        metadata.write_text("commit\\netag\\n")
assert target.stat().st_size == len(target.read_bytes())
"""

DOWNLOAD_BESIDE = """
import os
from pathlib import Path
target, incomplete = Path("x.jpg"), Path("x.jpg.incomplete")
lock = Path("x.jpg.lock")
lock.touch()
if not target.exists():
    incomplete.write_bytes(Path(os.environ["SOURCE"], "pictures/a.jpg").read_bytes())
    incomplete.rename(target)
lock.unlink()
"""

LOCK_FILE = """
import os
for name in ("daemon.pid", "index.lock", ".lock", "LOCK"):
    file = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    os.write(file, str(os.getpid()).encode())
    os.close(file)
    try:
        os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        raise SystemExit("two hold it")
    except FileExistsError:
        pass
    assert int(open(name).read()) == os.getpid()
    os.unlink(name)
"""

CHUNKS = """
import json, os
os.makedirs("x.zarr/group", exist_ok=True)
for name in (".zgroup", ".zarray", "group/.zattrs", "zarr.json"):
    with open(f"x.zarr/{name}.tmp", "w") as file:
        json.dump({"shape": [4, 4]}, file)
    os.replace(f"x.zarr/{name}.tmp", f"x.zarr/{name}")
for number in range(4):
    partial = f"x.zarr/0.{number}.5f3a9c.partial"
    with open(partial, "wb") as file:
        file.write(bytes([number]) * 1000)
    os.replace(partial, f"x.zarr/0.{number}")
"""

TABLE = """
import csv
with open("x.csv", "w", newline="", encoding="utf-8") as file:
    writer = csv.writer(file)
    writer.writerow(["name", "n"])
    writer.writerows([f"{n}.jpg", n] for n in range(5000))
with open("x.csv", "a") as file:
    file.write("last,1\\n")
assert len(open("x.csv").readlines()) == 5002
"""

TEMPORARIES = """
import os, tempfile
for suffix in ("", ".txt", ".jpg"):
    with tempfile.NamedTemporaryFile(dir=".", suffix=suffix) as file:
        file.write(b"x" * 1000)
        file.flush()
        assert os.path.getsize(file.name) == 1000
        file.seek(0)
        assert file.read() == b"x" * 1000
with tempfile.TemporaryDirectory(dir=".", prefix=".work-") as directory:
    with open(os.path.join(directory, "inside.jpg"), "wb") as file:
        file.write(b"x")
with tempfile.TemporaryFile(dir=".") as file:
    file.write(b"nameless")
    file.seek(0)
    assert file.read() == b"nameless"
assert os.listdir(".") == []
"""

NUMPY = """
import numpy
for name in ("x.npy", "x.npz"):
    (numpy.save if name == "x.npy" else numpy.savez)(name, numpy.arange(10_000))
mapped = numpy.lib.format.open_memmap("m.npy", mode="w+", dtype="int32", shape=(1000,))
mapped[:] = numpy.arange(1000)
mapped.flush()
del mapped
assert int(numpy.load("x.npy").sum()) == 49_995_000
assert int(numpy.load("m.npy", mmap_mode="r").sum()) == 499_500
"""

PIL_SAVE = "from PIL import Image; Image.new('RGB', (30, 20), 'red').save('saved.jpg')"
OPENCV = "import cv2, numpy; cv2.imwrite('saved.jpg', numpy.zeros((30, 20, 3), 'uint8')) or exit(1)"

PROGRAMS = {
    # metadata and size of one image
    "exiftool": never("exiftool -q -Artist=x b.jpg", "exiftool"),
    "exiftool-overwrite": changing("exiftool -q -overwrite_original -Artist=x b.jpg", "exiftool"),
    "exiftool-in-place": changing("exiftool -q -overwrite_original_in_place -Artist=x b.jpg", "exiftool"),
    "exiftool-recursive": changing("exiftool -q -overwrite_original -r -Artist=x .", "exiftool"),
    "optipng": never("optipng -quiet b.png", "optipng", "b.png"),
    "pngcrush": changing("pngcrush -q -ow b.png", "pngcrush", "b.png"),
    "mogrify": changing("mogrify -resize 50% b.jpg", "mogrify"),
    "mogrify-png": changing(
        "mogrify -define png:exclude-chunks=date,time -rotate 90 b.png", "mogrify", "b.png"
    ),
    "jpegoptim": changing("jpegoptim -q --strip-all -m50 b.jpg", "jpegoptim"),
    "gifsicle": changing("gifsicle -b -O3 b.gif", "gifsicle", "b.gif"),
    "exiv2": changing("exiv2 -c 'a comment' b.jpg", "exiv2"),
    "exiv2-tag": changing("exiv2 -M 'set Exif.Image.Artist x' b.jpg", "exiv2"),
    # copying folders
    "rsync-new": Program("rsync -a $SOURCE/pictures/ ./", ("rsync",), new=PICTURES),
    "rsync": rsync("-a"),
    "rsync-checksum": rsync("-ac"),
    "rsync-backup": rsync("-ab --suffix=.orig"),
    "rsync-delay-updates": rsync("-a --delay-updates"),
    "rsync-temp-dir": Program(
        "mkdir -p .incoming; rsync -a --temp-dir=.incoming $SOURCE/changed/ ./",
        ("rsync",),
        old=("b.jpg",),
        new=("new.jpg",),
        default=FAILS,
        allowed=OK,
    ),
    "rsync-inplace": rsync("-a --inplace"),
    "rsync-partial": rsync("-a --partial"),
    "rsync-ignore-existing": Program(
        "rsync -a --ignore-existing $SOURCE/changed/ ./", ("rsync",), old=("b.jpg",), new=("new.jpg",)
    ),
    "rsync-attributes-to": Program("rsync -aAX $SOURCE/pictures/ ./", ("rsync",), new=PICTURES),
    "rsync-attributes-from": Program(
        "cp -au $SOURCE/pictures/. ./; rsync -aAX ./ $HOME/back/; diff -r . $HOME/back",
        ("rsync",),
        new=PICTURES,
    ),
    "cp-archive": Program("cp -au $SOURCE/pictures/. ./", new=PICTURES),
    "unison": Program(UNISON, ("unison",), new=PICTURES),
    # archives: what is said to be a helper's stays here
    "unzip": Program("unzip -qn $SOURCE/pictures.zip", ("unzip",), new=PICTURES),
    "unzip-overwrite": Program(
        "unzip -qo $SOURCE/pictures.zip", ("unzip",), new=PICTURES, default=ONCE, allowed=OK
    ),
    "tar": Program("tar xf $SOURCE/pictures.tar", ("tar",), new=PICTURES, default=ONCE, allowed=OK),
    "tar-overwrite": Program(
        "tar xf $SOURCE/pictures.tar --overwrite", ("tar",), new=PICTURES, default=ONCE, allowed=OK
    ),
    "tar-skip": Program("tar xf $SOURCE/pictures.tar --skip-old-files", ("tar",), new=PICTURES),
    "zip-update": Program(
        'echo x >> a; touch -d "2020-01-0$(wc -l < a)" a; zip -qXu x.zip a; unzip -p x.zip > out; cmp a out',
        ("zip", "unzip"),
    ),
    # downloads
    "aria2c": Program(
        "aria2c -q --no-proxy='*' --auto-file-renaming=false $URL/big.jpg; test ! -e big.jpg.aria2",
        ("aria2c",),
        new=("big.jpg",),
        on_disk=ONCE,
    ),
    "aria2c-slow": Program(
        "[ -e big.jpg ] || aria2c -q --no-proxy='*' --max-download-limit=700K $URL/big.jpg",
        ("aria2c",),
        new=("big.jpg",),
    ),
    "hugging-face": python(DOWNLOAD, new=("x.jpg",)),
    "incomplete-beside": python(DOWNLOAD_BESIDE, new=("x.jpg",)),
    # files of programs, none of which is an image
    "sed-text": Program("echo one >> n.txt; sed -i s/one/two/ n.txt; sed -i.bak s/two/ten/ n.txt", ("sed",)),
    "perl-text": Program("echo one >> n.txt; perl -i -pe s/one/two/ n.txt", ("perl",)),
    "git": Program(GIT, ("git",)),
    "sqlite-delete": Program(SQLITE.replace("MODE", "DELETE"), ("sqlite3",)),
    "sqlite-wal": Program(SQLITE.replace("MODE", "WAL"), ("sqlite3",)),
    "numpy": python(NUMPY, "numpy"),
    "label-cache": python(LABEL_CACHE, "numpy"),
    "temporaries": python(TEMPORARIES),
    "lock-file": python(LOCK_FILE),
    "zarr": python(CHUNKS),
    "csv": python(TABLE),
    # images that a program makes
    "pil": Program(
        f'$PYTHON -c "{PIL_SAVE}"', ("PIL",), new=("saved.jpg",), default=ONCE, allowed=OK
    ),
    "pil-over": Program(
        f'$PYTHON -c "{PIL_SAVE}"', ("PIL",), old=("saved.jpg",), default=FAILS, allowed=OK
    ),
    "opencv": Program(
        f'$PYTHON -c "{OPENCV}"', ("cv2",), old=("saved.jpg",), default=FAILS, allowed=OK
    ),
}  # fmt: skip


def image(name: str, seed: int) -> bytes:
    """A picture of the kind that a name promises."""
    make: dict[str, Callable[[int], bytes]] = {".png": png, ".gif": gif}
    return make.get(Path(name).suffix, jpeg)(seed)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the programs copy from: folders of images, and archives with a Mac's helper files."""
    root = tmp_path_factory.mktemp("source")
    files = {f"pictures/{name}": image(name, 4 + number) for number, name in enumerate(PICTURES)}
    files |= {"pictures/notes.txt": b"notes\n", "big.jpg": jpeg(9) + os.urandom(1_000_000)}
    files |= {"changed/b.jpg": jpeg(3), "changed/new.jpg": jpeg(4)}
    for name, data in files.items():
        (root / name).parent.mkdir(exist_ok=True, parents=True)
        (root / name).write_bytes(data)
        os.utime(root / name, (1_600_000_000, 1_600_000_000))
    make_archives(root)
    return root


def make_archives(root: Path) -> None:
    """A ZIP and a tar of `pictures`, as a Mac makes them."""
    helpers = root / "helpers"
    (helpers / "__MACOSX").mkdir(parents=True)
    for name in ("__MACOSX/._a.jpg", "__MACOSX/a.jpg", "._a.jpg", ".DS_Store"):
        (helpers / name).write_bytes(b"\0\5\26\7 helper")
    with (
        zipfile.ZipFile(root / "pictures.zip", "w") as archive,
        tarfile.open(root / "pictures.tar", "w") as tar,
    ):
        for top in (root / "pictures", helpers):
            for path in sorted(top.rglob("*")):
                archive.write(path, path.relative_to(top))
                tar.add(path, str(path.relative_to(top)), recursive=False)


@pytest.fixture(scope="module")
def url(source: Path) -> Iterator[str]:
    """The address of a web server over `source`."""

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, format: str, *args: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(
        ("127.0.0.1", 0), functools.partial(Quiet, directory=str(source))
    ) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()
        thread.join()


@pytest.fixture(scope="module", params=["default", OVERWRITE])
def place(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[SharedMount]:
    """A mount for all the programs, with and without leave to replace images."""
    options = [OVERWRITE] if request.param == OVERWRITE else []
    old = {f"{name}/{one}": image(one, 1) for name, program in PROGRAMS.items() for one in program.old}
    with shared_mount.shared_mount(tmp_path_factory.mktemp("programs"), old, *options) as subject:
        yield subject


class Runner:
    """Runs scripts with a home, the source and a web server; remembers what they leave on a local disk."""

    def __init__(self, source: Path, url: str, directory: Path) -> None:
        self._source = source
        self._url = url
        self._directory = directory
        self._on_disk: dict[str, dict[str, bytes]] = {}

    def run(self, name: str, directory: Path, home: Path) -> bool:
        """Run a program in a directory; whether it says that it went well."""
        home.mkdir(exist_ok=True, parents=True)
        words = ["sh", "-e", "-c", PROGRAMS[name].script]
        done = subprocess.run(
            words, cwd=directory, env=self._environ(home), capture_output=True, timeout=60, check=False
        )
        sys.stdout.write((done.stdout + done.stderr).decode(errors="replace"))
        return done.returncode == 0

    def on_disk(self, name: str) -> dict[str, bytes]:
        """What two runs leave on a local disk: the oracle."""
        if name not in self._on_disk:
            directory = self._directory / name
            for one in PROGRAMS[name].old:
                (directory / one).parent.mkdir(parents=True)
                (directory / one).write_bytes(image(one, 1))
            directory.mkdir(exist_ok=True)
            home = self._directory / "homes" / name
            ends = tuple(self.run(name, directory, home) for _ in range(2))
            assert ends == PROGRAMS[name].on_disk
            self._on_disk[name] = files_below(directory)
        return self._on_disk[name]

    def _environ(self, home: Path) -> dict[str, str]:
        kept = {name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")}
        who = {"NAME": "T", "EMAIL": "t@example.org", "DATE": "2020-01-01T00:00:00Z"}
        git = {f"GIT_{role}_{name}": value for role in ("AUTHOR", "COMMITTER") for name, value in who.items()}
        git |= {"GIT_CONFIG_GLOBAL": "/dev/null", "GIT_CONFIG_NOSYSTEM": "1"}
        places = {"SOURCE": str(self._source), "HOME": str(home), "URL": self._url, "PYTHON": sys.executable}
        return kept | git | places | {"LC_ALL": "C.UTF-8", "UNISON": str(home / ".unison")}


@pytest.fixture(scope="module")
def runner(source: Path, url: str, tmp_path_factory: pytest.TempPathFactory) -> Runner:
    """What runs the scripts."""
    return Runner(source, url, tmp_path_factory.mktemp("disk"))


def files_below(directory: Path) -> dict[str, bytes]:
    """Every file below a directory but those of git, which holds inode numbers."""
    paths = (path for path in directory.rglob("*") if ".git" not in path.parts and path.is_file())
    return {str(path.relative_to(directory)): path.read_bytes() for path in paths}


def need_all(program: Program) -> None:
    """Skip a program whose tools are missing."""
    for name in program.needs:
        if name in TOOLS:
            need_tool(name, TOOLS[name])
        elif importlib.util.find_spec(name) is None:
            (pytest.fail if REQUIRE_FUSE else pytest.skip)(f"the Python package {name} is not installed")


@pytest.mark.parametrize("name", PROGRAMS)
def test_a_program_ends_as_on_a_local_disk_or_with_an_error(
    place: SharedMount, runner: Runner, tmp_path: Path, name: str
) -> None:
    program = PROGRAMS[name]
    need_all(program)
    expected = runner.on_disk(name)
    directory, count = place.path(name), place.count()
    is_allowed = OVERWRITE in place.tree.options

    for went_well in program.ends(is_allowed):
        before = place.samples(name)
        assert runner.run(name, directory, tmp_path / "home") == went_well
        after = place.samples(name)
        assert set(before) <= set(after) <= {*program.old, *program.new}
        if not went_well:
            assert {one: after[one] for one in before} == before

    place.remember(name)
    place.check_old(name)
    assert place.count() == count + len(after) - len(program.old)
    if any(program.ends(is_allowed)):
        assert set(after) == {*program.old, *program.new}
    if program.ends(is_allowed) == program.on_disk:
        assert files_below(directory) == expected
        assert after == {one: expected[one] for one in after}


def test_nothing_else_is_sent_a_moment_later(place: SharedMount) -> None:
    """Temporaries that were renamed or removed are not sent when their time is over."""
    place.check_nothing_came_later()
    assert place.replaced() == []


def test_files_of_programs_are_no_trace_on_the_server(place: SharedMount) -> None:
    """A tree of local files goes as it came."""
    before = place.count()
    for name in ("git", "zarr", "sqlite-wal", "sed-text"):
        shutil.rmtree(place.path(name))
    assert place.count() == before
