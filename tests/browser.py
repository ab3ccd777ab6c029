"""A real browser for tests: Debian's Chromium without a screen, driven by selenium."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from tests.services import program_path

if TYPE_CHECKING:
    from selenium import webdriver

__all__ = ["browser", "faint_text", "picture_of", "show_in", "text_of", "unlabelled"]

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
#: Text with less contrast than WCAG 2 asks for (AA: 4.5), with its ratio; backgrounds are blended up to the page's.
_FAINT = """
const parent = node => node.assignedSlot || node.parentElement || (node.getRootNode().host || null);
const colour = text => { const n = text.match(/[0-9.]+/g).map(Number); return n.length < 4 ? [...n, 1] : n; };
const over = (top, below) => [0, 1, 2].map(i => top[i] * top[3] + below[i] * (1 - top[3])).concat(1);
const luminance = c => [0.2126, 0.7152, 0.0722].reduce((sum, weight, i) => {
  const part = c[i] / 255; return sum + weight * (part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4);
}, 0);
function behind(node) {
  if (!node) return [255, 255, 255, 1];
  return over(colour(getComputedStyle(node).backgroundColor), behind(parent(node)));
}
const faint = [];
(function look(node) {
  if (node.nodeType === Node.TEXT_NODE) {
    const text = node.textContent.trim(), of = parent(node);
    if (!text || !of || /^(script|style|title)$/i.test(of.tagName) || !of.getClientRects().length) return;
    let shown = 1;
    for (let up = of; up; up = parent(up)) shown *= Number(getComputedStyle(up).opacity);
    const back = behind(of), ink = colour(getComputedStyle(of).color);
    const [light, dark] = [luminance(over([...ink.slice(0, 3), ink[3] * shown], back)), luminance(back)]
      .sort((a, b) => b - a);
    const ratio = (light + 0.05) / (dark + 0.05);
    if (ratio < 4.5) faint.push(`${text}: ${ratio.toFixed(2)}`);
    return;
  }
  if (node.shadowRoot) node.shadowRoot.childNodes.forEach(look);
  node.childNodes.forEach(look);
})(document.body);
return faint;
"""
#: What means something and says nothing to those who do not see it.
_UNLABELLED = """
const mute = document.documentElement.lang ? [] : ["the page's language"];
(function look(node) {
  if (node.nodeType === Node.ELEMENT_NODE) {
    const label = (node.getAttribute("aria-label") || "").trim();
    const needs = node.matches("section, svg, [role=img]"), may = node.matches("a, button, summary");
    if (!label && (needs || may && !node.textContent.trim())) mute.push(node.outerHTML.slice(0, 120));
  }
  if (node.shadowRoot) node.shadowRoot.childNodes.forEach(look);
  node.childNodes.forEach(look);
})(document.body);
return mute;
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


def show_in(page: webdriver.Chrome, theme: str) -> None:
    """Have a page think that the system is ``light`` or ``dark``."""
    media = {"features": [{"name": "prefers-color-scheme", "value": theme}]}
    page.execute_cdp_cmd("Emulation.setEmulatedMedia", media)


def picture_of(page: webdriver.Chrome) -> bytes:
    """All of a page as PNG, however high it is."""
    width, height = page.execute_script("return [innerWidth, document.documentElement.scrollHeight]")
    page.set_window_size(width, height)  # a little less is seen of it: the window has edges
    height = page.execute_script("return document.body.scrollHeight")
    clip = {"x": 0, "y": 0, "width": width, "height": height, "scale": 1}
    options = {"format": "png", "captureBeyondViewport": True, "clip": clip}
    return base64.b64decode(page.execute_cdp_cmd("Page.captureScreenshot", options)["data"])


def faint_text(page: webdriver.Chrome) -> list[str]:
    """The text that has too little contrast to what is behind it, with the ratio: below WCAG's 4.5."""
    return list(page.execute_script(_FAINT))


def unlabelled(page: webdriver.Chrome) -> list[str]:
    """Sections, drawings and links that have no name for those who do not see them."""
    return list(page.execute_script(_UNLABELLED))
