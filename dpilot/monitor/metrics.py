"""The monitor's figures for Prometheus, at ``/metrics`` of the scheduler: worked out when they are scraped."""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from itertools import islice

from dpilot.monitor.watch import Watch
from dpilot.states import State

try:
    from prometheus_client import REGISTRY
    from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
    from prometheus_client.registry import Collector
except ImportError:
    has_prometheus = False
else:
    has_prometheus = True

__all__ = ["expose"]

#: Of how many pilots and links there are series of their own: the newest pilots, the links that moved most.
_MOST = 100


def expose(watch: Watch) -> None:
    """Have Dask's ``/metrics`` tell the figures of this scheduler; nothing without prometheus_client."""
    global _collector
    if not has_prometheus:
        return
    if _collector is None:
        _collector = _Figures()
        REGISTRY.register(_collector)
    _collector.watch = weakref.ref(watch)


if has_prometheus:

    class _Figures(Collector):
        """The registry is the process's: of several schedulers in it, the last one is told of, as by Dask."""

        watch: weakref.ref[Watch] | None = None

        def collect(self) -> Iterator[Metric]:
            watch = self.watch() if self.watch is not None else None
            if watch is not None:
                yield from _units(watch)
                yield from _pilots(watch)
                yield from _data(watch)
                yield from _links(watch)

    _collector: _Figures | None = None


def _units(watch: Watch) -> Iterator[Metric]:
    model = watch.model
    units = GaugeMetricFamily("dpilot_units", "Compute units by state", labels=["state"])
    for state in State:
        if state not in (State.New, State.Unknown):
            units.add_metric([str(state)], model.units[state])
    yield units
    nbytes = CounterMetricFamily(
        "dpilot_input_bytes", "Input of compute units, by how far from it they ran", labels=["distance"]
    )
    for name, value in zip(("same machine", "same datacenter", "other datacenter"), model.input_nbytes, strict=True):
        nbytes.add_metric([name], value)
    yield nbytes
    placed = CounterMetricFamily(
        "dpilot_placed_runs", "Inputs read, by site of the data and of the run", labels=["data_site", "run_site"]
    )
    for sites, (runs, _) in sorted(model.matrix.items(), key=lambda item: -item[1][0])[: _MOST * 4]:
        placed.add_metric(list(sites), runs)
    yield placed


def _pilots(watch: Watch) -> Iterator[Metric]:
    model, records = watch.model, watch.coordinator.records.pilots
    states = GaugeMetricFamily("dpilot_pilots", "Pilots by state", labels=["state"])
    for state in (State.Pending, State.Running, State.Done, State.Failed, State.Canceled):
        states.add_metric([str(state)], model.pilot_states[state])
    yield states
    labels = ["pilot", "datacenter", "machine"]
    slots = GaugeMetricFamily("dpilot_pilot_slots", "Slots of a pilot's workers", labels=labels)
    busy = GaugeMetricFamily("dpilot_pilot_slots_busy", "Of those, the ones that units hold", labels=labels)
    ended = CounterMetricFamily(
        "dpilot_pilot_units", "Compute units that have ended at a pilot", labels=[*labels, "state"]
    )
    runs = HistogramMetricFamily("dpilot_pilot_run_seconds", "Run times of compute units", labels=labels)
    stagings = HistogramMetricFamily("dpilot_pilot_stage_seconds", "How long their input took", labels=labels)
    for id, pilot in islice(reversed(model.pilots.items()), _MOST):
        record = records.get(id)
        if record is None:
            continue
        site = record.site
        values = [id, site.datacenter or "", site.machine or ""]
        slots.add_metric(values, pilot.slots)
        busy.add_metric(values, pilot.busy.value)
        for state, n in pilot.ended.items():
            ended.add_metric([*values, str(state)], n)
        runs.add_metric(values, pilot.run_s.buckets(), pilot.run_s.total)
        stagings.add_metric(values, pilot.stage_s.buckets(), pilot.stage_s.total)
    yield from (slots, busy, ended, runs, stagings)
    yield GaugeMetricFamily("dpilot_slots", "Slots of all pilots", value=sum(p.slots for p in model.pilots.values()))
    yield GaugeMetricFamily("dpilot_slots_busy", "Of those, the ones that units hold", value=model.busy.value)


def _data(watch: Watch) -> Iterator[Metric]:
    model, records = watch.model, watch.coordinator.records
    units = GaugeMetricFamily("dpilot_data_units", "Data units by state", labels=["state"])
    for state, n in model.data.items():
        units.add_metric([str(state)], n)
    yield units
    labels = ["store", "datacenter", "machine"]
    replicas = GaugeMetricFamily("dpilot_store_data_units", "Data units on a store", labels=labels)
    used = GaugeMetricFamily("dpilot_store_used_bytes", "Bytes of data units on a store", labels=labels)
    for store in islice(reversed(records.stores.values()), _MOST):
        values = [store.id, store.site.datacenter or "", store.site.machine or ""]
        replicas.add_metric(values, len(store.units))
        used.add_metric(values, store.used_nbytes)
    yield from (replicas, used)


def _links(watch: Watch) -> Iterator[Metric]:
    transfers = watch.coordinator.catalogue.transfers
    yield GaugeMetricFamily("dpilot_transfers_moving", "Transfers under way", value=len(transfers.moving))
    yield GaugeMetricFamily("dpilot_transfers_waiting", "Transfers that wait for room", value=transfers.n_waiting)
    labels = ["source", "target"]
    nbytes = CounterMetricFamily("dpilot_link_bytes", "Bytes moved on a link", labels=labels)
    rate = GaugeMetricFamily("dpilot_link_bytes_per_second", "How fast it moves bytes now", labels=labels)
    failed = CounterMetricFamily("dpilot_link_failures", "Transfers on it that failed", labels=labels)
    seconds = HistogramMetricFamily("dpilot_link_transfer_seconds", "How long transfers took", labels=labels)
    for ends, link in sorted(watch.model.links.items(), key=lambda item: -item[1].nbytes)[:_MOST]:
        nbytes.add_metric(list(ends), link.nbytes)
        rate.add_metric(list(ends), link.rate)
        failed.add_metric(list(ends), link.failed)
        seconds.add_metric(list(ends), link.seconds.buckets(), link.seconds.total)
    yield from (nbytes, rate, failed, seconds)
    ratio = GaugeMetricFamily(
        "dpilot_link_actual_to_predicted", "Mean of actual over predicted time of transfers", labels=labels
    )
    for row in watch.coordinator.matcher.policy.links.table()[:_MOST]:
        if row.n:
            ratio.add_metric([row.source, row.target], row.ratio)
    yield ratio
