"""Ultralytics trains on a Lightly dataset: the mount is at WORK/images/train, the labels are beside it.

python -m lightlyfs.examples.ultralytics_yolo my-dataset --labels ~/labels --epochs 1

Ultralytics takes the path of an image, follows its links, and finds the label by the last `images` in it. So
the mount itself has to stand at `images/train`; a link to a mount elsewhere finds no label.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from lightlyfs.examples.mounted import opened, parser


def lay_out(work: Path, labels: Path, names: list[str]) -> Path:
    """Make the folders that Ultralytics expects; returns its description of the data."""
    (work / "images" / "train").mkdir(parents=True, exist_ok=True)
    (work / "labels").mkdir(exist_ok=True)
    beside = work / "labels" / "train"
    if not beside.exists():
        beside.symlink_to(labels.expanduser().absolute(), target_is_directory=True)
    description = work / "data.yaml"
    # JSON is YAML
    content = {"path": str(work), "train": "images/train", "val": "images/train", "names": names}
    description.write_text(json.dumps(content))
    return description


def train(given: argparse.Namespace, description: Path) -> str:
    """Train, and return where the results are."""
    from ultralytics import YOLO

    model = YOLO(given.model)
    size = {"imgsz": given.size, "batch": given.batch, "workers": given.workers}
    model.train(data=str(description), epochs=given.epochs, project=str(given.work / "runs"), **size)
    return str(model.trainer.save_dir)


def main() -> None:
    """Mount, train, unmount."""
    arguments = parser(__doc__ or "")
    arguments.add_argument("--labels", type=Path, required=True, help="label files, in folders as the images")
    arguments.add_argument("--work", type=Path, default=Path("yolo"), help="all that is made [%(default)s]")
    arguments.add_argument("--names", default="object", help="names of the classes, with commas")
    arguments.add_argument("--model", default="yolov8n.yaml", help="[%(default)s, from nothing]")
    arguments.add_argument("--epochs", type=int, default=1)
    arguments.add_argument("--size", type=int, default=640)
    arguments.add_argument("--batch", type=int, default=16)
    arguments.add_argument("--workers", type=int, default=4)
    given = arguments.parse_args()
    given.work = given.work.expanduser().absolute()
    description = lay_out(given.work, given.labels, given.names.split(","))
    given.at = given.work / "images" / "train"
    with opened(given):
        print(f"trained; the results are in {train(given, description)}")


if __name__ == "__main__":
    main()
