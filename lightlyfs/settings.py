"""Every setting, once: its name, its default, where it can come from and what it means.

A flag beats an environment variable beats the default. The rows of `SETTINGS` feed the command line, its
help, the fstab form (`-o name=value`) and `docs/options.md`; a test compares them.
"""

from __future__ import annotations

import grp
import hashlib
import ipaddress
import os
import pwd
import re
import shlex
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from lightlyfs.errors import SettingsError
from lightlyfs.memory import LEAST_TARGET_BYTES, MemoryTarget, default_target_bytes
from lightlyfs.name_rules import ShownRules, UploadRules, parse_patterns, parse_upload

DEFAULT_SERVER = "https://api.lightly.ai"
_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}
_SECONDS = {"d": 86_400, "h": 3_600, "m": 60, "min": 60, "s": 1, "": 1}
_FOREVER = ("infinite", "indefinite", "inf", "never")
# a thread each; more only wait for one another
MAX_JOBS = 1024
# blocks of less would be evicted while the files they belong to are read
LEAST_CACHE_BYTES = 64 << 20
# -1 as an unsigned number, which chown(2) reserves for "leave unchanged"
_NO_ID = (1 << 32) - 1
# the largest file on Linux; a float may not hold a number of hundreds of digits
_MAX_BYTES = (1 << 63) - 1
# what tests set to fill a cache quickly
SMALL_CACHE_VARIABLE = "LIGHTLYFS_SMALL_CACHE"


@dataclass(frozen=True)
class Setting:
    """One row: `parse` turns the text of a flag or variable into the value."""

    name: str
    default: object
    help: str
    parse: Callable[[str], Any]
    variable: str = ""
    choices: tuple[str, ...] = ()
    repeatable: bool = False  # given again it adds to its value, after a comma

    @property
    def flag(self) -> str:
        """The long option of the command line."""
        return "--" + self.name.replace("_", "-")

    @property
    def is_switch(self) -> bool:
        """Whether it is on or off, without a value."""
        return self.parse is parse_switch


@dataclass(frozen=True)
class Settings:
    """The settings of one mount; see `SETTINGS` for what each means."""

    server: str
    metadata_ttl_s: float
    cache_dir: Path | None
    cache_size_bytes: int | None
    cache_min_free_bytes: int | None
    no_cache: bool
    read_mode: str
    jobs: int
    read_ahead: str
    read_ahead_limit_bytes: int | None
    memory_target_bytes: int | None
    page_size: int
    read_only: bool
    tag: str | None
    include: tuple[str, ...] | None
    exclude: tuple[str, ...] | None
    thumbnails: str
    upload: UploadRules
    allow_overwrite: bool
    write_back: bool
    sole_writer: bool
    no_wait: bool
    index: Path | None
    uid: int
    gid: int
    umask: int
    allow_other: bool
    fuse: str
    token_file: Path | None
    ca_certs: Path | None
    allow_private_storage: tuple[ipaddress.IPv4Network | ipaddress.IPv6Network, ...]
    s3_sse_kms_key: str
    log_file: Path | None
    log_level: str
    log_format: str
    metrics_port: tuple[str, int] | None

    @property
    def shown(self) -> ShownRules:
        """Which samples are shown."""
        return ShownRules(self.include or (), self.exclude or ())

    @property
    def memory(self) -> MemoryTarget:
        """The memory to keep to."""
        return MemoryTarget(self.memory_target_bytes or default_target_bytes())


def parse_switch(text: str) -> bool:
    """On or off, as in `-o no_cache=off`."""
    if text.lower() in ("", "1", "true", "yes", "on"):
        return True
    if text.lower() in ("0", "false", "no", "off"):
        return False
    raise ValueError("expected on or off")


def parse_seconds(text: str) -> float:
    """Seconds, as 90, 5m or 1h30m, or `infinite`."""
    text = text.strip().lower()
    if text in _FOREVER:
        return float("inf")
    if not re.fullmatch(r"(\d+(\.\d+)?\s*(d|h|min|m|s|$)\s*)+", text):
        raise ValueError("expected a time such as 90, 5m, 1h30m or infinite")
    parts = re.findall(r"([\d.]+)\s*([a-z]*)", text)
    return sum(float(number) * _SECONDS[unit] for number, unit in parts)


