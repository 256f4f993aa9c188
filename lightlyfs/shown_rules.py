"""The rules for which samples a mount shows, whatever the dataset holds. Pure.

A sample is shown where one of the `--include` patterns matches its path, or there is none, and no
`--exclude` pattern does. Patterns match as those of `--upload` do, on the path in the dataset.
"""

from __future__ import annotations

from dataclasses import dataclass

from lightlyfs.upload_rules import matches


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
    """Glob patterns with commas between them; ValueError for an empty one."""
    patterns = tuple(item.strip() for item in text.split(","))
    if not all(patterns):
        raise ValueError("expected patterns such as *.jpg or raw/*")
    return patterns
