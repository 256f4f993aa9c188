"""A dataset for one command, without a mount; what names one; and the list of them, `lightlyfs datasets`."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace

import click

from lightlyfs import app
from lightlyfs.api.redaction import visible
from lightlyfs.app.resolving import find_dataset, list_datasets
from lightlyfs.cli.options import CONNECTION, merge, setting_options, split_fstab_options
from lightlyfs.cli.output import size_text, tell
from lightlyfs.errors import LightlyFsError
from lightlyfs.settings import Secrets, Settings, exposure_of, read_secrets, resolve


def settings_of(
    flags: Mapping[str, str | None], fstab: tuple[str, ...] = (), **fixed: str
) -> tuple[Settings, Secrets]:
    """The settings and tokens of a command from its options."""
    texts = merge(flags, split_fstab_options(fstab)[0])
    settings = resolve({**texts, **fixed}, os.environ)
    secrets = read_secrets(os.environ, settings.token_file, settings.read_mode)
    if exposed := exposure_of(settings.token_file):
        tell(exposed)
    return settings, secrets


@contextmanager
def opened(dataset: str, settings: Settings, secrets: Secrets) -> Iterator[app.Dataset]:
    """The parts of a dataset, its names listed; uploads under way at the end are waited for."""
    connections = app.connect(settings, secrets, os.environ)
    found = find_dataset(connections.client, settings, secrets, dataset, tell)
    with app.open_place(settings, found.id) as place:
        spool = app.open_spool(settings, found.id)
        settings = replace(settings, read_only=spool is None)
        parts = app.Dataset(settings, connections, found.id, place, spool_place=spool)
        parts.start()
        try:
            yield parts
        finally:
            parts.drain()
            parts.close()


@click.command()
@click.option("--json", "as_json", is_flag=True, help="As JSON, for programs.")
@setting_options(*CONNECTION)
def datasets(as_json: bool, **flags: str | None) -> None:
    """List the datasets that the token may see: name, id, files, size, day of creation."""
    settings, secrets = settings_of(flags)
    client = app.connect(settings, secrets, os.environ).client
    found = sorted(list_datasets(client, settings), key=lambda one: (one.name or one.id, one.id))
    if as_json:
        rows = [
            {
                "name": one.name,
                "id": one.id,
                "files": one.n_samples,
                "bytes": one.size_in_bytes,
                "created": one.created_at and one.created_at // 1000,
            }
            for one in found
        ]
        click.echo(json.dumps(rows, indent=2))
        return
    for one in found:
        created = "-" if not one.created_at else time.strftime("%Y-%m-%d", time.gmtime(one.created_at / 1000))
        files = "-" if one.n_samples is None else f"{one.n_samples:,}"
        size = "-" if one.size_in_bytes is None else size_text(one.size_in_bytes)
        click.echo(visible(f"{one.name or one.id:<32}  {one.id}  {files:>11}  {size:>9}  {created}"))


def reason_of(error: LightlyFsError | OSError) -> str:
    """An error of one file, for a line that names the file."""
    return (error.strerror or str(error)) if isinstance(error, OSError) else str(error)
