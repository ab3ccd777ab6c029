"""The monitor of one scheduler: takes in what happens, tells subscribers of events, and serves pages and figures."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from typing import Any

from dpilot.monitor.model import Model, link_name, site_name
from dpilot.runtime import web
from dpilot.runtime.coordinator import Coordinator
from dpilot.runtime.records import DataRecord, PilotRecord, Record, UnitRecord
from dpilot.runtime.transfers import Transfer
from dpilot.states import State

__all__ = ["TOPIC", "Watch"]

logger = logging.getLogger(__name__)

#: Of the events, for ``client.subscribe_topic``.
TOPIC = "dpilot"
#: Slots, transfers and events are looked at so often, while anything happens.
_TICK_S = 0.25
#: So many units may have changed before they are looked at, so that this never takes long.
_MOST_CHANGED = 1000
#: How many units, and how many transfers, an event names; the others are only counted.
_MOST_NAMED = 50
#: Ends of links that are no store: files that only a client sees, and files from anywhere.
CLIENT, ELSEWHERE = "client", "elsewhere"


class Watch:
    """Observes a coordinator (see :class:`dpilot.runtime.observers.Observer`).

    Parameters
    ----------
    coordinator : Coordinator
    """

    def __init__(self, coordinator: Coordinator) -> None:
        self.coordinator = coordinator
        self._model = Model(time.time())
        self._changed: dict[UnitRecord, State] = {}  # units, and their states when they were taken in last
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None
        self._looked = self._model.began
        self._pilots: dict[str, PilotRecord] = {}  # whose slots may be others than were seen
        self._moved: dict[str, int] = {}  # transfer -> bytes, when it was looked at last
        self._last_ended: Transfer | None = None
        self._ended: list[dict[str, Any]] = []
        self._counts: Counter[str] = Counter()
        self._serve()

    @property
    def model(self) -> Model:
        """What is known by now."""
        self._take_in()
        return self._model

    def _serve(self) -> None:
        from dpilot.monitor import api, metrics  # tornado, and prometheus_client if it is there

        web.add_routes(self.coordinator.scheduler, api.ROUTES, watch=self)
        metrics.expose(self)
        try:
            from dpilot.monitor import dashboard
        except ImportError:
            return  # no bokeh: no pages
        if web.add_pages(self.coordinator.scheduler, dashboard.pages(self), menu="dpilot"):
            logger.info("dpilot's page is at /dpilot of Dask's dashboard")

    # ---------------------------------------------------------------- what happens

    def advanced(self, record: Record, before: State) -> None:
        """A record has entered another state."""
        if record in self._changed:
            return
        if isinstance(record, UnitRecord):
            # Not worked out now: a tiny unit goes through three states within a tick, and is looked at once.
            if len(self._changed) >= _MOST_CHANGED:
                self._take_in()
            self._changed[record] = before
        elif isinstance(record, PilotRecord):
            self._model.pilot_advanced(record, before, time.time())
            self._touch(record.id)
            site = record.site
            logger.info("pilot %s at %s is %s", record.id, site_name(site), record.life.state)
            self._tell(
                what="pilot",
                pilot=record.id,
                state=str(record.life.state),
                datacenter=site.datacenter,
                machine=site.machine,
            )
        elif isinstance(record, DataRecord):
            if before is not State.New:
                self._model.data[before] -= 1
            self._model.data[record.life.state] += 1
            self._model.version += 1
        self._look_soon()

    def told(self, record: Record) -> None:
        """Something else about a record has changed."""
        if isinstance(record, DataRecord):
            self._model.version += 1
            self._look_soon()

    def _look_soon(self) -> None:
        if self._timer is None:
            self._looked = time.time()
            self._timer = self._loop.call_later(_TICK_S, self._tick)

    def _take_in(self) -> None:
        if not self._changed:
            return
        changed, self._changed = self._changed, {}
        for record, before in changed.items():
            self._model.unit_advanced(record, before)
            if record.pilot is not None:
                self._touch(record.pilot)
            if record.life.state.is_final:
                self._unit_ended(record)

    def _touch(self, pilot: str) -> None:
        if pilot not in self._pilots:
            record = self.coordinator.records.pilots.get(pilot)
            if record is not None:
                self._pilots[pilot] = record

    def _unit_ended(self, record: UnitRecord) -> None:
        state = str(record.life.state)
        level = logging.INFO if record.life.state is State.Failed else logging.DEBUG
        if logger.isEnabledFor(level):
            logger.log(level, "unit %s (%s) is %s on %s", record.id, record.request.kind, state, record.pilot)
        self._counts[state] += 1
        if len(self._ended) < _MOST_NAMED:
            at = record.life.since
            kind = record.request.kind
            self._ended.append({"unit": record.id, "kind": kind, "state": state, "pilot": record.pilot, "at": at})

    def staged(self, record: UnitRecord) -> None:
        """A unit's inputs have come."""
        records = self.coordinator.records
        pilot = records.pilots[record.pilot or ""]
        for i, nbytes in enumerate(record.nbytes):
            self._model.input_nbytes[i] += nbytes
        for du, pd in zip(record.request.inputs, record.read, strict=True):
            data, source = records.data.get(du), records.stores.get(pd) or records.pilots.get(pd)
            if source is not None and data is not None and data.manifest is not None:
                self._model.read(site_name(source.site), pilot.site, data.manifest.nbytes)
        for _, pd, nbytes, seconds, _ in record.brought:
            source = records.stores.get(pd) or records.pilots.get(pd)
            if source is not None:
                link = self._model.link(*link_name(source.site, pilot.site))
                link.nbytes += nbytes
                link.since += nbytes
                link.seconds.add(seconds)

    def close(self) -> None:
        """The scheduler ends."""
        self._take_in()  # what has ended since the last tick is still logged
        if self._timer is not None:
            self._timer.cancel()

    # ---------------------------------------------------------------- from time to time

    def _tick(self) -> None:
        now = time.time()
        self._timer = None
        self._take_in()
        self._look_at_slots(now)
        self._look_at_transfers()
        self._model.rates(max(1e-3, now - self._looked))
        self._looked = now
        self._tell_of_units()
        links = self._model.links.values()
        if self._pilots or self._moved or any(link.rate for link in links):
            self._timer = self._loop.call_later(_TICK_S, self._tick)

    def _look_at_slots(self, now: float) -> None:
        matcher = self.coordinator.matcher
        for id, record in list(self._pilots.items()):
            slots = matcher.total_slots(id)
            busy = max(0, slots - matcher.idle_slots(id))
            self._model.slots(record, busy, slots, now)
            if not busy:
                del self._pilots[id]

    def _look_at_transfers(self) -> None:
        transfers = self.coordinator.catalogue.transfers
        for link in self._model.links.values():
            link.moving = 0
        ended = []
        for transfer in reversed(transfers.ended):
            if transfer is self._last_ended:
                break
            ended.append(transfer)
        if ended:
            self._last_ended = ended[0]
            self._model.version += 1
        seen, self._moved = self._moved, {}
        for transfer in ended:
            self._add_bytes(transfer, seen)
            link = self._model.link(*self.ends(transfer))
            logger.log(
                logging.DEBUG if transfer.error is None else logging.INFO,
                "the %s of %s to %s, %d bytes, ended: %s",
                *(transfer.kind, transfer.du, transfer.target, transfer.moved, transfer.error or "well"),
            )
            if transfer.error is not None:
                link.failed += 1
            elif transfer.began is not None and transfer.ended is not None:
                link.seconds.add(transfer.ended - transfer.began)
        for transfer in transfers.moving:
            self._add_bytes(transfer, seen)
            self._moved[transfer.id] = transfer.moved
            self._model.link(*self.ends(transfer)).moving += 1
        if ended:
            names = ("id", "kind", "du", "source", "target", "moved", "began", "ended", "predicted_s")
            rows = [{name: getattr(t, name) for name in names} | {"good": t.error is None} for t in ended]
            self._tell(what="transfers", n=len(rows), transfers=rows[:_MOST_NAMED])

    def _add_bytes(self, transfer: Transfer, seen: dict[str, int]) -> None:
        more = max(0, transfer.moved - seen.get(transfer.id, 0))
        if more and transfer.kind != "verify":
            link = self._model.link(*self.ends(transfer))
            link.nbytes += more
            link.since += more

    def ends(self, transfer: Transfer) -> tuple[str, str]:
        """The names of the link that a transfer goes over."""
        stores = self.coordinator.records.stores
        target = stores.get(transfer.target)
        source = stores.get(transfer.source or (transfer.target if transfer.kind == "verify" else ""))
        if target is None:
            return ELSEWHERE, ELSEWHERE
        if source is None:
            return (CLIENT if transfer.kind == "upload" else ELSEWHERE), site_name(target.site)
        return link_name(source.site, target.site)

    def _tell_of_units(self) -> None:
        if self._counts:
            counts, self._counts = dict(self._counts), Counter()
            ended, self._ended = self._ended, []
            self._tell(what="units", counts=counts, units=ended)

    def _tell(self, **message: Any) -> None:
        web.log_event(self.coordinator.scheduler, TOPIC, message)
