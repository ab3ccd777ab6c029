"""Links that the configuration states."""

from __future__ import annotations

from typing import Any

import dask
import pytest

from dpilot import DescriptionError
from dpilot.placement import Site
from dpilot.runtime.matching import make_matcher
from dpilot.runtime.records import Records


def test_stated_links_are_what_is_assumed() -> None:
    row = {"from": "eu", "to": "us", "bandwidth": "10 MB", "latency": "1s"}
    with dask.config.set({"dpilot.placement.links": [row]}):
        links = make_matcher(Records()).policy.links
    assert links.transfer_s(Site("eu"), Site("us"), 20_000_000, 1) == pytest.approx(3.0)
    assert links.transfer_s(Site("us", "m1"), Site("eu"), 20_000_000, 1) == pytest.approx(3.0)
    assert links.transfer_s(Site("eu"), Site("ap"), 20_000_000, 1) < 3.0


@pytest.mark.parametrize(
    "row", ["eu", {"from": "eu"}, {"from": "a", "to": "b", "speed": 1}, {"from": "a", "to": "b", "bandwidth": "fast"}]
)
def test_what_is_no_link_is_refused(row: Any) -> None:
    with dask.config.set({"dpilot.placement.links": [row]}), pytest.raises(DescriptionError, match=r"placement\.links"):
        make_matcher(Records())
