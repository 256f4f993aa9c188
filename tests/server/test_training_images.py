"""`LightlyImages` without torch: what its items are, what is fetched for them, and what a broken one does."""

from __future__ import annotations

import io
import json
import multiprocessing
import pickle
import random
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from restartable import RestartableServer
from trees import environment, use_here, wait_until

import lightlyfs
from lightlyfs.errors import NoSuchFile, UnreadableSample
from lightlyfs.fsspec import parts as fsspec_parts
from lightlyfs.testing import LocalServer, ServerOptions
from lightlyfs.training.images import LightlyImages
from lightlyfs.training.order import EpochOrder, with_announcements
from lightlyfs.training.reading import AddressedFiles

CLASSES, PER_CLASS = ("ant", "bee", "cat"), 20
FILES = len(CLASSES) * PER_CLASS
# on a machine that is busy some take so long that they are sent a second time
SENT_TWICE = 8


def picture(number: int, mode: str = "RGB") -> bytes:
    held = io.BytesIO()
    Image.new(mode, (8, 6), number).save(held, "PNG")
    return held.getvalue()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("served")
    for name in CLASSES:
        for number in range(PER_CLASS):
            path = root / "train" / name / f"{number:02}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(picture(number))
            mask = root / "masks" / name / f"{number:02}.png"
            mask.parent.mkdir(parents=True, exist_ok=True)
            mask.write_bytes(picture(number % 2, "L"))
    (root / "train" / "ant" / "odd.png").write_bytes(picture(1))
    return root


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[LocalServer]:
    with LocalServer(ServerOptions(source=folder, dataset_name="animals")) as running:
        yield running


