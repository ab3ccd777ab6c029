"""The layers, as import-linter is told of them in ``pyproject.toml``, and what their modules say of themselves."""

from __future__ import annotations

import ast
import re
import tomllib
from pathlib import Path

from draw.svg import Picture, lines_of

__all__ = ["draw"]

_ROOT = Path(__file__).parents[2]
_WIDTH, _GAP = 880, 10


def draw() -> Picture:
    """One row for each layer, upper ones first."""
    rows = [row for layer in _layers() if (row := [name for name in layer if _module(name) is not None])]
    heights = [_height(row) for row in rows]
    total = sum(heights) + _GAP * len(rows)
    picture = Picture(_WIDTH, total + 4, "The layers of dpilot: " + "; ".join(", ".join(row) for row in rows))
    y = 2
    for row, height in zip(rows, heights, strict=True):
        width = _width(row)
        for column, name in enumerate(row):
            x = 40 + column * (width + _GAP)
            picture.box(x, y, width, height, line="busy" if _module(name).is_dir() else "line")  # type: ignore[union-attr]
            picture.text(x + width / 2, y + 20, name, anchor="middle", bold=True, size=14)
            picture.paragraph(x + width / 2, y + 38, width - 14, _summary(name), size=_size(width))
        y += height + _GAP
    picture.arrow(f"M18 8V{total - 12}")
    return picture


def _width(row: list[str]) -> float:
    return (_WIDTH - 42 - _GAP * (len(row) - 1)) / len(row)


def _size(width: float) -> int:
    return 12 if width > 200 else 11


def _height(row: list[str]) -> int:
    """Room for the module of the row that says most."""
    width = _width(row)
    most = max(len(lines_of(_summary(name), width - 14, _size(width))) for name in row)
    return 34 + round(most * _size(width) * 1.3)


def _layers() -> list[list[str]]:
    config = tomllib.loads((_ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    (contract,) = (c for c in config["tool"]["importlinter"]["contracts"] if c["type"] == "layers")
    return [re.findall(r"\w+", layer) for layer in contract["layers"]]


def _module(name: str) -> Path | None:
    """The file or directory of a module; None for those that are too small to show."""
    if name.startswith("_"):
        return None
    directory = _ROOT / "dpilot" / name
    return directory if directory.is_dir() else directory.with_suffix(".py")


def _summary(name: str) -> str:
    """The first sentence of a module's docstring."""
    path = _module(name)
    assert path is not None
    text = (path / "__init__.py" if path.is_dir() else path).read_text(encoding="utf-8")
    said = (ast.get_docstring(ast.parse(text)) or "").split("\n\n")[0]
    said = re.sub(r":\w+:`~?([\w.]+)`", r"\1", said).replace("``", "")
    return re.split(r"(?<=[a-z])\. ", " ".join(said.split()))[0].rstrip(".")
