"""A picture of the main numbers: a panel for each load, a bar for each subject."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import cold
import large
import training
import warm
from harness import Row
from matplotlib.figure import Figure

OURS, OTHERS, LIMIT = "#1f6f5c", "#b9c2c9", "#d9a441"
COLUMNS = 3
# how ours differs from the plain bar beside it
KINDS = {
    cold.URLS_KNOWN: "URLs known",
    training.TOLD: "order told to warm",
    warm.title(warm.OPEN_CACHED, 1): "open_cached",
}


class Panel(NamedTuple):
    """One load, and the names of its rows."""

    title: str
    bench: str
    whats: tuple[str, ...]


PANELS = (
    Panel("100 KB files, cold, in order\n1 reader, files/s", "cold", (cold.IN_ORDER, cold.DOWNLOAD)),
    Panel("100 KB files, cold, shuffled\n8 readers, files/s", "cold", (cold.SHUFFLED, cold.URLS_KNOWN)),
    Panel("training loop, cold first epoch\naccelerator busy, %", "training", (training.COLD, training.TOLD)),
    Panel("100 KB files, page cache\n1 reader, files/s", "warm", (warm.title(warm.PAGES, 1),)),
    Panel(
        "100 KB files, block cache\n1 reader, files/s",
        "warm",
        (warm.title(warm.BLOCKS, 1), warm.title(warm.OPEN_CACHED, 1)),
    ),
    Panel("500 MB file, cold, 85 MB/s a connection\nMB/s", "large", (large.COLD_BOUNDED,)),
)


def draw(rows: Sequence[Row], path: Path) -> None:
    """Draw the panels that have numbers; nothing where none has."""
    panels = [(panel, found) for panel in PANELS if (found := rows_of(panel, rows))]
    if not panels:
        return
    lines = -(-len(panels) // COLUMNS)
    figure = Figure(figsize=(11, 2.6 * lines))
    axes = figure.subplots(lines, COLUMNS, squeeze=False)
    for axis in axes.flat[len(panels) :]:
        axis.axis("off")
    for axis, (panel, found) in zip(axes.flat, panels, strict=False):
        draw_panel(axis, panel, found)
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110, metadata={"Software": None})


def rows_of(panel: Panel, rows: Sequence[Row]) -> list[Row]:
    """The rows of a panel, the fastest first; of those that are called the same, the fastest."""
    found = [row for row in rows if row.bench == panel.bench and row.what in panel.whats]
    best = {label_of(row): row for row in sorted(found, key=lambda row: row.value)}
    return sorted(best.values(), key=lambda row: -row.value)


def draw_panel(axis: Any, panel: Panel, rows: Sequence[Row]) -> None:
    """Bars that lie, with their values beside them."""
    values = [row.value for row in rows]
    axis.barh([label_of(row) for row in rows], values, color=[color_of(row) for row in rows])
    for place, value in enumerate(values):
        axis.text(value, place, f" {value:,.0f}", va="center", fontsize=8)
    axis.invert_yaxis()
    axis.set_xlim(0, max(values) * 1.25)
    axis.set_xticks([])
    axis.tick_params(axis="y", labelsize=8, length=0)
    axis.set_title(panel.title, fontsize=9, loc="left")
    for side in ("top", "right", "bottom"):
        axis.spines[side].set_visible(False)


def label_of(row: Row) -> str:
    """What a bar is called."""
    if row.what == cold.DOWNLOAD:
        return f"download first\n({row.subject})"
    if row.what in KINDS:
        return f"{row.subject},\n{KINDS[row.what]}"
    return {"lightlyfs": "lightlyfs", "lightlyfs ro": "lightlyfs\n--read-only"}.get(
        row.subject, row.subject.partition(",")[0]
    )


def color_of(row: Row) -> str:
    """Ours, the limit, and all others."""
    if row.subject.startswith("lightlyfs"):
        return OURS
    return LIMIT if row.subject.startswith("local disk") else OTHERS
