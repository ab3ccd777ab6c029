"""The pilots: which of them each service's units may use, and what happens when one ends."""

from __future__ import annotations

import asyncio
import logging
import pickle
import time

from dpilot.errors import UnitError
from dpilot.runtime import adapter
from dpilot.runtime.coordinator import Coordinator
from dpilot.runtime.records import PilotRecord
from dpilot.states import State

__all__ = ["Pools"]

logger = logging.getLogger(__name__)


class Pools(Coordinator):
    """The pools of pilots that units are placed in."""

    def _pools(self) -> None:
        """Let the matcher know which pilots each compute data service may use."""
        for service in self.records.services.values():
            if service.id.startswith("cds-"):
                members = {
                    pilot.id
                    for pilot in self.records.pilots.values()
                    if pilot.owner in service.members and not pilot.life.state.is_final
                }
                self.matcher.set_pool(service.id, members)
        self._match_soon()

    def _out_of_time(self, pilot: PilotRecord) -> None:
        if not pilot.life.state.is_final:
            self._in_background(self._close_pilot(pilot, State.Done))

    def _end_pilot(self, pilot: PilotRecord, state: State, error: BaseException | None) -> None:
        if pilot.life.state.is_final:
            return
        pilot.error = error
        bound = [r for r in self._unit_of.values() if r.pilot == pilot.id and r.worker is not None]
        for record in bound:
            self.matcher.release(record.id)
        self.matcher.remove_pilot(pilot.id)
        self.advance(pilot, state, error=pickle.dumps(error) if error is not None else None)
        if state is State.Failed:
            for unit in pilot.units:
                failure = UnitError(f"{unit} was submitted to {pilot.id}, which failed: {error}")
                self._fail(self.records.units[unit], failure)
        else:
            self._cancel_units(pilot.units)
        self.matcher.drop_pool(pilot.id)
        adapter.unbind(self.scheduler, [record.key for record in bound if not record.life.state.is_final])
        self._pools()
        self._match_soon()

    async def _close_pilot(self, pilot: PilotRecord, state: State) -> None:
        workers = list(pilot.workers)
        self._end_pilot(pilot, state, None)
        if len(self.scheduler.workers) > len(workers) > 0:
            try:
                await asyncio.wait_for(self.scheduler.retire_workers(workers, close_workers=True, remove=True), 20)
            except Exception:
                logger.warning("results on the workers of %s could not be moved elsewhere", pilot.id, exc_info=True)
        for worker in workers:
            await self.scheduler.remove_worker(worker, stimulus_id=f"dpilot-cancel-{time.time()}", expected=True)
        self.tell(pilot, None, {"closed": True})
