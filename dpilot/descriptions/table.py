"""How a description is made from one table: the fields of its spec.

Each field of a spec says, by :func:`key`, under which names users write it, how it is parsed and what it means. From
that :class:`Description` has its attributes, its checks and its docstring.
"""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Iterator, Mapping
from types import MappingProxyType
from typing import Any, ClassVar, Generic, Self, TypeVar

from dpilot.descriptions.parsers import Wrong, did_you_mean, redacted, shown
from dpilot.errors import DescriptionError

__all__ = ["Description", "key", "refusal"]

Spec = TypeVar("Spec")


def key(
    parse: Callable[[Any], Any],
    doc: str,
    *,
    names: tuple[str, ...] = (),
    default: Any = None,
    required: bool = False,
    secret: bool = False,
) -> Any:
    """A field of a spec.

    Parameters
    ----------
    parse : callable
        Takes what the user wrote; gives the field's value, or raises :class:`~dpilot.descriptions.parsers.Wrong`.
    doc : str
        What the user may write.
    names : tuple of str
        The description's key for it, and further names of that key; by default the field's own name.
    default : object
        The value if the key is not given; ``dict`` for an empty one.
    required : bool
        Whether the key must be given.
    secret : bool
        Whether reprs and messages hide what the user wrote.
    """
    metadata = {"parse": parse, "doc": doc, "names": names, "secret": secret}
    if required:
        return dataclasses.field(metadata=metadata)
    if default is dict:
        return dataclasses.field(default_factory=dict, repr=not secret, metadata=metadata)
    return dataclasses.field(default=default, repr=not secret, metadata=metadata)


@dataclasses.dataclass(frozen=True, slots=True)
class _Key:
    """One row of a description's table."""

    attribute: str
    type: str
    names: tuple[str, ...]
    parse: Callable[[Any], Any]
    doc: str
    default: Any
    required: bool
    secret: bool

    def __str__(self) -> str:
        note = (
            " Required." if self.required else "" if self.default in (None, (), {}) else f" Default: {self.default!r}."
        )
        return f"{self.doc}.{note}"


def _table(spec: type[Any]) -> Iterator[_Key]:
    for field in dataclasses.fields(spec):
        required = field.default is field.default_factory is dataclasses.MISSING
        # Read-only, so that `d.environment["X"] = 1` on a description without one is an error, and not lost.
        default = field.default if field.default_factory is dataclasses.MISSING else MappingProxyType({})
        row = dict(field.metadata)
        names = row.pop("names") or (field.name,)
        yield _Key(field.name, str(field.type), names, default=None if required else default, required=required, **row)


def refusal(name: str, value: Any, text: str) -> DescriptionError:
    """The error that says what is wrong with the value of one key, and what to write instead."""
    return DescriptionError(f"{name} {shown(value)} {text}", field=name, value=value)


