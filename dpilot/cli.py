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
