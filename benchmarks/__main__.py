from __future__ import annotations

import json

import click
import dask

from benchmarks.units import measure
from dpilot.monitor.tables import text_table


@click.command()
@click.option("--functions", default=10_000, show_default=True, help="No-op functions in a batch.")
@click.option("--singles", default=2_000, show_default=True, help="No-op functions submitted one by one.")
@click.option("--programs", default=1_000, show_default=True, help="Runs of /bin/true.")
@click.option("--repeat", default=3, show_default=True, help="Medians of so many runs.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")
def main(functions: int, singles: int, programs: int, repeat: int, as_json: bool) -> None:
    """Measure dpilot beside plain Dask, in one run, on two slots."""
    dask.config.set({"dpilot.scheduler.dashboard-address": None})
    rows = measure(functions, singles, programs, repeat)
    if as_json:
        print(json.dumps(rows))
        return
    header = ["what", "by", "units", "units/s", "client's us/unit"]
    print(f"Two slots; medians of {repeat}. Compare within this table: absolute times differ between machines.\n")
    print(
        text_table(
            header,
            [
                [
                    row["what"],
                    row["system"],
                    f"{row['n']:,}",
                    f"{row['seconds']:.2f} s" if "seconds" in row else f"{row['per_second']:,.0f}",
                    f"{row['submit_us']:.0f}" if row.get("submit_us") else "",
                ]
                for row in rows
            ],
        )
    )


if __name__ == "__main__":
    main()
