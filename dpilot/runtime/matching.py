"""The matcher, as the configuration wants it."""

from __future__ import annotations

from dask.utils import parse_bytes, parse_timedelta

from dpilot import config
from dpilot.errors import DescriptionError
from dpilot.placement import Distance, Links, Matcher, Policy, StatedLink
from dpilot.runtime.records import Records
from dpilot.runtime.views import DataViews

__all__ = ["make_matcher"]


def make_matcher(records: Records) -> Matcher:
    """The matcher, which sees the data units of `records`.

    Raises
    ------
    DescriptionError
        If a link in the configuration is malformed.
    """
    names = {
        Distance.SAME_MACHINE: "same-machine",
        Distance.SAME_DATACENTER: "same-datacenter",
        Distance.OTHER_DATACENTER: "other-datacenter",
    }
    links = Links(
        bandwidth_bytes_per_s={d: float(config.nbytes(f"placement.bandwidth.{name}")) for d, name in names.items()},
        latency_s={d: config.seconds(f"placement.latency.{name}") for d, name in names.items()},
        stated=_stated_links(),
        files_at_once=int(config.get("data.transfers")),
    )
    return Matcher(
        Policy(links, prefer_wait_s=config.seconds("placement.prefer-wait")),
        in_flight_s=config.seconds("placement.in-flight"),
        unknown_runtime_s=config.seconds("placement.unknown-runtime"),
        inputs=DataViews(records),
        ahead=True,
    )


def _stated_links() -> list[StatedLink]:
    """The links in the configuration.

    Raises
    ------
    DescriptionError
    """
    links = []
    for row in config.get("placement.links") or ():
        try:
            row = dict(row)
            ends = str(row.pop("from")), str(row.pop("to"))
            bandwidth, latency = row.pop("bandwidth", None), row.pop("latency", None)
            if row:
                raise ValueError(f"{', '.join(map(str, row))} is not known")
            bytes_per_s = None if bandwidth is None else float(parse_bytes(bandwidth))
            latency_s = None if latency is None else float(parse_timedelta(latency) or 0.0)
            links.append(StatedLink(*ends, bytes_per_s, latency_s))
        except (KeyError, TypeError, ValueError) as error:
            raise DescriptionError(
                f"placement.links: {row!r} is no link ({error}); write such as "
                "{from: eu, to: us, bandwidth: 100 MB, latency: 80ms}",
                field="placement.links",
                value=row,
            ) from error
    return links
