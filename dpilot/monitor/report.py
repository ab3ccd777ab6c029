"""The report of a run: one page that needs nothing else, and the same figures as data frames."""

from __future__ import annotations

import ast
import dataclasses
from collections import defaultdict
from datetime import UTC, datetime
from functools import cache, cached_property
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dpilot import errors
from dpilot.descriptions import check_coordination_url, did_you_mean
from dpilot.errors import DescriptionError
from dpilot.monitor import charts, record
from dpilot.monitor.model import LOCALITIES
from dpilot.monitor.regret import Regret, regret
from dpilot.monitor.series import DURATIONS_S
from dpilot.monitor.tables import duration_text, nbytes_text
from dpilot.monitor.tally import COLUMNS, TABLES, Row
from dpilot.monitor.theme import LOCALITY_COLOURS, THEMES
from dpilot.runtime.account import Account
from dpilot.runtime.session import Session
from dpilot.service.frames import frame_of
from dpilot.urls import ObjectURL

if TYPE_CHECKING:
    from jinja2 import Template
    from pandas import DataFrame


__all__ = ["Report", "write"]

_TIMES = ("submitted", "began", "ended")
#: Rows of the page's tables; data frames have all.
_MOST_PILOTS = 100
_MOST_KINDS = 30
_MOST_SITES = 24
_MOST_ERRORS = 30
_MOST_LINKS = 30
#: Characters of an error.
_MOST_TEXT = 4000


class Report:
    """What happened in a run: ``cds.report()`` makes it. It stays as it is when the run goes on, or is gone.

    Parameters
    ----------
    account : Account
        What the scheduler told.
    replayed : Regret, optional
        What the simulator made of the run.
    """

    def __init__(self, account: Account, replayed: Regret | None = None) -> None:
        self.account = account
        self.regret = replayed
        self._tables: dict[str, list[Row]] = {}

    @classmethod
    def of(cls, session: Session, owner: str | None, *, with_regret: bool = False) -> Report:
        """The report of a compute data service's units; None: of all units of the scheduler.

        For `with_regret` see :meth:`dpilot.ComputeDataService.report`.
        """
        session.settle()
        account: Account = session.call("account", owner=owner)
        units = tuple(unit if unit.error is None else unit._replace(error=_words(unit.error)) for unit in account.units)
        account = dataclasses.replace(account, units=units)
        return cls(account, regret(account) if with_regret else None)

    def __repr__(self) -> str:
        row = self.rows("summary")[0]
        return (
            f"<Report of {row['owner'] or 'all'}: {row['units']:,} units in {duration_text(row['makespan_s'])}, "
            f"{row['failed']:,} failed, {nbytes_text(row['moved_bytes'])} moved>"
        )

    def _repr_html_(self) -> str:
        page = escape(self.html(), quote=True)
        return (
            f'<iframe title="Report of a run" srcdoc="{page}" sandbox="" loading="lazy" '
            'style="width:100%;height:42rem;border:0"></iframe>'
        )

    @cached_property
    def names(self) -> tuple[str, ...]:
        """The tables that there are."""
        return (*TABLES, *(["regret"] if self.regret is not None else []))

    def rows(self, name: str) -> list[Row]:
        """One of the tables, as dicts: times in seconds since the epoch, durations in seconds, sizes in bytes.

        Raises
        ------
        DescriptionError
            If there is none of that name.
        """
        if name == "regret" and self.regret is not None:
            return list(self.regret.rows)
        if name not in TABLES:
            raise DescriptionError(
                f"a report has no table {name!r}; {did_you_mean(name, self.names)}", field="name", value=name
            )
        if name not in self._tables:
            self._tables[name] = TABLES[name](self.account)
        return self._tables[name]

    def frame(self, name: str = "summary") -> DataFrame:
        """One of the tables, as a data frame with times in UTC.

        Parameters
        ----------
        name : str
            ``summary`` (one row), ``units``, ``pilots`` (with their utilisation), ``matrix`` (by the site of the data
            and of the run), ``bytes`` (as it was, and data-blind), ``kinds`` (of work, with their executables),
            ``run_times`` (a histogram of each kind), ``throughput`` and ``days`` (units that ended), ``slowest``,
            ``failures``, ``links``, and, where it was asked for, ``regret``.

        Returns
        -------
        pandas.DataFrame

        Raises
        ------
        DescriptionError
            If there is none of that name.
        PilotError
            If pandas is not installed.
        """
        rows = self.rows(name)
        return frame_of(COLUMNS.get(name) or rows[0], rows, *_TIMES)

    def html(self) -> str:
        """The page: it loads nothing and runs nothing, and is light or dark as the system is."""
        summary = self.rows("summary")[0]
        return _template().render(
            report=self,
            run=summary,
            began=datetime.fromtimestamp(summary["began"], UTC),
            account=self.account,
            themes=THEMES,
            localities=list(zip(LOCALITIES, LOCALITY_COLOURS, strict=True)),
            time_line=charts.time_line(self.account),
            throughput=charts.columns(self.rows("throughput")),
            step_s=self.rows("throughput")[0]["seconds"],
            matrix=self._matrix(),
            kinds=self._kinds(),
            errors=self._errors(),
            most_pilots=_MOST_PILOTS,
            most_links=_MOST_LINKS,
        )

    def save(self, path: str | Path) -> None:
        """Write the page to a file, such as ``run.html``."""
        Path(path).write_text(self.html(), encoding="utf-8")

    def record(self, path: str | Path) -> None:
        """Write the run for the simulator, see :meth:`dpilot.ComputeDataService.record`."""
        record.write(self.account, path)

    # ---------------------------------------------------------------- what the page shows

    def _matrix(self) -> dict[str, Any]:
        rows = self.rows("matrix")
        cells = {(row["data"], row["run"]): row for row in rows}
        return {
            "data": sorted({row["data"] for row in rows})[:_MOST_SITES],
            "run": sorted({row["run"] for row in rows})[:_MOST_SITES],
            "cells": cells,
            "most": max((row["bytes"] for row in rows), default=0) or 1,
            "is_whole": len({data for data, _ in cells}) <= _MOST_SITES >= len({run for _, run in cells}),
        }

    def _kinds(self) -> dict[str, Any]:
        of: defaultdict[str, list[Row]] = defaultdict(list)
        for row in self.rows("run_times"):
            of[row["kind"]].append(row)
        used = {row["above_s"] for row in self.rows("run_times")}
        bounds = (0.0, *DURATIONS_S)
        first = min((bounds.index(above) for above in used), default=0)
        last = max((bounds.index(above) for above in used), default=0)
        shown = bounds[first : last + 1] if len(bounds[first : last + 1]) > 5 else bounds[max(0, last - 5) : last + 1]
        rows = self.rows("kinds")
        return {
            "rows": [(row, charts.histogram(of[row["kind"]], shown)) for row in rows[:_MOST_KINDS]],
            "n": len(rows),
            "from": shown[0],
            "to": shown[-1],
        }

    def _errors(self) -> dict[str, Any]:
        """Failures, those of one kind for one reason together."""
        of: defaultdict[tuple[str, str], list[Row]] = defaultdict(list)
        for row in self.rows("failures"):
            text = (row["error"] or "why is not known any more").strip()
            of[row["kind"], text.splitlines()[0].replace(row["unit"], "this unit")].append(row)
        ordered = sorted(of.items(), key=lambda item: -len(item[1]))
        return {
            "rows": [
                {
                    "kind": kind,
                    "line": line[:300],
                    "n": len(rows),
                    **rows[0],
                    "text": (rows[0]["error"] or "")[:_MOST_TEXT],
                }
                for (kind, line), rows in ordered[:_MOST_ERRORS]
            ],
            "n": len(ordered),
        }


