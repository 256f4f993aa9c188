"""The rules for names: which become samples, and which samples a mount shows. Pure.

There is no delete in the API, so a name is uploaded only where it says that an image is meant. Three rules,
in this order:

1. No part of the path is hidden, a scratch name or a helper folder: what programs write on the way to
   something else is never meant, whatever `--upload` says.
2. The `--upload` choice counts the path: image and video extensions, everything, nothing, or patterns.
3. A name that counts but looks temporary (`tmpab12cd34.jpg`, `b.tmp.jpg`, `b.jpg.new.jpg` beside `b.jpg`) is
   uploaded a moment after close, so that the rename or the removal that is likely to follow comes first.
"""

from __future__ import annotations

import fnmatch
import itertools
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from difflib import get_close_matches

# of docs.lightly.ai "cloud storage", `lightly/data/_helpers.py`, Pillow and cameras
_IMAGES = """
    jpg jpeg jpe jfif png bmp dib gif tif tiff webp ppm pgm pbm pnm avif heic heif jp2 j2k jxl tga ico exr hdr
    dng cr2 cr3 nef arw raf orf rw2 dcm
"""
_VIDEOS = "mp4 mov avi mkv webm m4v mpg mpeg hevc h264 h265 wmv flv mts m2ts 3gp ogv"
IMAGE_EXTENSIONS = frozenset(_IMAGES.split())
VIDEO_EXTENSIONS = frozenset(_VIDEOS.split())
_UPLOADED = IMAGE_EXTENSIONS | VIDEO_EXTENSIONS
# how similar a word without a sign of a pattern has to be to one of these to be a slip
_KEYWORDS = ("images", "all", "none")
_ALIKE = 0.8

# folders in which programs keep what they need for themselves; compared in lower case. Those with a leading
# dot are hidden anyway
_HELPER_FOLDERS = frozenset(
    {"#recycle", "#snapshot", "@eadir", "__macosx", "lost+found", "$recycle.bin", "system volume information"}
    | {"__pycache__", "thumbs.db", "desktop.ini"}
)
# names that programs give to what is not finished, or not wanted any more: `.x`, `x~`, `x.part` and the like,
# the files beside an SQLite database, exiftool's `x_exiftool_tmp` and `x_original`, Emacs's `#x#`, vim's 4913
_SCRATCH = re.compile(
    r"""
      \..* | .*~ | \#.*\# | 4913
    | .*\.(tmp|temp|part|partial|crdownload|download|incomplete|swp|swx|swo|filepart|aria2|lock
          |new|bak|backup|orig|old)
    | .*-(wal|shm|journal)
    | .*_(exiftool_tmp|original)
    """,
    re.DOTALL | re.VERBOSE | re.IGNORECASE,
)
# names made by mkstemp(3): `sedXXXXXX`, `ziXXXXXX` of zip, `x.jpg.XXXXXX`, and `tmpXXXXXXXX` of Python
_MKSTEMP = re.compile(
    r"(?:sed|zi|tmp|.+\.[A-Za-z0-9]{3,4}\.)(?P<random>[A-Za-z0-9]{6})|tmp[a-z0-9_]{8}", re.DOTALL
)
# what tells six random characters from a word: a digit, or both cases
_RANDOM = re.compile(r".*\d|(?=.*[A-Z])(?=.*[a-z])")
# stems of names that count, but are those of something unfinished
_TEMPORARY = re.compile(
    r"tmp[A-Za-z0-9_]{4,12} | (tmp|temp)[._-].+ | .+[._-](tmp|temp) | .+~ | magick-.+ | pngout"
    r"| .+\.(part|partial|new|bak|backup|orig|old|download|incomplete)",
    re.DOTALL | re.VERBOSE | re.IGNORECASE,
)
_SEPARATORS = re.compile(r"[._~ -]")

# what cannot be deleted is renamed to a name below this folder, which no listing shows
REPLACED_FOLDER = ".lightlyfs-replaced"


def is_scratch_part(part: str) -> bool:
    """Return whether one part of a path is hidden, the name of something unfinished, or a helper folder."""
    if part.lower() in _HELPER_FOLDERS or _SCRATCH.fullmatch(part):
        return True
    made = _MKSTEMP.fullmatch(part)
    return made is not None and (made["random"] is None or _RANDOM.match(made["random"]) is not None)


def is_scratch(path: str) -> bool:
    """Return whether a part of a path is hidden, scratch or a helper folder, so never uploaded."""
    return any(is_scratch_part(part) for part in path.split("/"))


def is_trash(path: str) -> bool:
    """Return whether a path is in a trash folder, into which desktops rename what they delete."""
    return any(part.startswith(".Trash") for part in path.split("/"))


def has_image_extension(path: str) -> bool:
    """Return whether a path ends like an image or a video."""
    stem, dot, extension = path.rpartition("/")[2].rpartition(".")
    return bool(dot and stem) and extension.lower() in _UPLOADED


def looks_temporary(path: str, exists: Callable[[str], bool]) -> bool:
    """Return whether a path that counts is likely to be renamed or removed at once.

    Either its stem is that of a temporary file, or it is the name of a file that is there (`exists`) with
    something added: `b.jpg.x.jpg`, or `b.x.jpg` and `b-x.jpg` beside `b.jpg`. Numbers added are a copy's.
    """
    directory, slash, name = path.rpartition("/")
    stem, dot, extension = name.rpartition(".")
    if not dot:
        return False
    if _TEMPORARY.fullmatch(stem):
        return True
    for match in _SEPARATORS.finditer(stem):
        begun, added = stem[: match.start()], stem[match.end() :]
        if not begun or not added or added.isdigit():
            continue
        if exists(f"{directory}{slash}{begun}{dot}{extension}"):
            return True
        if has_image_extension(begun) and exists(f"{directory}{slash}{begun}"):
            return True
    return False


