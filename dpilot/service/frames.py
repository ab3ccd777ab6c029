"""Lists of handles as data frames: one call to the scheduler for each, however many rows there are."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dpilot.display import Displayed
from dpilot.errors import PilotError
from dpilot.service.handle import Handle

if TYPE_CHECKING:
    from pandas import DataFrame

__all__ = ["Frames", "frame_of"]


class Frames(Handle):
    """The data frames of a compute data service. Times are in UTC, and NaT where there is none yet."""

    _units: dict[str, Any]
    _data: dict[str, Any]

    def units_frame(self) -> DataFrame:
        """The compute units that were submitted to it, one row each.

        Returns
        -------
        pandas.DataFrame
            Indexed by ``unit`` (id), with ``name``, ``kind`` (units of one kind are expected to take equally long),
            ``state``, ``pilot``, ``datacenter`` and ``machine`` of the pilot, ``slots``, ``attempt``, ``priority``; the
            times ``submitted``, ``began`` (of the last attempt) and ``ended``; the seconds ``waited_s`` (before it
            began), ``staged_s`` (its input was brought) and ``ran_s`` (from begin to end, less that);
            ``local_bytes``, ``same_datacenter_bytes`` and ``cross_datacenter_bytes`` of input by where they came from;
            how many data units it reads and writes (``inputs``, ``outputs``), and ``error``.

        Raises
        ------
        PilotError
            If pandas is not installed.
        ConnectionLostError
        """
        pandas = _pandas()
        self._session.settle()
        columns = self._session.call("units_table", owner=self.id)
        known = set(columns["unit"])
        # Of what Dask refused the scheduler knows nothing; their handles do.
        for unit in [unit for id, unit in list(self._units.items()) if id not in known]:
            row = {"unit": unit.id, "kind": unit.name, "state": str(unit.state), "error": _text(unit._error)}
            for name, column in columns.items():
                column.append(row.get(name))
        handles = self._units
        pairs = zip(columns["unit"], columns["kind"], strict=True)
        names = [handles[id].name if id in handles else kind for id, kind in pairs]
        frame = _frame(pandas, {"unit": columns.pop("unit"), "name": names, **columns}, "submitted", "began", "ended")
        waited = (frame["began"] - frame["submitted"]).dt.total_seconds()
        place = list(frame.columns).index("staged_s")
        frame.insert(place, "waited_s", waited)
        ran = (frame["ended"] - frame["began"]).dt.total_seconds() - frame["staged_s"].fillna(0.0)
        frame.insert(place + 2, "ran_s", ran.clip(lower=0.0))
        return frame.set_index("unit")

    def data_units_frame(self) -> DataFrame:
        """The data units that were submitted to it, or that its compute units write, one row each.

        Returns
        -------
        pandas.DataFrame
            Indexed by ``data_unit`` (id), with ``name``, ``state``, ``ready`` (whether it can be read), ``files`` and
            ``bytes`` (of one replica), ``replicas`` (how many are there) and ``coming`` (are on their way),
            ``moved_bytes`` (so far, of those), ``pilot_data`` (ids of the stores that have it), ``datacenters`` (of
            these), the times ``submitted`` and ``placed`` (when the first replica was there), and ``error``.

        Raises
        ------
        PilotError
            If pandas is not installed.
        ConnectionLostError
        """
        pandas = _pandas()
        self._session.settle()
        columns = self._session.call("data_table", ids=list(self._data))
        return _frame(pandas, columns, "submitted", "placed").set_index("data_unit")

    def decisions_frame(self, all_pilots: bool = False, newest: int = 10_000) -> DataFrame:
        """Where its compute units went and why; for those that wait, where they would go now.

        Parameters
        ----------
        all_pilots : bool
            One row for each pilot that was considered for a unit, the cheapest first; otherwise one for each unit.
        newest : int
            Look at so many units at most, those that were submitted last: a decision is worked out anew for each of
            them, from all pilots. There are never more than 500,000 rows.

        Returns
        -------
        pandas.DataFrame
            With ``unit``, ``kind``, ``state`` (of the unit), ``pilot``, its ``datacenter`` and ``machine``, ``verdict``
            (``chosen``, ``best`` but without a free slot, ``possible``, ``rejected``); the parts of the cost
            ``queue_s``, ``stage_s``, ``label_s`` and ``output_s`` and their sum ``cost_s``, in seconds; the bytes of
            input by how far they are from the pilot, ``local_bytes``, ``same_datacenter_bytes`` and
            ``cross_datacenter_bytes``; how many pilots were ``considered`` and ``rejected``, and the ``reason``: of the
            decision, or of a pilot's rejection.

        Raises
        ------
        PilotError
            If pandas is not installed.
        ConnectionLostError
        """
        pandas = _pandas()
        self._session.settle()
        columns = self._session.call("decisions_table", owner=self.id, all_pilots=all_pilots, newest=newest)
        return _frame(pandas, columns)

    @abstractmethod
    def transfers(self) -> list[dict[str, Any]]:
        """The transfers, as rows."""

    def transfers_frame(self) -> DataFrame:
        """The transfers of its data units, one row each: what was predicted, and what it took.

        Returns
        -------
        pandas.DataFrame
            Indexed by ``transfer`` (id), with ``kind`` (upload, fetch, copy or verify), ``data_unit``, ``source`` and
            ``target`` (ids of stores), ``bytes`` in all and ``moved_bytes`` so far, ``mover``, the times ``submitted``,
            ``began`` and ``ended``; the seconds ``waited_s`` (before it began), ``predicted_s`` and ``actual_s``, their
            ratio ``actual_to_predicted``; ``bytes_per_s``, and ``error``.

        Raises
        ------
        PilotError
            If pandas is not installed.
        ConnectionLostError
        """
        pandas = _pandas()
        rows = self.transfers()
        columns = {new: [row[old] for row in rows] for new, old in _TRANSFER_COLUMNS.items()}
        frame = _frame(pandas, columns, "submitted", "began", "ended")
        actual = (frame["ended"] - frame["began"]).dt.total_seconds()
        place = list(frame.columns).index("predicted_s")
        frame.insert(place, "waited_s", (frame["began"] - frame["submitted"]).dt.total_seconds())
        frame["predicted_s"] = frame["predicted_s"].astype("float64")
        frame.insert(place + 2, "actual_s", actual)
        frame.insert(place + 3, "actual_to_predicted", actual / frame["predicted_s"])
        frame.insert(place + 4, "bytes_per_s", (frame["moved_bytes"] / actual).where(actual > 0))
        return frame.set_index("transfer")

    def report(self, path: str | Path | None = None, *, regret: bool = False) -> Any:
        """What happened in the run of its compute units: a page that needs nothing else, and data frames.

        It has a time line by pilot, where data lay and units ran, bytes local, moved, and saved against a data-blind
        run, pilots' utilisation, run times and executables, the slowest units, failures with their errors. It can be
        made while units run, when they have ended, and after the pilots are gone.

        Parameters
        ----------
        path : str or Path, optional
            Where to write the page, such as ``"run.html"``.
        regret : bool
            Replay the run in the simulator, too, and set it beside a bound and a plan with perfect knowledge. That may
            take a minute.

        Returns
        -------
        Report
            ``html()`` is the page, ``frame(name)`` a data frame, ``names`` tells which there are; notebooks show it.

        Raises
        ------
        PilotError
            If nothing has run that could be replayed.
        ConnectionLostError
        """
        assert Displayed.drawing is not None  # importing dpilot sees to it
        report = Displayed.drawing.report(self, regret)
        if path is not None:
            report.save(path)
        return report

    def record(self, path: str | Path) -> None:
        """Write the run of its compute units down for the simulator: ``dpilot simulate run.jsonl`` replays it.

        Parameters
        ----------
        path : str or Path
            It ends in ``.jsonl``.

        Raises
        ------
        DescriptionError
            If it does not.
        ConnectionLostError
        """
        self.report().record(path)


#: Columns -> what the scheduler calls them.
_TRANSFER_COLUMNS = {
    "transfer": "id",
    "kind": "kind",
    "data_unit": "du",
    "source": "source",
    "target": "target",
    "bytes": "nbytes",
    "moved_bytes": "moved",
    "mover": "mover",
    "submitted": "submitted",
    "began": "began",
    "ended": "ended",
    "predicted_s": "predicted_s",
    "error": "error",
}


def _pandas() -> Any:
    try:
        import pandas
    except ImportError:
        raise PilotError("data frames need pandas; install it with: pip install 'dpilot[notebook]'") from None
    return pandas


def frame_of(names: Iterable[str], rows: Sequence[Mapping[str, Any]], *times: str) -> DataFrame:
    """Rows as a data frame with the columns `names`; in those of `times`, seconds since the epoch become times in UTC.

    Raises
    ------
    PilotError
        If pandas is not installed.
    """
    columns = {name: [row[name] for row in rows] for name in names}
    return _frame(_pandas(), columns, *(name for name in times if name in columns))


def _frame(pandas: Any, columns: Mapping[str, list[Any]], *times: str) -> DataFrame:
    frame: DataFrame = pandas.DataFrame({name: pandas.Series(column) for name, column in columns.items()})
    for name in times:
        frame[name] = pandas.to_datetime(frame[name].astype("float64"), unit="s", utc=True)
    return frame


def _text(error: BaseException | None) -> str | None:
    return None if error is None else str(error)
