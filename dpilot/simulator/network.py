"""Transfers that share links: each gets an even part of the narrowest thing on its way.

A transfer passes up to three *lanes*: the uplink of the site that it leaves, the link between the two sites, and the
downlink of the site that it enters. It moves at ``min(bandwidth / transfers there)`` over its lanes. That is never
more than real transfers can have, and less where one that is held back elsewhere leaves bandwidth to others.

Transfers over the same lanes are one *stream*: they are all as fast as each other, so their order of ending is that of
their bytes, and a change anywhere costs one step for each stream that it touches, not for each transfer.
"""

from __future__ import annotations

import heapq
import math
import random
from collections.abc import Callable
from itertools import count

from dpilot.placement import Distance, Site
from dpilot.simulator.scenario import Link, Scenario

__all__ = ["Lane", "Network", "Stream", "Transfer"]

#: How many times as long a transfer takes that lags.
_LAGS = 3.0, 8.0


class Transfer:
    """A data unit on its way.

    Parameters
    ----------
    nbytes : int
    done : callable
        Called with the time when all bytes are there.
    """

    __slots__ = ("done", "finish_v", "is_in_turn", "is_over", "nbytes", "start_v", "stream")

    def __init__(self, nbytes: int, done: Callable[[float], None]) -> None:
        self.nbytes = nbytes
        self.done = done
        self.stream: Stream | None = None  # once its latency is over
        self.start_v = self.finish_v = 0.0
        self.is_over = False
        self.is_in_turn = False  # it begins when those before it from the same place to the same are over


class Lane:
    """Something of a certain bandwidth that transfers share."""

    __slots__ = ("bandwidth", "n", "streams")

    def __init__(self, bandwidth: float) -> None:
        self.bandwidth = bandwidth
        self.n = 0.0  # how many are there; one that lags counts as the part that it takes
        self.streams: dict[Stream, None] = {}  # those with transfers; a dict, as sets have no order to rely on


class Stream:
    """All transfers over the same lanes. `served` is what each one of them would have had since the beginning.

    One that lags is a stream by itself, of a `weight` below 1: it takes that part of a share, and leaves the rest.
    """

    __slots__ = ("at_s", "changes", "due", "heap", "lanes", "n", "rate", "served", "weight")

    def __init__(self, lanes: tuple[Lane, ...], weight: float = 1.0) -> None:
        self.lanes = lanes
        self.weight = weight
        self.heap: list[tuple[float, int, Transfer]] = []
        self.n = 0
        self.served = 0.0
        self.rate = 0.0
        self.at_s = 0.0
        self.due: Transfer | None = None  # the one whose arrival the clock knows of
        self.changes = 0  # of that

    def advance(self, now: float) -> None:
        """Let its transfers move until `now`."""
        if self.n:
            self.served += self.rate * (now - self.at_s)
        self.at_s = now

    def share(self) -> float:
        """What each transfer gets now, in bytes per second."""
        return self.weight * min(lane.bandwidth / max(1.0, lane.n) for lane in self.lanes)


