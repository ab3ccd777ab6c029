"""Which pilot should run a unit: the cheapest sum of waiting, staging and missed wishes.

For a unit c and a pilot p::

    cost(c, p) = queue(p) + stage(c, p) + label(c, p)

``queue`` is the expected wait for a slot, ``stage`` the time to bring the inputs from their nearest
replicas, ``label`` what a preferred label that p does not bear is worth. All pilots are candidates,
not only those beside the data: pure locality loses when the data's site is swamped. Choosing the
least sum bounds the wait for a slot beside the data by what the transfer would cost (delay
scheduling: Zaharia et al., EuroSys 2010).
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from dpilot.placement.topology import Links
from dpilot.placement.views import InputView, PilotView, Request

__all__ = ["Decision", "Policy", "Row"]


class Row(NamedTuple):
    """One pilot's line in a decision.

    Parameters
    ----------
    pilot : str
    verdict : str
        ``chosen``, ``best`` (but no slot is free yet), ``possible`` or ``rejected``.
    reason : str
        Why it was rejected, or empty.
    queue_s, stage_s, label_s : float
        The parts of its cost, in seconds.
    nbytes : tuple of 3 int
        Bytes of input at each :class:`Distance` from it.
    load : float
        Seconds of work per slot that it has already; breaks ties.
    free : bool
        Whether a slot is free now; of two that cost the same, the free one is taken.
    """

    pilot: str
    verdict: str
    reason: str = ""
    queue_s: float = 0.0
    stage_s: float = 0.0
    label_s: float = 0.0
    nbytes: tuple[int, int, int] = (0, 0, 0)
    load: float = 0.0
    free: bool = True

    @property
    def cost_s(self) -> float:
        """The sum of the parts, in seconds."""
        return self.queue_s + self.stage_s + self.label_s


@dataclass(frozen=True, slots=True)
class Decision:
    """Where a unit goes, and why: printable, one line per pilot.

    Parameters
    ----------
    unit : str
    pilot : str or None
        The pilot chosen; None while the unit waits.
    reason : str
        One sentence.
    rows : tuple of Row
        Every pilot that was considered, the cheapest first, the rejected last.
    """

    unit: str
    pilot: str | None
    reason: str
    rows: tuple[Row, ...] = ()

    def __str__(self) -> str:
        head = f"{self.unit}: {self.reason}"
        if not self.rows:
            return head
        width = max(5, *(len(row.pilot) for row in self.rows))
        lines = [head, f"  {'pilot':{width}}  verdict   queue s  stage s  label s   cost s  bytes here/near/far"]
        for row in self.rows:
            if row.verdict == "rejected":
                lines.append(f"  {row.pilot:{width}}  rejected  {row.reason}")
            else:
                moved = "/".join(f"{n:,}" for n in row.nbytes)
                lines.append(
                    f"  {row.pilot:{width}}  {row.verdict:8}  {row.queue_s:7.3f}  {row.stage_s:7.3f}"
                    f"  {row.label_s:7.3f}  {row.cost_s:7.3f}  {moved}"
                )
        return "\n".join(lines)


@dataclass(frozen=True, slots=True)
class Policy:
    """The cost model with its constants.

    Parameters
    ----------
    links : Links
        What transfers cost.
    prefer_wait_s : float
        What a preferred datacenter is worth, in seconds; a preferred machine is worth half of it.
    """

    links: Links = field(default_factory=Links)
    prefer_wait_s: float = 5.0

    def row(self, request: Request, pilot: PilotView, inputs: Iterable[InputView]) -> Row:
        """The cost of `pilot` for `request`, or why it is rejected."""
        missed = request.site.missed_by(pilot.site)
        if request.pilot is not None and request.pilot != pilot.id:
            return Row(pilot.id, "rejected", f"the unit was submitted to {request.pilot}")
        if request.require and missed:
            return Row(pilot.id, "rejected", f"required, but {missed}")
        if request.slots > pilot.slots:
            return Row(pilot.id, "rejected", f"{request.slots} slots are needed, it has {pilot.slots}")
        label_s = 0.0
        if missed:
            label_s = self.prefer_wait_s if missed.startswith("datacenter") else self.prefer_wait_s / 2
        stage_s = 0.0
        nbytes = [0, 0, 0]
        for view in inputs:
            seconds, distance = view.stage(pilot.site, self.links)
            nbytes[distance] += view.nbytes
            stage_s += seconds
        free = pilot.free >= request.slots
        here, near, far = nbytes
        queue_s = 0.0 if free else pilot.load
        return Row(pilot.id, "possible", "", queue_s, stage_s, label_s, (here, near, far), pilot.load, free)

    def rank(
        self,
        request: Request,
        pilots: Iterable[PilotView],
        inputs: Mapping[str, InputView],
        members: Collection[str] | None = None,
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
        """
        views = [inputs[du] for du in request.inputs]
        rows = []
        for pilot in pilots:
            if members is not None and pilot.id not in members and request.pilot != pilot.id:
                rows.append(Row(pilot.id, "rejected", "it belongs to no service of this compute data service"))
            else:
                rows.append(self.row(request, pilot, views))
        rows.sort(key=lambda row: (row.verdict == "rejected", row.cost_s, not row.free, row.load, row.pilot))
        return rows
