"""What the demo's units compute: two awk programs, and three functions that run on the workers.

Nothing here knows where it runs, or where its files come from.
"""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # the client only names these functions: it need not import pandas to submit them
    import pandas as pd

    from dpilot import StagedData

__all__ = ["DELAYS", "SUM_UP", "by_carrier", "by_weather", "weather_table"]

#: From flights to one line for each carrier and plane: carrier, tail number, flights, minutes of departure delay.
#: (Fields 6, 10 and 12 are dep_delay, carrier and tailnum; a flight without delay never left.)
DELAYS = """
NR > 1 && $6 != "NA" { flights[$10 FS $12]++; minutes[$10 FS $12] += $6 }
END { for (plane in flights) print plane FS flights[plane] FS minutes[plane] }
"""

#: From many such tables to one.
SUM_UP = """
{ flights[$1 FS $2] += $3; minutes[$1 FS $2] += $4 }
END { for (plane in flights) print plane FS flights[plane] FS minutes[plane] }
"""

WIND = [0, 5, 10, 15, 20, 25, 100]  # mph; the upper end keeps one reading of 1,048 mph out
VISIBILITY = [0, 1, 3, 6, 10, 11]  # miles; 10 is the most that is reported


def _bands(values: pd.Series, edges: list[int], name: str, unit: str, last: str) -> pd.Series:
    import pandas as pd

    labels = [f"{name} {low}-{high} {unit}" for low, high in pairwise(edges[:-1])]
    return pd.cut(values, edges, right=False, labels=[*labels, f"{name} {edges[-2]} {unit} {last}"])


def by_weather(flights: StagedData, weather: StagedData) -> pd.DataFrame:
    """Join a month's flights with the hour's weather at their airport.

    Parameters
    ----------
    flights, weather : StagedData
        Data units of one CSV file each.

    Returns
    -------
    DataFrame
        For each band of wind (mph) and of visibility (miles), and each airport: `flights` and their `minutes` of delay.
    """
    import pandas as pd

    (flights_csv,), (weather_csv,) = flights.files.values(), weather.files.values()
    left = pd.read_csv(flights_csv, usecols=["origin", "time_hour", "dep_delay"]).dropna()
    hours = pd.read_csv(weather_csv, usecols=["time_hour", "wind_speed", "visib"])
    joined = left.merge(hours, on="time_hour")
    joined["wind"] = _bands(joined["wind_speed"], WIND, "wind", "mph", "or more")
    joined["visibility"] = _bands(joined["visib"], VISIBILITY, "visibility", "miles", "or more")
    return pd.concat(
        joined.rename(columns={measure: "weather"})
        .groupby(["weather", "origin"], observed=True)["dep_delay"]
        .agg(flights="count", minutes="sum")
        .reset_index()
        .astype({"weather": str})
        for measure in ("wind", "visibility")
    )


def weather_table(*parts: pd.DataFrame) -> pd.DataFrame:
    """Add up what :func:`by_weather` returned for all months and airports.

    Returns
    -------
    DataFrame
        Mean delay at departure in minutes; a row for each band of wind and visibility, a column for each airport.
    """
    import pandas as pd

    total = pd.concat(parts).groupby(["weather", "origin"])[["flights", "minutes"]].sum()
    mean = (total["minutes"] / total["flights"]).unstack("origin")
    # "wind" before "visibility", then by the number in the label
    order = sorted(mean.index, key=lambda label: (label[0] != "w", int(label.split()[1].split("-")[0])))
    return mean.loc[order]


def by_carrier(delays: list[StagedData], register: StagedData) -> pd.DataFrame:
    """Rank the carriers by their delays, with what the register knows of their planes.

    Parameters
    ----------
    delays : list of StagedData
        Data units of tables as `SUM_UP` writes them.
    register : StagedData
        ``planes.csv`` and ``airlines.csv``.

    Returns
    -------
    DataFrame
        One row for each carrier, most punctual first: `airline`, `flights`, `mean delay` (minutes), `planes`, and
        their mean year of make, `built`.
    """
    import pandas as pd

    names = ["carrier", "tailnum", "flights", "minutes"]
    parts = [pd.read_csv(file, names=names) for data in delays for file in data.files.values()]
    planes = pd.concat(parts).groupby(["carrier", "tailnum"], dropna=False)[["flights", "minutes"]].sum().reset_index()
    built = pd.read_csv(register.files["planes.csv"], usecols=["tailnum", "year"]).query("year > 0")
    airlines = pd.read_csv(register.files["airlines.csv"]).set_index("carrier")["name"]
    fleets = planes.merge(built, on="tailnum", how="left").groupby("carrier")
    table = pd.DataFrame(
        {
            "airline": airlines,
            "flights": fleets["flights"].sum(),
            "mean delay": fleets["minutes"].sum() / fleets["flights"].sum(),
            "planes": fleets["tailnum"].nunique(),
            "built": fleets["year"].mean(),
        }
    )
    return table.dropna(subset=["flights"]).astype({"flights": int, "planes": int}).sort_values("mean delay")
