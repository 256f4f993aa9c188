"""`lightlyfs config`: what each setting is, and where its value is from."""

from __future__ import annotations

import json
import os

import click

from lightlyfs import profiles
from lightlyfs.api.redaction import visible
from lightlyfs.cli.options import CommandGroup, GroupedCommand, merge, setting_options
from lightlyfs.settings import SETTINGS, resolve


@click.group(cls=CommandGroup)
def config() -> None:
    """Show the settings, which ~/.config/lightlyfs/config.toml may hold."""


@config.command(cls=GroupedCommand)
@click.option("--json", "as_json", is_flag=True, help="As JSON, for programs.")
@setting_options()
def show(as_json: bool, **flags: str | None) -> None:
    """Show each setting of a mount: its value, and whether an option, a variable or the file set it."""
    profile = flags.get("profile") or os.environ.get(profiles.VARIABLE) or None
    stored = profiles.load(profile)
    resolve(merge(flags, {}), os.environ)  # a wrong value is said before all are shown
    rows = []
    for row in SETTINGS:
        text, origin = flags.get(row.name), f"option {row.flag}"
        if text is None:
            text, origin = os.environ.get(row.variable) or None, f"variable {row.variable}"
        if text is None:
            text, origin = stored.get(row.name, (None, ""))
        if text is None:
            text, origin = (None if row.default is None else str(row.default)), "default"
        rows.append({"name": row.name, "value": text, "origin": origin})
    if as_json:
        click.echo(json.dumps(rows, indent=2))
        return
    for one in rows:
        click.echo(visible(f"{one['name']:<22}  {one['value'] or '-':<28}  {one['origin']}"))
