"""The programs that people look at and train on images with, over a mount; each where it is installed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from trees import environment, mounted, need_fuse

from lightlyfs.examples.common import make_pictures
from lightlyfs.testing import LocalServer, ServerOptions

pytestmark = [pytest.mark.ecosystem, pytest.mark.fuse, pytest.mark.timeout(300)]

PICTURES = 16


@pytest.fixture(scope="module")
def studio(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalServer]:
    """Pictures as the dataset `studio`, with custom metadata, the first half of them in a tag."""
    need_fuse("3")
    made = make_pictures(tmp_path_factory.mktemp("made"), PICTURES)
    with LocalServer(ServerOptions(source=tmp_path_factory.mktemp("own"), dataset_name="studio")) as running:
        ids = [
            running.add_sample(
                path.relative_to(made).as_posix(), path.read_bytes(), {"customMetaData": {"number": number}}
            )
            for number, path in enumerate(sorted(made.rglob("*.jpg")))
        ]
        running.add_tag("first half", ids[: PICTURES // 2])
        yield running


def python(
    server: LocalServer, home: Path, *words: str, code: str = "", check: bool = True
) -> subprocess.CompletedProcess[str]:
    """Run an example, or some lines, as a user of the server would; telemetry of all kinds is off."""
    environ = {**environment(server, home / "cache"), "HOME": str(home)}
    environ |= {"LIGHTLY_STUDIO_ANALYTICS_ENABLED": "false", "YOLO_OFFLINE": "1", "HF_HUB_OFFLINE": "1"}
    environ["PYTHONPATH"] = os.pathsep.join(filter(None, sys.path))
    command = [sys.executable, *(["-c", code] if code else ["-m", *words])]
    return subprocess.run(
        command, cwd=home, env=environ, capture_output=True, text=True, timeout=280, check=check
    )


def test_studio_indexes_shows_and_gives_tags_back(studio: LocalServer, tmp_path: Path) -> None:
    pytest.importorskip("lightly_studio")
    example = ("lightlyfs.examples.lightly_studio", "studio", "--at", str(tmp_path / "mnt"))
    done = python(studio, tmp_path, *example, "--no-gui")
    assert f"{PICTURES} images indexed" in done.stdout
    code = """
import lightly_studio
from lightly_studio.database import db_manager
db_manager.connect(db_file="lightly_studio.db")
dataset = list(lightly_studio.ImageDataset.load("studio"))
tagged = [sorted(sample.tags) for sample in dataset].count(["first half"])
print(tagged, sum(sample.metadata["number"] for sample in dataset))
dataset[0].add_tag("blurred")
"""
    found = python(studio, tmp_path, code=code)
    assert found.stdout.splitlines()[-1] == f"{PICTURES // 2} {sum(range(PICTURES))}", found.stderr
    done = python(studio, tmp_path, *example, "--back")
    assert "1 samples have their tags" in done.stdout
    custom = [one["customMetaData"] for one in studio.samples()]
    assert [one["studio_tags"] for one in custom if "studio_tags" in one] == [["blurred"]]
    assert sorted(one["number"] for one in custom) == list(range(PICTURES))


def test_studio_indexes_an_address_with_a_pattern(studio: LocalServer, tmp_path: Path) -> None:
    pytest.importorskip("lightly_studio")
    code = """
import fsspec, lightly_studio
# known by itself where lightlyfs is installed
fsspec.register_implementation("lightly", "lightlyfs.fsspec.driver.LightlyFileSystem", clobber=True)
dataset = lightly_studio.ImageDataset.create()
dataset.add_images_from_path("lightly://studio/**/*.jpg", embed=False)
print(len(list(dataset)), next(iter(dataset)).file_path_abs)
"""
    found = python(studio, tmp_path, code=code).stdout.splitlines()[-1]
    assert found.startswith(f"{PICTURES} lightly://studio/0")


def test_fiftyone_makes_a_dataset_with_tags_folders_and_fields(studio: LocalServer, tmp_path: Path) -> None:
    """With the MongoDB that FiftyOne brings where it could fetch one, or that of FIFTYONE_DATABASE_URI."""
    pytest.importorskip("fiftyone")
    at = tmp_path / "mnt"
    done = python(
        studio, tmp_path, "lightlyfs.examples.fiftyone_dataset", "studio", "--at", str(at), check=False
    )
    if "ServiceExecutableNotFound" in done.stderr:
        pytest.skip("FiftyOne has no database here; FIFTYONE_DATABASE_URI names another")
    assert f"{PICTURES} samples, tags: first half" in done.stdout, done.stderr
    code = """
