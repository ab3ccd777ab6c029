"""From a path or URL to the kind of location that it is."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn
from urllib.parse import urlsplit

import fsspec

from dpilot.data.http import HTTP, HttpLocation
from dpilot.data.local import LocalLocation
from dpilot.data.location import CREDENTIALS, SECRET_QUERY, Location, redacted
from dpilot.data.objects import OBJECT_STORES, ObjectLocation
from dpilot.data.s3 import S3, S3Location
from dpilot.data.sftp import SFTP, SftpLocation
from dpilot.errors import DescriptionError

__all__ = ["locate"]

_NEED_HOST = OBJECT_STORES | HTTP | SFTP | {"ftp", "smb", "webhdfs"}
#: How to reach what has a protocol of one of these; :class:`Location` itself does for all others.
_KINDS: dict[frozenset[str], type[Location]] = {
    S3: S3Location,
    OBJECT_STORES - S3: ObjectLocation,
    SFTP: SftpLocation,
    HTTP: HttpLocation,
}
_LOCAL_HOSTS = frozenset({"", "localhost", "127.0.0.1"})

_URL = re.compile(r"(?P<protocol>[A-Za-z][A-Za-z0-9+.-]*)://(?P<rest>.*)", re.DOTALL)
_ONE_SLASH = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:/")


def locate(url: str | os.PathLike[str], options: Mapping[str, Any] | None = None, *, field: str) -> Location:
    """Read a path or URL.

    Parameters
    ----------
    url : str or path
        A path, ``file://`` followed by an absolute or relative path (with or without ``localhost``), or any
        URL of a protocol that fsspec knows. ``ssh://localhost/PATH`` without options is a path on this machine.
    options : mapping, optional
        What fsspec needs to reach it.
    field : str
        The key of the description that the URL came from, for the errors.

    Raises
    ------
    DescriptionError
        If it is malformed, has a password in it, or its protocol is unknown or needs a package.
    """
    if isinstance(url, os.PathLike):
        return _local(os.fspath(url))
    shown = redacted(url) if isinstance(url, str) else url

    def refuse(problem: str) -> NoReturn:
        raise DescriptionError(f"{field} {shown!r} {problem}", field=field, value=shown)

    if not isinstance(url, str) or not url.strip():
        refuse("is neither a path nor a URL, such as file:///data/store or s3://bucket/prefix")
    if "\0" in url:
        refuse("contains a NUL character")
    if url.startswith("file:/") and not url.startswith("file://"):
        url = url.removeprefix("file:")
    match = _URL.match(url)
    if match is None:
        if url.startswith("://"):
            refuse("has no protocol before '://'")
        if "::" in url.partition("/")[0]:
            refuse("is a chain of protocols; name the innermost one alone")
        if _ONE_SLASH.match(url) and not Path(url).exists():
            refuse("is malformed; a URL has two slashes after the protocol, such as s3://bucket/prefix")
        return _local(os.path.expanduser(url))  # noqa: PTH111 (as text: a Path loses what it starts with)
    protocol, rest = match["protocol"].lower(), match["rest"]
    if protocol in ("file", "local", "ssh"):
        host, slash, path = rest.partition("/")
        if host in _LOCAL_HOSTS and not (protocol == "ssh" and host and options):
            return _local(slash + path) if slash else refuse("names no path")
        if protocol != "ssh":  # a relative path
            return _local(rest)
    return _remote(protocol, url, dict(options or {}), refuse)


def _local(path: str) -> LocalLocation:
    absolute = os.path.abspath(path)  # noqa: PTH100 (resolve() would follow links)
    return LocalLocation("file", f"file://{absolute}", absolute)


def _remote(protocol: str, url: str, options: dict[str, Any], refuse: Any) -> Location:
    if CREDENTIALS.search(url) or (protocol not in HTTP and SECRET_QUERY.search(url)):
        refuse("has credentials in it; put them into storage_options or fsspec's configuration")
    try:
        cls = fsspec.get_filesystem_class(protocol)
    except ValueError:
        refuse(f"has the unknown protocol {protocol!r}; fsspec knows {', '.join(sorted(fsspec.available_protocols()))}")
    except ImportError as error:
        refuse(f"needs a package that is not installed: {error}")
    if protocol in SFTP and not cls.__module__.startswith("sshfs"):
        refuse("needs the package sshfs: pip install 'dpilot[ssh]'")
    host = url.partition("://")[2].partition("/")[0]
    if not _is_host(host):
        refuse("is malformed: what follows '://' is neither a host nor a bucket")
    if protocol in _NEED_HOST and not host:
        refuse(f"names no {'bucket' if protocol in OBJECT_STORES else 'host'}")
    path = str(cls._strip_protocol(url))
    stripped = url if protocol in HTTP else url.rstrip("/")
    if stripped.endswith(":"):  # the root of a protocol without hosts, such as memory://
        stripped += "//"
    kind = next((kind for protocols, kind in _KINDS.items() if protocol in protocols), Location)
    return kind(protocol, redacted(stripped), path.rstrip("/"), cls._get_kwargs_from_urls(url) | options)


def _is_host(text: str) -> bool:
    try:
        _ = urlsplit(f"//{text}").port  # raises, if it is no number
    except ValueError:
        return False
    return not any(char.isspace() for char in text)