def parse_bytes(text: str) -> int:
    """A size such as 512M, 20G or 1.5T (units of 1,024)."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMGT]?)(?:IB|B)?", text.strip().upper())
    found = 0.0 if match is None else float(match[1]) * _UNITS[match[2]]
    if match is None or found > _MAX_BYTES:
        raise ValueError("expected a size such as 512M or 20G")
    return int(found)


def parse_part(text: str) -> int | Share:
    """A size, or a share of the disk such as 50%."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*%", text.strip())
    if match is not None and 0 < float(match[1]) <= 100:
        return Share(float(match[1]) / 100)
    try:
        return parse_bytes(text)
    except ValueError:
        raise ValueError("expected a size such as 512M, 20G or 50%") from None


class Share(float):
    """A part of the disk that the cache is on."""

    def of_disk_with(self, path: Path) -> int:
        """Return it in bytes."""
        # unlike `Path.exists`, which raises below a directory that this user may not search
        while not os.path.exists(path):
            path = path.parent
        found = os.statvfs(path)
        return int(self * found.f_blocks * found.f_frsize)


def parse_memory(text: str) -> int:
    """Bytes of memory, enough for a mount."""
    found = parse_bytes(text)
    if found < LEAST_TARGET_BYTES:
        raise ValueError(f"expected at least {LEAST_TARGET_BYTES >> 20}M")
    return found


def parse_count(text: str) -> int:
    """A whole number from 1 on."""
    if not text.isascii() or not text.isdigit() or int(text) < 1:
        raise ValueError("expected a whole number from 1 on")
    return int(text)


def parse_jobs(text: str) -> int:
    """How much may go on at once."""
    if not text.isascii() or not text.isdigit() or not 1 <= int(text) <= MAX_JOBS:
        raise ValueError(f"expected a whole number from 1 to {MAX_JOBS}")
    return int(text)


def parse_user(text: str) -> int:
    """A user, by name or id."""
    return _number_of(text, "user", lambda name: pwd.getpwnam(name).pw_uid)


def parse_group(text: str) -> int:
    """A group, by name or id."""
    return _number_of(text, "group", lambda name: grp.getgrnam(name).gr_gid)


def _number_of(text: str, kind: str, by_name: Callable[[str], int]) -> int:
    if text.isascii() and text.isdigit() and len(text) <= 10 and int(text) < _NO_ID:
        return int(text)
    try:
        return by_name(text)
    except (KeyError, ValueError):
        raise ValueError(f"expected the name or number of a {kind} of this machine") from None


def parse_networks(text: str) -> tuple[ipaddress.IPv4Network | ipaddress.IPv6Network, ...]:
    """Networks such as 10.0.0.0/8, with commas or blanks between them."""
    try:
        return tuple(ipaddress.ip_network(word, strict=False) for word in text.replace(",", " ").split())
    except ValueError:
        raise ValueError("expected networks such as 10.0.0.0/8") from None


def parse_umask(text: str) -> int:
    """Permission bits to take away, in octal."""
    digits = text.removeprefix("0o")
    if not re.fullmatch("0?[0-7]{1,3}", digits):
        raise ValueError("expected octal digits up to 777, such as 022")
    return int(digits, 8)


def parse_path(text: str) -> Path:
    """A path; made absolute, because the mount's working directory becomes `/`."""
    if not text or "\0" in text:
        raise ValueError("expected a path")
    try:
        return Path(text).expanduser().absolute()
    except RuntimeError:
        raise ValueError(
            "expected a path; ~NAME stands for the home of a user, and this machine has no user of that name"
        ) from None


def parse_file(text: str) -> Path:
    """A file that exists."""
    path = parse_path(text)
    # unlike `Path.is_file`, which raises below a directory that this user may not search
    if not os.path.isfile(path):
        raise ValueError("expected a file that exists")
    return path


def parse_address(text: str) -> tuple[str, int]:
    """`PORT` or `HOST:PORT`; without a host only this machine is answered."""
    host, _, port = text.rpartition(":")
    if not port.isascii() or not port.isdigit() or not 0 < int(port) < 65536:
        raise ValueError("expected a port from 1 to 65535, or HOST:PORT")
    return host.strip("[]") or "127.0.0.1", int(port)


