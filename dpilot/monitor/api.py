"""The monitor's figures as JSON, at ``/dpilot/api/<name>.json`` of the scheduler's web server."""

from __future__ import annotations

import json

from tornado.web import HTTPError, RequestHandler

from dpilot.monitor.views import VIEWS
from dpilot.monitor.watch import Watch

__all__ = ["ROUTES"]


class Figures(RequestHandler):
    """Answers with one of the views."""

    def initialize(self, watch: Watch) -> None:
        """Tornado calls this with the route's arguments."""
        self.watch = watch

    def get(self, name: str) -> None:
        """Answer."""
        view = VIEWS.get(name)
        if view is None:
            raise HTTPError(404, reason=f"No such figures: there are {' '.join(VIEWS)}")
        self.set_header("Content-Type", "application/json; charset=utf-8")
        self.set_header("Cache-Control", "no-store")
        self.write(json.dumps(view(self.watch), allow_nan=False))


class Index(RequestHandler):
    """Tells which there are."""

    def initialize(self, watch: Watch) -> None:
        """Tornado calls this with the route's arguments."""

    def get(self) -> None:
        """Answer."""
        self.write({"figures": [f"{name}.json" for name in VIEWS]})


#: Path -> handler; for :func:`dpilot.runtime.web.add_routes`.
ROUTES: dict[str, type[RequestHandler]] = {"dpilot/api/?": Index, r"dpilot/api/(\w+)\.json": Figures}
