"""Cards as HTML, for notebooks, and as text, for terminals."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dpilot.monitor.cards import Bar, Card, Table
from dpilot.monitor.portraits import card_of
from dpilot.monitor.tables import text_table
from dpilot.monitor.theme import THEMES

if TYPE_CHECKING:
    from jinja2 import Template

__all__ = ["card_html", "card_text", "html", "text"]

logger = logging.getLogger(__name__)

#: How many slots are drawn one by one, and how wide a bar of text is.
MOST_CELLS = 32
_BAR_WIDTH = 24


def html(shown: Any) -> str | None:
    """A handle or decision as HTML; None where jinja2 is missing. Never raises."""
    try:
        return card_html(card_of(shown))
    except ImportError:
        return None
    except Exception:  # whatever it is: a notebook shows the plain repr then
        logger.debug("%s cannot be shown as HTML", type(shown).__name__, exc_info=True)
        return None


def text(shown: Any) -> str:
    """A handle or decision as lines of text. Never raises."""
    try:
        return card_text(card_of(shown))
    except Exception:
        logger.debug("%s cannot be shown as text", type(shown).__name__, exc_info=True)
        return repr(shown)


# ---------------------------------------------------------------- HTML


@cache
def _template() -> Template:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    loader = FileSystemLoader(Path(__file__).with_name("templates"))
    return Environment(
        loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    ).get_template("card.html")


def card_html(card: Card) -> str:
    """A card as HTML: self-contained, without scripts, light or dark as the page is."""
    return _template().render(
        card=card, themes=THEMES, most_cells=MOST_CELLS, is_bar=lambda cell: isinstance(cell, Bar)
    )


# ---------------------------------------------------------------- text


def card_text(card: Card) -> str:
    """A card as lines of text."""
    return "\n".join(_lines(card))


def _lines(card: Card) -> Iterator[str]:
    name = f" {card.name!r}" if card.name else ""
    yield f"{card.kind} {card.id}{name}".rstrip() + (f": {card.state}" if card.state else "")
    if card.note:
        yield f"  {card.note}"
    labels = [label for label, _ in (*card.facts, *card.bars)]
    width = max(map(len, labels), default=0)
    for label, value in card.facts:
        yield f"  {label:{width}}  {value}"
    for label, bar in card.bars:
        yield f"  {label:{width}}  {bar_text(bar)}"
    for datacenter, machines in card.sites.items():
        yield f"  {datacenter}"
        for machine, places in machines.items():
            indent = "    "
            if machine:
                yield f"{indent}{machine}"
                indent += "  "
            for place in places:
                coming = f"  {bar_text(place.coming)}" if place.coming is not None else ""
                yield f"{indent}{place.store}  {place.url}{coming}"
    for title, table in card.tables:
        if title:
            yield f"  {title}:"
        yield _table_text(table)
    for fault in card.faults:
        yield f"  {fault.summary}"
        for more in (fault.stderr or fault.trace).splitlines():
            yield f"  | {more}"


def bar_text(bar: Bar) -> str:
    """A bar in characters: slots one by one, if they are few."""
    if bar.cells and bar.cells <= MOST_CELLS:
        drawn = "▮" * bar.filled + "▯" * (bar.cells - bar.filled)
    elif not bar.cells and not bar.parts:
        return bar.text
    elif len(bar.parts) > 1 or (bar.parts and bar.parts[0].what == bar.text and "/s" not in bar.text):
        return bar.text  # a bar of many parts needs colours
    else:
        filled = round(_BAR_WIDTH * bar.share)
        drawn = "█" * filled + "░" * (_BAR_WIDTH - filled)
    return f"{drawn} {bar.text}"


def _table_text(table: Table) -> str:
    rows = [[bar_text(cell) if isinstance(cell, Bar) else cell for cell in row] for row in table.rows]
    lines = text_table(table.header, rows)
    return f"{lines}\n  {table.more}" if table.more else lines
