"""One function per kind of value: it takes what the user wrote, and gives it back typed and normalised.

A parser that cannot do so raises :class:`Wrong` with the rest of a sentence that begins with the field's name and its
value: what is wrong, and what to write instead.
"""

from __future__ import annotations

import difflib
import math
import os
import posixpath
import re
import shlex
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from fractions import Fraction
from numbers import Integral, Real
from typing import Any
from urllib.parse import urlsplit

from dpilot.errors import DescriptionError
from dpilot.urls import KINDS, ObjectURL

__all__ = ["FileTransfer", "Output", "Wrong", "did_you_mean", "redacted", "shown"]

_SAME: Any = object()


class Wrong(Exception):  # noqa: N818 - it never leaves this package: DescriptionError is made of it
    """What is wrong with a value.

    Parameters
    ----------
    text : str
        Goes behind the field's name and the value.
    value : object, optional
        The part of the field's value that is at fault.
    """

    def __init__(self, text: str, value: Any = _SAME) -> None:
        super().__init__(text)
        self.value = value

    def value_or(self, whole: Any) -> Any:
        """The part that is at fault, or `whole` if none was named."""
        return whole if self.value is _SAME else self.value


# --- words for messages -------------------------------------------------------------------------

# "://USER:PASSWORD@", but neither the colon of a port before a path with an "@", nor those of an IPv6 address.
_PASSWORD = re.compile(r"(://(?!\[)[^/\s:@]*):(?!\d+/)\S*@")


def redacted(text: str) -> str:
    """`text` with ``***`` in place of the passwords in its URLs."""
    return _PASSWORD.sub(r"\1:***@", text)


def shown(value: Any, limit: int = 200) -> str:
    """The value as messages show it: its repr, without passwords and not too long."""
    text = redacted(repr(value))
    return text if len(text) <= limit else f"{text[: limit - 20]}...{text[-17:]}"


def did_you_mean(word: object, known: Iterable[str]) -> str:
    """The end of a sentence about an unknown word: the closest of the `known` ones, or all of them.

    Examples
    --------
    >>> did_you_mean("exectuable", ["arguments", "executable"])
    "did you mean 'executable'?"
    >>> did_you_mean("colour", ["arguments", "executable"])
    'known are arguments, executable'
    """
    known = list(known)
    close = difflib.get_close_matches(str(word), known, n=1)
    return f"did you mean {close[0]!r}?" if close else f"known are {', '.join(known)}"


# --- text ---------------------------------------------------------------------------------------


def _text(value: Any, what: str = "a string") -> str:
    if not isinstance(value, str) or not value.strip():
        raise Wrong(f"is not {what}; write a non-empty string", value)
    return value


def _usable(text: str) -> str:
    """Refuse what neither a command line nor a file system can take."""
    if "\0" in text:
        raise Wrong("contains a NUL character; take it out", text)
    try:
        text.encode()
    except UnicodeEncodeError:
        raise Wrong("is not valid Unicode; write it in UTF-8", text) from None
    return text


def label(value: Any) -> str:
    """A label or name: non-empty, and all on one line."""
    text = _usable(_text(value, "a label"))
    if not text.isprintable():
        raise Wrong("contains a line break or another control character; take it out", value)
    return text


def labels(value: Any) -> tuple[str, ...]:
    """A list of labels."""
    return tuple(label(item) for item in _items(value))


def unit_name(value: Any) -> str:
    """The name of a data unit: a label that cannot be taken for a path or URL."""
    text = label(value)
    if "/" in text:
        raise Wrong("contains '/'; a data unit's name is one word, such as 'results'", value)
    return text


def one_of(*allowed: str) -> Callable[[Any], str]:
    """A parser that takes one of the `allowed` words."""

    def parse(value: Any) -> str:
        if not isinstance(value, str) or value not in allowed:
            raise Wrong(f"is unknown; write {' or '.join(map(repr, allowed))}")
        return value

    return parse


def flag(value: Any) -> bool:
    """True or False."""
    if not isinstance(value, bool):
        raise Wrong("is neither True nor False; write one of them")
    return value


# --- numbers ------------------------------------------------------------------------------------


def _whole(value: Any, least: int) -> int:
    # bool is a subclass of int, but True processes is a mistake.
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise Wrong(f"is not a whole number; write one without quotes or fraction, at least {least}")
    if value < least:
        raise Wrong(f"is less than {least}; write a whole number of at least {least}")
    return int(value)


