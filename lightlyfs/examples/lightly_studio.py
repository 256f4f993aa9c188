"""A Lightly dataset in LightlyStudio: its images, tags and custom metadata, and its tags back again.

python -m lightlyfs.examples.lightly_studio my-dataset          # index it, and open the GUI
python -m lightlyfs.examples.lightly_studio my-dataset --back   # tags made there become custom metadata
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lightlyfs.examples.mounted import add_custom_metadata, custom_metadata, opened, parser, pictures, tags_of


def index(dataset: Any, root: Path, *, embed: bool) -> int:
    """Add the images of a mount to a dataset of Studio, with tags and custom metadata; how many it has."""
    dataset.add_images_from_path(str(root), embed=embed)
    tags, custom = tags_of(root), custom_metadata(pictures(root))
    count = 0
    for sample in dataset:
        count += 1
        path = Path(sample.file_path_abs)
        for tag in tags.get(path, ()):
            sample.add_tag(tag)
        for name, value in custom.get(path, {}).items():
            sample.metadata[name] = value
    return count


def write_back(dataset: Any, root: Path) -> int:
    """Write the tags that samples got in Studio to their custom metadata; of how many samples."""
    here, count = tags_of(root), 0
    for sample in dataset:
        path = Path(sample.file_path_abs)
        if made := sorted(set(sample.tags) - set(here.get(path, ()))):
            add_custom_metadata(path, {"studio_tags": made})
            count += 1
    return count


def main() -> None:
    """Index the dataset and show it, or write back what was tagged."""
    arguments = parser(__doc__ or "")
    arguments.add_argument("--db", default="lightly_studio.db", help="Studio's database [%(default)s]")
    arguments.add_argument("--embed", action="store_true", help="also compute embeddings (fetches a model)")
    arguments.add_argument("--back", action="store_true", help="write tags back, and end")
    arguments.add_argument("--no-gui", action="store_true", help="index, and end")
    given = arguments.parse_args()

    import lightly_studio
    from lightly_studio.database import db_manager

    db_manager.connect(db_file=given.db)
    with opened(given, read_only=not given.back) as root:
        dataset = lightly_studio.ImageDataset.load_or_create(given.dataset)
        if given.back:
            print(f"{write_back(dataset, root):,} samples have their tags of Studio in studio_tags")
            return
        print(f"{index(dataset, root, embed=given.embed):,} images indexed, with tags and custom metadata")
        if not given.no_gui:
            lightly_studio.start_gui()


if __name__ == "__main__":
    main()
