"""Draws how the cost of operations grows with the amount of data."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from benchmarks.harness.figures import OURS, Figure
from benchmarks.harness.optional_peers import import_peer

COLUMNS = 3
DOTS_PER_INCH = 80


def draw(figures: Sequence[Figure], peers: Sequence[str], path: Path) -> bool:
    """Draw a chart for each operation that was measured at several sizes.

    :returns: whether there is any such operation
    :raises PeerMissing: when matplotlib is not installed
    """
    curves = list(dict.fromkeys(figure.curve for figure in figures if figure.curve))
    if not curves:
        return False
    import_peer("matplotlib").use("Agg")
    pyplot = import_peer("matplotlib.pyplot")

    columns = min(COLUMNS, len(curves))
    rows = -(-len(curves) // columns)
    picture, axes = pyplot.subplots(rows, columns, figsize=(4.2 * columns, 3.4 * rows), squeeze=False)
    for axis, curve in zip(axes.flat, curves, strict=False):
        of_curve = [figure for figure in figures if figure.curve == curve]
        for name, sizes, milliseconds in _lines(of_curve, peers):
            axis.plot(sizes, milliseconds, marker="o", markersize=3, label=name)
        axis.set(title=curve, xscale="log", yscale="log", ylabel="ms")
        axis.grid(alpha=0.3)
    for axis in axes.flat[len(curves) :]:
        axis.remove()
    handles, labels = axes[0][0].get_legend_handles_labels()
    picture.legend(handles, labels, loc="upper center", ncols=len(labels), frameon=False, fontsize="small")
    picture.tight_layout(rect=(0, 0, 1, 0.94 if rows > 1 else 0.9))
    picture.savefig(path, dpi=DOTS_PER_INCH, bbox_inches="tight")
    pyplot.close(picture)
    return True


def _lines(figures: Sequence[Figure], peers: Sequence[str]) -> Iterator[tuple[str, list[int], list[float]]]:
    """The lines of eric_sse_sql on each database, and of the peers as measured with the first database."""
    databases = list(dict.fromkeys(figure.database for figure in figures))
    for database in databases:
        yield _line(f"{OURS}, {database}", [figure for figure in figures if figure.database == database], OURS)
    beside_first = [figure for figure in figures if figure.database == databases[0]]
    for peer in peers:
        line = _line(peer, [figure for figure in beside_first if peer in figure.medians], peer)
        if line[1]:
            yield line


def _line(name: str, figures: Sequence[Figure], contender: str) -> tuple[str, list[int], list[float]]:
    ordered = sorted(figures, key=lambda figure: figure.size)
    return name, [figure.size for figure in ordered], [figure.medians[contender] * 1e3 for figure in ordered]
