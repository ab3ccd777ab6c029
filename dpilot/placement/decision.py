"""Decisions that can be explained: one row for each pilot, worked out when somebody asks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from dpilot.display import Displayed

__all__ = ["Decision", "Row", "home_of", "told"]


class Row(NamedTuple):
    """One pilot's line in a decision.

    Parameters
    ----------
    pilot : str
    verdict : str
        ``chosen``, ``best`` (but no slot is free yet), ``possible`` or ``rejected``.
    reason : str
        Why it was rejected, or empty.
    queue_s, stage_s, label_s, output_s : float
        The parts of its cost, in seconds: the wait for a slot, the way of the inputs, what missed labels are worth, and
        the way of the outputs.
    nbytes : tuple of 3 int
        Bytes of input at each :class:`~dpilot.placement.topology.Distance` from it.
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
    output_s: float = 0.0
    nbytes: tuple[int, int, int] = (0, 0, 0)
    load: float = 0.0
    free: bool = True

    @property
    def cost_s(self) -> float:
        """The sum of the parts, in seconds."""
        return self.queue_s + self.fit_s

    @property
    def fit_s(self) -> float:
        """The same but for the queue."""
        return self.stage_s + self.label_s + self.output_s


class Decision(Displayed):
    """Where a unit goes, and why: printable, one line per pilot.

    Parameters
    ----------
    unit : str
    pilot : str or None
        The pilot chosen; None while the unit waits.
    reason : str
        One sentence.
    rows : tuple of Row
        The pilots that were considered, the cheapest first, the rejected last.
    work_out : function, optional
        Gives reason and rows instead, when somebody asks: most decisions nobody asks for. It is called with the pilot
        and with `seen`.
    seen : tuple
        The pilots and data as they were when the decision was taken; of the links it is told what is known by now.
    """

    __slots__ = ("_seen", "_told", "_work_out", "pilot", "unit")

    def __init__(
        self,
        unit: str,
        pilot: str | None,
        reason: str = "",
        rows: tuple[Row, ...] = (),
        work_out: Callable[..., tuple[str, tuple[Row, ...]]] | None = None,
        seen: tuple[Any, ...] = (),
    ) -> None:
        self.unit = unit
        self.pilot = pilot
        self._told = (reason, rows) if work_out is None else None
        self._work_out = work_out
        self._seen = seen

    def _tell(self) -> tuple[str, tuple[Row, ...]]:
        if self._told is None:
            self._told, self._seen = self.tell(), ()
        return self._told

    def tell(self) -> tuple[str, tuple[Row, ...]]:
        """Its reason and rows, not kept if they were worked out: for those who look at very many decisions."""
        if self._told is not None:
            return self._told
        assert self._work_out is not None
        return self._work_out(self.pilot, *self._seen)

    @property
    def reason(self) -> str:
        """One sentence."""
        return self._tell()[0]

    @property
    def rows(self) -> tuple[Row, ...]:
        """The pilots that were considered, the cheapest first, the rejected last."""
        return self._tell()[1]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Decision) and self.__reduce__() == other.__reduce__()

    def __hash__(self) -> int:
        return hash((self.unit, self.pilot))

    def __reduce__(self) -> tuple[Any, ...]:
        return Decision, (self.unit, self.pilot, self.reason, self.rows)

    def __repr__(self) -> str:
        return f"Decision(unit={self.unit!r}, pilot={self.pilot!r}, reason={self.reason!r}, rows={self.rows!r})"

    _repr_pretty_ = Displayed._repr_pretty_  # IPython looks for it in the class that has a __repr__

    def __str__(self) -> str:
        head = f"{self.unit}: {self.reason}"
        if not self.rows:
            return head
        width = max(5, *(len(row.pilot) for row in self.rows))
        costs = "queue s  stage s  label s  output s   cost s"
        lines = [head, f"  {'pilot':{width}}  verdict   {costs}  bytes here/near/far"]
        for row in self.rows:
            if row.verdict == "rejected":
                lines.append(f"  {row.pilot:{width}}  rejected  {row.reason}")
            else:
                moved = "/".join(f"{n:,}" for n in row.nbytes)
                lines.append(
                    f"  {row.pilot:{width}}  {row.verdict:8}  {row.queue_s:7.3f}  {row.stage_s:7.3f}"
                    f"  {row.label_s:7.3f}  {row.output_s:8.3f}  {row.cost_s:7.3f}  {moved}"
                )
        return "\n".join(lines)


def _fit(row: Row) -> tuple[float, bool, float, str]:
    return row.fit_s, not row.free, row.load, row.pilot


def home_of(rows: list[Row]) -> Row | None:
    """The pilot that fits a request best but for its queue: by data, labels and outputs, then by load and name."""
    return min((row for row in rows if row.verdict == "possible"), key=_fit, default=None)


def told(pilot: str, rows: list[Row]) -> tuple[str, tuple[Row, ...]]:
    """Why `pilot` was chosen, and the rows with that one marked."""
    chosen = next((row for row in rows if row.pilot == pilot), None)
    if chosen is None or chosen.verdict == "rejected":
        return f"to {pilot}", tuple(rows)
    home = home_of(rows)
    second = home_of([row for row in rows if row is not chosen])
    if second is None:
        why = "the only pilot that can run it"
    elif home is not None and home is not chosen and _fit(home)[0] < _fit(chosen)[0]:
        why = f"{home.pilot} fits better, but the queue there is longer than {chosen.pilot} costs"
    elif (worse_s := _fit(second)[0] - _fit(chosen)[0]) > 0:
        counted = "data, labels and outputs" if chosen.output_s or second.output_s else "data and labels"
        why = f"its {counted} fit best, by {worse_s:.3f} s"
    elif not second.free:
        why = "as good as others, and free"
    elif second.load > chosen.load:
        why = "as good as others, and the least loaded"
    else:
        why = "as good as others, and first by name"
    marked = tuple(row._replace(verdict="chosen") if row is chosen else row for row in rows)
    return f"to {pilot}: {why}", marked
