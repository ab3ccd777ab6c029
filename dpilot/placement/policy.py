"""Which pilot should run a unit: the cheapest sum of waiting, staging, missed wishes and the outputs' way home.

For a unit c and a pilot p::

    cost(c, p) = queue(p) + stage(c, p) + label(c, p) + output(c, p)

``queue`` is the expected wait for a slot, ``stage`` the time to bring the inputs from their nearest
replicas, ``label`` what a preferred label that p does not bear is worth, ``output`` the time to take
what c is expected to write to the store that it goes to. All pilots are candidates, not only those
beside the data: pure locality loses when the data's site is swamped. Choosing the
least sum bounds the wait for a slot beside the data by what the transfer would cost (delay
scheduling: Zaharia et al., EuroSys 2010).
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field

from dpilot.placement.decision import Decision, Row
from dpilot.placement.links import Links
from dpilot.placement.outputs import Outputs
from dpilot.placement.topology import Site
from dpilot.placement.views import InputView, PilotView, Request

__all__ = ["Decision", "Policy", "Row", "feasible"]


def feasible(request: Request, pilot: PilotView, expected_s: float | None = None, output_s: float = 0.0) -> str | None:
    """Why a pilot could never run a request, even if it was idle; None if it could.

    Parameters
    ----------
    request : Request
    pilot : PilotView
        Its site, its slots, its workers' memory and GPUs, and how long it will be there.
    expected_s : float, optional
        How long the kind of work runs; None: not known. A walltime that the request states counts instead.
    output_s : float
        How long what it writes takes from there after that.

    Returns
    -------
    str or None
    """
    if request.pilot is not None and request.pilot != pilot.id:
        return f"the unit was submitted to {request.pilot}"
    if request.require and (missed := request.site.missed_by(pilot.site)):
        return f"required, but {missed}"
    if request.slots > pilot.slots:
        return f"{request.slots} slots are needed, it has {pilot.slots}"
    # Of a unit of several slots, each may be at a worker of its own.
    if pilot.memory_nbytes is not None and request.memory_nbytes > pilot.memory_nbytes * request.slots:
        return f"{request.memory_nbytes:,} bytes of memory are needed, a worker has {pilot.memory_nbytes:,}"
    if request.gpus > pilot.gpus * request.slots:
        return f"{request.gpus} GPUs are needed, a worker has {pilot.gpus}"
    needed_s = expected_s if request.walltime_s is None else request.walltime_s
    if pilot.left_s is not None and needed_s is not None and needed_s + output_s > pilot.left_s:
        leaves = f" its outputs take {output_s:.0f} s from there," if output_s else ""
        return f"it would run for {needed_s:.0f} s,{leaves} and the pilot ends in {max(0.0, pilot.left_s):.0f} s"
    return None


@dataclass(frozen=True, slots=True)
class Policy:
    """The cost model with its constants.

    Parameters
    ----------
    links : Links
        What transfers cost.
    prefer_wait_s : float
        What a preferred datacenter is worth, in seconds; a preferred machine is worth half of it.

    Attributes
    ----------
    outputs : Outputs
        What units write, and what that costs.
    """

    links: Links = field(default_factory=Links)
    prefer_wait_s: float = 5.0
    outputs: Outputs = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "outputs", Outputs(self.links))

    def label_s(self, request: Request, site: Site) -> float:
        """What the labels that a request would like, and `site` does not bear, are worth in seconds."""
        wished = request.site
        if wished.datacenter and wished.datacenter != site.datacenter:
            return self.prefer_wait_s
        if wished.machine and wished.machine != site.machine:
            return self.prefer_wait_s / 2
        return 0.0

    def site_s(self, request: Request, site: Site, run_s: float | None = None) -> float:
        """What a site costs wherever the inputs are: labels that it does not bear, and the way of the outputs."""
        return self.label_s(request, site) + self.outputs.cost_s(request, site, run_s)

    def fit_s(
        self,
        request: Request,
        site: Site,
        inputs: Iterable[InputView],
        alone: bool = False,
        run_s: float | None = None,
    ) -> float:
        """Cost of a pilot at `site` but for its queue.

        `alone`: as if nothing else was being moved. With `run_s`, for how long it runs, what others write counts.
        """
        seconds = self.site_s(request, site, run_s)
        for view in inputs:
            seconds += view.stage_s(site, self.links, alone)
        return seconds

    def row(
        self, request: Request, pilot: PilotView, inputs: Iterable[InputView], expected_s: float | None = None
    ) -> Row:
        """The cost of `pilot` for `request`, or why it is rejected; for `expected_s` see :func:`feasible`."""
        reason = feasible(request, pilot, expected_s, self.outputs.cost_s(request, pilot.site))
        if reason is not None:
            return Row(pilot.id, "rejected", reason)
        stage_s = 0.0
        nbytes = [0, 0, 0]
        for view in inputs:
            seconds, distance = view.stage(pilot.site, self.links)
            nbytes[distance] += view.nbytes
            stage_s += seconds
        free = pilot.free >= request.slots
        here, near, far = nbytes
        queue_s = 0.0 if free else pilot.load
        label_s, output_s = self.label_s(request, pilot.site), self.outputs.cost_s(request, pilot.site, expected_s)
        return Row(pilot.id, "possible", "", queue_s, stage_s, label_s, output_s, (here, near, far), pilot.load, free)

    def rank(
        self,
        request: Request,
        pilots: Iterable[PilotView],
        inputs: Mapping[str, InputView],
        members: Collection[str] | None = None,
        expected_s: float | None = None,
    ) -> list[Row]:
        """All pilots for `request`: the cheapest first, ties by load and then by name, the rejected last.

        Parameters
        ----------
        request : Request
        pilots : iterable of PilotView
        inputs : mapping of id to InputView
            At least the inputs of the request.
        members : collection of str, optional
            Ids of the pilots in the request's pool; None: all of them.
        expected_s : float, optional
            How long the kind of work runs; None: not known.
        """
        views = [inputs[du] for du in request.inputs]
        rows = []
        for pilot in pilots:
            if members is not None and pilot.id not in members and request.pilot != pilot.id:
                rows.append(Row(pilot.id, "rejected", "it belongs to no service of this compute data service"))
            else:
                rows.append(self.row(request, pilot, views, expected_s))
        rows.sort(key=lambda row: (row.verdict == "rejected", row.cost_s, not row.free, row.load, row.pilot))
        return rows
