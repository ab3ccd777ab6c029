"""For Sphinx: pictures follow the reader's theme.

Those that are drawn are put into the page itself, where its colours reach them; photographs of pages that are there as
``-light.png`` and ``-dark.png`` both go into it, and one is shown.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.transforms import SphinxTransform
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


class _Pairs(SphinxTransform):
    default_priority = 200  # before Sphinx looks which images there are

    def apply(self, **kwargs: Any) -> None:
        for image in list(self.document.findall(nodes.image)):
            dark = image["uri"].replace("-light.png", "-dark.png")
            if dark != image["uri"] and Path(self.env.doc2path(self.env.docname)).parent.joinpath(dark).is_file():
                other = image.deepcopy()
                other["uri"] = dark
                image["classes"].append("only-light")
                other["classes"].append("only-dark")
                image.parent.insert(image.parent.index(image) + 1, other)


def setup(app: Sphinx) -> dict[str, Any]:
    """Have it used."""
    app.add_post_transform(_Inline)
    app.add_transform(_Pairs)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