def count(value: Any) -> int:
    """A whole number of at least 1."""
    return _whole(value, 1)


def count_or_0(value: Any) -> int:
    """A whole number of at least 0."""
    return _whole(value, 0)


def number(value: Any) -> float:
    """A finite number."""
    if (real := _real(value)) is None:
        raise Wrong("is not a number; write a finite one, without quotes")
    return real


def minutes(value: Any) -> float:
    """A positive number of minutes, in seconds."""
    seconds = (_real(value) or 0.0) * 60.0
    if not 0.0 < seconds < math.inf:
        raise Wrong("is not a positive number of minutes; write such as 90 for an hour and a half")
    return seconds


def _real(value: Any) -> float | None:
    """The finite number that the value is; None if it is none. True and False are none."""
    if isinstance(value, bool) or not isinstance(value, Real):
        return None
    try:
        real = float(value)
    except OverflowError:  # an int of 300 digits
        return None
    return real if math.isfinite(real) else None


_SIZE = re.compile(
    r"\s*(?P<number>[0-9]{1,30}(?:\.[0-9]{0,30})?|\.[0-9]{1,30})\s*(?P<unit>(?:[kmgtp]i?)?b?)\s*", re.IGNORECASE
)
_MEGABYTE = 10**6


def _size(value: Any, unit: int) -> int:
    size = Fraction(0)
    if isinstance(value, str) and (match := _SIZE.fullmatch(value)):
        prefix = match["unit"].lower().removesuffix("b")
        base = 1024 if prefix.endswith("i") else 1000
        if match["unit"]:
            size = Fraction(match["number"]) * base ** (" kmgtp".index(prefix[0]) if prefix else 0)
        else:
            size = Fraction(match["number"]) * unit
    elif (real := _real(value)) is not None:
        size = Fraction(int(value) if isinstance(value, Integral) else real) * unit
    if not 1 <= size < 2**63:
        word = "megabytes" if unit == _MEGABYTE else "bytes"
        raise Wrong(
            f"is not a size; write a positive number of {word}, or one with its unit, such as '10 GB' or '2 GiB'"
        )
    return round(size)


def nbytes(value: Any) -> int:
    """A size in bytes: a number of bytes, or a string with a unit (``"4 GB"`` is 4,000,000,000, ``"4 GiB"`` 2**32)."""
    return _size(value, 1)


def megabytes(value: Any) -> int:
    """A size in bytes, as `nbytes`; but a number without a unit counts megabytes of 1,000,000 bytes."""
    return _size(value, _MEGABYTE)


# --- collections --------------------------------------------------------------------------------


def _items(value: Any) -> list[Any]:
    if isinstance(value, (list, tuple)):
        return list(value)
    hint = f"; write [{shown(value)}]" if isinstance(value, (str, os.PathLike, Mapping)) else "; write [...]"
    raise Wrong(f"is not a list{hint}")


def args(value: Any) -> tuple[Any, ...]:
    """Positional arguments of a callable."""
    return tuple(_items(value))


def options(value: Any) -> dict[str, Any]:
    """A dict with strings as keys."""
    if not isinstance(value, Mapping):
        raise Wrong("is not a dict; write {'name': value}")
    for name in value:
        if not isinstance(name, str):
            raise Wrong("is not a string; the keys of this dict are names", name)
    return dict(value)


def environment(value: Any) -> dict[str, str]:
    """Environment variables: a dict, or a list of ``NAME=VALUE`` as in BigJob. Numbers become strings."""
    pairs = value.items() if isinstance(value, Mapping) else [_assignment(item) for item in _items(value)]
    return {_variable(name): _word(item) for name, item in pairs}


def _assignment(item: Any) -> tuple[str, str]:
    name, sign, value = item.partition("=") if isinstance(item, str) else ("", "", "")
    if not sign:
        raise Wrong("is not an assignment; write 'NAME=VALUE', or a dict", item)
    return name, value


def _variable(name: Any) -> str:
    text = _usable(_text(name, "the name of a variable"))
    if "=" in text:
        raise Wrong("contains '='; a variable's name cannot", name)
    return text