def write(run: str, path: Path, *, with_regret: bool = False) -> Report:
    """Write the report of a run somewhere else, or its record: what ``dpilot report`` does.

    Parameters
    ----------
    run : str
        The URL of a compute data service, or the address of a scheduler for all that ran there.
    path : Path
        It ends in ``.html``, or in ``.jsonl`` for a record.
    with_regret : bool
        Whether to replay the run.

    Raises
    ------
    DescriptionError
        If one of them is of no known form.
    ConnectionLostError
        If there is no scheduler.
    """
    if path.suffix not in (".html", ".jsonl"):
        raise DescriptionError(
            f"{str(path)!r} is of no known kind; write .html for a page, .jsonl for a record", field="path", value=path
        )
    owner = None
    if run.startswith("dpilot"):
        url = ObjectURL.parse(run, kind="cds")
        address, owner = url.scheduler, url.id
    else:
        address = run if "://" in run else f"tcp://{run}"
    session = Session.join(check_coordination_url(address))
    try:
        report = Report.of(session, owner, with_regret=with_regret)
    finally:
        session.close()
    (report.save if path.suffix == ".html" else report.record)(path)
    return report


def _words(error: str) -> str:
    """What an error's repr says, as its traceback would."""
    name, _, rest = error.partition("(")
    try:
        said = ast.literal_eval(f"({rest}") if rest and name.isidentifier() else None
    except (ValueError, SyntaxError):  # it has a repr of its own
        return error
    if not isinstance(said, str):
        return error
    return said if name in errors.__all__ else f"{name}: {said}"


@cache
def _template() -> Template:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    loader = FileSystemLoader(Path(__file__).with_name("templates"))
    environment = Environment(
        loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters.update(nbytes=lambda n: nbytes_text(int(n)), duration=duration_text)
    return environment.get_template("report.html")
