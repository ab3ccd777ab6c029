"""Pictures as SVG, by plain text: one that follows the reader's theme, alone and within a page."""

from __future__ import annotations

from collections.abc import Iterable
from html import escape
from textwrap import wrap

from dpilot.monitor.theme import THEMES, site_colours

__all__ = ["SERIES", "Picture"]

#: Names of the colours of things that are compared, in order.
SERIES = tuple(f"series-{number}" for number in range(len(site_colours("light"))))


def _variables(theme: str) -> str:
    colours = {**THEMES[theme], **dict(zip(SERIES, site_colours(theme), strict=True))}
    return ";".join(f"--dp-{name}:{colour}" for name, colour in sorted(colours.items()) if colour.startswith("#"))


#: Within a page, the page's theme counts; alone, as on a page that shows it as an image, the system's does.
_STYLE = (
    f"svg.dpilot{{{_variables('light')}}}"
    f"@media(prefers-color-scheme:dark){{svg.dpilot:root{{{_variables('dark')}}}}}"
    f"html[data-theme=dark] svg.dpilot{{{_variables('dark')}}}"
)


class Picture:
    """A picture to be drawn on; lengths are in pixels.

    Parameters
    ----------
    width, height : int
    says : str
        What it shows, for those who do not see it.
    """

    def __init__(self, width: int, height: int, says: str) -> None:
        self.width, self.height, self.says = width, height, says
        self._parts: list[str] = []

    def box(self, x: float, y: float, width: float, height: float, *, line: str = "line", fill: str = "panel") -> None:
        """A rectangle with round corners."""
        self._parts.append(
            f'<rect x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" rx="7" '
            f'style="fill:var(--dp-{fill});stroke:var(--dp-{line});stroke-width:1.3"/>'
        )

    def bar(self, x: float, y: float, width: float, height: float, fill: str) -> None:
        """A rectangle without a line around it."""
        self._parts.append(
            f'<rect x="{x:g}" y="{y:g}" width="{max(width, 1):.1f}" height="{height:g}" rx="2" '
            f'style="fill:var(--dp-{fill})"/>'
        )

    def text(
        self,
        x: float,
        y: float,
        text: str,
        *,
        size: int = 13,
        anchor: str = "start",
        ink: str = "ink",
        bold: bool = False,
    ) -> None:
        """One line of text; `y` is where it stands."""
        weight = ' font-weight="600"' if bold else ""
        self._parts.append(
            f'<text x="{x:g}" y="{y:g}" font-size="{size}" text-anchor="{anchor}"{weight} '
            f'style="fill:var(--dp-{ink})">{escape(text)}</text>'
        )

    def paragraph(self, x: float, y: float, width: float, text: str, *, size: int = 12, ink: str = "muted") -> int:
        """Text in lines of that width, centred at `x`; how many lines it took."""
        lines = lines_of(text, width, size)
        for number, line in enumerate(lines):
            self.text(x, y + number * size * 1.3, line, size=size, anchor="middle", ink=ink)
        return len(lines)

    def arrow(self, path: str, *, ink: str = "muted", dashed: bool = False) -> None:
        """A line with a head, along an SVG path."""
        dash = ";stroke-dasharray:4 3" if dashed else ""
        self._parts.append(
            f'<path d="{path}" marker-end="url(#dp-head)" '
            f'style="fill:none;stroke:var(--dp-{ink});stroke-width:1.4{dash}"/>'
        )

    def __str__(self) -> str:
        return "\n".join(
            [
                f'<svg xmlns="http://www.w3.org/2000/svg" class="dpilot" viewBox="0 0 {self.width} {self.height}" '
                f'font-family="system-ui, sans-serif" role="img" aria-label="{escape(self.says)}">',
                f"<style>{_STYLE}</style>",
                '<defs><marker id="dp-head" viewBox="0 0 10 10" refX="9" refY="5" markerWidth="7" markerHeight="7" '
                'orient="auto"><path d="M0 0L10 5L0 10z" style="fill:var(--dp-muted)"/></marker></defs>',
                *self._parts,
                "</svg>\n",
            ]
        )


def lines_of(text: str, width: float, size: int) -> list[str]:
    """How text is broken into lines of that width."""
    return wrap(text, max(8, int(width / (0.53 * size))))


def legend(picture: Picture, x: float, y: float, names: Iterable[tuple[str, str]]) -> None:
    """Which colour stands for what: pairs of a text and a colour's name, in one line."""
    for text, fill in names:
        picture.bar(x, y - 10, 12, 12, fill)
        picture.text(x + 18, y, text, size=12)
        x += 18 + 7.2 * len(text) + 22
