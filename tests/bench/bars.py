"""What is asked of the numbers, and whether it was met: a line for each bar, from rows of one run.

Those that name tmpfs were not asked for: they tell the mount's part from that of the kernel.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import cold
import idle
import large
import scale
import slopes
import soak
import training
import warm
from harness import LOCAL, SMALL_PAGES, Row

RCLONE = "rclone mount"
OURS, READ_ONLY = warm.READ_WRITE, warm.READ_ONLY
ONE_PAGES, ONE_BLOCKS = warm.title(warm.PAGES, 1), warm.title(warm.BLOCKS, 1)
OPENED = warm.title(warm.OPENED_PAGES, 1)
SLOWEST_LS = 1.5


@dataclass(frozen=True)
class Judged:
    """A bar with what was found."""

    what: str
    found: float
    asked: float
    unit: str
    at_most: bool = False

    @property
    def met(self) -> bool:
        """Whether the bar was met."""
        return self.found <= self.asked if self.at_most else self.found >= self.asked

    def plain(self) -> dict[str, Any]:
        """As plain values."""
        return {**asdict(self), "met": self.met}


class Table:
    """Values by what was measured, and of whom; KeyError where it was not."""

    def __init__(self, rows: Sequence[Row]) -> None:
        self.rows = {(row.bench, row.what, row.subject): row for row in rows}

    def value(self, bench: str, what: str, subject: str) -> float:
        """One number."""
        return self.rows[bench, what, subject].value

    def ratio(self, bench: str, what: str, subject: str, other: str, other_what: str = "") -> float:
        """How many times one number another one is."""
        return self.value(bench, what, subject) / self.value(bench, other_what or what, other)

    def peak(self, bench: str, part: str) -> float:
        """The most memory of ours in rows whose name has a part."""
        found = [
            row.peak_mb
            for row in self.rows.values()
            if row.bench == bench and part in row.what and row.subject == OURS and row.peak_mb
        ]
        if not found:
            raise KeyError(part)
        return max(found)


@dataclass(frozen=True)
class Bar:
    """What is asked of a number that a table gives."""

    what: str
    asked: float
    find: Callable[[Table], float]
    unit: str = "x"
    at_most: bool = False


def beside(subject: str) -> str:
    """What the local disk is called that was measured along with a mount."""
    return f"{LOCAL}, beside {subject}"


def best_download(table: Table) -> float:
    """Ours in order, beside the faster of the two ways to download."""
    rates = [table.value("cold", cold.DOWNLOAD, client) for client in cold.CLIENTS]
    return table.value("cold", cold.IN_ORDER, OURS) / max(rates)


def names_bars() -> list[Bar]:
    """`ls -l` and `find`: near the local disk, or ten times as fast as rclone mount where that asks less."""
    bars = []
    for what in (scale.LS, scale.FIND):
        for when in (scale.FIRST, scale.AGAIN):
            title = f"{what}, {when}"

            def allowed(table: Table, what: str = what, title: str = title) -> float:
                local_s = table.value("scale", what, LOCAL) * SLOWEST_LS
                # rclone's first program, which lists, is `ls`
                others = [table.rows.get(("scale", name, RCLONE)) for name in (title, f"{scale.LS}, first")]
                rclone_s = next((row.value for row in others if row is not None), 0.0) / 10
                return table.value("scale", title, OURS) / max(local_s, rclone_s)

            bars.append(Bar(f"{title}: of the time allowed", 1, allowed, at_most=True))
    return bars


def index_s(what: str) -> Callable[[Table], float]:
    """What a million names take to be shared."""
    return lambda table: table.value("slopes", slopes.title(scale.MILLION, what), OURS)


BARS = [
    Bar(f"{cold.IN_ORDER}, of rclone mount", 15, lambda t: t.ratio("cold", cold.IN_ORDER, OURS, RCLONE)),
    Bar(f"{cold.IN_ORDER}, of the faster download", 0.7, best_download),
    Bar(f"{cold.SHUFFLED}, of rclone mount", 3, lambda t: t.ratio("cold", cold.SHUFFLED, OURS, RCLONE)),
    Bar(
        f"{cold.SHUFFLED_FAR}, of rclone mount",
        6,
        lambda t: t.ratio("cold", cold.SHUFFLED_FAR, OURS, RCLONE),
    ),
    Bar(f"{cold.CLASSES_FAR}, of rclone mount", 5, lambda t: t.ratio("cold", cold.CLASSES_FAR, OURS, RCLONE)),
    Bar(f"{cold.TRAINING}, of rclone mount", 3, lambda t: t.ratio("cold", cold.TRAINING, OURS, RCLONE)),
    Bar(
        f"{cold.URLS_KNOWN}, of rclone mount",
        2,
        lambda t: t.ratio("cold", cold.URLS_KNOWN, OURS, RCLONE, cold.SHUFFLED),
    ),
    Bar(
        f"{ONE_PAGES}, read-only, of the local disk",
        0.8,
        lambda t: t.ratio("warm", ONE_PAGES, READ_ONLY, beside(READ_ONLY)),
    ),
    Bar(
        f"{ONE_PAGES}, read-write, of the local disk",
        0.35,
        lambda t: t.ratio("warm", ONE_PAGES, OURS, beside(OURS)),
    ),
    Bar(
        f"{ONE_PAGES}, read-only, of tmpfs",
        0.8,
        lambda t: t.ratio("warm", ONE_PAGES, READ_ONLY, SMALL_PAGES),
    ),
    Bar(
        f"{OPENED}, read-only, of the local disk",
        0.8,
        lambda t: t.ratio("warm", OPENED, READ_ONLY, beside(READ_ONLY)),
    ),
    Bar(
        f"{OPENED}, read-write, of the local disk",
        0.35,
        lambda t: t.ratio("warm", OPENED, OURS, beside(OURS)),
    ),
    Bar(f"{ONE_PAGES}, read-only, of rclone", 8, lambda t: t.ratio("warm", ONE_PAGES, READ_ONLY, RCLONE)),
    Bar(f"{ONE_PAGES}, read-write, of rclone", 8, lambda t: t.ratio("warm", ONE_PAGES, OURS, RCLONE)),
    Bar(f"{ONE_BLOCKS}, read-only", 4000, lambda t: t.value("warm", ONE_BLOCKS, READ_ONLY), "files/s"),
    Bar(f"{ONE_BLOCKS}, read-write", 4000, lambda t: t.value("warm", ONE_BLOCKS, OURS), "files/s"),
    Bar(f"{ONE_BLOCKS}, of rclone", 3, lambda t: t.ratio("warm", ONE_BLOCKS, OURS, RCLONE)),
    *names_bars(),
    Bar(
        scale.REMOUNT_MILLION, 1.5, lambda t: t.value("scale", scale.REMOUNT_MILLION, OURS), "s", at_most=True
    ),
    Bar(
        f"500 MB, {large.PAGES}, of the local disk",
        0.8,
        lambda t: t.ratio("large", large.PAGES, OURS, beside(OURS)),
    ),
    Bar(f"500 MB, {large.PAGES}, of tmpfs", 0.8, lambda t: t.ratio("large", large.PAGES, OURS, SMALL_PAGES)),
    Bar(f"500 MB, {large.BLOCKS}", 1000, lambda t: t.value("large", large.BLOCKS, OURS), "MB/s"),
    Bar(
        f"500 MB, {large.COLD_BOUNDED}, of a single GET",
        4,
        lambda t: t.ratio("large", large.COLD_BOUNDED, OURS, large.STREAM),
    ),
    Bar(
        f"500 MB, {large.COLD}, of a single GET",
        4,
        lambda t: t.ratio("large", large.COLD, OURS, large.STREAM),
    ),
    Bar(f"training, {training.WARM}", 95, lambda t: t.value("training", training.WARM, OURS), "% busy"),
    Bar(
        f"training, {training.REMOUNTED}",
        95,
        lambda t: t.value("training", training.REMOUNTED, OURS),
        "% busy",
    ),
    Bar(
        f"training, {training.COLD}, of rclone mount",
        3,
        lambda t: t.ratio("training", training.COLD, OURS, RCLONE),
    ),
    Bar(
        f"training, {training.TOLD}, of rclone mount",
        3,
        lambda t: t.value("training", training.TOLD, OURS) / t.value("training", training.COLD, RCLONE),
    ),
    Bar("peak memory at 100,000 samples", 300, lambda t: t.peak("scale", "100,000"), "MB", at_most=True),
    Bar("peak memory at 1,000,000 samples", 400, lambda t: t.peak("scale", "1,000,000"), "MB", at_most=True),
    Bar("index of 1,000,000 samples, export", 10, index_s(slopes.EXPORTED), "s", at_most=True),
    Bar("index of 1,000,000 samples, import to first file", 2, index_s(slopes.IMPORTED), "s", at_most=True),
    Bar(idle.WAKEUPS, 0.5, lambda t: t.value("idle", idle.WAKEUPS, OURS), "/s", at_most=True),
    Bar(idle.CPU, 10, lambda t: t.value("idle", idle.CPU, OURS), "ms/min", at_most=True),
    Bar(idle.MEMORY, 25, lambda t: t.value("idle", idle.MEMORY, OURS), "MB", at_most=True),
    Bar("soak, growth of memory", 5, lambda t: t.value("soak", soak.GROWTH, OURS), "%", at_most=True),
]


def judged(rows: Sequence[Row]) -> list[Judged]:
    """The bars whose numbers were measured."""
    table = Table(rows)
    found = []
    for bar in BARS:
        try:
            found.append(Judged(bar.what, bar.find(table), bar.asked, bar.unit, bar.at_most))
        except KeyError:
            continue  # that part was not run
    return found


def as_lines(bars: Sequence[Judged]) -> list[str]:
    """The table of bars."""
    return [
        f"{'met   ' if bar.met else 'MISSED'} {bar.what:66} {bar.found:8.4g} {bar.unit:7} "
        f"asked: at {'most' if bar.at_most else 'least'} {bar.asked:g}"
        for bar in bars
    ]
