"""Tasks for Label Studio that show the images of a mount by its local files; to be imported there.

LABEL_STUDIO_LOCAL_FILES_SERVING_ENABLED=true LABEL_STUDIO_LOCAL_FILES_DOCUMENT_ROOT=$HOME label-studio start
python -m lightlyfs.examples.label_studio_tasks ~/images --root ~ > tasks.json
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any
from urllib.parse import quote

from lightlyfs.examples.mounted import custom_metadata, pictures, tags_of


def tasks_of(mount: Path, root: Path) -> list[dict[str, Any]]:
    """A task an image; `root` is Label Studio's document root, above the mount."""
    found = pictures(mount)
    tags, custom = tags_of(mount), custom_metadata(found)
    return [
        {
            "data": {
                "image": "/data/local-files/?d=" + quote(path.relative_to(root).as_posix()),
                "name": path.relative_to(mount).as_posix(),
                "tags": tags.get(path, []),
            },
            "meta": custom[path],
        }
        for path in found
    ]


def main() -> None:
    """Print the tasks."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("mount", type=Path, help="the mountpoint")
    arguments.add_argument("--root", type=Path, help="LOCAL_FILES_DOCUMENT_ROOT [above the mount]")
    given = arguments.parse_args()
    mount = given.mount.expanduser().absolute()
    root = given.root.expanduser().absolute() if given.root else mount.parent
    json.dump(tasks_of(mount, root), sys.stdout, indent=1)


if __name__ == "__main__":
    main()