class Network:
    """The links of a scenario, and what is on them.

    Parameters
    ----------
    scenario : Scenario
    at : callable
        ``at(time, function, argument)`` has the clock call ``function(argument)`` at that time.
    """

    def __init__(self, scenario: Scenario, at: Callable[..., None]) -> None:
        self._at = at
        self._files_at_once = scenario.files_at_once
        self._numbers = count()
        self._lagging = scenario.lagging
        self._draw = random.Random(f"lagging/{scenario.seed}")
        self._by_distance: dict[Distance, Link] = {}
        self._by_pair: dict[tuple[str, str], Link] = {}
        self._up: dict[str, Lane] = {}
        self._down: dict[str, Lane] = {}
        self._lanes: dict[tuple[object, ...], Lane] = {}
        self._keys: dict[tuple[Site, Site], tuple[object, ...]] = {}
        self._streams: dict[tuple[Lane, ...], Stream] = {}
        self._ways: dict[tuple[Site, Site], Stream] = {}
        for uplink in sorted(scenario.uplinks, key=lambda uplink: uplink.from_s):
            if uplink.site not in self._up:  # what holds from later on has no limit until then
                begins = uplink.from_s == 0
                self._up[uplink.site] = Lane(uplink.up_bytes_per_s if begins else math.inf)
                self._down[uplink.site] = Lane(uplink.down_bytes_per_s if begins else math.inf)
            if uplink.from_s > 0:
                at(uplink.from_s, self._set, (self._up[uplink.site], uplink.up_bytes_per_s, uplink.from_s))
                at(uplink.from_s, self._set, (self._down[uplink.site], uplink.down_bytes_per_s, uplink.from_s))
        for link in scenario.all_links:
            if link.from_s > 0:
                at(link.from_s, self._change, link)
            else:
                self._hold(link)

    def _hold(self, link: Link) -> None:
        if link.between is not None:
            self._by_pair[link.between] = self._by_pair[link.between[::-1]] = link
        elif link.distance is not None:
            self._by_distance[link.distance] = link

    def link(self, source: Site, target: Site) -> Link:
        """What lies between two sites now."""
        distance = source.distance(target)
        if distance is Distance.OTHER_DATACENTER:
            pair = source.datacenter, target.datacenter
        else:
            pair = source.machine, target.machine
        stated = self._by_pair.get(pair) if None not in pair else None  # type: ignore[arg-type]
        return stated or self._by_distance[distance]

    def latency_s(self, source: Site, target: Site, n_files: int) -> float:
        """What is paid before the first byte, for all files together."""
        return self.link(source, target).latency_s * math.ceil(n_files / self._files_at_once)

    def _way(self, source: Site, target: Site) -> Stream:
        """The stream between two sites."""
        stream = self._ways.get((source, target))
        if stream is None:
            distance = source.distance(target)
            lanes = []
            key: tuple[object, ...]
            if distance is Distance.OTHER_DATACENTER:
                key = source.datacenter, target.datacenter, distance
                lanes += [self._up.get(source.datacenter or ""), self._down.get(target.datacenter or "")]
            else:
                key = (source, target, distance)
            if distance is not Distance.SAME_MACHINE:
                lanes += [self._up.get(source.machine or ""), self._down.get(target.machine or "")]
            if key not in self._lanes:
                self._lanes[key] = Lane(self.link(source, target).bandwidth_bytes_per_s)
            self._keys[source, target] = key
            # A machine may bear the label of its datacenter: then both have one uplink.
            path = tuple(dict.fromkeys(lane for lane in (*lanes, self._lanes[key]) if lane is not None))
            stream = self._ways[source, target] = self._streams.setdefault(path, Stream(path))
        return stream

    def start(self, transfer: Transfer, source: Site, target: Site, now: float) -> None:
        """The bytes of `transfer` begin to move; its latency is over."""
        if not transfer.nbytes:
            transfer.is_over = True
            transfer.done(now)
            return
        stream = self._way(source, target)
        far = source.distance(target) is Distance.OTHER_DATACENTER
        if far and self._lagging and self._draw.random() < self._lagging:
            stream = Stream(stream.lanes, 1 / self._draw.uniform(*_LAGS))
        stream.advance(now)
        transfer.stream = stream
        transfer.start_v = stream.served
        transfer.finish_v = stream.served + transfer.nbytes
        heapq.heappush(stream.heap, (transfer.finish_v, next(self._numbers), transfer))
        self._count(stream, +1, now)

    def cancel(self, transfer: Transfer, now: float) -> int:
        """Stop a transfer. Returns the bytes that had been moved."""
        if transfer.is_over:
            return transfer.nbytes
        transfer.is_over = True
        stream = transfer.stream
        if stream is None:
            return 0
        stream.advance(now)
        moved = min(transfer.nbytes, int(stream.served - transfer.start_v))
        self._count(stream, -1, now)
        return moved

    def active(self, source: Site, target: Site) -> float:
        """How many transfers share the busiest lane between two sites now."""
        return max(lane.n for lane in self._way(source, target).lanes)

    def _count(self, stream: Stream, more: int, now: float) -> None:
        """One transfer more or less on a stream, whose served bytes are up to date."""
        stream.n += more
        touched: dict[Stream, None] = {}
        for lane in stream.lanes:
            lane.n += more * stream.weight
            if stream.n:
                lane.streams[stream] = None
            else:
                lane.streams.pop(stream, None)
            touched.update(lane.streams)
        touched[stream] = None
        self._pace(touched, now)

    def _pace(self, streams: dict[Stream, None], now: float) -> None:
        """Take in that lanes of these streams have changed."""
        for stream in streams:
            stream.advance(now)
            while stream.heap and stream.heap[0][2].is_over:
                heapq.heappop(stream.heap)  # canceled
            if not stream.heap:
                stream.served = 0.0  # small numbers are exact numbers
                stream.due = None
                continue
            rate, first = stream.share(), stream.heap[0][2]
            if rate == stream.rate and first is stream.due:
                continue
            stream.rate, stream.due = rate, first
            stream.changes += 1
            left = max(0.0, stream.heap[0][0] - stream.served)
            self._at(now + left / stream.rate, self._arrive, (stream, stream.changes, now + left / stream.rate))

    def _arrive(self, due: tuple[Stream, int, float]) -> None:
        """The first transfers of a stream have all of their bytes, unless something has changed since."""
        stream, changes, now = due
        if stream.changes != changes or stream.due is None:
            return
        stream.due = None
        stream.advance(now)
        stream.served = finish_v = max(stream.served, stream.heap[0][0])
        arrived = []
        while stream.heap and (stream.heap[0][0] <= finish_v or stream.heap[0][2].is_over):
            transfer = heapq.heappop(stream.heap)[2]
            if not transfer.is_over:
                transfer.is_over = True
                arrived.append(transfer)
        self._count(stream, -len(arrived), now)
        for transfer in arrived:
            transfer.done(now)

    def _set(self, change: tuple[Lane, float, float]) -> None:
        lane, bandwidth, now = change
        for stream in lane.streams:
            stream.advance(now)
        lane.bandwidth = bandwidth
        self._pace(dict(lane.streams), now)

    def _change(self, link: Link) -> None:
        """A link is slower or faster from now on."""
        self._hold(link)
        ways = {key: pair for pair, key in self._keys.items()}
        for key, (source, target) in ways.items():
            if self.link(source, target) is link:
                self._set((self._lanes[key], link.bandwidth_bytes_per_s, link.from_s))
