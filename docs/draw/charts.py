"""Benchmarks as bars: of what ``benchmarks/*`` wrote as JSON, kept beside this in ``docs/measured``."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from draw.svg import SERIES, Picture, legend

__all__ = ["Bar", "bars"]

_WIDTH, _LEFT, _ROW, _HEAD = 880, 300, 22, 34


class Bar(dict[str, Any]):
    """One bar: ``group``, ``series``, ``value`` and the ``text`` at its end."""


def bars(rows: Iterable[Bar], says: str) -> Picture:
    """Bars in groups, each group on a scale of its own; the longer, the more.

    Parameters
    ----------
    rows : iterable of Bar
    says : str
        What the picture shows.
    """
    groups: dict[str, list[Bar]] = {}
    for row in rows:
        groups.setdefault(row["group"], []).append(row)
    series = list(dict.fromkeys(row["series"] for group in groups.values() for row in group))
    colours = dict(zip(series, SERIES, strict=False))
    n = sum(map(len, groups.values()))
    picture = Picture(_WIDTH, 44 + n * _ROW + len(groups) * 16, says)
    legend(picture, 20, 24, colours.items())
    y = 48
    for name, group in groups.items():
        longest = max(row["value"] for row in group)
        picture.text(_LEFT - 14, y + len(group) * _ROW / 2 + 4, name, anchor="end")
        for row in group:
            width = row["value"] / longest * (_WIDTH - _LEFT - 120)
            picture.bar(_LEFT, y + 3, width, _ROW - 6, colours[row["series"]])
            picture.text(_LEFT + width + 8, y + 16, row["text"], size=12)
            y += _ROW
        y += 16
    return picture