def parse_server(text: str) -> str:
    """The address of the API, without a path's trailing slash."""
    address = text.strip().rstrip("/")
    try:
        parts = urlsplit(address)
        known = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
        known = known and not any(sign.isspace() or sign in "?#" for sign in address)
    except ValueError:  # brackets without an address in them, a port out of range
        known = False
    if not known:
        raise ValueError(
            "expected an address that starts with https:// or http://, with a host, and perhaps a port "
            "up to 65535 and a path"
        )
    return address


SETTINGS: tuple[Setting, ...] = (
    Setting("server", DEFAULT_SERVER, "Address of the Lightly API.", parse_server, "LIGHTLY_SERVER_LOCATION"),
    Setting(
        "metadata_ttl",
        "60",
        "For how long names and attributes are trusted, as 90, 5m or 1h30m; 0 asks always, infinite never.",
        parse_seconds,
    ),
    Setting("cache_dir", None, "Directory for cached blocks and the catalogue.", parse_path),
    Setting(
        "cache_size",
        None,
        "Most bytes of cached blocks, as 20G or 50% [20G, or half of the free disk].",
        parse_part,
    ),
    Setting(
        "cache_min_free",
        None,
        "What the cache leaves free of its disk, as 2G or 5% [a tenth of it, at most 5G].",
        parse_part,
        "LIGHTLYFS_CACHE_MIN_FREE",
    ),
    Setting("no_cache", "off", "Keep nothing on disk after the mount ends.", parse_switch),
    Setting(
        "read_mode",
        "url",
        "How images are read: by signed URL, or by the redirect endpoint with LIGHTLY_PUBLIC_TOKEN.",
        str,
        choices=("url", "redirect"),
    ),
    Setting("jobs", "256", f"Downloads at once, at most {MAX_JOBS}.", parse_jobs),
    Setting(
        "read_ahead",
        "epochs",
        "What is fetched before it is asked for: nothing, the next files of a reader in order, or also the "
        "rest of a directory that is read in random order.",
        str,
        choices=("off", "files", "epochs"),
    ),
    Setting(
        "read_ahead_limit",
        None,
        "Most bytes that are fetched ahead and not read yet [a quarter of the cache, at most 256M].",
        parse_bytes,
    ),
    Setting(
        "memory_target",
        None,
        "Memory to keep to, as 256M [half of what the machine or the container has, at most 1G].",
        parse_memory,
    ),
    Setting("page_size", "5000", "Samples asked for at once while listing.", parse_count),
    Setting("read_only", "off", "Refuse every change.", parse_switch),
    Setting("tag", None, "Show only the samples of this tag, by name or id; read-only.", str),
    Setting(
        "include",
        None,
        "Show only the samples that match this pattern, such as '*.jpg' or 'cars/*'; may be repeated.",
        parse_patterns,
        repeatable=True,
    ),
    Setting(
        "exclude",
        None,
        "Do not show the samples that match this pattern; may be repeated, and beats --include.",
        parse_patterns,
        repeatable=True,
    ),
    Setting(
        "thumbnails",
        "prefill",
        "Small pictures: put where file managers look first, only given on demand, or not at all.",
        str,
        choices=("prefill", "on-demand", "off"),
    ),
    Setting(
        "upload",
        "images",
        "Which new files become samples: images, all, none, or patterns such as '*.jpg,!raw/*'.",
        parse_upload,
        repeatable=True,
    ),
    Setting("allow_overwrite", "off", "Let the images of existing samples be replaced.", parse_switch),
    Setting("write_back", "off", "Return from close before a new file is uploaded.", parse_switch),
    Setting(
        "sole_writer",
        "off",
        "Nobody else adds samples: do not ask the server for each new name.",
        parse_switch,
    ),
    Setting("no_wait", "off", "Mount before the first listing is complete.", parse_switch),
    Setting("index", None, "Names to begin with, made by `lightlyfs index export`.", parse_file),
    Setting(
        "uid",
        str(os.getuid()),
        "Owner of everything on the mount, by name or number [the mounting user].",
        parse_user,
    ),
    Setting(
        "gid",
        str(os.getgid()),
        "Group of everything on the mount, by name or number [the mounting user's].",
        parse_group,
    ),
    Setting("umask", "022", "Permission bits to take away, octal.", parse_umask),
    Setting("allow_other", "off", "Let other users in (needs user_allow_other in fuse.conf).", parse_switch),
    Setting("fuse", "auto", "Which libfuse to use.", str, "LIGHTLYFS_FUSE", ("auto", "3", "2")),
    Setting("token_file", None, "File that holds the API token, instead of LIGHTLY_TOKEN.", parse_path),
    Setting(
        "ca_certs", None, "PEM file of CAs to trust besides the system's.", parse_file, "LIGHTLY_CA_CERTS"
    ),
    Setting(
        "allow_private_storage",
        "",
        "Private networks that storage may be in, such as 10.0.0.0/8.",
        parse_networks,
    ),
    Setting(
        "s3_sse_kms_key",
        "",
        "Encryption that S3 is asked for: true for its own keys, else the id of a key.",
        str,
        "LIGHTLY_S3_SSE_KMS_KEY",
    ),
    Setting("log_file", None, "Where a mount in the background logs [the cache directory].", parse_path),
    Setting("log_level", "info", "How much is logged.", str, choices=("debug", "info", "warning", "error")),
    Setting(
        "log_format", "text", "Lines for people, or a JSON object a line.", str, choices=("text", "json")
    ),
    Setting("metrics_port", None, "Port (or HOST:PORT) on which Prometheus is answered.", parse_address),
)
BY_NAME: Mapping[str, Setting] = {setting.name: setting for setting in SETTINGS}
# what the settings are called where they carry their unit
_FIELD_OF = {
    "metadata_ttl": "metadata_ttl_s",
    "cache_size": "cache_size_bytes",
    "cache_min_free": "cache_min_free_bytes",
    "read_ahead_limit": "read_ahead_limit_bytes",
    "memory_target": "memory_target_bytes",
}


