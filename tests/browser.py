"""A real browser for tests: Debian's Chromium without a screen, driven by selenium."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from tests.services import program_path

if TYPE_CHECKING:
    from selenium import webdriver

__all__ = ["browser", "text_of"]

#: Quiet and alone: it opens no connection that a page does not ask for.
_FLAGS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync --hide-scrollbars --force-color-profile=srgb"
)
#: The text that a page shows, with that in shadow trees, where bokeh keeps what it draws.
_TEXT = """
const seen = [];
(function read(node) {
  if (node.nodeType === Node.TEXT_NODE) { const text = node.textContent.trim(); if (text) seen.push(text); return; }
  if (["SCRIPT", "STYLE"].includes(node.tagName)) return;
  if (node.shadowRoot) node.shadowRoot.childNodes.forEach(read);
  node.childNodes.forEach(read);
})(arguments[0] || document.body);
return seen.join("\\n");
"""


@contextmanager
def browser(profile: Path, width: int = 1280, height: int = 900) -> Iterator[webdriver.Chrome]:
    """A browser with a window of that size, as long as the block lasts.

    Parameters
    ----------
    profile : Path
        A directory of its own for what it keeps.
    width, height : int
        In pixels.
    """
    chromium, driver = program_path("chromium"), program_path("chromedriver")
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for flag in (*_FLAGS.split(), f"--user-data-dir={profile}", f"--window-size={width},{height}"):
        options.add_argument(flag)
    started = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    try:
        started.set_window_size(width, height)
        yield started
    finally:
        started.quit()


def text_of(page: webdriver.Chrome, element: object = None) -> str:
    """All text of a page, or of one of its elements, a piece a line."""
    return str(page.execute_script(_TEXT, element))
