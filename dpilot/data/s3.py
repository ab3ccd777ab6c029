"""Places in S3."""

from __future__ import annotations

import functools
import inspect
import os
from contextlib import suppress
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING, Any

import fsspec

from dpilot.data.location import Chunks, Pieces, joined
from dpilot.data.objects import ObjectLocation

if TYPE_CHECKING:
    from dpilot.data.bucket import Bucket

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

    def read(self, nbytes: int | None) -> Pieces:
        """The bytes of a file in pieces; each is valid until the next one is asked for."""
        bucket, key = self._bucket()
        if bucket is not None:
            pieces = bucket.read(key, nbytes)
            first = None
            with suppress(OSError):  # s3fs will tell why, as it does for everything else
                first = next(pieces, b"")
            if first is not None:
                with self.errors("read"):
                    yield first
                    yield from pieces
                return
        yield from super(S3Location, self).read(nbytes)

    def write(self, chunks: Chunks, nbytes: int | None = None, *, mode: int = 0o444) -> None:
        """Write a file from pieces. If they end in an error, there is no file afterwards."""
        bucket, key = self._bucket()
        if bucket is None:
            super(S3Location, self).write(chunks, nbytes, mode=mode)
            return
        size = bucket.part_size(nbytes)
        parts = joined(chunks, size)
        head, second = next(parts, b""), next(parts, None)
        if second is None:
            try:
                bucket.put(key, head)
            except OSError:  # as above
                super(S3Location, self).write([head], nbytes, mode=mode)
            return
        # One writer at a time is the rule, so an upload that is under way is one that was killed.
        self._abort_uploads()
        try:
            bucket.write(key, chain((head, second), parts), size, self.errors("write"))
        except BaseException as error:
            if not getattr(error, "transient", False):  # else the server may not answer, and the next attempt does it
                self._abort_uploads()
            raise

    def _bucket(self) -> tuple[Bucket | None, str]:
        """The bucket, if obstore can reach it and takes such a key, and the key."""
        name, _, key = self.path.partition("/")
        if key.isprintable() and not {"", ".", ".."} & set(key.split("/")):
            from dpilot.data.bucket import connect  # and with it obstore and botocore: not for those who have no S3

            return connect(name, self.options, lambda: self.fs), key
        return None, key

    def _abort_uploads(self) -> None:
        """Have the server throw away the parts of uploads to here that never ended."""
        name, _, key = self.path.partition("/")
        with suppress(Exception):  # they are invisible, and some servers have no list of them
            for upload in self.fs.call_s3("list_multipart_uploads", Bucket=name, Prefix=key).get("Uploads") or ():
                if upload["Key"] == key:
                    self.fs.call_s3("abort_multipart_upload", Bucket=name, Key=key, UploadId=upload["UploadId"])


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