def resolve(flags: Mapping[str, str | None], environ: Mapping[str, str]) -> Settings:
    """The settings of a mount, from the texts of flags and the environment.

    Raises SettingsError, which names the flag or the variable and what it may be.
    """
    unknown = sorted(set(flags) - set(BY_NAME))
    if unknown:
        raise SettingsError(f"unknown option {unknown[0]}; `lightlyfs mount --help` lists them")
    values = {_FIELD_OF.get(row.name, row.name): _value(row, flags, environ) for row in SETTINGS}
    assert set(values) == {field.name for field in fields(Settings)}
    if values["tag"] == "":
        raise SettingsError("--tag is empty; give the name or the id of a tag")
    for name in ("allow_overwrite", "write_back", "sole_writer"):
        if values[name] and (values["read_only"] or values["tag"]):
            other = "--read-only" if values["read_only"] else "--tag, which is read-only"
            raise SettingsError(f"{BY_NAME[name].flag} contradicts {other}; leave one of them out")
    for name in ("cache_size_bytes", "cache_min_free_bytes"):
        if isinstance(share := values[name], Share):
            cache = values["cache_dir"] or Path(environ.get("XDG_CACHE_HOME") or Path.home())
            values[name] = share.of_disk_with(cache)
    size = values["cache_size_bytes"]
    if size is not None and size < LEAST_CACHE_BYTES and not environ.get(SMALL_CACHE_VARIABLE):
        raise SettingsError(f"--cache-size is {flags.get('cache_size')!r}; expected 64M or more")
    # a new sample is in no tag, so a file that is written there would vanish
    values["read_only"] |= values["tag"] is not None
    return Settings(**values)


def _value(row: Setting, flags: Mapping[str, str | None], environ: Mapping[str, str]) -> Any:
    text, origin = flags.get(row.name), row.flag
    if text is None and row.variable:
        text, origin = environ.get(row.variable) or None, row.variable
    if text is None:
        text, origin = (None if row.default is None else str(row.default)), row.flag
    return None if text is None else parsed(row, text, origin)


def parsed(row: Setting, text: str, origin: str) -> Any:
    """Return the value that a text is; SettingsError, which names `origin`, where it is none."""
    if row.choices and text not in row.choices:
        raise SettingsError(f"{origin} is {text!r}; it may be {', '.join(row.choices)}")
    try:
        return row.parse(text)
    except ValueError as error:
        reason = str(error) if str(error).startswith("expected") else "expected something else"
        raise SettingsError(f"{origin} is {text!r}; {reason}") from None


