"""The configuration file: the user's settings, and named sets of them.

`~/.config/lightlyfs/config.toml` holds settings by their names; those under `[profiles.NAME]` count where
the profile is chosen. An option or a variable beats the file.
"""

from __future__ import annotations

import os
import tomllib
from collections.abc import Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import platformdirs

from lightlyfs.errors import SettingsError
from lightlyfs.settings import BY_NAME, parsed, text_of

VARIABLE = "LIGHTLYFS_PROFILE"
_BUILT_IN: Mapping[str, Mapping[str, object]] = {
    # for training: names that do not change, and no thumbnails
    "train": {"read_only": True, "metadata_ttl": "1h", "thumbnails": "off"},
    "browse": {"read_only": True, "metadata_ttl": "5m", "thumbnails": "prefill"},
}


def config_file() -> Path:
    """Return where the file is, or would be; an empty one for a user without a home."""
    try:
        return Path(platformdirs.user_config_dir("lightlyfs")) / "config.toml"
    except RuntimeError:
        return Path(os.devnull)


def load(profile: str | None) -> dict[str, tuple[str, str]]:
    """Return the text of each setting that the file or the profile has, and where it is from.

    Raises SettingsError, which names the file and the key.
    """
    path = config_file()
    found = _read(path)
    profiles = found.pop("profiles", {})
    if not isinstance(profiles, dict) or not all(isinstance(one, dict) for one in profiles.values()):
        raise SettingsError(f"{path}: profiles are tables; begin each with [profiles.NAME]")
    values = {name: (value, str(path)) for name, value in found.items()}
    if profile is not None:
        own = profiles.get(profile)
        if own is None and profile not in _BUILT_IN:
            known = sorted({*_BUILT_IN, *profiles})
            raise SettingsError(
                f"there is no profile {profile!r}; {path} and lightlyfs have {', '.join(known)}"
            )
        built_in = {name: (value, f"profile {profile}") for name, value in _BUILT_IN.get(profile, {}).items()}
        mine = {name: (value, f"{path}, profile {profile}") for name, value in (own or {}).items()}
        values |= built_in | mine
    return {name: (_text(path, name, value), origin) for name, (value, origin) in values.items()}


def beneath(
    given: Mapping[str, str | None], profile: str | None, environ: Mapping[str, str]
) -> dict[str, str | None]:
    """Return the settings that were given, above those of the file and the profile.

    Raises SettingsError, which names the file and the key, for a wrong value that nothing else beats.
    """
    kept = {}
    for name, (text, origin) in load(profile or environ.get(VARIABLE) or None).items():
        if name not in given and not environ.get(BY_NAME[name].variable or "\0"):
            parsed(BY_NAME[name], text, f"{origin}: {name}")
            kept[name] = text
    return {**kept, **given}


def _read(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except OSError as error:
        if not os.access(path.parent, os.R_OK):
            return {}  # a service whose home is not its own
        raise SettingsError(f"{path} cannot be read: {error.strerror}") from None
    except ValueError as error:
        raise SettingsError(f"{path} is not TOML: {error}") from None


def _text(path: Path, name: str, value: object) -> str:
    """The value of a setting as an option would have it."""
    if "token" in name and name != "token_file":
        raise SettingsError(f"{path}: a token does not belong there; name a file that holds it: token_file")
    if isinstance(value, dict):
        raise SettingsError(f"{path}: {name} is a table; profiles begin with [profiles.NAME]")
    if name not in BY_NAME:
        close = get_close_matches(name.lower(), BY_NAME, 1)
        asked = f"did you mean {close[0]}?" if close else "`lightlyfs help options` lists them"
        raise SettingsError(f"{path}: unknown setting {name}; {asked}")
    return text_of(BY_NAME[name], value, f"{path}: {name}")
