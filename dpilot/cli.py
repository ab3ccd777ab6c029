"""The command ``dpilot``."""

from __future__ import annotations

import signal
import sys
from pathlib import Path
from types import FrameType

import click

from dpilot._version import version
from dpilot.errors import PilotError

__all__ = ["main"]


def _end_orderly(signum: int, frame: FrameType | None) -> None:
    # An exception unwinds the services, which end what they started; the default action would not.
    raise SystemExit(128 + signum)


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(version, prog_name="dpilot", message="%(prog)s %(version)s")
def main() -> None:
    """Dask that knows where your files are."""


@main.command()
@click.option("--naive", is_flag=True, help="Place units in turn, without looking at where their data lies.")
@click.option("--compare", is_flag=True, help="Run both placements, and show what each moved and took.")
@click.option("--s3", is_flag=True, help="Keep the data in buckets of a local S3 server, started for the demo.")
@click.option(
    "--months", type=click.IntRange(1, 12), default=12, show_default=True, help="How much of 2013 to look at."
)
@click.option(
    "--keep", type=click.Path(path_type=Path, file_okay=False), metavar="DIR", help="Leave all files in this directory."
)
def demo(naive: bool, compare: bool, s3: bool, months: int, keep: Path | None) -> None:
    """Run a job on real data at three sites, all on this machine.

    Which weather, and which carriers, delayed the flights out of New York in 2013? Each airport's records lie at a site
    of their own; every unit of work runs where its data is.
    """
    from dpilot.demo.show import demo as show  # pandas and tqdm come with the extra "demo", and take time to import

    if naive and compare:
        raise click.UsageError("--compare runs both placements; leave out --naive")
    signal.signal(signal.SIGTERM, _end_orderly)
    try:
        show([False, True] if compare else [naive], range(1, months + 1), s3=s3, keep=keep)
    except KeyboardInterrupt:
        click.echo("\nInterrupted: nothing is left running.", err=True)
        sys.exit(130)
    except PilotError as error:
        raise click.ClickException(str(error)) from error


@main.command()
@click.argument("run", metavar="RUN")
@click.argument("path", metavar="FILE", type=click.Path(path_type=Path, dir_okay=False))
@click.option("--regret", is_flag=True, help="Replay the run in the simulator, and set it beside what was possible.")
def report(run: str, path: Path, regret: bool) -> None:
    """Write down what happened in a run: FILE is a page (.html), or a record for `dpilot simulate` (.jsonl).

    RUN is the URL of a compute data service, as its get_url() tells, or HOST:PORT for all that ran at a scheduler.
    """
    from dpilot.monitor.report import write

    try:
        click.echo(write(run, path, with_regret=regret))
    except PilotError as error:
        raise click.ClickException(str(error)) from error


@main.command()
@click.argument("scenario", metavar="SCENARIO")
@click.option("--policy", "policies", multiple=True, help="Only this policy; may be given several times.")
@click.option(
    "--what-if",
    "changes",
    multiple=True,
    metavar="CHANGE",
    help="Change the scenario, and show what that brings: 'pilot us-east slots=8', 'without PILOT', "
    "'replica DATA STORE', 'link eu us bandwidth=1Gbit/s'. Several are made together.",
)
@click.option("--seed", type=int, help="For policies that draw lots.  [default: the scenario's]")
@click.option(
    "--plans",
    type=click.IntRange(0),
    help="How many plans with perfect knowledge to try.  [default: 500 if it is small]",
)
@click.option(
    "--trace", type=click.Path(path_type=Path, dir_okay=False), help="Write what happened to each unit: .csv, .jsonl"
)
def simulate(
    scenario: str,
    policies: tuple[str, ...],
    changes: tuple[str, ...],
    seed: int | None,
    plans: int | None,
    trace: Path | None,
) -> None:
    """Place units on pilots that exist on paper only.

    SCENARIO is a file (YAML, JSON, TOML, or a recorded run: .jsonl) or the name of a workload, such as hotspot. It is
    run under dpilot's own policy and under others, beside what no policy could beat. With --what-if, as it is and
    changed, under dpilot's policy.
    """
    from dpilot.simulator.command import run

    try:
        run(scenario, policies, changes, seed=seed, plans=plans, trace=trace)
    except PilotError as error:
        raise click.ClickException(str(error)) from error
