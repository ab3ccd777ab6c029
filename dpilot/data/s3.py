"""Places in S3."""

from __future__ import annotations

import functools
import inspect
import os
from dataclasses import dataclass
from typing import Any

import fsspec

from dpilot.data.objects import ObjectLocation

__all__ = ["S3", "S3Location"]

#: Its protocols.
S3 = frozenset({"s3", "s3a"})


@dataclass(frozen=True, slots=True)
class S3Location(ObjectLocation):
    """An object or prefix in a bucket of S3."""

    @property
    def fs(self) -> Any:
        """The fsspec file system."""
        options = dict(self.options)
        # Options that s3fs has no parameter for, such as `profile`, are for a session of their own.
        if (options | fsspec.config.conf.get("s3", {})).keys() <= _parameters():
            options["session"] = _session(os.getpid())
        options["use_listings_cache"] = False  # other processes write there too
        return fsspec.filesystem(self.protocol, **options)


@functools.cache
def _session(pid: int) -> Any:
    """One session for all S3 file systems of this process (`pid`: a fork must not use its parent's).

    It holds botocore's model of S3, which takes 0.1 s to load; credentials are not in it.
    """
    from aiobotocore.session import AioSession  # type: ignore[import-untyped]

    return AioSession()


@functools.cache
def _parameters() -> frozenset[str]:
    return frozenset(inspect.signature(fsspec.get_filesystem_class("s3")).parameters) - {"session"}
