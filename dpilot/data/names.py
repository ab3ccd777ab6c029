"""File names: relative POSIX paths that stay below their root, and the globs that select them.

A name is text that came from somebody else: a description, a manifest, a directory listing. All of
them pass through :func:`check_name` before they touch a file system.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator
from fnmatch import fnmatchcase
from pathlib import Path

from dpilot.errors import ManifestError, StagingError

__all__ = [
    "MANIFEST",
    "MARKER",
    "TEMPORARY",
    "check_name",
    "check_names",
    "check_pattern",
    "collect",
    "expand",
    "has_magic",
    "is_within",
]

#: What a store keeps for itself: no file of a unit may have these names, in no directory.
MANIFEST = ".dpilot-manifest.json"
MARKER = ".dpilot-store.json"
TEMPORARY = ".dpilot-tmp"

_MAGIC = frozenset("*?[")


def check_name(name: str, what: str = "file name") -> str:
    """Give `name` back if it is safe to be put below any root.

    Parameters
    ----------
    name : str
        A relative POSIX path, such as ``"a.txt"`` or ``"sub/b c.txt"``.
    what : str
        What to call it in the error.

    Raises
    ------
    ManifestError
        If it is empty, absolute, has a part that is empty, ``.`` or ``..``, a NUL, text that is not
        UTF-8, or a name that stores keep for themselves.
    """
    if problem := _problem(name):
        raise ManifestError(f"{what} {name!r} {problem}", name=name)
    return name


def _problem(name: object) -> str:
    if not isinstance(name, str):
        return "is not a string"
    if not name:
        return "is empty"
    if name.startswith("/"):
        return "is absolute; it must be relative to the data unit or sandbox"
    if "\0" in name:
        return "contains a NUL character"
    try:
        name.encode()
    except UnicodeEncodeError:
        return "is not valid Unicode; rename the file to a name in UTF-8"
    for part in name.split("/"):
        if part == "..":
            return "contains '..', which would escape its root"
        if part in ("", "."):
            return "has an empty part or a '.'; write it as a plain relative path with no slash at its end"
        if _is_reserved(part):
            return f"contains {part!r}, a name that dpilot keeps for itself"
    return ""


def check_names(names: Iterable[str]) -> None:
    """Check every name, and that all of them can be files of one directory tree.

    Raises
    ------
    ManifestError
        If one is unsafe, occurs twice, or is the directory of another.
    """
    seen: set[str] = set()
    for name in names:
        if check_name(name) in seen:
            raise ManifestError(f"file name {name!r} occurs twice", name=name)
        seen.add(name)
    for name in seen:
        directory = name
        while directory := directory.rpartition("/")[0]:
            if directory in seen:
                raise ManifestError(f"file name {directory!r} is also the directory of {name!r}", name=directory)


def check_pattern(pattern: str) -> str:
    """Give a glob back if it can only match below its root.

    Parameters
    ----------
    pattern : str
        A relative path in which ``*``, ``?`` and ``[...]`` match within one part of a path, and a part
        that is ``**`` matches any number of directories. As in a shell, they do not match a leading dot.

    Raises
    ------
    ManifestError
        For the reasons of :func:`check_name`.
    """
    return check_name(pattern, "file pattern")


def is_within(path: Path, root: Path) -> bool:
    """Whether `path`, with all symbolic links followed, lies below `root`."""
    return path.resolve().is_relative_to(root.resolve())


def collect(
    root: Path,
    patterns: Iterable[str],
    exclude: Collection[str] = (),
    on_missing: Callable[[str], object] | None = None,
) -> dict[str, Path]:
    """The regular files below `root` that match.

    Parameters
    ----------
    root : Path
    patterns : iterable of str
        Globs, see :func:`check_pattern`. Directories are ignored.
    exclude : collection of str
        Names to pass over, such as those of a unit's inputs.
    on_missing : callable, optional
        Told, in a sentence, of each pattern that matches no file; by default that is an error.

    Returns
    -------
    dict of str to Path
        By name, in alphabetical order.

    Raises
    ------
    ManifestError
        If a pattern, or the name of a file that matches, is unsafe.
    StagingError
        If a pattern matches no file, or what it matches is a link to a place outside of `root`.
    """
    found: dict[str, Path] = {}
    inside = root.resolve()
    for pattern in patterns:
        matches = [name for name in expand(root, check_pattern(pattern)) if name not in exclude]
        if not matches:
            problem = f"no file matches {pattern!r} in {root}; {_inventory(root)}"
            if on_missing is None:
                raise StagingError(problem, pattern=pattern)
            on_missing(problem)
        for name in matches:
            path = root / check_name(name)
            # The path to a match may lead through a linked directory, so ask for every match, not only for links.
            if not path.resolve().is_relative_to(inside):
                raise StagingError(f"{name!r} in {root} is a link to {path.resolve()}, outside of it", pattern=pattern)
            found[name] = path
    return dict(sorted(found.items()))


def has_magic(text: str) -> bool:
    """Whether there is anything of a glob in `text`."""
    return not _MAGIC.isdisjoint(text)


def expand(root: Path, pattern: str) -> Iterator[str]:
    """The names of all files below `root` that match one glob; some may come twice."""
    return _expand(root, "", pattern.split("/"))


def _expand(directory: Path, prefix: str, parts: list[str]) -> Iterator[str]:
    head, *rest = parts
    if head == "**":
        yield from _expand(directory, prefix, rest or ["*"])
        for name in _entries(directory):
            # Links to directories are not followed here: they may lead in circles.
            if not name.startswith(".") and (directory / name).is_dir() and not (directory / name).is_symlink():
                yield from _expand(directory / name, f"{prefix}{name}/", parts)
        return
    # Without magic there is nothing to list: a sandbox may hold a great many files.
    names = [name for name in _entries(directory) if _matches(name, head)] if has_magic(head) else [head]
    for name in names:
        path = directory / name
        if rest:
            if path.is_dir():
                yield from _expand(path, f"{prefix}{name}/", rest)
        elif path.is_file():
            yield prefix + name


def _matches(name: str, pattern: str) -> bool:
    if name.startswith(".") and not pattern.startswith("."):
        return False
    return not _is_reserved(name) and fnmatchcase(name, pattern)


def _is_reserved(name: str) -> bool:
    return name in (MANIFEST, MARKER) or name.startswith(TEMPORARY)


def _entries(directory: Path) -> list[str]:
    try:
        return sorted(path.name for path in directory.iterdir())
    except OSError:
        return []  # gone, or not ours to read: then nothing in it matches


def _inventory(root: Path, limit: int = 8) -> str:
    names = [f"{name}/" if (root / name).is_dir() else name for name in _entries(root)]
    if not names:
        return "it holds nothing"
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return f"it holds {', '.join(map(repr, names[:limit]))}{more}"
