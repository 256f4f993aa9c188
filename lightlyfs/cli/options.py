"""The settings table as command-line options, its fstab form, and `lightlyfs config`, which shows the values.

Also arguments that name a dataset or a path, and what a shell may offer for them without a request.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any, TypeVar

import click
from click.shell_completion import CompletionItem

from lightlyfs import profiles
from lightlyfs.api.redaction import visible
from lightlyfs.cli import READY_VARIABLE
from lightlyfs.cli.output import tell
from lightlyfs.errors import SettingsError
from lightlyfs.mountpoints import our_mounts
from lightlyfs.settings import (
    BY_NAME,
    SECRET_VARIABLES,
    SETTINGS,
    SMALL_CACHE_VARIABLE,
    Setting,
    read_secrets,
    resolve,
)

F = TypeVar("F", bound=Callable[..., Any])

# what mount(8) and systemd put among the options, for themselves or for other file systems
_IGNORED = {
    *("rw", "auto", "noauto", "nofail", "_netdev", "user", "users", "nouser", "owner", "group", "defaults"),
    *("dev", "suid", "exec", "async", "atime", "diratime", "relatime", "loud", "silent", "norelatime"),
    *("strictatime", "nostrictatime", "lazytime", "nolazytime", "iversion", "noiversion", "mand", "nomand"),
    *("noowner", "nogroup", "nousers", "default_permissions", "fsname", "subtype", "helper", "uhelper"),
    *("context", "fscontext", "defcontext", "rootcontext", "_rnetdev"),
}
# options the kernel enforces for us
_KERNEL = {"nodev", "nosuid", "noexec", "noatime", "nodiratime", "sync", "dirsync"}
_ALIASES = {"ro": "read_only"}
# the settings under the headings that help and `docs/options.md` have
GROUPS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("Connection", ("server", "token_file", "ca_certs", "allow_private_storage", "read_mode", "fuse")),
    (
        "What is shown",
        ("tag", "include", "exclude", "thumbnails", "metadata_ttl", "no_wait", "index", "page_size"),
    ),
    (
        "Cache",
        (
            "cache_dir",
            "cache_size",
            "cache_min_free",
            "no_cache",
            "jobs",
            "read_ahead",
            "read_ahead_limit",
            "memory_target",
        ),
    ),
    ("Writing", ("read_only", "upload", "allow_overwrite", "write_back", "sole_writer", "s3_sse_kms_key")),
    ("Permissions", ("uid", "gid", "umask", "allow_other")),
    ("Log and metrics", ("log_file", "log_level", "log_format", "metrics_port")),
)
# the settings that commands without a mount need to reach a dataset
CONNECTION = ("server", "token_file", "ca_certs", "allow_private_storage")
# how similar a word has to be to a command, or a variable to one of ours: a dataset may have a similar name,
# and Kubernetes sets variables for a service called lightlyfs
_ALIKE = 0.8
_PREFIX = "LIGHTLYFS_"
_OTHER_VARIABLES = {profiles.VARIABLE, READY_VARIABLE, SMALL_CACHE_VARIABLE}
_ID = re.compile(r"\b[0-9a-f]{24}\b")
TOKEN_REFUSAL = (
    "a token is never an argument, because every user of this machine can read arguments; set LIGHTLY_TOKEN "
    "to it, or name a file that holds it with --token-file"
)


class CommandGroup(click.Group):
    """A group that answers an unknown command with the closest one, or with how to list them."""

    way_out = ""

    def resolve_command(
        self, context: click.Context, words: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """The command that the first word names."""
        known = self.list_commands(context)
        if words and words[0] not in known and not words[0].startswith("-"):
            close = get_close_matches(words[0], known, 1, _ALIKE)
            asked = f"did you mean {close[0]}?" if close else self.way_out or f"there are {', '.join(known)}"
            raise click.UsageError(f"no such command {words[0]!r}; {asked}", context)
        return super().resolve_command(context, words)


class GroupedCommand(click.Command):
    """A command that shows the settings among its options under the headings of `GROUPS`."""

    def format_options(self, context: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the command's own options first."""
        options = [one for one in self.get_params(context) if isinstance(one, click.Option)]
        records = {option.name: option.get_help_record(context) for option in options}
        grouped = {name for _, names in GROUPS for name in names}
        own = [name for name in records if name not in grouped]
        for heading, names in (("Options", own), *GROUPS):
            shown = [record for name in names if (record := records.get(name)) is not None]
            if shown:
                with formatter.section(heading):
                    formatter.write_dl(shown)


def setting_options(*names: str) -> Callable[[F], F]:
    """Add the options of these settings, of all without a name."""

    def add(command: F) -> F:
        text = f"Settings by name: of the configuration file, train or browse.  [env {profiles.VARIABLE}]"
        command = click.option("--profile", help=text)(command)
        return _add_options(command, [row for row in SETTINGS if not names or row.name in names])

    return add


def _add_options(command: F, rows: list[Setting]) -> F:
    for row in reversed(rows):
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
                metavar=_metavar(row),
                default=None,
                help=text,
                shell_complete=_completer(row),
                multiple=row.repeatable,
                callback=_joined if row.repeatable else None,
            )
        command = option(command)
    return command


def cache_dir_of(given: Path | None, profile: str | None) -> Path | None:
    """The directory that a mount with this `--cache-dir`, or with this profile, uses; None for the user's."""
    flags = {"profile": profile, "cache_dir": None if given is None else str(given)}
    return resolve(merge(flags, {}), os.environ).cache_dir


