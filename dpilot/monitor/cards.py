"""What is worth knowing of an object at a glance: a card, which :mod:`dpilot.monitor.drawing` shows as HTML or text."""

from __future__ import annotations

import traceback
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from dpilot.errors import ExecutableError
from dpilot.monitor.tables import nbytes_text
from dpilot.placement import Decision, Site
from dpilot.service.handle import Handle

__all__ = ["Bar", "Card", "Fault", "Part", "Place", "Table", "fault_of", "states_bar"]

#: State -> the name of the colour that it is shown in.
TONES = {
    "New": "none",
    "Pending": "none",
    "Staging": "datacenter",
    "Running": "busy",
    "Done": "good",
    "Failed": "bad",
    "Canceled": "none",
    "Unknown": "warn",
}
#: Units in these states come first in a bar.
_ORDER = ("Done", "Running", "Staging", "Pending", "New", "Unknown", "Canceled", "Failed")
#: The last lines of an error stream or log that are shown.
_MOST_LINES = 30


class Part(NamedTuple):
    """A part of a bar: its share of the whole (0 to 1), the name of its colour, and what it is."""

    share: float
    tone: str
    what: str


@dataclass(frozen=True, slots=True)
class Bar:
    """A bar. Few `cells` are drawn as cells: the slots of a pilot."""

    parts: tuple[Part, ...]
    text: str
    cells: int = 0

    @property
    def share(self) -> float:
        """How much of it is filled."""
        return sum(part.share for part in self.parts)

    @property
    def filled(self) -> int:
        """How many of its cells are."""
        return round(self.cells * self.share)


class Place(NamedTuple):
    """A store in a map of sites: its id, where it is, and how far a replica on its way there is."""

    store: str
    url: str
    coming: Bar | None = None


@dataclass(frozen=True, slots=True)
class Table:
    """A table; `numbers` are the columns that stand to the right."""

    header: tuple[str, ...]
    rows: tuple[tuple[str | Bar, ...], ...]
    numbers: frozenset[int] = frozenset()
    more: str = ""
    marked: int | None = None


class Fault(NamedTuple):
    """An error: in one sentence, with the traceback on the worker, and what was written to the error stream."""

    summary: str
    trace: str = ""
    stderr: str = ""


@dataclass
class Card:
    """What is shown of an object, in this order."""

    kind: str
    id: str = ""
    state: str = ""
    name: str = ""
    note: str = ""
    facts: list[tuple[str, str]] = field(default_factory=list)
    bars: list[tuple[str, Bar]] = field(default_factory=list)
    sites: dict[str, dict[str, list[Place]]] = field(default_factory=dict)  # datacenter > machine > stores
    tables: list[tuple[str, Table]] = field(default_factory=list)  # folded, if it has a title
    faults: list[Fault] = field(default_factory=list)

    @property
    def tone(self) -> str:
        """The name of the colour of its state."""
        return TONES.get(self.state, "none")

    def fact(self, label: str, *values: object) -> None:
        """Add a fact, unless there is nothing to say."""
        text = ", ".join(str(value) for value in values if value not in (None, ""))
        if text:
            self.facts.append((label, text))

    def map(self, places: Iterable[tuple[Mapping[str, Any], Bar | None]]) -> None:
        """Add stores to the map of sites."""
        for place, coming in places:
            datacenter, machine = place["site"]
            machines = self.sites.setdefault(datacenter or "no datacenter", {})
            machines.setdefault(machine or "", []).append(Place(place["store"], place["url"], coming))


# ---------------------------------------------------------------- parts of cards


def site_text(site: Iterable[str | None] | None) -> str:
    """Labels, as users read them."""
    labels = Site(*site) if site is not None else Site()
    return str(labels) if any(labels) else ""


def count_text(n: int, what: str) -> str:
    """A number of things."""
    return f"{n:,} {what}{'' if n == 1 else 's'}"


def seconds_text(seconds: float) -> str:
    """A length of time."""
    if seconds < 120:
        return f"{seconds:.2f} s" if seconds < 10 else f"{seconds:.0f} s"
    minutes = seconds / 60
    return f"{minutes:.0f} min" if minutes < 120 else f"{minutes / 60:.1f} h"


def slots_bar(busy: int | None, slots: int) -> Bar:
    """The slots of one pilot, or of several."""
    if busy is None:
        return Bar((), count_text(slots, "slot"), slots)
    share = min(1.0, busy / slots) if slots else 0.0
    return Bar((Part(share, "busy", f"{busy:,} busy"),), f"{busy:,} of {slots:,} busy", slots)


def states_bar(states: Mapping[str, int]) -> Bar:
    """How many are in which state."""
    total = sum(states.values()) or 1
    there = [state for state in _ORDER if states.get(state)]
    parts = tuple(Part(states[state] / total, TONES[state], f"{states[state]:,} {state}") for state in there)
    return Bar(parts, ", ".join(part.what for part in parts) or "none")


