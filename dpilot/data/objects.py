"""Places in object stores: no directories, and a put is visible at once or not at all."""

from __future__ import annotations

import errno
import re
from dataclasses import dataclass

from dpilot.data.location import CHUNK, Location, Pieces

__all__ = ["OBJECT_STORES", "ObjectLocation"]

#: Their protocols. The first part of a path is a bucket, which is not ours to make.
OBJECT_STORES = frozenset({"abfs", "abfss", "adl", "az", "gcs", "gs", "oci", "oss", "s3", "s3a", "tos"})


_MD5 = re.compile(r"[0-9a-f]{32}")


@dataclass(frozen=True, slots=True)
class ObjectLocation(Location):
    """An object or prefix in a bucket."""

    def read(self, nbytes: int | None) -> Pieces:
        """The bytes of a file in pieces; each is valid until the next one is asked for."""
        if not nbytes:
            yield from super(ObjectLocation, self).read(nbytes)
            return
        # Ranges spare the request for the size that open() makes: most files take one request.
        for start in range(0, nbytes, CHUNK):
            end = start + CHUNK
            with self.errors("read"):
                try:
                    chunk = self.fs.cat_file(self.path, start=start, end=end if end < nbytes else nbytes + 1)
                except OSError:
                    if self.fs.info(self.path)["size"] > start:
                        raise
                    return  # it is shorter than that, and a range behind its end is an error
            yield chunk

    def copy_within(self, source: Location, nbytes: int) -> bool:
        """Copy an object from `source` to here, if one account of one service has both.

        It is verified by the ETags, which the service makes of the bytes that it has, where both are plain MD5 sums.
        If they differ, as those of encrypted objects may, the bytes are to be copied and verified after all.
        """
        if not self.shares_service(source):
            return False
        with self.errors("write"):
            fs = self.fs
            try:
                before = fs.info(source.path)
                if before["size"] != nbytes:
                    return False
                fs.cp_file(source.path, self.path)
                after = fs.info(self.path)
            except (FileNotFoundError, NotImplementedError):
                return False
            except OSError as error:
                if error.errno != errno.ENOSYS:
                    raise
                return False
            etags = [str(row.get("ETag", "")).strip('"') for row in (before, after)]
        return after["size"] == nbytes and (etags[0] == etags[1] or not all(map(_MD5.fullmatch, etags)))

    def prepare(self) -> None:
        """See whether the bucket is there, in which this is to be the root of a store."""
        with self.errors("open"):
            # Some servers make a bucket when a file is put into it, and a misspelt one must not be made.
            self.fs.info(self.path.partition("/")[0])

    def remove_tree(self) -> None:
        """Remove everything below."""
        for name in self.sizes():
            self.child(name).remove()

    def _make_parent(self) -> None:
        pass
