"""The process of a mount, which `lightlyfs mount` starts or becomes; not for people.

`python -m lightlyfs.cli.background DATASET MOUNTPOINT [--setting NAME=VALUE]... [--kernel OPTION]...`

It imports nothing of what commands need, so that a mount takes less memory.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from lightlyfs.cli.output import tell
from lightlyfs.cli.serving import serve_mount
from lightlyfs.errors import LightlyFsError, SettingsError
from lightlyfs.kernel import binding
from lightlyfs.settings import SECRET_VARIABLES, read_secrets, resolve


def main(arguments: list[str]) -> None:
    """Serve a mount to its end; the checks of `lightlyfs mount` are done."""
    dataset, mountpoint, *rest = arguments
    pairs = list(zip(rest[::2], rest[1::2], strict=True))
    texts = dict(text.split("=", 1) for word, text in pairs if word == "--setting")
    try:
        settings = resolve(texts, os.environ)
        secrets = read_secrets(os.environ, settings.token_file, settings.read_mode)
        for name in SECRET_VARIABLES:
            os.environ.pop(name, None)  # no helper is to have them
        library = binding.find_library(settings.fuse)  # type: ignore[arg-type]
        kernel_options = tuple(text for word, text in pairs if word == "--kernel")
        serve_mount(dataset, Path(mountpoint), settings, secrets, library, kernel_options)
    except LightlyFsError as error:
        tell(str(error))
        sys.exit(2 if isinstance(error, SettingsError) else 1)
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main(sys.argv[1:])
