"""`lightlyfs doctor`: what is missing on this machine, and the command that mends it."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import click

from lightlyfs import app, places
from lightlyfs.api.certificates import trust_of
from lightlyfs.app.resolving import cause_of
from lightlyfs.cli.options import CONNECTION, merge, setting_options
from lightlyfs.errors import LightlyFsError, NotFound, Retryable, Unauthorized
from lightlyfs.kernel import binding
from lightlyfs.settings import read_secrets, resolve
from lightlyfs.wording import counted


@click.command()
@click.pass_context
@setting_options(*CONNECTION)
def doctor(context: click.Context, /, **flags: str | None) -> None:
    """Check this machine, the token and the network; exit 1 if something is missing."""
    settings = resolve(merge(flags, {}), os.environ)

    def api() -> str:
        client = app.connect(settings, read_secrets(os.environ, settings.token_file), os.environ).client
        try:
            count = len(client.list_datasets(policy=app.quick_policy()))
        except Unauthorized:
            raise NotFound(
                f"{settings.server} does not accept the token; check LIGHTLY_TOKEN (or --token-file)"
            ) from None
        except Retryable as error:
            cause = cause_of(error)
            raise NotFound(
                f"{settings.server} cannot be reached ({cause}); check the network and proxies"
            ) from None
        return f"{settings.server} answers, {counted(count, 'dataset')}"

    checks: list[tuple[str, Callable[[], str]]] = [
        ("Python", lambda: ".".join(map(str, sys.version_info[:3]))),
        ("libfuse", lambda: str(binding.find_library())),
        ("/dev/fuse", _device),
        ("fusermount", _helper),
        ("cache", lambda: places.elsewhere(None) or str(places.cache_root(None))),
        ("CAs", lambda: trust_of(os.environ, settings.ca_certs).origin),
        ("token", lambda: _token(settings.token_file)),
        ("API", api),
    ]
    failed = [name for name, check in checks if not _report(name, check)]
    context.exit(1 if failed else 0)


def _report(name: str, check: Callable[[], str]) -> bool:
    try:
        click.echo(f"ok       {name:<11}{check()}")
    except LightlyFsError as error:
        click.echo(f"missing  {name:<11}{error}")
        return False
    return True


def _device() -> str:
    binding.check_device()
    return "can be opened"


def _helper() -> str:
    found = shutil.which("fusermount3") or shutil.which("fusermount")
    if found is None and os.getuid() != 0:
        raise NotFound("not installed; install it with: apt-get install fuse3")
    return found or "not needed by root"


def _token(file: Path | None) -> str:
    read_secrets(os.environ, file)
    return "set" if file is None else f"in {file}"
