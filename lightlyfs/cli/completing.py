"""What a shell may offer for a dataset and for a mount; asks nothing of the network nor of a mount."""

from __future__ import annotations

import os

import click
from click.shell_completion import CompletionItem

from lightlyfs.mountinfo import our_mounts


def datasets(_context: click.Context, _parameter: click.Parameter, begun: str) -> list[CompletionItem]:
    """The names that were used on this machine with the token that is set."""
    from lightlyfs.app.resolving import known_names
    from lightlyfs.profiles import beneath
    from lightlyfs.settings import read_secrets, resolve

    try:
        settings = resolve(beneath({}, None, os.environ), os.environ)
        known = known_names(settings, read_secrets(os.environ, settings.token_file))
    except Exception:
        return []  # a shell that completes shows no errors
    return [CompletionItem(name) for name in known if name.startswith(begun)]


def mounts(_context: click.Context, _parameter: click.Parameter, begun: str) -> list[CompletionItem]:
    """Where datasets are mounted, or any directory where none is."""
    found = [CompletionItem(str(path)) for path in our_mounts() if str(path).startswith(begun)]
    return found or [CompletionItem(begun, type="dir")]


def directories(_context: click.Context, _parameter: click.Parameter, begun: str) -> list[CompletionItem]:
    """Any directory."""
    return [CompletionItem(begun, type="dir")]