class Description(dict[str, Any], Generic[Spec]):
    """A dict with attribute access. Its subclasses say which keys there are.

    A key that is not set reads as its default; one that is set to None counts as not set. Several names of one key may
    be used together if they agree. Nothing is checked until :meth:`validate`.
    """

    _spec: ClassVar[type[Any]]
    _rows: ClassVar[tuple[_Key, ...]] = ()
    _keys: ClassVar[Mapping[str, _Key]] = {}  # the same by each of their names

    def __init_subclass__(cls, *, spec: type[Any] | None = None) -> None:
        if spec is None:  # a user's own subclass of one of ours
            return
        cls._spec = spec
        cls._rows = tuple(_table(spec))
        cls._keys = {name: row for row in cls._rows for name in row.names}
        rows = [f"{', '.join(row.names)}\n    {row}" for row in cls._rows]
        cls.__doc__ = "\n".join([inspect.cleandoc(cls.__doc__ or ""), "", "Parameters\n----------", *rows])
        rows = [f"{row.attribute} : {row.type}\n    ``{row.names[0]}``: {row}" for row in cls._rows]
        spec.__doc__ = "\n".join([spec.__doc__ or "", "", "Attributes\n----------", *rows])

    @classmethod
    def of(cls, mapping: Mapping[str, Any]) -> Self:
        """The description itself, or one made from a plain dict.

        Raises
        ------
        DescriptionError
            If it is no dict, or a description of something else.
        """
        if isinstance(mapping, cls):
            return mapping
        if not isinstance(mapping, Mapping) or isinstance(mapping, Description):
            raise DescriptionError(
                f"a {cls.__name__}, or a dict with its keys, is needed, not a {type(mapping).__name__}; "
                f"write {{{cls._required()!r}: ...}}",
                field=None,
                value=mapping,
            )
        return cls(mapping)

    @classmethod
    def _required(cls) -> str:
        return next((row.names[0] for row in cls._rows if row.required), cls._rows[0].names[0])

    def validate(self) -> Spec:
        """Check all keys. The description itself stays as it is.

        Returns
        -------
        spec
            The frozen, typed and normalised form.

        Raises
        ------
        DescriptionError
            It names the key, its value and what to write instead.
        """
        given = set()
        for name in self:
            if name in self._keys:
                given.add(self._keys[name].attribute)
            else:
                # Its value may be a secret that was meant for storage_options.
                raise DescriptionError(
                    f"{name!r} is not a key of a {type(self).__name__}; {did_you_mean(name, self._keys)}",
                    field=str(name),
                    value=self[name],
                )
        rows = [row for row in self._rows if row.required or row.attribute in given]
        values = {row.attribute: value for row in rows for value in self._parsed(row)}
        return self._finish(self._spec(**values))

    def _finish(self, spec: Spec) -> Spec:
        """Check what concerns several keys. Subclasses may override it."""
        return spec

    def _parsed(self, row: _Key) -> Iterator[Any]:
        """The value of one key, or nothing if it is not set."""
        given = [name for name in row.names if self.get(name) is not None]
        if not given and row.required:
            raise DescriptionError(
                f"{row.names[0]} is missing in a {type(self).__name__}; write {row.names[0]!r}: {row.doc}",
                field=row.names[0],
                value=None,
            )
        values = [self._parse(row, name) for name in given]
        for name, value in zip(given[1:], values[1:], strict=True):
            if value != values[0]:
                raise refusal(
                    name, self[name], f"contradicts {given[0]} {shown(self[given[0]])}; write only one of them"
                )
        yield from values[:1]

    def _parse(self, row: _Key, name: str) -> Any:
        try:
            return row.parse(self[name])
        except Wrong as wrong:
            value = "***" if row.secret else wrong.value_or(self[name])
            raise refusal(name, value, str(wrong)) from None

    def __getattr__(self, name: str) -> Any:
        row = self._keys.get(name)
        if row is None:
            if name in self:
                return self[name]
            raise AttributeError(f"a {type(self).__name__} has no key {name!r}; {did_you_mean(name, self._keys)}")
        return next((self[other] for other in (name, *row.names) if other in self), row.default)

    def __setattr__(self, name: str, value: Any) -> None:
        self[name] = value

    def __delattr__(self, name: str) -> None:
        try:
            del self[name]
        except KeyError:
            raise AttributeError(f"{name!r} is not set") from None

    def __dir__(self) -> list[str]:
        return sorted({*super().__dir__(), *self._keys})

    def _ipython_key_completions_(self) -> list[str]:
        return list(self._keys)

    def __repr__(self) -> str:
        items = (f"{name!r}: {self._shown(name, value)}" for name, value in self.items())
        return f"{type(self).__name__}({{{', '.join(items)}}})"

    def _shown(self, name: str, value: Any) -> str:
        row = self._keys.get(name)
        if row is not None and not row.secret:
            return redacted(repr(value))
        # A key that is not known may be a misspelt secret.
        return repr(dict.fromkeys(value, "***")) if isinstance(value, Mapping) else "'***'"

    def copy(self) -> Self:
        """A shallow copy."""
        return type(self)(self)
