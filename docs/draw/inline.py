"""For Sphinx: pictures that follow the reader's theme are put into the page itself, where its colours reach them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.transforms.post_transforms import SphinxPostTransform

__all__ = ["setup"]


class _Inline(SphinxPostTransform):
    default_priority = 5  # before Sphinx copies images
    formats = ("html",)

    def run(self, **kwargs: Any) -> None:
        for image in list(self.document.findall(nodes.image)):
            path = Path(self.app.srcdir, image["uri"])
            if path.suffix == ".svg" and path.is_file() and 'class="dpilot"' in (text := path.read_text("utf-8")):
                says = image.get("alt", "")
                image.replace_self(
                    nodes.raw("", f'<figure class="dpilot-picture" title="{says}">{text}</figure>', format="html")
                )


def setup(app: Sphinx) -> dict[str, Any]:
    """Have it used."""
    app.add_post_transform(_Inline)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