@dataclass(frozen=True)
class UploadRules:
    """What `--upload` says: its rows in order, of which the last one that matches a path counts.

    A row is (pattern or keyword, whether it uploads); the keywords are `images` and `all`.
    """

    text: str
    rows: tuple[tuple[str, bool], ...]

    def counts(self, path: str) -> bool:
        """Return whether a file at this path becomes a sample once it is complete."""
        return not is_scratch(path) and self.chooses(path)

    def chooses(self, path: str) -> bool:
        """Return whether the choice counts a path, whatever the rule for scratch names says of it."""
        chosen = False
        for pattern, uploads in self.rows:
            if matches(pattern, path):
                chosen = uploads
        return chosen

    @property
    def sends_nothing(self) -> bool:
        """Whether nothing is ever uploaded: every write stays on this machine."""
        return not any(uploads for _, uploads in self.rows)


def parse_upload(text: str) -> UploadRules:
    """`images`, `all`, `none`, or glob patterns with commas between them; a leading `!` excludes.

    A pattern without a slash is compared with the last part of a path, one with a slash with the whole path.
    Exclusions alone narrow `images`. Raises ValueError for an empty text or pattern, and for one that was
    meant otherwise: `image`, `jpg`, `raw/`.
    """
    items = [item.strip() for item in text.split(",")]
    if not all(item.removeprefix("!") for item in items):
        raise ValueError("expected images, all, none, or patterns such as *.jpg,!raw/*")
    _refuse_slips([item.removeprefix("!") for item in items])
    if items == ["none"]:
        return UploadRules(text, ())
    if "none" in items:
        raise ValueError("expected none alone, or patterns without it")
    if items[0].startswith("!"):
        items.insert(0, "images")
    return UploadRules(text, tuple((item.removeprefix("!"), not item.startswith("!")) for item in items))


def _refuse_slips(patterns: list[str]) -> None:
    """Raise ValueError for a pattern that fits next to nothing where another was meant.

    An exclusion that fits nothing would upload what cannot be deleted.
    """
    for pattern in patterns:
        if pattern not in _KEYWORDS and (meant := _meant_by(pattern)):
            raise ValueError(f"expected {meant} instead of {pattern}, which matches no path")


def _meant_by(pattern: str) -> str | None:
    if pattern.endswith("/"):
        return f"{pattern}*"  # no path of a file ends so
    if pattern.startswith("./"):
        return pattern[2:]  # nor begins so
    if any(sign in pattern for sign in "*?[/"):
        return None
    word = pattern.lower()
    if word.removeprefix(".") in _UPLOADED:
        return f"*.{pattern.removeprefix('.')}"
    close = get_close_matches(word, _KEYWORDS, 1, _ALIKE)
    # `ball` may be a file
    return close[0] if close and "." not in word and close[0][0] == word[0] else None


def matches(pattern: str, path: str) -> bool:
    """Return whether a pattern, or a keyword, matches a path; see `parse_upload`."""
    if pattern == "all":
        return True
    if pattern == "images":
        return has_image_extension(path)
    if "/" in pattern:
        return fnmatch.fnmatchcase(path, pattern.removeprefix("/"))
    return fnmatch.fnmatchcase(path.rpartition("/")[2], pattern)


def numbered(path: str) -> Iterator[str]:
    """Yield a path, and then others like it: `x.jpg`, `x~2.jpg`, `x~3.jpg`."""
    yield path
    directory, slash, name = path.rpartition("/")
    stem, dot, extension = name.rpartition(".")
    if not stem:
        stem, dot, extension = name, "", ""
    for number in itertools.count(2):
        ending = f"~{number}{dot}{extension}"
        # a part of a path has at most 255 bytes
        room = max(0, 255 - len(ending.encode()))
        yield f"{directory}{slash}{stem.encode()[:room].decode(errors='ignore')}{ending}"


# an image whose name looks temporary is uploaded this long after its close
TEMPORARY_DELAY_S = 2.0


@dataclass(frozen=True)
class WritePolicy:
    """What becomes a sample, whether images of samples may be replaced, and when `close` returns."""

    rules: UploadRules
    allow_overwrite: bool = False
    write_back: bool = False


@dataclass(frozen=True)
class ShownRules:
    """What `--include` and `--exclude` say; without a pattern everything is shown."""

    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()

    @property
    def show_all(self) -> bool:
        """Whether no sample is hidden."""
        return not self.include and not self.exclude

    def shows(self, path: str) -> bool:
        """Return whether a sample at this path is shown."""
        if self.include and not any(matches(pattern, path) for pattern in self.include):
            return False
        return not any(matches(pattern, path) for pattern in self.exclude)

    def shows_directory(self, path: str) -> bool:
        """Return whether a directory is shown: not where a pattern such as `raw/*` excludes all below it."""
        return not any(
            "/" in pattern and pattern.endswith("*") and matches(pattern, path + "/")
            for pattern in self.exclude
        )


def parse_patterns(text: str) -> tuple[str, ...]:
    """Glob patterns with commas between them; ValueError for an empty one and for a slip."""
    patterns = tuple(item.strip() for item in text.split(","))
    if not all(patterns):
        raise ValueError("expected patterns such as *.jpg or raw/*")
    _refuse_slips(list(patterns))
    return patterns