import fiftyone
dataset = fiftyone.load_dataset("studio")
print(dataset.count_values("tags"), dataset.sum("lightly_number"), len(dataset.distinct("folder.label")))
print(dataset.first().filepath)
fiftyone.delete_dataset("studio")
"""
    counted, first = python(studio, tmp_path, code=code).stdout.splitlines()[-2:]
    assert counted == f"{{'first half': {PICTURES // 2}}} {sum(range(PICTURES))} 8"
    assert first == f"{at}/00/00000.jpg"


@pytest.mark.parametrize("options", [("--read-only",), ("--upload", "images")], ids=["read-only", "default"])
def test_ultralytics_trains_an_epoch(studio: LocalServer, tmp_path: Path, options: tuple[str, ...]) -> None:
    """With labels beside the mount, and with labels in the dataset, whose cache stays on this machine."""
    pytest.importorskip("ultralytics")
    for path in make_pictures(tmp_path / "made", PICTURES).rglob("*.jpg"):
        label = tmp_path / "labels" / path.relative_to(tmp_path / "made").with_suffix(".txt")
        label.parent.mkdir(parents=True, exist_ok=True)
        label.write_text("0 0.5 0.5 0.4 0.4\n")
    small = ("--size", "64", "--batch", "8", "--workers", "0")
    if options == ("--read-only",):
        example = ("lightlyfs.examples.ultralytics_yolo", "studio", "--labels", "labels", "--work", "work")
        done = python(studio, tmp_path, *example, *small)
        assert f"{PICTURES} images, 0 backgrounds, 0 corrupt" in done.stdout + done.stderr
    own = tmp_path / "own"
    own.mkdir()
    with LocalServer(ServerOptions(source=own, dataset_name="yolo")) as server:
        for path in (tmp_path / "made").rglob("*.jpg"):
            server.add_sample(f"images/train/{path.name}", path.read_bytes())
            server.add_sample(f"labels/train/{path.stem}.txt", b"0 0.5 0.5 0.4 0.4\n")
        count = len(server.samples())
        with mounted(server, tmp_path / "tree", "3", *options) as tree:
            description = {"path": str(tree.mountpoint), "train": "images/train", "val": "images/train"}
            (tmp_path / "data.yaml").write_text(json.dumps({**description, "names": ["object"]}))
            code = (
                "from ultralytics import YOLO; YOLO('yolov8n.yaml').train(data='data.yaml', epochs=1, "
                "imgsz=64, batch=8, workers=0, val=False, plots=False, project='runs')"
            )
            done = python(server, tmp_path, code=code)
            assert f"{PICTURES} images, 0 backgrounds, 0 corrupt" in done.stdout + done.stderr
            assert ("train.cache" in tree.names("labels")) is (options != ("--read-only",))
        assert len(server.samples()) == count


@pytest.mark.parametrize("start", ["fork", "spawn", "forkserver"])
def test_torchvision_loads_a_folder_by_four_workers(studio: LocalServer, tmp_path: Path, start: str) -> None:
    pytest.importorskip("torchvision")
    program = tmp_path / "load.py"
    program.write_text(
        """
import sys
from torch.utils.data import DataLoader
from torchvision.datasets import ImageFolder
from torchvision.transforms import ToTensor

if __name__ == "__main__":
    images = ImageFolder(sys.argv[1], transform=ToTensor())
    workers = {"num_workers": 4, "multiprocessing_context": sys.argv[2]}
    loader = DataLoader(images, batch_size=4, shuffle=True, **workers)
    print(len(images.classes), sum(len(labels) for _ in range(2) for _, labels in loader))
"""
    )
    with mounted(studio, tmp_path / "tree", "3", "--read-only") as tree:
        command = [sys.executable, str(program), str(tree.mountpoint), start]
        done = subprocess.run(command, capture_output=True, text=True, timeout=200, check=False)
    assert done.stdout == f"8 {2 * PICTURES}\n", done.stderr


def test_datasets_loads_a_folder_of_images(studio: LocalServer, tmp_path: Path) -> None:
    pytest.importorskip("datasets")
    with mounted(studio, tmp_path / "tree", "3", "--read-only") as tree:
        code = f"""
from datasets import load_dataset
rows = load_dataset("imagefolder", data_dir={str(tree.mountpoint)!r}, cache_dir="hf")["train"]
print(len(rows), rows.features["label"].num_classes, rows[0]["image"].size)
"""
        done = python(studio, tmp_path, code=code)
    assert done.stdout.splitlines()[-1] == f"{PICTURES} 8 (128, 96)"
