"""On which stores a data unit should lie."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass

from dpilot.placement.topology import Distance, Site

__all__ = ["StoreView", "choose_stores", "nearest_store"]


@dataclass(frozen=True, slots=True)
class StoreView:
    """One store at one moment.

    Parameters
    ----------
    id : str
    site : Site
    free_nbytes : int or None
        None: without a limit.
    """

    id: str
    site: Site
    free_nbytes: int | None

    def has_room(self, nbytes: int) -> bool:
        """Whether `nbytes` more fit."""
        return self.free_nbytes is None or self.free_nbytes >= nbytes


def choose_stores(
    stores: Iterable[StoreView], wanted: Site, nbytes: int, replicas: int, there: Collection[str] = ()
) -> list[str]:
    """Ids of up to `replicas` stores, less those that are `there` already: with room first, labelled as asked, by name.

    Further replicas are spread over other datacenters first.
    """
    left = list(stores)
    chosen = [store for store in left if store.id in there]
    left = [store for store in left if store.id not in there]
    while left and len(chosen) < replicas:
        taken = {store.site.datacenter for store in chosen}
        best = min(
            left,
            key=lambda store: (
                not store.has_room(nbytes),
                bool(chosen) and store.site.datacenter in taken,
                wanted.missed_by(store.site) is not None,
                store.id,
            ),
        )
        chosen.append(best)
        left.remove(best)
    return [store.id for store in chosen if store.id not in there]


def nearest_store(stores: Iterable[StoreView], site: Site) -> str | None:
    """Id of the store with room that is nearest to `site`; ties go to the first by name."""
    return min(
        ((store.site.distance(site), store.id) for store in stores if store.has_room(1)),
        default=(Distance.OTHER_DATACENTER, None),
    )[1]
