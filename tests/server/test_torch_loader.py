"""The DataLoader of `lightlyfs.torch`: its order, its state, its workers."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
from trees import environment, use_here

from lightlyfs.errors import UnreadableSample
from lightlyfs.fsspec import parts as fsspec_parts
from lightlyfs.testing import LocalServer, ServerOptions
from lightlyfs.training.images import LightlyImages

pytest.importorskip("torch", reason="torch is not installed; pip install 'lightlyfs[torch]'")

FILES, SIZE = 120, 3_000
SENT_TWICE = 8


@pytest.fixture(scope="module")
def server() -> Iterator[LocalServer]:
    with LocalServer(ServerOptions(fake_samples=FILES, fake_bytes=SIZE, fake_per_directory=40)) as running:
        yield running


@pytest.fixture(autouse=True)
def here(server: LocalServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    use_here(server, tmp_path / "home", monkeypatch)
    server.stats.reset()
    yield
    fsspec_parts.close_all()


def number_of(path: str) -> int:
    return int(path[-11:-4])


def images(server: LocalServer, **options: Any) -> LightlyImages:
    return LightlyImages(server.dataset_id, decode=len, labels=number_of, **options)


def loaded(images: Any, size: int = 8, **options: Any) -> Any:
    from lightlyfs.torch import loader

    if options.get("num_workers", 0):
        options.setdefault("multiprocessing_context", "fork")
    return loader(images, size, **{"num_workers": 0, "seed": 3, **options})


def numbers(batches: Any, most: int | None = None) -> list[int]:
    """The files that batches are of, whose bytes are all there."""
    found: list[int] = []
    for sizes, labels in islice(batches, most):
        assert sizes.tolist() == [SIZE] * len(labels)
        found += labels.tolist()
    return found


@pytest.mark.parametrize(
    ("workers", "way"), [(0, None), (2, "fork"), (2, "spawn"), (2, "forkserver")], ids=str
)
def test_an_epoch_has_each_image_once_and_the_next_another_order(
    server: LocalServer, workers: int, way: str
) -> None:
    options = {"multiprocessing_context": way} if way else {}
    batches = loaded(images(server), num_workers=workers, **options)
    pages = server.stats.count("partial")
    assert len(batches) == FILES // 8
    first, second = numbers(batches), numbers(batches)
    assert sorted(first) == sorted(second) == list(range(FILES))
    assert first != second
    assert FILES <= server.stats.count("storage.get") <= FILES + SENT_TWICE
    assert server.stats.count("partial") == pages
    batches.set_epoch(0)
    assert numbers(batches) == first


def test_the_order_does_not_depend_on_workers(server: LocalServer) -> None:
    found = images(server)
    assert numbers(loaded(found)) == numbers(loaded(found, num_workers=2)) == numbers(loaded(found, 5))


def test_workers_that_stay_begin_again_after_an_epoch_that_was_left(server: LocalServer) -> None:
    batches = loaded(images(server), num_workers=2)
    first = numbers(batches, 3)
    assert numbers(batches, 3) == first
    whole = numbers(batches)
    assert (whole[:24], sorted(whole)) == (first, list(range(FILES)))


@pytest.mark.parametrize(("before", "after"), [(0, 2), (2, 0), (2, 1)])
def test_a_state_counts_what_the_caller_was_given(server: LocalServer, before: int, after: int) -> None:
    """Workers are batches ahead of the caller: what they fetched and did not give is not lost."""
    found = images(server)
    whole = numbers(loaded(found))
    batches = loaded(found, num_workers=before)
    batches.set_epoch(0)
    taken = numbers(batches, 4)
    state = json.loads(json.dumps(batches.state_dict()))
    assert taken == whole[:32]

    later = loaded(found, 11, num_workers=after, seed=9)
    later.load_state_dict(state)
    later.set_epoch(state["epoch"])
    assert numbers(later) == whole[32:]
    assert sorted(numbers(later)) == list(range(FILES))


def test_ranks_share_an_epoch(server: LocalServer) -> None:
    found = images(server)
    shares = [numbers(loaded(found, 7, share=(rank, 3))) for rank in range(3)]
    assert [len(share) for share in shares] == [40] * 3
    assert sorted(number for share in shares for number in share) == list(range(FILES))


def test_torch_distributed_says_the_share(server: LocalServer, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch.distributed

    found = images(server)
    assert loaded(found).order.share == (0, 1)
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_rank", lambda: 1)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 3)
    assert loaded(found).order.share == (1, 3)


def test_batches_in_any_order_are_refused(server: LocalServer) -> None:
    """A state counts batches: it would give images twice, and miss others."""
    with pytest.raises(ValueError, match="cannot be resumed"):
        loaded(images(server), num_workers=2, in_order=False)


def test_a_state_of_other_images_is_refused(server: LocalServer) -> None:
    state = loaded(images(server)).state_dict()
    others = images(server, include="fake/0001/*")
    with pytest.raises(ValueError, match="other images"):
        loaded(others).load_state_dict(state)


def test_a_batch_of_which_nothing_can_be_read_is_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "served"
    folder.mkdir()
    for number in range(24):
        (folder / f"{number:07}.jpg").write_bytes(b"" if number < 8 or number == 20 else b"good")
    with LocalServer(ServerOptions(source=folder)) as server:
        use_here(server, tmp_path / "other", monkeypatch)
        found = LightlyImages(server.dataset_id, decode=first_of, labels=number_of, on_error="skip")
        batches = loaded(found, num_workers=2, shuffle=False)
        given = [labels.tolist() for _, labels in batches]
        assert given == [[8, 9, 10, 11, 12, 13, 14, 15], [16, 17, 18, 19, 21, 22, 23]]
        assert (batches.state_dict()["epoch"], batches.state_dict()["position"]) == (1, 0)
        fsspec_parts.close_all()


def test_a_broken_image_is_named_over_the_process_of_its_worker(server: LocalServer) -> None:
    found = LightlyImages(server.dataset_id, labels=None)  # which are no pictures
    with pytest.raises(UnreadableSample, match=r"fake/\d{4}/img_\d{7}.jpg \(sample [0-9a-f]{24}\) cannot be"):
        numbers(loaded(found, num_workers=1))


def first_of(data: bytes) -> int:
    return data[0]


# writes after each batch which images it was given and its state, as a training that keeps checkpoints does
_TRAINING = """
import json, os, sys
from lightlyfs.torch import LightlyImages, loader
checkpoint, dataset, workers = sys.argv[1], sys.argv[2], int(sys.argv[3])
if __name__ == "__main__":
    images = LightlyImages(dataset, decode=len, labels=lambda path: int(path[-11:-4]))
    options = {"num_workers": workers, "multiprocessing_context": "fork" if workers else None}
    batches = loader(images, 8, seed=5, **options)
    kept = {"given": []}
    if os.path.exists(checkpoint):
        kept = json.load(open(checkpoint))
        batches.load_state_dict(kept["state"])
    for _, labels in batches:
        kept = {"given": kept["given"] + labels.tolist(), "state": batches.state_dict()}
        with open(checkpoint + ".new", "w") as file:
            json.dump(kept, file)
        os.replace(checkpoint + ".new", checkpoint)
        print("batch", flush=True)
        sys.stdin.readline()