def _word(value: Any) -> str:
    """One word of a command line, or the value of a variable."""
    if isinstance(value, os.PathLike):
        value = os.fspath(value)
    if isinstance(value, str):
        return _usable(value)
    if isinstance(value, bool) or not isinstance(value, Real):
        raise Wrong("is not a string, number or path; write it as a string", value)
    return str(value)


def executable(value: Any) -> str | Callable[..., Any]:
    """A program's name or path, or a callable."""
    if callable(value):
        function: Callable[..., Any] = value
        return function
    try:
        return path(value)
    except Wrong:
        raise Wrong("is no program; write its name or path, or give a Python callable") from None


def arguments(value: Any) -> tuple[str, ...]:
    """A program's arguments.

    A list is taken word by word: a word with spaces stays one argument. One string is split as a shell would, since
    BigJob joined everything to one shell line. For the same reason an empty string vanished there, and scripts rely
    on it: a list with nothing but one empty string means no arguments. Any other empty string is an argument.
    """
    if isinstance(value, str):
        try:
            return tuple(shlex.split(_usable(value)))
        except ValueError as error:  # an open quote, or a backslash at the end
            raise Wrong(f"cannot be split into words ({error}); write a list of arguments") from None
    words = tuple(_word(item) for item in _items(value))
    return () if words == ("",) else words


# --- paths and URLs -----------------------------------------------------------------------------

_URL = re.compile(r"(?P<scheme>[A-Za-z][A-Za-z0-9+.-]*)://(?P<rest>.*)", re.DOTALL)
_HERE = ("", "localhost")


def path(value: Any) -> str:
    """A path, as a string."""
    if isinstance(value, os.PathLike):
        value = os.fspath(value)
    return _usable(_text(value, "a path"))


def safe_name(value: Any) -> str:
    """The relative path of a file or glob that cannot lead out of its directory, without needless parts."""
    name = path(value)
    if name.startswith("/"):
        raise Wrong("is absolute and would escape the sandbox; write a path relative to it", value)
    if ".." in name.split("/"):
        raise Wrong("contains '..' and would escape the sandbox; write a path below it", value)
    name = posixpath.normpath(name)
    if name == "." or str(value).endswith("/"):
        raise Wrong("names a directory; write the name of a file in it", value)
    return name


def input_name(value: Any) -> str:
    """The file that a program reads: in its sandbox, or absolute."""
    name = path(value)
    return name if name.startswith("/") else safe_name(value)


def _location(value: Any) -> str:
    """A path or URL that holds no password."""
    text = path(value)
    if _PASSWORD.search(text):
        raise Wrong(
            "holds a password; take it out, and give it in storage_options or fsspec's configuration", redacted(text)
        )
    return text


def _url(value: Any, example: str) -> tuple[str, str]:
    """Scheme and rest of a URL."""
    match = _URL.fullmatch(_location(value)) if isinstance(value, str) and value else None
    if match is None or not value.isprintable():
        raise Wrong(f"is not a URL; write one with a scheme, such as {example}")
    try:
        urlsplit(value)
    except ValueError as error:  # such as brackets that are no IPv6 address
        raise Wrong(f"is malformed ({error}); write a URL such as {example}") from None
    return match["scheme"].lower(), match["rest"]


def service_url(value: Any) -> str:
    """The URL of the place to start a pilot in. Whether its scheme has a launcher is not known here."""
    example = "fork://localhost or ssh://user@host"
    scheme, rest = _url(value, example)
    if " " in rest:
        raise Wrong(f"contains a space; write a URL such as {example}")
    try:
        _ = urlsplit(value).port
    except ValueError as error:
        raise Wrong(f"is malformed ({error}); write a URL such as {example}") from None
    return f"{scheme}://{rest}"


def store_url(value: Any) -> str:
    """The URL of a store, with no slash at its end. Whether fsspec knows its scheme is not known here."""
    scheme, rest = _url(value, "file:///data/store or s3://bucket/prefix")
    if not rest:
        raise Wrong(f"names no place; write more behind it, such as {scheme}://bucket/prefix or file:///data/store")
    if scheme == "file":
        host, slash, place = rest.partition("/")
        if host not in _HERE or not slash:
            raise Wrong(f"names the host {host!r}; a file store's path begins with a third slash: write file:///{rest}")
        rest = slash + place
    return f"{scheme}://{rest.rstrip('/') or rest}"


