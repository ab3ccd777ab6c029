"""Draw all pictures anew: ``python docs/draw``; ``--check`` only tells which are not as the code is."""

from __future__ import annotations

import sys
from pathlib import Path

DOCS = Path(__file__).parents[1]
sys.path.insert(0, str(DOCS))

from draw import decision, layers, performance, sites, states  # noqa: E402 - the path comes first


def main(check: bool) -> int:
    """Draw what differs from what the code is now; how many did."""
    pictures = {
        "sites": sites.draw,
        "states": states.draw,
        "layers": layers.draw,
        "decision": decision.draw,
        **performance.pictures(),
    }
    stale = []
    for name, draw in pictures.items():
        path = DOCS / "pictures" / f"{name}.svg"
        text = str(draw())
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            stale.append(path.name)
            if not check:
                path.write_text(text, encoding="utf-8")
    if stale:
        print(f"{'not as the code is; run python docs/draw:' if check else 'drawn:'} {', '.join(stale)}")
    return len(stale) if check else 0


sys.exit(main("--check" in sys.argv))
