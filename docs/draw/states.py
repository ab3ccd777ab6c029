"""The states of pilots, stores and units, as the tables in ``dpilot.states`` have them."""

from __future__ import annotations

from dpilot import states
from dpilot.states import FINAL, State, Table
from draw.svg import Picture

__all__ = ["draw"]

_KINDS = {
    "Compute unit": states.COMPUTE_UNIT,
    "Data unit": states.DATA_UNIT,
    "Pilot": states.PILOT,
    "Service, store": states.SERVICE,
}
_WIDTH, _LANE, _LEFT, _STEP, _BOX = 880, 132, 150, 112, (84, 34)


def draw() -> Picture:
    """One lane for each kind of object."""
    picture = Picture(
        _WIDTH,
        _LANE * len(_KINDS) + 6,
        "Which state may follow which, for compute units, data units, pilots and services",
    )
    for number, (name, table) in enumerate(_KINDS.items()):
        _lane(picture, number * _LANE + 4, name, table)
    return picture


def _lane(picture: Picture, top: float, name: str, table: Table) -> None:
    living = [state for state in table if state not in FINAL and state is not State.Unknown]
    ends = frozenset.intersection(*(table[state] for state in living))
    line = [state for state in State if state in table and state not in ends and state is not State.Unknown]
    picture.box(1, top, _WIDTH - 2, _LANE - 10, fill="page")
    picture.text(16, top + 65, name, bold=True, size=14)
    middle = top + 62
    for number, state in enumerate(line):
        x = _LEFT + number * _STEP
        _state(picture, x, middle, state)
        for other in sorted(table[state] - ends, key=line.index):
            _edge(picture, x, middle, line.index(other) - number)
    x = _WIDTH - 156
    picture.text(x + 70, top + 20, "from any of these", size=11, anchor="middle", ink="muted")
    for number, state in enumerate(sorted(ends, key=list(State).index)):
        _state(picture, x + 28, top + 40 + number * 30, state, height=25)
    back = frozenset(table[State.Unknown])
    if back >= set(line) - {State.New}:
        picture.text(x + 118, top + 104, "↩ any", size=11, ink="muted")


def _state(picture: Picture, x: float, middle: float, state: State, height: float = _BOX[1]) -> None:
    colour = {
        State.Done: "good",
        State.Running: "busy",
        State.Staging: "busy",
        State.Failed: "bad",
        State.Unknown: "warn",
    }.get(state, "muted")
    picture.box(x, middle - height / 2, _BOX[0], height, line=colour)
    picture.text(x + _BOX[0] / 2, middle + 5, state, anchor="middle", bold=state in FINAL)


def _edge(picture: Picture, x: float, middle: float, steps: int) -> None:
    """An arrow to the state so many steps to the right: straight to the next, above to others, below backwards."""
    width, half = _BOX[0], _BOX[1] / 2
    if steps == 1:
        picture.arrow(f"M{x + width} {middle}H{x + _STEP - 2}")
        return
    up = -1 if steps > 0 else 1
    middle_x, shift = x + width / 2, 8 if steps > 0 else -8
    spread = 12 * (steps - 1 if steps > 0 else steps + 1)
    start, end = middle_x + spread + shift, middle_x + steps * _STEP - abs(spread) / 2 - shift
    edge, bend = middle + up * half, middle + up * (half + 12 + 13 * abs(steps))
    picture.arrow(f"M{start:g} {edge:g}C{start:g} {bend:g} {end:g} {bend:g} {end:g} {edge + up * 2:g}")