def moving_bar(moving: Iterable[tuple[int, int, float | None]], now: float) -> Bar | None:
    """How far transfers are, which are given as bytes so far, bytes in all, and when they began."""
    rows = list(moving)
    if not rows:
        return None
    done, total = sum(row[0] for row in rows), sum(row[1] for row in rows)
    rate = sum(n / (now - began) for n, _, began in rows if began is not None and now > began)
    text = f"{nbytes_text(done)} of {nbytes_text(total)}" if total else nbytes_text(done)
    if rate:
        text += f", {nbytes_text(int(rate))}/s, {seconds_text(max(0, total - done) / rate)} to go"
    share = min(1.0, done / total) if total else 0.0
    return Bar((Part(share, "busy", text),), text)


def locality_bar(nbytes: tuple[int, int, int]) -> Bar | None:
    """Bytes of input, by how far they came."""
    total = sum(nbytes)
    if not total:
        return None
    near = (("machine", "same machine"), ("datacenter", "same datacenter"), ("elsewhere", "other datacenters"))
    parts = tuple(
        Part(
            n / total,
            tone,
            f"{nbytes_text(n)} from the {where}" if tone != "elsewhere" else f"{nbytes_text(n)} from {where}",
        )
        for n, (tone, where) in zip(nbytes, near, strict=True)
        if n
    )
    return Bar(parts, ", ".join(part.what for part in parts))


def fault_of(error: BaseException) -> Fault:
    """What is shown of an error: not the frames of dpilot itself."""
    name, text = type(error).__name__, str(error)
    stderr = str(getattr(error, "stderr", "") or getattr(error, "log", "") or "")
    if stderr:
        text = text.replace(stderr, "").rstrip("\n")
        text = text.removesuffix("; the end of its log:") if not isinstance(error, ExecutableError) else text
        text = text.partition("; the end of ")[0]
    trace = ""
    if error.__traceback__ is not None:
        trace = "".join([*traceback.format_tb(error.__traceback__), *traceback.format_exception_only(error)])
    lines = stderr.splitlines()
    return Fault(f"{name}: {text}", trace.rstrip(), "\n".join(lines[-_MOST_LINES:]))


def decision_table(decision: Decision) -> Table:
    """A row for each pilot that was considered."""
    header = ("pilot", "verdict", "queue", "stage", "label", "output", "cost", "input here / near / far")
    rows: list[tuple[str | Bar, ...]] = []
    for row in decision.rows:
        if row.verdict == "rejected":
            rows.append((row.pilot, "rejected", *("",) * 5, row.reason))
        else:
            costs = (f"{s:.3f} s" for s in (row.queue_s, row.stage_s, row.label_s, row.output_s, row.cost_s))
            rows.append((row.pilot, row.verdict, *costs, " / ".join(map(nbytes_text, row.nbytes))))
    marked = next((i for i, row in enumerate(decision.rows) if row.verdict in ("chosen", "best")), None)
    return Table(header, tuple(rows[:40]), frozenset(range(2, 7)), _more(len(rows), 40), marked)


def pilots_table(rows: Iterable[Mapping[str, Any]], n: int) -> Table:
    """Pilots."""
    shown = tuple(
        (
            row["pilot"],
            site_text(row["site"]) or "no labels",
            row["state"],
            slots_bar(row["busy"], row["slots"]),
            f"{row['units'].get('Done', 0):,}",
        )
        for row in rows
    )
    return Table(("pilot", "site", "state", "slots", "units done"), shown, frozenset({4}), _more(n, len(shown)))


def stores_table(rows: Iterable[Mapping[str, Any]], n: int) -> Table:
    """Stores."""
    shown = tuple(
        (row["store"], site_text(row["site"]) or "no labels", row["url"], f"{row['n_data']:,}", used_text(row))
        for row in rows
    )
    return Table(("store", "site", "URL", "data units", "used"), shown, frozenset({3, 4}), _more(n, len(shown)))


def used_text(row: Mapping[str, Any]) -> str:
    """How much of a store is used."""
    used = nbytes_text(row["used_nbytes"])
    return f"{used} of {nbytes_text(row['size_nbytes'])}" if row["size_nbytes"] else used


def _more(n: int, shown: int) -> str:
    return f"and {n - shown:,} more" if n > shown else ""


def begin(handle: Handle, about: Mapping[str, Any] | None) -> Card:
    """A card with what all handles have."""
    card = Card(type(handle).__name__, handle.id, str(handle.state))
    if handle._session.is_lost:
        card.note = "The scheduler is lost: this is what was known last."
    elif about is None:
        card.note = "As far as this process knows: the scheduler has told nothing more."
    error = handle._known_error()
    if error is not None:
        card.faults.append(fault_of(error))
    return card
