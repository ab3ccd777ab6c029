"""Plain text tables, for terminals and logs."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

__all__ = ["duration_text", "nbytes_text", "text_table"]


def text_table(header: Sequence[str], rows: Iterable[Sequence[object]], indent: int = 2) -> str:
    """Lay rows out in columns: numbers to the right, all else to the left.

    Parameters
    ----------
    header : sequence of str
        The columns' titles.
    rows : iterable of sequences
        One cell for each column; None is shown as nothing.
    indent : int
        Spaces before each line.

    Returns
    -------
    str
        Lines without trailing spaces, and without a newline at the end.
    """
    cells = [["" if cell is None else str(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(header, *cells, strict=True)]
    right = [bool(cells) and all(_is_numeric(row[i]) for row in cells) for i in range(len(header))]
    pads = [str.rjust if end else str.ljust for end in right]
    lines = [
        "  ".join(pad(cell, width) for pad, cell, width in zip(pads, row, widths, strict=True))
        for row in (header, *cells)
    ]
    return "\n".join((" " * indent + line).rstrip() for line in lines)


def _is_numeric(cell: str) -> bool:
    return cell[:1].isdigit() or cell[:1] in ("-", "")


def nbytes_text(nbytes: int) -> str:
    """A number of bytes in decimal units, such as ``"12.3 MB"``."""
    value = float(nbytes)
    for unit in ("B", "kB", "MB", "GB"):
        if value < 999.5:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1000
    return f"{value:.1f} TB"


def duration_text(seconds: float) -> str:
    """A length of time with three digits, such as ``"12.3 s"``."""
    if not seconds:
        return "0 s"
    if seconds < 1:
        return f"{seconds * 1000:.3g} ms"
    for limit, scale, unit in ((120, 1, "s"), (7200, 60, "min"), (172_800, 3600, "h")):
        if seconds < limit:
            return f"{seconds / scale:.3g} {unit}"
    return f"{seconds / 86_400:,.1f} days"
