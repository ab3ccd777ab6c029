"""States of pilots and units, as tables of legal transitions.

The states are those of the P* model (Luckow et al., "P*: A Model of Pilot-Abstractions", 2012) plus
``Staging`` while a unit's inputs or outputs move. One table per kind of object says which state may
follow which; :class:`Lifecycle` is one object's walk through its table. Nothing here knows of Dask,
threads or clocks: time is passed in.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from enum import Enum
from typing import Any, NamedTuple

from dpilot.errors import StateError

__all__ = ["COMPUTE_UNIT", "DATA_UNIT", "FINAL", "PILOT", "SERVICE", "Lifecycle", "State", "Transition"]


class State(str, Enum):
    """The state of a pilot or unit. Members are strings: ``unit.get_state() == "Running"``.

    ``is_final`` says whether an object in this state will never leave it.
    """

    New = "New"
    Pending = "Pending"
    Staging = "Staging"
    Running = "Running"
    Done = "Done"
    Failed = "Failed"
    Canceled = "Canceled"
    Unknown = "Unknown"

    __str__ = str.__str__

    def __init__(self, name: str) -> None:
        self.is_final = name in ("Done", "Failed", "Canceled")  # it is asked for very often


FINAL = frozenset(state for state in State if state.is_final)
_ENDS = frozenset({State.Failed, State.Canceled, State.Unknown})

Table = Mapping[State, frozenset[State]]


def _table(rows: dict[State, set[State]]) -> Table:
    table = {state: frozenset(following) | _ENDS for state, following in rows.items()}
    table |= dict.fromkeys(FINAL, frozenset())
    # After the scheduler was lost and found again, any state that this kind of object has may turn out to be the case.
    table[State.Unknown] = frozenset(table) - {State.New}
    return table


#: A unit goes back to Pending when the worker or pilot under it is lost, or an attempt failed
#: that may be retried. Outputs are staged after the run, hence Running -> Staging -> Done.
COMPUTE_UNIT = _table(
    {
        State.New: {State.Pending},
        State.Pending: {State.Staging, State.Running, State.Done},
        State.Staging: {State.Pending, State.Running, State.Done},
        State.Running: {State.Pending, State.Staging, State.Done},
    }
)

#: A data unit is Running once it has a replica, and Pending again while all of them are gone.
DATA_UNIT = _table(
    {
        State.New: {State.Pending},
        State.Pending: {State.Staging, State.Running},
        State.Staging: {State.Pending, State.Running},
        State.Running: {State.Staging, State.Pending, State.Done},
    }
)

PILOT = _table(
    {
        State.New: {State.Pending},
        State.Pending: {State.Running, State.Done},
        State.Running: {State.Pending, State.Done},
    }
)

SERVICE = _table({State.New: {State.Running}, State.Running: {State.Done}})


class Transition(NamedTuple):
    """One row of a history: the state entered, and when (seconds since the epoch)."""

    state: State
    timestamp: float


class Lifecycle:
    """One object's walk through its table of states.

    Parameters
    ----------
    table : mapping of State to the states that may follow it
    timestamp : float
        When the object was made, in seconds since the epoch.

    Attributes
    ----------
    state, since : State, float
        The present one, and when it was entered.
    """

    __slots__ = ("_steps", "since", "state", "table")

    def __init__(self, table: Table, timestamp: float) -> None:
        self.table = table
        self.state = State.New
        self.since = timestamp
        # States and times in turn: rows of their own would be looked at by the garbage collector as long as they live.
        self._steps: list[Any] = [State.New, timestamp]

    @property
    def history(self) -> list[Transition]:
        """All states that it has been in, and when it entered them."""
        return [Transition(state, at) for state, at in self.steps()]

    def steps(self) -> Iterator[tuple[State, float]]:
        """The same as plain pairs."""
        return zip(self._steps[::2], self._steps[1::2], strict=True)

    @property
    def made(self) -> float:
        """When the object was made."""
        made: float = self._steps[1]
        return made

    @property
    def before(self) -> State:
        """The state before this one; New if there was none."""
        state: State = self._steps[-4:][0]
        return state

    def restore(self, history: Sequence[tuple[State, float]]) -> None:
        """Take over what another life of the same object went through: all states, and when it entered them."""
        self.state, self.since = history[-1]
        self._steps = [part for step in history for part in step]

    def advance(self, state: State, timestamp: float) -> bool:
        """Enter `state`; entering the present one again changes nothing.

        Returns
        -------
        bool
            Whether the state changed.

        Raises
        ------
        StateError
            If the table does not allow it.
        """
        if state is self.state:
            return False
        if state not in self.table[self.state]:
            allowed = ", ".join(sorted(self.table[self.state])) or "nothing: it is final"
            raise StateError(f"state {self.state} cannot be followed by {state}; allowed: {allowed}")
        self.state = state
        self.since = timestamp
        self._steps += state, timestamp
        return True