def split_source(text: str) -> tuple[str, str]:
    """The dataset, by name or id, and the path in it that a text names.

    It may be `DATASET/PATH`, either after `lightly:` or `lightly://`, or an address of the web application.
    """
    if not _is_utf8(text):
        raise SettingsError(f"{text} names no dataset, for it is not UTF-8")
    if text.startswith(("http://", "https://")):
        found = _ID.search(text)
        if found is None:
            raise SettingsError(f"{text} names no dataset; give its name or its id of 24 hex digits")
        return found[0], ""
    for prefix in ("lightly://", "lightly:"):
        text = text.removeprefix(prefix)
    dataset, _, inside = text.partition("/")
    return dataset, inside.strip("/")


def split_part(text: str) -> tuple[str] | tuple[str, str]:
    """The dataset to mount and, where a folder of it is meant, the path of that in the dataset."""
    dataset, inside = split_source(text)
    words = [word for word in inside.split("/") if word not in ("", ".")]
    if ".." in words or (words and words[0] == ".lightlyfs"):
        raise SettingsError(f"{inside} is no folder of a dataset; give its path as `lightlyfs ls` shows it")
    return (dataset, "/".join(words)) if words else (dataset,)


def _is_utf8(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False  # the bytes of an argument that are none come as surrogates
    return True


def split_fstab_options(texts: tuple[str, ...]) -> tuple[dict[str, str], tuple[str, ...]]:
    """Split `-o` options into settings, the profile and kernel options; refuse the rest."""
    settings: dict[str, str] = {}
    kernel: list[str] = []
    for option in (option for text in texts for option in text.split(",") if option):
        name, equals, value = option.partition("=")
        name = _ALIASES.get(name, name.replace("-", "_"))
        if name == "profile":
            settings[name] = value
        elif name in BY_NAME:
            value = value if equals or not BY_NAME[name].is_switch else "on"
            repeated = BY_NAME[name].repeatable and name in settings
            settings[name] = f"{settings[name]},{value}" if repeated else value
        elif name in _KERNEL:
            kernel.append(option)
        elif name not in _IGNORED and not name.startswith(("x_", "X_", "comment")):
            if "token" in name:
                raise SettingsError(f"-o {name}: {TOKEN_REFUSAL}")
            close = get_close_matches(name, BY_NAME, 1)
            asked = f"did you mean {close[0]}?" if close else "`lightlyfs mount --help` lists them"
            raise SettingsError(f"-o {name}: no such option; {asked}")
    return settings, tuple(kernel)


def merge(flags: Mapping[str, str | None], fstab: Mapping[str, str]) -> dict[str, str | None]:
    """Merge the sources: flags beat the fstab form, which beats the configuration file and the profile.

    A variable that is probably misspelt is named on stderr.
    """
    for line in misspelt_variables(os.environ):
        tell(line)
    given = {**fstab, **{name: text for name, text in flags.items() if text is not None}}
    return profiles.beneath(given, given.pop("profile", None), os.environ)


def misspelt_variables(environ: Mapping[str, str]) -> list[str]:
    """Return a line about each variable without effect whose name is close to that of a setting."""
    known = {row.variable for row in SETTINGS if row.variable} | _OTHER_VARIABLES
    meant = {row.name.upper(): row.variable or f"{row.flag} ({row.name} in config.toml)" for row in SETTINGS}
    for name in (*known, *SECRET_VARIABLES):
        meant.setdefault(name.partition("_")[2], name)
    lines = []
    for name, value in sorted(environ.items()):
        # Kubernetes gives the address of a service as LIGHTLYFS_METRICS_PORT=tcp://...
        if not (name.startswith(_PREFIX) and value) or name in known or value.startswith("tcp://"):
            continue
        close = get_close_matches(name.removeprefix(_PREFIX).upper(), meant, 1, _ALIKE)
        if close:
            lines.append(f"the variable {name} has no effect; did you mean {meant[close[0]]}?")
    return lines


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


def _metavar(row: Setting) -> str:
    if row.choices:
        return "|".join(row.choices)
    words = {"metadata_ttl": "SECONDS", "cache_min_free": "SIZE", "jobs": "N", "page_size": "N"}
    return words.get(row.name, row.name.rpartition("_")[2].upper())


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


def given_path(text: str) -> Path:
    """The path that an argument is; an empty one, as of an unset variable, is not the current directory."""
    if not text:
        raise click.BadParameter("it is empty; name a file or a directory")
    return Path(text)


def given_text(text: str) -> str:
    """A dataset or a path, as a text that is not empty."""
    if not text:
        raise click.BadParameter("it is empty; name a dataset or a path")
    return text


def complete_dataset(
    _context: click.Context, _parameter: click.Parameter, begun: str
) -> list[CompletionItem]:
    """The names that were used on this machine with the token that is set."""
    from lightlyfs.app.resolving import known_names

    try:
        settings = resolve(profiles.beneath({}, None, os.environ), os.environ)
        known = known_names(settings, read_secrets(os.environ, settings.token_file))
    except Exception:
        return []  # a shell that completes shows no errors
    return [CompletionItem(name) for name in known if name.startswith(begun)]


def complete_mount(_context: click.Context, _parameter: click.Parameter, begun: str) -> list[CompletionItem]:
    """Where datasets are mounted, or any directory where none is."""
    found = [CompletionItem(str(path)) for path in our_mounts() if str(path).startswith(begun)]
    return found or [CompletionItem(begun, type="dir")]


def complete_directory(
    _context: click.Context, _parameter: click.Parameter, begun: str
) -> list[CompletionItem]:
    """Any directory."""
    return [CompletionItem(begun, type="dir")]