def text_of(row: Setting, value: object, origin: str) -> str:
    """Return the value of a setting in a program or a file as an option has it.

    SettingsError, which names `origin`, for a value of a kind that the setting cannot have.
    """
    if isinstance(value, bool):
        return _text_of_switch(row, value, origin)
    if isinstance(value, list | tuple):
        takes_several = row.repeatable or row.parse is parse_networks
        if not takes_several or not all(isinstance(one, str) for one in value):
            expected = "texts in it" if takes_several else "one value"
            raise SettingsError(f"{origin} is a list; expected {expected}")
        return ",".join(value)
    if row.parse is parse_umask and isinstance(value, int):
        # what was written, 77 or 0o77, is not known any more
        raise SettingsError(f'{origin} is a number; write it with quotes, such as "022"')
    return os.fsdecode(value) if isinstance(value, bytes) else str(value)


def _text_of_switch(row: Setting, value: bool, origin: str) -> str:
    text = "on" if value else "off"
    if row.is_switch or text in row.choices:
        return text
    text = str(value).lower()
    if row.name == "s3_sse_kms_key":
        return text if value else ""
    if row.choices or row.parse is not str:
        parsed(row, text, origin)
    raise SettingsError(f"{origin} is {text}; expected a text")


@dataclass(frozen=True)
class Secrets:
    """Tokens, from the environment or a file; never shown, never in an argument list."""

    token: str | None
    bearer: str | None
    public_token: str | None

    def fingerprint(self, purpose: str) -> str:
        """16 hex digits that differ between tokens and purposes, and tell nothing of the token."""
        token = self.public_token if purpose == "redirect" else self.token or self.bearer
        return hashlib.sha256(f"lightlyfs {purpose}\0{token or ''}".encode()).hexdigest()[:16]

    def __repr__(self) -> str:
        held = [field.name for field in fields(self) if getattr(self, field.name)]
        return f"Secrets({', '.join(held)})"


SECRET_VARIABLES = ("LIGHTLY_TOKEN", "LIGHTLY_BEARER_TOKEN", "LIGHTLY_PUBLIC_TOKEN")


def read_token(path: Path) -> str:
    """The token in a file; SettingsError where it cannot be read, or holds none."""
    try:
        token = path.read_text(encoding="utf-8-sig").strip()
    except (OSError, UnicodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not text"
        raise SettingsError(f"the token file {path} cannot be read: {reason}") from None
    if not token:
        raise SettingsError(f"the token file {path} is empty; put the API token into it")
    if len(token.split()) > 1 or token.startswith((*(f"{name}=" for name in SECRET_VARIABLES), '"', "'")):
        raise SettingsError(f"the token file {path} holds more than a token; leave the token alone in it")
    return token


def exposure_of(token_file: Path | None) -> str | None:
    """Return a warning about a token file that others can read, with the command that closes it, or None.

    Nothing is said on a read-only file system, such as the secrets of a pod: no command helps there.
    """
    if token_file is None:
        return None
    try:
        read_only = os.statvfs(token_file).f_flag & os.ST_RDONLY
        mode = token_file.stat().st_mode
    except OSError:
        return None  # the code that reads it reports the error
    if read_only or not mode & 0o044:
        return None
    return f"others can read the token file; close it with: chmod 600 {shlex.quote(str(token_file))}"


def read_secrets(environ: Mapping[str, str], token_file: Path | None, read_mode: str = "url") -> Secrets:
    """The tokens; SettingsError where one that is needed is missing, or the token file cannot be read."""
    # pasted tokens may come with blanks and line ends
    token, bearer, public_token = (environ.get(name, "").strip() or None for name in SECRET_VARIABLES)
    if token_file is not None:
        token = read_token(token_file)
    if read_mode == "redirect" and public_token is None:
        raise SettingsError("--read-mode redirect needs a public token; set LIGHTLY_PUBLIC_TOKEN to it")
    if token is None and bearer is None:
        raise SettingsError(
            "no API token; set LIGHTLY_TOKEN to the one from your preferences page, or use --token-file"
        )
    return Secrets(token, bearer, public_token)
