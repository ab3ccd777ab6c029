"""The plots of the page on performance, from what ``docs/measure.py`` has kept in ``docs/measured``."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from draw.charts import Bar, bars
from draw.svg import Picture

__all__ = ["pictures"]

MEASURED = Path(__file__).parents[1] / "measured"


def pictures() -> dict[str, Callable[[], Picture]]:
    """A function for each picture that there are figures for."""
    return {name: draw for name, (kept, draw) in _PLOTS.items() if (MEASURED / f"{kept}.json").exists()}


def _rows(name: str) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = json.loads((MEASURED / f"{name}.json").read_text(encoding="utf-8"))["rows"]
    return rows


def _units() -> Picture:
    shown, what = [], ""
    for row in _rows("units"):
        what = row["what"] if row["system"] == "dpilot" else what
        if "per_second" in row:
            text = f"{row['per_second']:,.0f} units/s"
            shown.append(Bar(group=what, series=row["system"], value=row["per_second"], text=text))
    for bar in shown:
        bar["group"] = bar["group"].replace(", sandbox and files each", "")
    return bars(shown, "How many units run in a second on two slots, by dpilot, by Dask and by a pool of processes")


def _data() -> Picture:
    rows = [row for row in _rows("data") if "mb_per_s" in row and not row["what"].startswith("checksum")]
    return bars(
        (
            Bar(group=row["what"], series=row["system"], value=row["mb_per_s"], text=f"{row['mb_per_s']:,.0f} MB/s")
            for row in rows
        ),
        "How fast files move, by dpilot, s5cmd, rclone and cp",
    )


def _placement() -> Picture:
    rows = [row for row in _rows("placement") if row["by"] != "round robin"]
    return bars(
        (
            Bar(
                group=f"{row['shape']}, {row['pilots']:,} pilots",
                series=row["by"],
                value=row["us"],
                text=f"{row['us']:,.0f} us",
            )
            for row in rows
        ),
        "What placing one unit takes, by dpilot's matcher and by looking at every pilot",
    )


def _policies() -> Picture:
    return bars(
        (
            Bar(
                group=row["workload"],
                series=row["policy"],
                value=row["makespan_s"] / row["bound_s"],
                text=f"{row['makespan_s'] / row['bound_s']:.2f}",
            )
            for row in sorted(_rows("policies"), key=lambda row: row["policy"] != "dpilot")
        ),
        "How long each policy takes in the simulator, over what no policy could beat",
    )


_PLOTS: dict[str, tuple[str, Callable[[], Picture]]] = {
    "units": ("units", _units),
    "moving": ("data", _data),
    "placing": ("placement", _placement),
    "policies": ("policies", _policies),
}