@pytest.fixture(autouse=True)
def here(server: LocalServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Each test with a cache of its own."""
    use_here(server, tmp_path / "home", monkeypatch)
    server.stats.reset()
    yield
    fsspec_parts.close_all()


def images(root: str = "animals/train", **options: Any) -> LightlyImages:
    return LightlyImages(root, include="*/[0-9]*.png", **options)


def test_items_are_pictures_with_the_numbers_of_their_folders() -> None:
    found = images()
    assert (len(found), found.classes) == (FILES, list(CLASSES))
    picture, label = found[PER_CLASS + 3]
    assert (picture.mode, picture.size, picture.getpixel((0, 0)), label) == ("RGB", (8, 6), (3, 0, 0), 1)
    assert found.paths[PER_CLASS + 3] == ("bee/03.png",)
    assert [label for _, label in found.__getitems__([0, 59, -1])] == [0, 2, 2]


def test_of_a_large_batch_the_bytes_of_few_images_are_held_at_once() -> None:
    held, most = [0], [0]

    def decode(_: bytes) -> int:
        held[0] -= 1
        return held[0]

    found = images(decode=decode, labels=None)
    source = found._in_this_process().source
    read = source.read

    def counted(name: str) -> bytes:
        held[0] += 1
        most[0] = max(most[0], held[0])
        return read(name)

    source.read = counted  # type: ignore[method-assign]
    assert len(found.__getitems__(range(40))) == 40
    assert (held, most) == ([0], [8])


@pytest.mark.parametrize("root", ["animals/train", "lightly://animals/train/", "ID/train"])
def test_a_dataset_has_several_names(server: LocalServer, folder: Path, root: str) -> None:
    found = LightlyImages(root.replace("ID", server.dataset_id), decode=False, labels=None)
    assert len(found) == FILES + 1
    assert found[0] == (folder / "train" / found.paths[0][0]).read_bytes()


def test_what_is_no_image_is_left_out_and_nothing_at_all_is_an_error() -> None:
    assert len(images(labels=None)) == FILES
    assert len(LightlyImages("animals", include=lambda path: path.endswith("ant/00.png"))) == 2
    with pytest.raises(NoSuchFile, match=r"no images in lightly://animals/train that fit"):
        LightlyImages("animals/train", include="*.jpg")
    with pytest.raises(FileNotFoundError):
        LightlyImages("animals/absent")


def test_tags_choose_images_and_may_be_their_labels(server: LocalServer) -> None:
    ids = {one["fileName"]: one["id"] for one in server.samples()}
    server.add_tag("early", [ids[f"train/{name}/00.png"] for name in CLASSES])
    server.add_tag("bees", [ids[f"train/bee/{number:02}.png"] for number in range(PER_CLASS)])
    found = images(tags=["early", "bees"], labels="tag")
    assert (len(found), found.classes) == (PER_CLASS + 2, ["early", "bees"])
    assert [found.label(number) for number in range(4)] == [0, 0, 1, 1]
    assert [path for (path,) in found.paths][:3] == ["ant/00.png", "bee/00.png", "bee/01.png"]
    with pytest.raises(FileNotFoundError, match="no tag 'late'"):
        images(tags=["late"])
    with pytest.raises(ValueError, match="labels by tag need tags"):
        images(labels="tag")


def test_one_tag_may_be_given_as_a_text(server: LocalServer) -> None:
    server.add_tag("single", [server.samples()[0]["id"]])
    assert len(LightlyImages("animals", tags="single")) == 1


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("labels", "folders"),
        ("on_error", "Skip"),
        ("on_error", None),
        ("group_by", "stems"),
        ("decode", "RGB"),
    ],
)
def test_a_misspelt_word_is_refused(option: str, value: Any) -> None:
    with pytest.raises(ValueError, match=f"{option} is {value!r}; it may be .* or a function"):
        images(**{option: value})


def test_one_path_is_no_list_of_paths() -> None:
    with pytest.raises(ValueError, match="give a list"):
        next(lightlyfs.batches("lightly://animals/train/ant/00.png", 2))
    with pytest.raises(ValueError, match="give a list"):
        lightlyfs.ahead("lightly://animals/train/ant/00.png")


def test_an_image_and_its_mask_are_one_item(caplog: pytest.LogCaptureFixture) -> None:
    found = LightlyImages("animals", group_by=lambda path: path.partition("/")[2], labels=class_of)
    assert len(found) == FILES
    (mask, image), label = found[1]
    assert found.paths[1] == ("masks/ant/01.png", "train/ant/01.png")
    assert (mask.mode, image.mode, image.getpixel((0, 0)), label) == ("RGB", "RGB", (1, 0, 0), "ant")
    assert "1 groups, as that of train/ant/odd.png" in caplog.text
    by_stem = LightlyImages("animals", include="*/ant/*", group_by="stem", labels=None)
    image, mask = by_stem[2]
    assert len(by_stem) == PER_CLASS


def class_of(path: str) -> str:
    return path.split("/")[1]


def test_decoding_and_transforming_are_the_callers(folder: Path) -> None:
    raw = images(decode=False, transform=len, labels=None)
    assert raw[0] == len((folder / "train/ant/00.png").read_bytes())
    assert images(decode=len, transform=str)[0] == (str(raw[0]), 0)


def test_a_transform_that_fails_is_not_a_broken_image(server: LocalServer) -> None:
    """It is the caller's own error, which skipping would hide; a note says for which image."""
    with pytest.raises(ZeroDivisionError) as caught:
        images(transform=lambda _: 1 // 0, on_error="skip").__getitems__([0])
    assert "train/ant/00.png (sample " in caught.value.__notes__[0]


@pytest.fixture
def broken(server: LocalServer) -> Iterator[str]:
    """The id of a sample that is no picture any more."""
    sample = next(one for one in server.samples() if one["fileName"] == "train/bee/05.png")
    whole = server.object_bytes(sample["id"])
    assert whole is not None
    server.replace_object(sample["id"], whole[:40])
    yield sample["id"]
    server.replace_object(sample["id"], whole)


def test_a_broken_image_is_named_with_its_sample(broken: str) -> None:
    with pytest.raises(UnreadableSample) as caught:
        images()[PER_CLASS + 5]
    assert str(caught.value).startswith(
        f"lightly://animals/train/bee/05.png (sample {broken}) cannot be decoded"
    )
    assert (caught.value.path, caught.value.sample_id) == ("lightly://animals/train/bee/05.png", broken)
    again = pickle.loads(pickle.dumps(caught.value))
    assert (str(again), again.sample_id) == (str(caught.value), broken)


def test_a_broken_image_may_be_skipped_or_replaced(broken: str, caplog: pytest.LogCaptureFixture) -> None:
    numbers = [PER_CLASS + 4, PER_CLASS + 5, PER_CLASS + 6]
    assert len(images(on_error="skip").__getitems__(numbers)) == 2
    assert f"left out: lightly://animals/train/bee/05.png (sample {broken})" in caplog.text
    with pytest.raises(UnreadableSample, match=r"bee/05\.png cannot be read, and is skipped in batches only"):
        images(on_error="skip")[PER_CLASS + 5]
    assert images(on_error=lambda error: error.sample_id).__getitems__(numbers)[1] == broken
    assert len(images(on_error=lambda error: None).__getitems__(numbers)) == 2


class Wrapped:
    """A dataset around another one, as torch's Subset: iterated by numbers until an IndexError."""

    def __init__(self, images: LightlyImages) -> None:
        self.images = images

    def __getitem__(self, number: int) -> Any:
        return self.images[number]


def test_a_loop_over_all_images_does_not_end_at_a_broken_one(server: LocalServer, broken: str) -> None:
    found = images(on_error="skip")
    assert [label for _, label in found] == [number // PER_CLASS for number in range(FILES) if number != 25]
    assert sent(server) <= FILES + SENT_TWICE
    wrapped: Any = Wrapped(found)
    with pytest.raises(UnreadableSample, match=r"bee/05\.png"):
        list(wrapped)
    wrapped = Wrapped(images(on_error=lambda error: error.sample_id))
    assert len(list(wrapped)) == FILES


def test_a_read_that_fails_is_named_too(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(self: AddressedFiles, name: str) -> bytes:
        raise PermissionError(13, "Permission denied", name)

    found = images()
    monkeypatch.setattr(AddressedFiles, "read", refused)
    with pytest.raises(UnreadableSample, match=r"00.png \(sample [0-9a-f]{24}\) cannot be read: Permission"):
        found[0]


def sent(server: LocalServer) -> int:
    return server.stats.count("storage.get")


def test_a_batch_is_fetched_together_and_each_file_once(server: LocalServer) -> None:
    found = images(labels=None)
    numbers = list(range(FILES))
    random.Random(1).shuffle(numbers)
    assert len(found.__getitems__(numbers[:40])) == 40
    assert 40 <= sent(server) <= 40 + SENT_TWICE
    assert len(found.__getitems__(numbers)) == FILES
    assert FILES <= sent(server) <= FILES + SENT_TWICE


def test_what_is_announced_comes_before_it_is_asked_for(server: LocalServer) -> None:
    found = images(labels=None)
    order = EpochOrder(len(found), 10)
    batches = list(with_announcements(order.begin(), 1, 2, epoch_run=1))
    found.__getitems__(batches[0])
    wait_until(lambda: sent(server) >= 30, 20)
    found.__getitems__(batches[1])
    wait_until(lambda: sent(server) >= 40, 20)
    assert sent(server) <= 40 + SENT_TWICE


def test_an_epoch_that_was_left_is_not_fetched_for(server: LocalServer) -> None:
    found = images(labels=None, read_ahead_limit="1K")  # one file at once
    first = next(with_announcements(EpochOrder(FILES, 2, seed=1).begin(), 1, 100, epoch_run=1))
    second = next(with_announcements(EpochOrder(FILES, 2, seed=2).begin(), 1, 0, epoch_run=2))
    found.__getitems__(first)
    found.__getitems__(second)
    found.__getitems__([FILES - 1])
    assert sent(server) < 2 * 1024 // len(picture(0)) + 5


def labels_of(given: tuple[LightlyImages, list[int]]) -> tuple[int, list[int]]:
    """How many clients another process has, and labels that it reads."""
    found, numbers = given
    labels = [
        label for number in numbers for _, label in pickle.loads(pickle.dumps(found)).__getitems__([number])
    ]
    networks = [thread for thread in threading.enumerate() if thread.name == "lightlyfs-network"]
    return len(networks), labels


@pytest.mark.parametrize("way", ["fork", "spawn", "forkserver"])
def test_workers_of_each_kind_read_one_listing(server: LocalServer, way: str) -> None:
    found = images()
    assert found[0]  # this process has it open, with threads
    pages, records = server.stats.count("partial"), server.stats.count("dataset")
    parts = [list(range(start, FILES, 3)) for start in range(3)]
    with multiprocessing.get_context(way).Pool(3) as pool:
        answers = pool.map(labels_of, [(found, numbers) for numbers in parts], chunksize=1)
    assert [clients for clients, _ in answers] == [1, 1, 1]
    assert [labels for _, labels in answers] == [[number // PER_CLASS for number in part] for part in parts]
    assert server.stats.count("partial") == pages
    assert server.stats.count("dataset") == records
    assert sent(server) <= FILES + SENT_TWICE


def read_together(found: LightlyImages, numbers: list[int], begin: Any, answers: Any) -> None:
    """Once all others are here, too, read labels; and how much memory of its own that takes, in bytes."""
    begin.wait()
    before = own_bytes()
    labels = [label for _, label in found.__getitems__(numbers)]
    answers.put((labels, own_bytes() - before))


def own_bytes() -> int:
    text = Path("/proc/self/smaps_rollup").read_text(encoding="ascii")
    return sum(int(kib) << 10 for kib in re.findall(r"Private_\w+: +([0-9]+) kB", text))


@pytest.mark.long
def test_256_workers_share_one_listing_and_each_fetch(server: LocalServer, capfd: Any) -> None:
    found, workers = images(), 256
    pages, records = server.stats.count("partial"), server.stats.count("dataset")
    fork = multiprocessing.get_context("fork")
    begin, answers = fork.Barrier(workers), fork.SimpleQueue()
    parts = [[(start + step) % FILES for step in range(8)] for start in range(workers)]
    running = [fork.Process(target=read_together, args=(found, part, begin, answers)) for part in parts]
    for process in running:
        process.start()
    given = [answers.get() for _ in running]
    for process in running:
        process.join()
    assert sorted(labels for labels, _ in given) == sorted([n // PER_CLASS for n in part] for part in parts)
    assert max(taken for _, taken in given) < 60 << 20
    assert server.stats.count("partial") == pages
    assert server.stats.count("dataset") == records
    assert sent(server) <= FILES + SENT_TWICE
    assert "is bypassed" not in capfd.readouterr().err


# takes a batch, then says in a file what it took and where it is, as a training that keeps checkpoints does
_TRAINING = """
import json, os, sys
from lightlyfs.training.images import LightlyImages
from lightlyfs.training.order import EpochOrder, with_announcements
from lightlyfs.training.reading import AddressedFiles
checkpoint, size = sys.argv[1], int(sys.argv[2])
images = LightlyImages("animals", decode=len)
order = EpochOrder(len(images), size, seed=5)
kept = {"taken": []}
if os.path.exists(checkpoint):
    kept = json.load(open(checkpoint))
    order.load_state_dict(kept["state"])
for batch in with_announcements(order.begin(), 1, 2, 1):
    assert len(images.__getitems__(batch)) == len(batch)
    order.took()
    kept = {"taken": kept["taken"] + batch, "state": order.state_dict()}
    with open(checkpoint + ".new", "w") as file:
        json.dump(kept, file)
    os.replace(checkpoint + ".new", checkpoint)
    print("batch", flush=True)
    sys.stdin.readline()
"""


def test_an_epoch_goes_on_after_kill_9_with_no_image_twice_or_missed(
    server: LocalServer, tmp_path: Path
) -> None:
    checkpoint = tmp_path / "checkpoint"
    environ = environment(server, tmp_path / "home")
    whole = [item for batch in EpochOrder(2 * FILES + 1, 9, seed=5).begin() for item in batch]
    for size in (9, 4, 30, 7):  # batches of other sizes, too
        command = [sys.executable, "-c", _TRAINING, checkpoint, str(size)]
        with subprocess.Popen(
            command, env=environ, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        ) as job:
            assert job.stdin is not None
            assert job.stdout is not None
            assert job.stdout.readline() == "batch\n"
            job.stdin.write("\n")
            job.stdin.flush()
            assert job.stdout.readline() == "batch\n"
            job.send_signal(signal.SIGKILL)
        kept = json.loads(checkpoint.read_text())
        assert kept["taken"] == whole[: len(kept["taken"])]
        assert len(kept["taken"]) == kept["state"]["position"]
    done = subprocess.run(
        [sys.executable, "-c", _TRAINING, checkpoint, "16"],
        env=environ,
        input="\n" * 100,
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    assert done.stderr == ""
    kept = json.loads(checkpoint.read_text())
    assert kept["taken"] == whole
    assert (kept["state"]["epoch"], kept["state"]["position"]) == (1, 0)


def test_images_that_are_dropped_leave_no_thread() -> None:
    before = announcing()  # what a test before this one dropped may still be ending
    found = images()
    found.__getitems__([0, 1])
    begun = announcing() - before
    assert len(begun) == 1
    del found
    wait_until(lambda: not begun & announcing(), 20)


def announcing() -> set[threading.Thread]:
    return {thread for thread in threading.enumerate() if "announced" in thread.name}


def test_batches_are_plain_python(server: LocalServer, folder: Path) -> None:
    paths = [f"lightly://animals/{path.relative_to(folder)}" for path in sorted(folder.rglob("*.png"))]
    random.Random(2).shuffle(paths)
    found = list(lightlyfs.batches(iter(paths), 50))
    assert [name for batch in found for name, _ in batch] == paths
    assert [len(batch) for batch in found] == [50, 50, 21]
    for name, data in found[1]:
        assert data == (folder / name.removeprefix("lightly://animals/")).read_bytes()
    assert len(paths) <= sent(server) <= len(paths) + SENT_TWICE
    assert list(lightlyfs.batches([], 50)) == []
    with pytest.raises(ValueError, match="at least one file"):
        next(lightlyfs.batches(paths, 0))


def test_batches_of_an_endless_order_fetch_only_so_far(server: LocalServer) -> None:
    def endless() -> Iterator[str]:
        while True:
            yield from (f"lightly://animals/train/ant/{number:02}.png" for number in range(PER_CLASS))

    found = lightlyfs.batches(endless(), 7)
    assert [len(next(found)) for _ in range(10)] == [7] * 10
    found.close()


def test_the_listing_is_checked_by_who_begins_and_by_no_worker(server: LocalServer) -> None:
    """A dataset that was listed days ago may have other images by now."""
    count = len(images())
    fsspec_parts.close_all()
    added = server.add_sample("train/ant/50.png", picture(3))
    assert added
    found = images()
    assert len(found) == count + 1
    fsspec_parts.close_all()
    requests = server.stats.total()
    assert found[0]
    assert server.stats.total() <= requests + 2  # a read URL and an image


@pytest.mark.long  # it is waited for a minute
def test_without_a_server_the_names_of_an_earlier_listing_do(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with LocalServer(ServerOptions(source=folder, dataset_name="animals")) as server:
        use_here(server, tmp_path / "other", monkeypatch)
        count = len(images())
        fsspec_parts.close_all()
    assert len(images()) == count
    assert "the names of an earlier listing are used" in caplog.text


def epoch_of(given: tuple[LightlyImages, int, int]) -> int:
    """A worker's share of an epoch, as a loader deals it out."""
    found, worker, workers = given
    batches = with_announcements(EpochOrder(len(found), 8, seed=1).begin(), workers, 4, epoch_run=1)
    return sum(len(found.__getitems__(batch)) for n, batch in enumerate(batches) if n % workers == worker)


def test_workers_with_an_announced_order_do_not_wait_for_the_network(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`make bench-train` in small: two processes, 60 images, 0.2 s for a URL and an image each."""
    latency_s, workers = 0.1, 2
    options = ServerOptions(source=folder, api_latency_s=latency_s, storage_latency_s=latency_s)
    with LocalServer(options) as server:
        use_here(server, tmp_path / "other", monkeypatch)
        found = images(f"{server.dataset_id}/train")
        began = time.monotonic()
        with multiprocessing.get_context("fork").Pool(workers) as pool:
            counts = pool.map(epoch_of, [(found, one, workers) for one in range(workers)], chunksize=1)
        took_s = time.monotonic() - began
        fsspec_parts.close_all()
    assert sum(counts) == len(found)
    assert took_s < FILES / workers * 2 * latency_s / 2


def test_an_epoch_goes_on_after_the_server_was_restarted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with RestartableServer(tmp_path) as restartable:
        for number in range(60):
            restartable.now.add_sample(f"{number:02}.png", picture(number))
        use_here(restartable.now, tmp_path / "other", monkeypatch)
        found = LightlyImages("own", labels=None, read_ahead_limit="1K")
        batches = list(with_announcements(EpochOrder(60, 10).begin(), 1, 1, epoch_run=1))
        assert len(found.__getitems__(batches[0])) == 10
        restartable.stop()
        with ThreadPoolExecutor(1) as pool:
            rest = pool.submit(lambda: [len(found.__getitems__(batch)) for batch in batches[1:]])
            with pytest.raises(TimeoutError):
                rest.result(2)
            restartable.start()
            assert rest.result(60) == [10] * 5
        fsspec_parts.close_all()
