"""A Lightly dataset as one of FiftyOne, with tags, custom metadata and the names of folders as labels.

python -m lightlyfs.examples.fiftyone_dataset my-dataset --launch
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from lightlyfs.examples.mounted import custom_metadata, opened, parser, pictures, tags_of


def samples_of(root: Path) -> list[Any]:
    """The images of a mount as samples of FiftyOne; nothing is read of them yet."""
    import fiftyone

    found = pictures(root)
    tags, custom = tags_of(root), custom_metadata(found)
    samples = []
    for path in found:
        sample = fiftyone.Sample(filepath=str(path), tags=tags.get(path, []))
        folder = path.relative_to(root).parent.as_posix()
        sample["folder"] = fiftyone.Classification(label=folder)
        for name, value in custom[path].items():
            # what a field may not be called gets another name
            sample["lightly_" + re.sub(r"\W", "_", name)] = value
        samples.append(sample)
    return samples


def main() -> None:
    """Make the dataset, in place of an earlier one, and show it."""
    arguments = parser(__doc__ or "")
    arguments.add_argument("--launch", action="store_true", help="open the app")
    given = arguments.parse_args()

    import fiftyone

    with opened(given) as root:
        dataset = fiftyone.Dataset(given.dataset, persistent=True, overwrite=True)
        dataset.add_samples(samples_of(root))
        print(f"{len(dataset):,} samples, tags: {', '.join(sorted(dataset.distinct('tags'))) or 'none'}")
        if given.launch:
            fiftyone.launch_app(dataset).wait()


if __name__ == "__main__":
    main()
