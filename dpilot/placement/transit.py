"""Which data is on its way to where: started when a unit is bound, ended when it has its inputs."""

from __future__ import annotations

from collections.abc import Iterable

from dpilot.placement.links import Links
from dpilot.placement.topology import Distance, Site
from dpilot.placement.views import InputView

__all__ = ["Transit"]


class _Way:
    __slots__ = ("due", "source", "units")

    def __init__(self, source: Site, due: float) -> None:
        self.source = source
        self.due = due
        self.units = 0


class Transit:
    """The transfers that bound units wait for, counted on their links.

    So a link that is swamped is seen before a transfer has told how slow it is. A data unit that goes to a machine is
    on its way once, however many units there wait for it.
    """

    def __init__(self, links: Links) -> None:
        self._links = links
        self.ended = 0  # transfers that are on no link any more
        self._ways: dict[tuple[str, Site], _Way] = {}
        self._of: dict[str, list[tuple[str, Site]]] = {}

    def __len__(self) -> int:
        return len(self._ways)

    def begin(self, unit: str, views: Iterable[InputView], site: Site, now: float) -> None:
        """`unit` was bound at `site`: inputs that are not on that machine have to be brought."""
        keys = []
        for view in views:
            if site.machine is not None and site in view.sites:
                continue
            source = view.source(site, self._links)
            if source is None or source.distance(site) is Distance.SAME_MACHINE:
                continue
            key = view.id, site
            way = self._ways.get(key)
            if way is None:
                seconds = self._links.transfer_s(source, site, view.nbytes, view.n_files)
                way = self._ways[key] = _Way(source, now + seconds)
                self._links.begin(source, site)
            way.units += 1
            keys.append(key)
        if keys:
            self._of[unit] = keys

    def end(self, unit: str) -> None:
        """`unit` has its inputs, or needs them no more."""
        keys = self._of.pop(unit, None)
        if keys is None:
            return
        for key in keys:
            way = self._ways[key]
            way.units -= 1
            if not way.units:
                del self._ways[key]
                self.ended += 1
                self._links.end(way.source, key[1])

    def left_s(self, du: str, site: Site, now: float) -> float | None:
        """Seconds until a data unit will have come to a machine; None if it is not on its way there."""
        way = self._ways.get((du, site)) if site.machine is not None else None
        return None if way is None else max(0.0, way.due - now)
