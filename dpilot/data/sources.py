"""What a data unit is made from: paths, URLs, directories and globs, turned into named sources."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import unquote, urlsplit

from dpilot.data.http import HTTP
from dpilot.data.local import LocalLocation
from dpilot.data.locate import locate
from dpilot.data.location import Location
from dpilot.data.names import check_names, expand, has_magic, is_within
from dpilot.errors import DataError, DescriptionError

__all__ = ["Source", "expand_sources", "local_source"]

_FIELD = "file_urls"


@dataclass(frozen=True, slots=True)
class Source:
    """A file that is to go into a data unit.

    Parameters
    ----------
    location : Location
        Where it is.
    nbytes : int or None
        How many bytes it had when it was found; None where its protocol does not say.
    """

    location: Location
    nbytes: int | None


def expand_sources(
    file_urls: Iterable[str | os.PathLike[str]], options: Mapping[str, Any] | None = None
) -> dict[str, Source]:
    """Find the files that a description means.

    Parameters
    ----------
    file_urls : iterable of str or path
        Each is one of

        - a file, which is named by the last part of its path;
        - a directory, with all that is in it: ``data`` gives the names ``data/...``, ``data/`` gives ``...``;
        - a glob, whose matches are named by their path below the part without magic: ``data/*.csv`` gives
          ``a.csv``, ``data/*/x`` gives ``1/x``. It matches files; ``**`` stands for any number of directories.

        on this machine's disk or under any URL that fsspec reaches.
    options : mapping, optional
        What fsspec needs to reach those which are not on this machine, besides its own configuration.

    Returns
    -------
    dict of str to Source
        By the file's name in the data unit, in alphabetical order.

    Raises
    ------
    DescriptionError
        If a URL is malformed, or two files would have the same name.
    DataError
        If there is no such file, a directory is empty, or in it there is something that is no regular file
        or leads out of it.
    ManifestError
        If a file's name cannot be one in a data unit.
    """
    if isinstance(file_urls, str | os.PathLike):
        raise DescriptionError(f"{_FIELD} {file_urls!r} is one path; give a list", field=_FIELD, value=file_urls)
    found: dict[str, Source] = {}
    for url in file_urls:
        location = locate(url, options, field=_FIELD)
        contents = os.fspath(url).endswith("/")
        if isinstance(location, LocalLocation):
            expanded = _local(location, contents)
        else:
            expanded = _remote(location, contents)
        for name, source in expanded:
            if name in found:
                raise DescriptionError(
                    f"{_FIELD}: {found[name].location.url} and {source.location.url} would both be {name!r} in the "
                    "data unit; give one of them another name, or each directory as a whole",
                    field=_FIELD,
                    value=name,
                )
            found[name] = source
    check_names(found)
    return dict(sorted(found.items()))


def local_source(path: Path) -> Source:
    """One file on this machine.

    Raises
    ------
    DataError
        If it is not there, or no regular file.
    """
    location = locate(path, field=_FIELD)
    try:
        status = path.stat()
    except OSError as error:
        raise DataError(f"source {location.url} cannot be read: {error.strerror}", url=location.url) from error
    if not stat.S_ISREG(status.st_mode):
        raise DataError(f"source {location.url} is not a regular file", url=location.url)
    return Source(location, status.st_size)


def _missing(location: Location, what: str) -> DataError:
    return DataError(f"source {location.url}: {what}", url=location.url)


# ---------------------------------------------------------------------- this machine


def _local(location: LocalLocation, contents: bool) -> Iterator[tuple[str, Source]]:
    path = location.local
    if path.is_dir():
        prefix = "" if contents else f"{path.name}/"
        empty = True
        for name, file in _tree(path, location):
            empty = False
            yield prefix + name, local_source(file)
        if empty:
            raise _missing(location, "the directory holds no file")
    elif path.exists() or path.is_symlink() or not has_magic(location.path):
        # A name may well have a bracket in it: what is there is meant as it is.
        yield path.name, local_source(path)
    else:
        base, pattern = _split(location.path)
        names = sorted(set(expand(Path(base), pattern)))
        if not names:
            raise _missing(location, "no file matches")
        for name in names:
            yield name, local_source(Path(base, name))


def _tree(root: Path, location: LocalLocation) -> Iterator[tuple[str, Path]]:
    def fail(error: OSError) -> None:
        raise location.error("list", error)

    for top, directories, names in os.walk(root, onerror=fail):
        directories.sort()
        for name in [*sorted(names), *(d for d in directories if Path(top, d).is_symlink())]:
            path = Path(top, name)
            relative = path.relative_to(root).as_posix()
            if path.is_symlink() and not (path.is_file() and is_within(path, root)):
                raise _missing(
                    location,
                    f"{relative!r} in it is a link that leads out of it, to a directory or nowhere; "
                    f"take the link away, and give what it leads to in {_FIELD} as well",
                )
            yield relative, path


def _split(path: str) -> tuple[str, str]:
    """Split a path into the part before the first one with magic, and the rest."""
    parts = path.split("/")
    first = next(n for n, part in enumerate(parts) if has_magic(part))
    return "/".join(parts[:first]) or "/", "/".join(parts[first:])


# ---------------------------------------------------------------------- fsspec


def _remote(location: Location, contents: bool) -> Iterator[tuple[str, Source]]:
    path = location.path
    if location.protocol in HTTP:
        # A web server has no directories; the name is the path's, without the query.
        with location.errors("read"):
            nbytes = location.fs.info(path).get("size")
        yield unquote(PurePosixPath(urlsplit(path).path).name), Source(location, nbytes)
        return
    with location.errors("read"):
        fs = location.fs
        try:  # not isfile() and isdir(), for which any error is a no
            row = fs.info(path)
        except FileNotFoundError:
            if not has_magic(path):
                raise
            row = None
        if row is None:
            base, rows = _split(path)[0], fs.glob(path, detail=True)
        elif row["type"] == "directory":
            base, rows = path if contents else path.rpartition("/")[0], fs.find(path, detail=True)
        else:
            base, rows = path.rpartition("/")[0], {path: row}
    files = {file: row for file, row in rows.items() if row["type"] == "file"}
    if not files:
        raise _missing(location, "no file is there")
    root = location.url.removesuffix(path)
    for file, row in files.items():
        place = replace(location, url=root + file, path=file)
        yield file.removeprefix(f"{base}/"), Source(place, row.get("size"))