def local_path(url: str) -> str | None:
    """The path on this machine that a URL means; None if it means none.

    ``file://`` and ``ssh://``, each with no host or ``localhost``, are this machine; so is what is no URL at all.
    """
    match = _URL.fullmatch(url)
    if match is None:
        return url
    host, slash, place = match["rest"].partition("/")
    here = match["scheme"].lower() in ("file", "ssh") and host in _HERE and slash
    return slash + place if here else None


def file_urls(value: Any) -> tuple[str, ...]:
    """Paths, URLs and globs."""
    return tuple(_location(item) for item in _items(value))


# --- data in and out ----------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class FileTransfer:
    """One file to copy into a working directory.

    Parameters
    ----------
    source : str
        A path on the machine of the client, or the URL of a file elsewhere.
    target : str
        Its name in the working directory: a relative path that does not escape it.
    """

    source: str
    target: str


_WORK_DIR = re.compile(r"^\$?\{?(?:BIGJOB|DPILOT)_WORK_DIR\}?(?:/|$)")


def file_transfers(value: Any) -> tuple[FileTransfer, ...]:
    """A list of ``"SOURCE > TARGET"``.

    ``BIGJOB_WORK_DIR`` (or ``DPILOT_WORK_DIR``) at the beginning of a target is the working directory.
    """
    return tuple(_file_transfer(item) for item in _items(value))


def _file_transfer(item: Any) -> FileTransfer:
    parts = [part.strip() for part in item.split(">")] if isinstance(item, str) else []
    if len(parts) != 2 or not all(parts):
        raise Wrong("is no file transfer; write 'SOURCE > TARGET'", item)
    source = _location(parts[0])
    if "://" in parts[1]:
        raise Wrong("leads elsewhere; write the target as BIGJOB_WORK_DIR or a path below it", redacted(item))
    target = _WORK_DIR.sub("", parts[1], count=1)
    if not target or target.endswith("/"):
        target += posixpath.basename(source.rstrip("/"))
    try:
        return FileTransfer(local_path(source) or source, safe_name(target))
    except Wrong as wrong:
        raise Wrong(str(wrong), item) from None


@dataclass(frozen=True, slots=True)
class Output:
    """Files of a unit's sandbox that go to a data unit.

    Parameters
    ----------
    target : object
        The data unit: a handle, the URL of one, or the name of a new one.
    globs : tuple of str
        Which files; relative to the sandbox.
    """

    target: Any
    globs: tuple[str, ...]


def data_units(value: Any) -> tuple[Any, ...]:
    """A list of data units' handles or URLs."""
    return tuple(_data_unit(item) for item in _items(value))


def _data_unit(item: Any) -> Any:
    if isinstance(item, str):
        try:
            url = ObjectURL.parse(item, kind="du")
        except DescriptionError:
            raise Wrong(
                "is not the URL of a data unit; give its handle, or its get_url(). "
                "Files become a data unit by submit_data_unit({'file_urls': [...]})",
                item,
            ) from None
        if url.name:
            raise Wrong("is the URL of one file; write that of its data unit, without the file's name", item)
        return item
    kind = str(getattr(item, "id", "")).partition("-")[0]
    # A handle knows its URL. Asking for it may need the scheduler, so it is not asked here.
    if (
        isinstance(item, type)
        or not (hasattr(item, "id") or hasattr(item, "get_url"))
        or KINDS.get(kind, "DataUnit") != "DataUnit"
    ):
        raise Wrong("is not a data unit; give a DataUnit, or its get_url()", item)
    return item


def outputs(value: Any) -> tuple[Output, ...]:
    """A list of ``{data unit: glob or [globs]}``."""
    found = []
    for item in _items(value):
        if not isinstance(item, Mapping):
            raise Wrong("does not say which files; write {data_unit: ['*.out']}", item)
        found += [Output(_output_target(target), _globs(globs)) for target, globs in item.items()]
    return tuple(found)


def _output_target(target: Any) -> Any:
    return unit_name(target) if isinstance(target, str) and "://" not in target else _data_unit(target)


def _globs(value: Any) -> tuple[str, ...]:
    items = [value] if isinstance(value, str) else value
    if not isinstance(items, (list, tuple)) or not items:
        raise Wrong("names no files; write a glob or a list of globs, such as ['*.out']", value)
    return tuple(safe_name(item) for item in items)
