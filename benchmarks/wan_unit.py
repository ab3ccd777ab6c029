"""What a compute unit of ``wan_driver.py`` does: in a file of its own, for workers import it, and no more."""

from __future__ import annotations

import mmap
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import wantask  # beside the harness

if TYPE_CHECKING:
    from dpilot import StagedData


def look(_inputs: list[StagedData]) -> None:
    """See that stores can be reached, for so long that no worker is given two of these."""
    time.sleep(0.5)


def work(unit: dict[str, Any], inputs: list[StagedData]) -> Any:
    """One compute unit of the harness."""
    return wantask.compute(unit, [_mapped(Path(*data.files.values())) for data in inputs])


def _mapped(path: Path) -> mmap.mmap:
    """A file that is on this machine need not be copied into memory to be read."""
    with path.open("rb") as file:
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
