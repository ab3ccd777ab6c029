"""Variables in arguments, without a shell."""

from __future__ import annotations

import re
from collections.abc import Mapping

__all__ = ["expand"]

_REFERENCE = re.compile(
    r"\$\$|(?P<kept>\\)?\$(?:(?P<name>[A-Za-z_][A-Za-z0-9_]*)|\{(?P<braced>[A-Za-z_][A-Za-z0-9_]*)\})", re.ASCII
)


def expand(argument: str, environment: Mapping[str, str]) -> str:
    r"""Put the values of variables in place of ``$NAME`` and ``${NAME}``.

    Only names that are in `environment` are touched: everything else stays as it is, ``$$``, ``$1`` and unknown names
    included, for the program may be a shell or awk and know what to do with them. A backslash keeps a reference as it
    is: ``\$HOME`` becomes ``$HOME``. Values are not expanded again.

    Parameters
    ----------
    argument : str
    environment : mapping of str to str
        The variables of the unit.

    Examples
    --------
    >>> expand("task $TASK_NO of ${ALL}, $OTHER", {"TASK_NO": "3", "ALL": "8"})
    'task 3 of 8, $OTHER'
    """

    def value(match: re.Match[str]) -> str:
        name = match["name"] or match["braced"]
        if name is None or name not in environment:
            return match[0]
        return match[0][1:] if match["kept"] else environment[name]

    return _REFERENCE.sub(value, argument)
