"""`lightlyfs doctor`: what is missing on this machine, and the command that mends it."""

from __future__ import annotations

import json
import os
import re
import resource
import shutil
import ssl
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from importlib import metadata
from pathlib import Path
from typing import Any

import click

from lightlyfs import app, places, profiles
from lightlyfs.api.addresses import trust_of
from lightlyfs.api.redaction import visible
from lightlyfs.app.resolving import cause_of
from lightlyfs.cli.options import CONNECTION, merge, setting_options
from lightlyfs.errors import (
    LightlyFsError,
    NotFound,
    Retryable,
    SettingsError,
    StartError,
    Unauthorized,
    counted,
)
from lightlyfs.kernel import binding
from lightlyfs.settings import read_secrets, resolve

# optional, because something else does their work: libfuse 2 replaces 3, requests (slower) replaces pycurl
_REPLACEABLE = {"fusepy", "pycurl"}
# a mount with the usual downloads at once needs as many; with fewer it makes fewer
_OPEN_FILES = 1_024


@click.command()
@click.pass_context
@click.option("--json", "as_json", is_flag=True, help="As JSON, for programs.")
@setting_options(*CONNECTION, "cache_dir")
def doctor(context: click.Context, /, as_json: bool, **flags: str | None) -> None:
    """Check this machine, the token and the network; exit 1 if something is missing."""
    broken: SettingsError | None = None
    try:
        settings = resolve(merge(flags, {}), os.environ)
    except SettingsError as error:
        # a wrong option ends the command; a wrong configuration file is one of the findings
        given = {name: text for name, text in flags.items() if name != "profile"}
        settings = resolve(given, os.environ)
        broken = error

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
        ("packages", _packages),
        ("libfuse", _libraries),
        ("/dev/fuse", _device),
        ("fusermount", _helper),
        ("limits", _limits),
        ("cache", lambda: places.elsewhere(settings.cache_dir) or str(places.cache_root(settings.cache_dir))),
        ("state", lambda: str(places.state_root(settings.cache_dir))),
        ("runtime", lambda: str(places.runtime_root())),
        ("settings", lambda: _configuration(broken)),
        ("TLS", _tls),
        ("CAs", lambda: trust_of(os.environ, settings.ca_certs).origin),
        ("token", lambda: _token(settings.token_file)),
        ("API", api),
    ]
    rows = []
    for row in _answers(checks):
        rows.append(row)
        if not as_json:
            click.echo(visible(f"{'ok' if row['ok'] else 'missing':<9}{row['check']:<11}{row['answer']}"))
    if as_json:
        click.echo(json.dumps(rows, indent=2))
    context.exit(0 if all(row["ok"] for row in rows) else 1)


def _answers(checks: list[tuple[str, Callable[[], str]]]) -> Iterator[dict[str, Any]]:
    """What each check found, in order: the last ones wait for the network."""
    for name, check in checks:
        try:
            yield {"check": name, "ok": True, "answer": check()}
        except LightlyFsError as error:
            yield {"check": name, "ok": False, "answer": str(error)}


def _packages() -> str:
    """The versions of lightlyfs and of the packages that it uses."""
    try:
        wanted = metadata.requires("lightlyfs") or []
        shown = [f"lightlyfs {metadata.version('lightlyfs')}"]
    except metadata.PackageNotFoundError:
        return "lightlyfs runs from a folder and is not installed"
    for name in (re.split(r"[^\w.-]", one, maxsplit=1)[0] for one in wanted if "extra ==" not in one):
        try:
            shown.append(f"{name} {metadata.version(name)}")
        except metadata.PackageNotFoundError:
            if name not in _REPLACEABLE:
                raise NotFound(f"{name} is not installed; install it with: pip install {name}") from None
            shown.append(f"without {name}")
    return ", ".join(shown)


def _libraries() -> str:
    """Each libfuse that there is, the one to be used first."""
    used = str(binding.find_library())
    found = []
    for version in ("3", "2"):
        with suppress(StartError):
            found.append(str(binding.find_library(version)))
    return ", ".join(dict.fromkeys([used, *found]))


def _limits() -> str:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = "unlimited" if hard == resource.RLIM_INFINITY else f"{hard:,}"
    few = "; so few make downloads fewer, see: ulimit -n" if 0 <= hard < _OPEN_FILES else ""
    return f"{soft:,} open files, at most {most}{few}"


def _configuration(broken: SettingsError | None) -> str:
    if broken is not None:
        raise broken
    path = profiles.config_file()
    # unlike `Path.exists`, which raises below a home that this user may not search
    return str(path) if os.path.exists(path) else f"no {path}"


def _tls() -> str:
    try:
        from lightlyfs.api import curl
    except ImportError:
        return f"{ssl.OPENSSL_VERSION}, over requests"
    return curl.version()


def _device() -> str:
    binding.check_device()
    return "can be opened"


def _helper() -> str:
    found = shutil.which("fusermount3") or shutil.which("fusermount")
    if found is None and os.getuid() != 0:
        raise NotFound("not installed; install it with: apt-get install fuse3")
    binding.check_rights()
    return found or "not needed by root"


def _token(file: Path | None) -> str:
    read_secrets(os.environ, file)
    return "set" if file is None else f"in {file}"
