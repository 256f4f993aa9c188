"""The settings table as command-line options, and the fstab form of the same settings."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import click
from click.shell_completion import CompletionItem

from lightlyfs.errors import SettingsError
from lightlyfs.settings import BY_NAME, SETTINGS, Setting

F = TypeVar("F", bound=Callable[..., Any])

# what mount(8) and systemd put among the options, for themselves or for other file systems
_IGNORED = {
    *("rw", "auto", "noauto", "nofail", "_netdev", "user", "users", "nouser", "owner", "group", "defaults"),
    *("dev", "suid", "exec", "async", "atime", "diratime", "relatime", "loud", "silent"),
}
# options the kernel enforces for us
_KERNEL = {"nodev", "nosuid", "noexec", "noatime", "nodiratime", "sync", "dirsync"}
_ALIASES = {"ro": "read_only"}


def setting_options(command: F) -> F:
    """Add one option a row of the settings table."""
    for row in reversed(SETTINGS):
        origin = f"  [env {row.variable}]" if row.variable else ""
        shown = row.default not in (None, "", "off") and row.name not in ("uid", "gid")
        default = f"  [default {row.default}]" if shown else ""
        text = row.help + default + origin
        if row.is_switch:
            option = click.option(row.flag, row.name, flag_value="on", default=None, help=text)
        else:
            option = click.option(
                row.flag,
                row.name,
                metavar=_metavar(row.name),
                default=None,
                help=text,
                shell_complete=_completer(row),
                multiple=row.repeatable,
                callback=_joined if row.repeatable else None,
            )
        command = option(command)
    return command


def split_fstab_options(texts: tuple[str, ...]) -> tuple[dict[str, str], tuple[str, ...]]:
    """The settings among `-o` options, and what goes to the kernel; the rest is refused by name."""
    settings: dict[str, str] = {}
    kernel: list[str] = []
    for option in (option for text in texts for option in text.split(",") if option):
        name, equals, value = option.partition("=")
        name = _ALIASES.get(name, name.replace("-", "_"))
        if name in BY_NAME:
            value = value if equals or not BY_NAME[name].is_switch else "on"
            repeated = BY_NAME[name].repeatable and name in settings
            settings[name] = f"{settings[name]},{value}" if repeated else value
        elif name in _KERNEL:
            kernel.append(option)
        elif name not in _IGNORED and not name.startswith(("x_", "X_", "comment")):
            raise SettingsError(f"-o {name}: no such option; `lightlyfs mount --help` lists them")
    return settings, tuple(kernel)


def merge(flags: Mapping[str, str | None], fstab: Mapping[str, str]) -> dict[str, str | None]:
    """Flags beat the fstab form."""
    return {**fstab, **{name: text for name, text in flags.items() if text is not None}}


def _joined(_context: click.Context, _option: click.Parameter, texts: tuple[str, ...]) -> str | None:
    """The value of an option that was given several times."""
    return ",".join(texts) if texts else None


def _completer(row: Setting) -> Callable[..., list[CompletionItem]] | None:
    """What a shell may offer as the value: what a setting may be, or names of files."""

    def offer(_context: click.Context, _option: click.Parameter, begun: str) -> list[CompletionItem]:
        if row.choices:
            return [CompletionItem(choice) for choice in row.choices if choice.startswith(begun)]
        kind = {"cache_dir": "dir", "token_file": "file", "ca_certs": "file", "log_file": "file"}.get(
            row.name
        )
        return [] if kind is None else [CompletionItem(begun, type=kind)]

    return offer


def _metavar(name: str) -> str:
    row = BY_NAME[name]
    if row.choices:
        return "|".join(row.choices)
    return {"metadata_ttl": "SECONDS", "cache_size": "SIZE", "jobs": "N", "page_size": "N"}.get(
        name, name.rpartition("_")[2].upper()
    )
