"""Files of 100 KB that are not here yet: one reader in order, 8 in any order, a training; 20 and 80 ms away.

One server answers all, late and at 0.1 ms of CPU a request (`object_server.py`); ours, and the downloads, ask
for a URL first. Ours runs with its defaults, rclone mount with the flags that serve it best
(`mounts.RCLONE_SMALL`). Each is measured three times, in turns; what is kept, and claimed, is our lowest and
the highest of each other. Peers that take a round trip a file are given fewer files: the rate is the same.
"""

from __future__ import annotations

import contextlib
import random
import shutil
from collections.abc import Callable
from pathlib import Path

from harness import LOCAL, Bench, Mount, read_files, run_script
from mounts import RCLONE_SMALL, lightlyfs_mount, other_peers, rclone_mount
from object_server import key_of
from servers import object_served

FILES, FILE_BYTES = 2_000, 100_000
CLASSES = 100
FEW_FILES, VERY_FEW_FILES = 400, 200
READERS = 8
ROUNDS = 3
THREADS = 32
NEAR_S, FAR_S = 0.02, 0.08
IN_ORDER = "cold, in order, 1 reader"
SHUFFLED = "cold, shuffled, 8 readers"
SHUFFLED_FAR = f"{SHUFFLED}, 80 ms"
CLASSES_FAR = f"cold, shuffled over {CLASSES} folders, 80 ms"
URLS_KNOWN = f"{SHUFFLED}, URLs known"
# 4 workers that decode, batches of 32, and an accelerator that takes so many images/s
WORKERS, BATCH, IMAGES_PER_S = 4, 32, 500
TRAINING = f"cold, training loop, {WORKERS} workers, decoded, 80 ms"
TRAINING_TOLD = f"{TRAINING}, its order announced"
DOWNLOAD = "all downloaded first, 32 threads"
CLIENTS = ("requests", "urllib3")
# files a folder
FLAT, CLASSED = FILES, FILES // CLASSES
OURS = "lightlyfs"
# a mount, and the directory that holds its cache, which is new each time
Opener = Callable[[Path], contextlib.AbstractContextManager[Mount]]


def run(bench: Bench) -> None:
    """Near, then far."""
    with object_served(bench.place("near"), FILES, FILE_BYTES, NEAR_S, FLAT) as (port, exported):

        def ours(place: Path) -> contextlib.AbstractContextManager[Mount]:
            return lightlyfs_mount(exported, place)

        for _ in range(ROUNDS):
            one_round(bench, ours, IN_ORDER, names_in(FLAT), 1)
            one_round(
                bench,
                theirs(port),
                IN_ORDER,
                names_in(FLAT, VERY_FEW_FILES),
                1,
            )
            one_round(bench, ours, SHUFFLED, shuffled(FLAT), READERS)
            shuffled_again(bench, ours)
            one_round(bench, theirs(port), SHUFFLED, shuffled(FLAT), READERS)
        for client in CLIENTS:
            download(bench, exported, client)
        for peer in other_peers():
            try:
                other_rounds(bench, lambda place, peer=peer: peer(port, place))  # type: ignore[misc]
            except SystemExit as error:
                print(f"a peer is left out: {error}", flush=True)
    far(bench, SHUFFLED_FAR, FLAT)
    far(bench, CLASSES_FAR, CLASSED)
    training(bench)
    bench.keep_claims(OURS)


def other_rounds(bench: Bench, opener: Opener) -> None:
    """Both loads over a peer that takes a round trip a file."""
    one_round(bench, opener, IN_ORDER, names_in(FLAT, VERY_FEW_FILES), 1)
    one_round(bench, opener, SHUFFLED, shuffled(FLAT)[:FEW_FILES], READERS)


