"""The whole at a glance: sites with pilots and data, and one scheduler that places units."""

from __future__ import annotations

from draw.svg import Picture

__all__ = ["draw"]

_SITES = {"eu": "s3://…", "us": "s3://…", "lab": "file:///…"}
_UPPER = {
    "ComputeDataService": "units, and what each one reads",
    "scheduler plugin": "binds a unit when the right slot is free",
    "cost model": "queue + staging + labels",
}


def draw() -> Picture:
    """Your process above, sites below."""
    picture = Picture(880, 400, "A compute data service places units at the site that holds their data")
    picture.box(1, 1, 878, 398, fill="page")
    picture.box(24, 20, 832, 118)
    picture.text(44, 48, "Your script or notebook, and one Dask scheduler", size=14, bold=True)
    x = 44.0
    for (name, says), width in zip(_UPPER.items(), (230, 284, 218), strict=True):
        _noun(picture, x, 64, width, name, says, "busy")
        x += width + 30
    picture.arrow("M274 93H302")
    picture.arrow("M618 93H590")
    for number, (site, url) in enumerate(_SITES.items()):
        left = 24 + number * 286
        picture.arrow(f"M{410 + 30 * number} 122L{left + 130} 188")
        picture.box(left, 192, 260, 188)
        picture.text(left + 16, 218, f'datacenter "{site}"', size=14, bold=True)
        _noun(picture, left + 16, 232, 228, "PilotCompute", "a pool of Dask workers", "good")
        _noun(picture, left + 16, 306, 228, f"PilotData {url}", "data units, with manifests", "warn")
    return picture


def _noun(picture: Picture, x: float, y: float, width: float, name: str, says: str, colour: str) -> None:
    picture.box(x, y, width, 58, line=colour, fill="page")
    picture.text(x + width / 2, y + 24, name, size=14, anchor="middle", bold=True)
    picture.text(x + width / 2, y + 44, says, size=12, anchor="middle", ink="muted")
