"""What transfers cost: learned from those that were made, with what is under way taken into account.

A link joins two datacenters, or is the inside of one, or of a machine: so what one pair of machines shows serves all
pairs that share the link, and there are few links however many machines there are.

Of each link three things are learned, each an exponentially weighted mean: what one transfer gets alone, what all that
are under way at a time get together, and the latency of a file.

All that leaves a datacenter shares its *way out*, all that enters one its *way in*, all between two the way between
them, and of these it is learned, too, what they carry (:mod:`~dpilot.placement.ways`). A transfer is expected to begin
when what is on its ways has been sent, so that a source with many readers is seen to be busy whatever links they are
on. Inside of a datacenter, which is taken to be wide, a transfer beside n others is expected to get the lesser of what
one gets alone and a share, one in n + 1, of what all get together.

What is assumed of a link that nothing has been moved over is a guess: it is tried with one transfer
(:meth:`Links.room_at`), inside of a datacenter from a store that is no machine with a few, and may be wrong by so much
(:meth:`Links.doubt`). A transfer that takes long tells so before it has ended (:meth:`Links.overdue`).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from itertools import accumulate
from typing import NamedTuple

from dpilot.placement.topology import LEAST_TELLING_NBYTES, Distance, Site
from dpilot.placement.ways import NOTABLE, WEIGHT, Traffic, Way

__all__ = ["LinkRow", "Links", "StatedLink"]

_BANDWIDTH_BYTES_PER_S = {
    Distance.SAME_MACHINE: 1e9,
    Distance.SAME_DATACENTER: 5e8,
    Distance.OTHER_DATACENTER: 5e7,
}
_LATENCY_S = {
    Distance.SAME_MACHINE: 1e-4,
    Distance.SAME_DATACENTER: 2e-3,
    Distance.OTHER_DATACENTER: 4e-2,
}
#: How many times longer a transfer may well take over a link of which nothing is known, and if others as long are.
_DOUBT, _DOUBT_OF_ALIKE = 3.0, 1.5
#: So many transfers at a time try the inside of a datacenter, which is taken to be wide, from a store.
_FEW_INSIDE = 8
#: So many round trips it takes until connections have found out what their way carries, but no more than this part of
#: what the transfer takes.
_COLD, _MOST_COLD = 8, 0.5
#: A transfer that has less of what its link usually gives is held up elsewhere.
_USUAL = 0.8
#: How much an estimate changes before decisions that were built on it are taken anew.
_NOTABLE = 1.25
#: Pairs of sites whose link is remembered.
_MOST_PAIRS = 50_000


class StatedLink(NamedTuple):
    """A link as somebody who knows it states it: what is assumed until transfers show otherwise.

    Parameters
    ----------
    source, target : str
        Datacenters. It holds in both directions, unless the other one is stated, too.
    bandwidth_bytes_per_s, latency_s : float or None
        None: as for any link that goes as far.
    """

    source: str
    target: str
    bandwidth_bytes_per_s: float | None = None
    latency_s: float | None = None


class LinkRow(NamedTuple):
    """What is known of a link, and how well it was predicted.

    Parameters
    ----------
    source, target : str
        Datacenters; or the machine, twice.
    bandwidth_bytes_per_s : float
        Of one transfer alone.
    capacity_bytes_per_s : float or None
        Of all transfers at a time; None: not known yet.
    latency_s : float
        Of a file.
    transfers : int
        On it now.
    n : int
        Transfers that were compared with what had been predicted for them.
    ratio : float
        Exponentially weighted mean of actual over predicted time.
    predicted_s, actual_s : float
        Of the last one.
    """

    source: str
    target: str
    bandwidth_bytes_per_s: float
    capacity_bytes_per_s: float | None
    latency_s: float
    transfers: int
    n: int
    ratio: float
    predicted_s: float
    actual_s: float


class _Link:
    __slots__ = (
        "actual_s",
        "alone",
        "as_of",
        "capacity",
        "distance",
        "expected",
        "fastest",
        "is_bound",
        "last_told",
        "latency_s",
        "n",
        "names",
        "predicted_s",
        "ratio",
        "reverse",
        "stalled",
        "traffic",
        "ways",
    )

    def __init__(self, names: tuple[str, str], distance: Distance, ways: tuple[Way, ...] = ()) -> None:
        self.names = names
        self.distance = distance
        self.ways = ways  # between two datacenters, out of the one, and into the other
        self.reverse: _Link | None = None
        self.alone: float | None = None  # bytes per second
        self.is_bound = False  # whether that is no more than what it is less than
        self.capacity: float | None = None
        self.latency_s: float | None = None
        self.fastest = 0.0  # what one has had at most
        self.traffic = Traffic()
        self.stalled = 0  # transfers beside these that all but stand
        self.as_of = -1
        self.expected = 0.0, 0.0  # seconds of a file and of a byte with nothing else on the link, as of that many news
        self.last_told = 0.0
        self.n = 0
        self.ratio = 1.0
        self.predicted_s = self.actual_s = 0.0

    @property
    def is_known(self) -> bool:
        """Whether it was seen, or stated, what it gives."""
        return self.alone is not None and not self.is_bound

    @property
    def busiest(self) -> int:
        """How many transfers are on it, or on what it shares with others."""
        n = self.traffic.transfers
        for way in self.ways:
            n = max(n, way.transfers)
        return n


class Links:
    """The links between sites.

    Parameters
    ----------
    bandwidth_bytes_per_s : mapping of Distance to float
        Assumed before the first transfer.
    latency_s : mapping of Distance to float
        Paid once per file, and once for all that are moved at the same time.
    stated : iterable of StatedLink
    files_at_once : int
        How many files of a data unit are moved at the same time.

    Attributes
    ----------
    version : int
        Another one whenever an estimate has changed notably.
    now : float
        What time it is, as the caller was told last.
    """

    def __init__(
        self,
        bandwidth_bytes_per_s: Mapping[Distance, float] | None = None,
        latency_s: Mapping[Distance, float] | None = None,
        stated: Iterable[StatedLink] = (),
        files_at_once: int = 1,
    ) -> None:
        self.bandwidth_bytes_per_s = dict(bandwidth_bytes_per_s or _BANDWIDTH_BYTES_PER_S)
        self.latency_s = dict(latency_s or _LATENCY_S)
        self.files_at_once = files_at_once
        self.version = 0
        self.now = 0.0
        self._news = 0
        self._links: dict[tuple[str | None, str | None, bool], _Link] = {}
        self._between: dict[tuple[Site, Site], _Link] = {}
        self._ways: dict[tuple[str, str], Way] = {}
        self._outputs: defaultdict[Way | _Link, Traffic] = defaultdict(Traffic)  # what units write
        self._seen: set[Distance] = set()  # of links on which transfers were seen
        self._assumed = self._assume()
        known = list(stated)
        for link in [StatedLink(other.target, other.source, *other[2:]) for other in known] + known:
            kept = self._link(Site(link.source), Site(link.target))
            kept.alone = link.bandwidth_bytes_per_s or kept.alone
            kept.latency_s = link.latency_s if link.latency_s is not None else kept.latency_s

    def _link(self, source: Site, target: Site) -> _Link:
        begin, end = source.datacenter, target.datacenter
        if begin and end and begin != end:  # not kept by pair of sites: there may be millions of them
            link = self._links.get((begin, end, False))
            if link is None:
                way_out, way_in = (self._ways.setdefault(key, Way()) for key in (("from", begin), ("to", end)))
                ways = Way(), way_out, way_in
                link = self._links[begin, end, False] = _Link((begin, end), Distance.OTHER_DATACENTER, ways)
                link.reverse = self._links.get((end, begin, False))
                if link.reverse is not None:
                    link.reverse.reverse = link
            return link
        link = self._between.get((source, target))
        if link is None:
            distance = source.distance(target)
            inside = distance is Distance.SAME_MACHINE
            datacenter = source.datacenter or target.datacenter
            key = (datacenter, source.machine, True) if inside else (source.datacenter, target.datacenter, False)
            link = self._links.get(key)
            if link is None:
                names = (source.machine, source.machine) if inside else (source.datacenter, target.datacenter)
                link = self._links[key] = _Link((names[0] or "", names[1] or ""), distance)
            if len(self._between) >= _MOST_PAIRS:
                self._between.clear()
            self._between[source, target] = link
        return link

    # -- what is under way

    def begin(self, source: Site, target: Site, nbytes: int, n_files: int) -> None:
        """A transfer of `nbytes` in `n_files` files from one site to another is about to begin."""
        link = self._link(source, target)
        latency_s, alone = self._latency(link, n_files), self._alone(link)
        link.traffic.enter(self.now + latency_s)
        for way in link.ways:
            way.begin(self.now, latency_s, nbytes / way.rate(alone), link)

    def end(self, source: Site, target: Site, *, was_stalled: bool = False) -> None:
        """A transfer has ended, or will not be made."""
        link = self._link(source, target)
        if was_stalled:
            link.stalled -= 1
        elif link.traffic.transfers:
            link.traffic.leave(self.now)
            for way in link.ways:
                way.end(self.now)

    def stall(self, source: Site, target: Site) -> None:
        """A transfer all but stands: it takes no room on its link any more, but who has a choice takes another one."""
        self.end(source, target)
        self._link(source, target).stalled += 1

    def is_stalled(self, source: Site, target: Site) -> bool:
        """Whether there is a transfer on a link that all but stands."""
        return self._link(source, target).stalled > 0

    def room_at(self, source: Site, target: Site, nbytes: int, n_files: int) -> float | None:
        """From when on one more transfer would make use of what those under way leave; None: when one has ended.

        One at a time, over a link of which nothing is known, if that tells. Inside of a datacenter there is room, once
        that was tried: with a few from a store.
        """
        link = self._link(source, target)
        if link.distance is Distance.SAME_MACHINE:
            return 0.0
        is_small = nbytes < LEAST_TELLING_NBYTES  # nothing would be learned by waiting for it
        if not link.ways:
            few = _FEW_INSIDE if source.machine is None else 1
            return 0.0 if link.alone is not None or is_small or link.traffic.transfers < few else None
        is_known = is_small or link.is_known or (link.reverse is not None and link.reverse.is_known)
        if link.traffic.transfers and not is_known:
            return None
        latency_s, alone, at = self._latency(link, n_files), self._alone(link), 0.0
        begins_s = self._begins_s(link, nbytes)
        for way in link.ways:
            way_at = way.room_at(latency_s, nbytes / way.rate(alone), link, is_known, begins_s)
            if way_at is None:
                return None
            at = max(at, way_at)
        return at

    def served(self, source: Site, target: Site) -> float:
        """How many transfers at a time the inside of a datacenter was seen to carry, each as fast as any was."""
        link = self._link(source, target)
        return 1.0 if link.capacity is None or not link.fastest else link.capacity / link.fastest

    def ways(self, source: Site, target: Site, nbytes: int) -> list[tuple[Way, float]]:
        """What a transfer shares with others, and for how many seconds it takes each."""
        link = self._link(source, target)
        alone = self._alone(link)
        return [(way, nbytes / way.rate(alone)) for way in link.ways]

    def begins_s(self, source: Site, target: Site, nbytes: int) -> float:
        """How much longer a transfer takes its ways if the one before came over another link.

        It takes over no connections that know the way.
        """
        return self._begins_s(self._link(source, target), nbytes)

    def _begins_s(self, link: _Link, nbytes: int) -> float:
        return min(_COLD * self._latency(link), _MOST_COLD * nbytes / self._alone(link)) if link.ways else 0.0

    def came_last(self, way: Way, source: str | None, target: str | None) -> bool:
        """Whether the last transfer over a way came from this datacenter to that one."""
        return way.last is not None and way.last is self._links.get((source, target, False))

    def way_in_at(self, site: Site) -> float | None:
        """From when on the way into a datacenter has room, at the soonest; None: when a transfer has ended."""
        way = self._ways.get(("to", site.datacenter or ""))
        return 0.0 if way is None else way.soonest_at()

    def doubt(self, source: Site, target: Site, nbytes: int) -> float:
        """How many times longer than expected a transfer may well take: 1 where some were seen, or it is stated.

        Of small ones it is the latency that has to be known.
        """
        link = self._link(source, target)
        if link.is_known or not link.ways or (nbytes < LEAST_TELLING_NBYTES and link.latency_s is not None):
            return 1.0
        return _DOUBT_OF_ALIKE if link.distance in self._seen else _DOUBT

    # -- what was seen

    def observe(self, source: Site, target: Site, nbytes: int, seconds: float, n_files: int = 1) -> None:
        """A transfer of `nbytes` in `n_files` files from one site to another took `seconds`.

        Small ones tell nothing of the bandwidth, but how long a file takes at least.
        """
        if seconds <= 0:
            return
        link = self._link(source, target)
        self._compare(link, self._seconds(link, nbytes, n_files), seconds)
        if nbytes < LEAST_TELLING_NBYTES:
            seen_s = max(0.0, seconds - nbytes / self._rate(link)) / max(1, self._turns(n_files))
            link.latency_s = _mean(self._latency(link), seen_s)
            self.latency_s[link.distance] = _mean(self.latency_s[link.distance], seen_s)
        else:
            flowed_s = max(seconds - self._latency(link, n_files), seconds / 2)
            seen = nbytes / flowed_s
            besides = [way.beside(self.now, flowed_s) for way in link.ways] or [link.traffic.beside(self.now, flowed_s)]
            for way, beside in zip(link.ways, besides, strict=False):
                # Of one that was as slow as its link is, it was the link.
                tells = way is link.ways[0] or seen >= way.alone or seen < _USUAL * (link.alone or 0.0)
                way.learn(self.now, nbytes, seen, beside, tells)
            busiest = max(besides)
            link.fastest = max(link.fastest, seen)
            self._learn_alone(link, seen, busiest, busiest < NOTABLE)
            if link.ways:
                link.capacity = link.ways[0].capacity
            elif busiest >= NOTABLE:
                link.capacity = seen * busiest if link.capacity is None else _mean(link.capacity, seen * busiest)
            elif link.capacity is not None:
                link.capacity = max(link.capacity, seen)
            known = self.bandwidth_bytes_per_s[link.distance]
            self.bandwidth_bytes_per_s[link.distance] = _mean(known, seen) if link.distance in self._seen else seen
            self._seen.add(link.distance)
            self._assumed = self._assume()
        self._learned(link)

    def begin_output(self, source: Site, target: Site) -> None:
        """A unit begins to write to a store. That is on no way: who brings data does not wait for it."""
        for traffic in self._outputs_on(self._link(source, target)):
            traffic.enter(self.now)

    def end_output(self, source: Site, target: Site) -> None:
        """It writes no more."""
        for traffic in self._outputs_on(self._link(source, target)):
            traffic.leave(self.now)

    def observe_output(self, source: Site, target: Site, nbytes: int, seconds: float) -> None:
        """What a unit has written took `seconds` to a store, beside what others wrote.

        It tells nothing of the latency: there is more to it than the way.
        """
        link = self._link(source, target)
        if nbytes < LEAST_TELLING_NBYTES or seconds <= 0:
            return
        beside = max(traffic.beside(self.now, seconds) for traffic in self._outputs_on(link))
        seen = nbytes / seconds
        self._compare(link, self._latency(link) + nbytes * beside / self._alone(link), seconds)
        self._learn_alone(link, seen, beside, beside < NOTABLE and not link.busiest)
        self._learned(link)

    def _outputs_on(self, link: _Link) -> list[Traffic]:
        return [self._outputs[way] for way in link.ways or (link,)]

    def _learn_alone(self, link: _Link, seen: float, beside: float, was_alone: bool) -> None:
        """What one transfer has had, beside so many on average, tells what one gets alone."""
        if link.alone is None or link.is_bound:
            # What others on its way have left of it is no more than what one gets alone.
            link.alone, link.is_bound = max(seen, min(self._alone(link), seen * beside)), False
        elif seen > link.alone:
            link.alone = seen  # one that lags may have told less
        elif was_alone:
            link.alone = _mean(link.alone, seen)

    def _learned(self, link: _Link) -> None:
        self._news += 1
        now = self._latency(link) + LEAST_TELLING_NBYTES * 16 / self._alone(link)
        if not link.last_told / _NOTABLE <= now <= link.last_told * _NOTABLE:
            link.last_told = now
            self.version += 1

    def overdue(self, source: Site, target: Site, nbytes: int, seconds: float, n_files: int = 1) -> None:
        """A transfer of `nbytes` in `n_files` files is still under way after `seconds`: so it has no more than that."""
        link = self._link(source, target)
        most = nbytes / max(seconds - self._latency(link, n_files), seconds / 2)
        if nbytes < LEAST_TELLING_NBYTES or most >= self._rate(link):
            return
        if link.capacity is not None:
            link.capacity = min(link.capacity, most * max(1, link.traffic.transfers))
        link.is_bound = not link.is_known
        link.alone = min(self._alone(link), most * max(1, link.busiest))
        if link.ways:
            link.ways[0].lower(link.alone)
        self._learned(link)

    @staticmethod
    def _compare(link: _Link, predicted_s: float, actual_s: float) -> None:
        ratio = actual_s / max(predicted_s, 1e-9)
        link.ratio = ratio if link.n == 0 else _mean(link.ratio, ratio)
        link.n += 1
        link.predicted_s, link.actual_s = predicted_s, actual_s

    def _assume(self) -> tuple[float, ...]:
        """Bandwidth by distance, of links on which no transfer was seen: no better than of shorter ones."""
        return tuple(accumulate((self.bandwidth_bytes_per_s[distance] for distance in Distance), min))

    # -- what is expected

    def _latency(self, link: _Link, n_files: int = 1) -> float:
        latency_s = self.latency_s[link.distance] if link.latency_s is None else link.latency_s
        return latency_s * self._turns(n_files)

    def _turns(self, n_files: int) -> int:
        """How often the latency of a link is paid: files that are moved at the same time have it together."""
        return -(-n_files // self.files_at_once)

    def _alone(self, link: _Link) -> float:
        """What one transfer alone gets, in bytes per second: as was seen, or on the way back, or as far elsewhere."""
        if link.alone is not None:
            return link.alone
        if link.reverse is not None and link.reverse.alone is not None:
            return link.reverse.alone
        return self._assumed[link.distance]

    def _rate(self, link: _Link, more: int = 0) -> float:
        """What a transfer on a link gets, in bytes per second, beside those that are there and so many more."""
        alone = self._alone(link)
        if link.capacity is None:
            return alone
        return min(alone, link.capacity / max(1, link.traffic.transfers + more))

    def _seconds(self, link: _Link, nbytes: int, n_files: int) -> float:
        return self._latency(link, n_files) + nbytes / self._rate(link)

    def _seconds_beside(self, link: _Link, nbytes: int, n_files: int) -> float:
        """How long one more transfer takes, with those that are on its link and on its ways."""
        if not link.ways:
            return self._latency(link, n_files) + nbytes / self._rate(link, 1)
        alone = self._alone(link)
        flows_s = nbytes / alone
        for way in link.ways:
            flows_s = max(flows_s, way.wait_s(self.now) + nbytes / way.rate(alone))
        return self._latency(link, n_files) + flows_s

    def rank(self, source: Site, target: Site) -> tuple[Distance, float]:
        """Sorts sources by how well they serve a target: the nearer first, of equally near ones the faster."""
        return source.distance(target), self.transfer_s(source, target, 1_000_000, 1)

    def transfer_s(self, source: Site, target: Site, nbytes: int, n_files: int, alone: bool = False) -> float:
        """Expected seconds to move `nbytes` in `n_files` files from `source` to `target`.

        Parameters
        ----------
        source, target : Site
        nbytes, n_files : int
        alone : bool
            As if nothing else was on the link; else beside what is on it now.
        """
        link = self._link(source, target)
        if not alone and link.busiest:
            return self._seconds_beside(link, nbytes, n_files)
        if link.as_of != self._news:
            rate = self._alone(link) if link.capacity is None else min(self._alone(link), link.capacity)
            link.as_of, link.expected = self._news, (self._latency(link), 1 / rate)
        file_s, byte_s = link.expected
        return file_s * self._turns(n_files) + nbytes * byte_s

    def table(self) -> list[LinkRow]:
        """What is known of every link that was used or stated, by name."""
        rows = [
            LinkRow(
                *link.names,
                self._alone(link) if link.capacity is None else min(self._alone(link), link.capacity),
                link.capacity,
                self._latency(link),
                link.traffic.transfers,
                link.n,
                link.ratio,
                link.predicted_s,
                link.actual_s,
            )
            for link in self._links.values()
        ]
        return sorted(rows, key=lambda row: row[:2])


def _mean(before: float, seen: float) -> float:
    return before + WEIGHT * (seen - before)