def far(bench: Bench, what: str, per_folder: int) -> None:
    """The same, shuffled, 80 ms away."""
    names = shuffled(per_folder)
    with object_served(bench.place("far"), FILES, FILE_BYTES, FAR_S, per_folder) as (port, exported):
        for _ in range(ROUNDS):
            one_round(bench, lambda place: lightlyfs_mount(exported, place), what, names, READERS)
            one_round(bench, theirs(port), what, names[:FEW_FILES], READERS)


def training(bench: Bench) -> None:
    """An epoch of a training loop: over the mounts, and over the local disk, which leaves decoding alone."""
    with object_served(bench.place("far"), FILES, FILE_BYTES, FAR_S, FLAT) as (port, exported):
        place = bench.place("downloaded")
        run_script("download.py", place, THREADS, CLIENTS[-1], environ=exported)
        local = [path.name for path in place.iterdir()]
        for _ in range(ROUNDS):
            bench.note(TRAINING, LOCAL, train(bench, place, local), "files/s")
            for what, words in ((TRAINING, ()), (TRAINING_TOLD, ("announce",))):
                with lightlyfs_mount(exported, bench.place("cold")) as mount:
                    per_s = train(bench, mount.path, names_in(FLAT), *words, environ=mount.environ())
                bench.note(what, mount.subject, per_s, "files/s")
            with theirs(port)(bench.place("cold")) as mount:
                bench.note(
                    TRAINING, mount.subject, train(bench, mount.path, names_in(FLAT, FEW_FILES)), "files/s"
                )


def train(
    bench: Bench, directory: Path, names: list[str], *words: str, environ: dict[str, str] | None = None
) -> float:
    """Images a second of an epoch, its start included."""
    listed = bench.directory / "names"
    listed.write_text("\n".join(names))
    numbers = [7, WORKERS, BATCH, IMAGES_PER_S, "decoded", *words]
    share, total = run_script("trainer.py", directory, listed, *numbers, environ=environ)
    if total != FILE_BYTES * len(names):
        raise SystemExit(f"{directory}: an epoch read {total} bytes")
    return share * IMAGES_PER_S


def theirs(port: int) -> Opener:
    """rclone mount at its best for small files."""
    return lambda place: rclone_mount(port, place, words=RCLONE_SMALL)


def names_in(per_folder: int, count: int = FILES) -> list[str]:
    """The first names, in order."""
    return [key_of(number, per_folder) for number in range(count)]


def shuffled(per_folder: int) -> list[str]:
    """All names, in an order that is the same for all."""
    names = names_in(per_folder)
    random.Random(7).shuffle(names)
    return names


def one_round(bench: Bench, opener: Opener, what: str, names: list[str], readers: int) -> None:
    """Read files over a mount whose cache is empty."""
    with opener(bench.place("cold")) as mount:
        measure(bench, mount, what, names, readers)


def shuffled_again(bench: Bench, opener: Opener) -> None:
    """The same in the place that the last mount left, which forgets the contents but not the URLs."""
    place = bench.directory / "cold"
    for path in [*place.rglob("blocks.db*"), *place.rglob("blocks")]:
        path.unlink() if path.is_file() else shutil.rmtree(path)
    with opener(place) as mount:
        measure(bench, mount, URLS_KNOWN, shuffled(FLAT), READERS)


def measure(bench: Bench, mount: Mount, what: str, names: list[str], readers: int) -> None:
    """Files a second, and what the mount used for each."""
    with mount.metered(len(names)) as used:
        per_s = read_files(bench, mount.path, names, file_bytes=FILE_BYTES, readers=readers)
    bench.note(what, mount.subject, per_s, "files/s", **used)


def download(bench: Bench, exported: dict[str, str], client: str) -> None:
    """Everything, before anybody reads."""
    place = bench.place("downloaded")
    seconds, total = run_script("download.py", place, THREADS, client, environ=exported)
    if total != FILES * FILE_BYTES:
        raise SystemExit(f"downloaded {total} bytes, not {FILES * FILE_BYTES}")
    bench.note(DOWNLOAD, client, FILES / seconds, "files/s")
