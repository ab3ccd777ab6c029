"""What shows where the work is, and why: tables, the dashboard's page, figures as JSON and for Prometheus.

Importing this has every scheduler of dpilot in the process watched.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from dpilot.runtime import observers

if TYPE_CHECKING:
    from dpilot.runtime.coordinator import Coordinator


def _watch(coordinator: Coordinator) -> observers.Observer:
    from dpilot.monitor.watch import Watch  # on a scheduler only: clients need not load it

    return Watch(coordinator)


observers.register(_watch)
