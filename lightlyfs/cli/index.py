"""`lightlyfs index`: the names of a dataset as one file, for workers that should not list it themselves."""

from __future__ import annotations

import os
import time
from pathlib import Path

import click

from lightlyfs import app, places
from lightlyfs.app.resolving import find_dataset
from lightlyfs.cli.completing import datasets
from lightlyfs.cli.options import (
    CONNECTION,
    CommandGroup,
    merge,
    setting_options,
    split_fstab_options,
    split_source,
)
from lightlyfs.cli.output import size_text, tell
from lightlyfs.settings import exposure_of, read_secrets, resolve
from lightlyfs.wording import counted


@click.group(cls=CommandGroup)
def index() -> None:
    """Share the names of a dataset as one file."""


@index.command("export")
@click.argument("dataset", shell_complete=datasets)
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False))
@click.option("-o", "fstab_options", multiple=True, metavar="NAME=VALUE", help="Options of `mount`.")
@setting_options(*CONNECTION, "cache_dir", "tag", "page_size")
def export(dataset: str, file: Path, fstab_options: tuple[str, ...], **flags: str | None) -> None:
    """Write what this machine knows of DATASET's names and sizes to FILE.

    Mounts and fsspec take it with `--index FILE`, and list nothing then. The samples are listed first where
    no mount did that yet.
    """
    fstab, _ = split_fstab_options(fstab_options)
    settings = resolve(merge(flags, fstab), os.environ)
    secrets = read_secrets(os.environ, settings.token_file, settings.read_mode)
    if exposed := exposure_of(settings.token_file):
        tell(exposed)
    connections = app.connect(settings, secrets, os.environ)
    dataset, _ = split_source(dataset)
    found = find_dataset(connections.client, settings, secrets, dataset, tell)
    root = places.server_cache(settings.cache_dir, settings.server)
    catalogue = root / found.id / places.catalogue_name(settings.tag)
    if not catalogue.exists():
        app.list_once(settings, connections, found.id)
    started = time.monotonic()
    samples = app.export_index(catalogue, file.absolute(), found.id)
    size = size_text(file.stat().st_size)
    click.echo(f"{counted(samples, 'sample')}, {size}, in {time.monotonic() - started:.1f} s: {file}")


@index.command("import")
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False, exists=True))
@click.option("-o", "fstab_options", multiple=True, metavar="NAME=VALUE", help="Options of `mount`.")
@setting_options("server", "cache_dir", "tag")
def import_(file: Path, fstab_options: tuple[str, ...], **flags: str | None) -> None:
    """Have later mounts on this machine begin with the names and sizes in FILE, which knows its dataset.

    Asks no network. Give `--cache-dir`, `--server` and `--tag` as to `mount`.
    """
    fstab, _ = split_fstab_options(fstab_options)
    settings = resolve(merge(flags, fstab), os.environ)
    root = places.server_cache(settings.cache_dir, settings.server)
    started = time.monotonic()
    header, taken = app.import_for_later(file.absolute(), root, settings.tag)
    names = f"the names of dataset {header.dataset_id}, checked {time.time() - header.checked_at:,.0f} s ago"
    if taken:
        click.echo(f"{names}, are on this machine, in {time.monotonic() - started:.1f} s")
    else:
        click.echo(f"{names}: this machine has newer ones, which stay")
