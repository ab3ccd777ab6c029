"""How the site is built: ``make docs``. Nothing is fetched from the network meanwhile."""

from __future__ import annotations

import json
import os
import shutil
import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))

from dpilot import version  # noqa: E402 - the path comes first

project = "dpilot"
author = "dpilot developers"
release = version
copyright = f"{author}. BSD-3-Clause"

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "numpydoc",
    "sphinx_copybutton",
    "sphinx_design",
    "draw.inline",
]
exclude_patterns = ["build", "draw", "measured", "_static"]
# Notebooks are shown as they were committed; tests run them. Copies, as Sphinx reads what is below this directory only.
shutil.rmtree(HERE / "notebooks", ignore_errors=True)
(HERE / "notebooks").mkdir()
for path in sorted((HERE.parent / "notebooks").glob("[!_]*.*")):
    text = path.read_text(encoding="utf-8")
    (HERE / "notebooks" / path.name).write_text(text.replace("](../docs/", "](../"), encoding="utf-8")
nb_execution_mode = "off"
nb_ipywidgets_js = {}
myst_enable_extensions = ["colon_fence", "deflist", "fieldlist", "substitution"]
myst_heading_anchors = 3
# A link that leads nowhere is a warning, and `make docs` takes warnings for errors.
nitpicky = True
nitpick_ignore_regex = [
    # What is not dpilot's: nothing is fetched from other sites, so there is nothing to link to.
    (r"py:.*", r"(?!dpilot\b).*\..*|DataFrame|Path|tuple\[str"),
    (r"py:class", r"dpilot\.descriptions\.table\.Spec"),  # a type variable
]

toc_object_entries_show_parents = "hide"
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_class_signature = "mixed"
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 100
suppress_warnings = ["autosummary"]  # which numpydoc brings, and nobody uses
autosummary_generate = False
numpydoc_show_class_members = False
numpydoc_xref_param_type = False

html_theme = "pydata_sphinx_theme"
html_title = "dpilot"
html_static_path = ["_static"]
html_css_files = ["dpilot.css"]
html_favicon = "_static/dpilot.svg"
html_domain_indices = False
html_show_sourcelink = False
# Pages without others below them need no list of these; notebooks need the room.
html_sidebars = {page: [] for page in ("index", "tutorial", "concepts", "bigjob", "performance", "notebooks/*")}
html_theme_options = {
    "navbar_align": "left",
    "navbar_end": ["theme-switcher"],
    "navbar_persistent": ["search-button-field"],
    "header_links_before_dropdown": 8,
    "secondary_sidebar_items": ["page-toc"],
    "show_prev_next": True,
    "footer_start": ["copyright"],
    "footer_end": [],
    "pygments_light_style": "a11y-high-contrast-light",
    "pygments_dark_style": "a11y-high-contrast-dark",
    "logo": {"text": f"dpilot {os.environ.get('DOCS_LABEL', release)}"},
}
copybutton_prompt_text = r">>> |\.\.\. |\$ "
copybutton_prompt_is_regexp = True


def _measured() -> dict[str, str]:
    """What the page on performance says of each benchmark: when, where, how."""
    kept = {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in HERE.glob("measured/*.json")}
    said = {
        f"measured_{name}": f"`{it['command']}`, {it['date']}, at commit `{it['commit']}`" for name, it in kept.items()
    }
    said["machine"] = "; ".join(sorted({it["machine"] for it in kept.values()}))
    shares = [
        f"{row['share']:.1%} of the scheduler's time for {row['what']}" for row in kept["monitor"]["rows"]["shares"]
    ]
    said["monitor"] = f"The dashboard and its figures took {', and '.join(shares)}."
    return said


myst_substitutions = _measured()
