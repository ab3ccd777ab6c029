"""dpilot's part of Dask's configuration: ``dpilot.yaml`` beside this file gives the defaults."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import dask
import yaml
from dask.utils import parse_bytes, parse_timedelta

__all__ = ["get", "nbytes", "seconds"]

DEFAULTS = yaml.safe_load(Path(__file__).with_name("dpilot.yaml").read_text(encoding="utf-8"))
dask.config.update_defaults(DEFAULTS)


def get(key: str) -> Any:
    """The value at ``dpilot.<key>``, such as ``get("scheduler.host")``."""
    return dask.config.get(f"dpilot.{key}")


def seconds(key: str) -> float:
    """A duration in the configuration, such as ``"5s"`` or ``"500ms"``, in seconds."""
    return float(parse_timedelta(get(key)))


def nbytes(key: str) -> int:
    """A size in the configuration, such as ``"500 MB"``, in bytes."""
    return int(parse_bytes(get(key)))
