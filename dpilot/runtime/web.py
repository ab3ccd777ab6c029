"""Pages and routes in the web server of Dask's scheduler: this module and ``adapter.py`` know distributed's internals.

Dask's dashboard is one bokeh application whose pages are fixed when the scheduler starts. dpilot's plugin comes
later, on a scheduler that somebody else may have started: so its pages are made as an application of their own, and
its routes and documents are moved into Dask's, which then serves them, lists them in ``/individual-plots.json`` (where
JupyterLab's extension looks) and has them in its menu. Without bokeh, or on a scheduler that was started without a
dashboard, there are no pages; routes need neither.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from distributed import Scheduler
from tornado.ioloop import IOLoop
from tornado.web import RequestHandler

__all__ = ["add_pages", "add_routes", "log_event"]


def add_routes(scheduler: Scheduler, routes: Mapping[str, type[RequestHandler]], **arguments: Any) -> None:
    """Serve paths (regular expressions, without a slash before) by handlers that are made with `arguments`."""
    prefix = _prefix(scheduler)
    scheduler.http_application.add_handlers(
        r".*", [(f"{prefix}/{path}", handler, arguments) for path, handler in routes.items()]
    )


def add_pages(scheduler: Scheduler, pages: Mapping[str, Callable[[Any], None]], menu: str) -> bool:
    """Add bokeh documents to Dask's dashboard.

    Parameters
    ----------
    scheduler : Scheduler
    pages : mapping of str to callable
        Path, such as ``"/individual-dpilot-pilots"``, and what fills a new document.
    menu : str
        The page's name in the menu of all pages.

    Returns
    -------
    bool
        Whether there is a dashboard.
    """
    try:
        from bokeh.server.tornado import BokehTornado
        from distributed.dashboard.core import BokehApplication
        from distributed.dashboard.scheduler import template_variables
    except ImportError:
        return False
    dashboard = next((a for a in scheduler.http_application.applications if isinstance(a, BokehTornado)), None)
    if dashboard is None:
        return False
    # BokehApplication gives every document's function the scheduler and the template's variables, too.
    documents = {path: _without_extras(fill) for path, fill in pages.items()}
    ours = BokehApplication(documents, scheduler, prefix=_prefix(scheduler))
    ours.initialize(IOLoop.current())
    paths = tuple(_prefix(scheduler) + path for path in pages)
    rules = [r for r in ours.wildcard_router.rules if getattr(r.matcher, "_path", "").startswith(paths)]
    dashboard.add_handlers(r".*", rules)
    dashboard._applications |= ours._applications
    names = template_variables(scheduler)["pages"]  # one for all pages, made once
    if menu not in names:
        names.append(menu)
    return True


def log_event(scheduler: Scheduler, topic: str, message: Mapping[str, Any]) -> None:
    """Tell the clients that subscribe to a topic of Dask's events; Dask keeps the newest ones."""
    scheduler.log_event(topic, message)


def _prefix(scheduler: Scheduler) -> str:
    """What all paths of this server begin with (``--dashboard-prefix``): as that of Dask's own ``/health`` does."""
    paths = (getattr(rule.matcher, "_path", None) or "" for rule in scheduler.http_application.wildcard_router.rules)
    return next((path.removesuffix("/health") for path in paths if path.endswith("/health")), "")


def _without_extras(fill: Callable[[Any], None]) -> Callable[[Any, Any, Any], None]:
    return lambda scheduler, extra, document: fill(document)