"""


@pytest.mark.long
def test_twenty_kills_of_the_job_lose_no_image_and_give_none_twice(
    server: LocalServer, tmp_path: Path
) -> None:
    checkpoint = tmp_path / "checkpoint"
    environ = environment(server, tmp_path / "home")
    kills = 0
    while kills < 20:
        workers = (2, 0, 1)[kills % 3]
        command = [sys.executable, "-c", _TRAINING, checkpoint, server.dataset_id, str(workers)]
        job = subprocess.Popen(
            command,
            env=environ,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        with contextlib.suppress(BrokenPipeError), job:
            assert job.stdin is not None
            assert job.stdout is not None
            with contextlib.suppress(BrokenPipeError):  # it ends by itself with the epoch
                for _ in range(2):
                    line = job.stdout.readline()
                    job.stdin.write("\n")
                    job.stdin.flush()
            os.killpg(job.pid, signal.SIGKILL)
        kills += 1
        assert line in ("batch\n", "")
    kept = json.loads(checkpoint.read_text())
    whole = [number for epoch in range(4) for number in numbers_of_epoch(server, epoch)]
    assert kept["given"] == whole[: len(kept["given"])]
    assert len(kept["given"]) >= 20 * 8


def numbers_of_epoch(server: LocalServer, epoch: int) -> list[int]:
    batches = loaded(images(server), seed=5)
    batches.set_epoch(epoch)
    return numbers(batches)


def test_the_job_goes_on_after_its_workers_were_killed(server: LocalServer, tmp_path: Path) -> None:
    """torch ends it with a RuntimeError, wherever it is then: so it is a process of its own."""
    checkpoint = tmp_path / "checkpoint"
    environ = environment(server, tmp_path / "home")
    command = [sys.executable, "-c", _TRAINING, checkpoint, server.dataset_id]
    pipes: Any = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen([*command, "2"], env=environ, text=True, **pipes) as job:
        assert job.stdin is not None
        assert job.stdout is not None
        for _ in range(3):
            assert job.stdout.readline() == "batch\n"
            job.stdin.write("\n")
            job.stdin.flush()
        workers = children_of(job.pid)
        assert len(workers) == 2
        for worker in workers:
            os.kill(worker, signal.SIGKILL)
        _, told = job.communicate("\n" * 100, timeout=60)
    assert job.returncode, told  # what torch says depends on what it was doing
    done = subprocess.run([*command, "0"], env=environ, input="\n" * 100, text=True, stdout=subprocess.PIPE)
    assert done.returncode == 0
    assert json.loads(checkpoint.read_text())["given"] == numbers_of_epoch(server, 0)


def children_of(process: int) -> list[int]:
    """The workers of a process."""
    found: list[int] = []
    for task in Path(f"/proc/{process}/task").glob("*/children"):
        found += map(int, task.read_text().split())
    return [one for one in found if b"resource_tracker" not in Path(f"/proc/{one}/cmdline").read_bytes()]
