"""What a scenario may be, how it is read, and what is refused with which words."""

import json

import pytest
import yaml

from dpilot.errors import DescriptionError, PlacementError
from dpilot.placement import Distance
from dpilot.simulator import Data, Link, Pilot, Scenario, Store, Unit, Uplink, simulate

FILE = """
seed: 3
cache_nbytes: 2 GB
peers: true
pilots:
  - {id: eu, slots: 4, datacenter: eu, machine: eu-1}
  - {id: spot, count: 2, slots: 8, workers: 2, datacenter: us, machine: "us-{i}", arrives_s: 30, walltime_s: 600}
stores:
  - {id: bucket, datacenter: eu}
data:
  - {id: du, count: 4, nbytes: 100 MB, replicas: [bucket]}
  - {id: result, nbytes: 1 MB}
units:
  - {id: cu, count: 8, run_s: {exponential: 10}, inputs_in_turn: ["du-*"], kind: map, every_s: 2}
  - {id: last, run_s: [1, 2], inputs: [du-0], outputs: [result], datacenter: eu, affinity: require}
links:
  - {between: [eu, us], bandwidth: 100 Mbit/s, latency_s: 0.08}
  - {distance: same-datacenter, bandwidth: 1 GB/s}
uplinks:
  - {site: eu, up: 50 MB/s, down: 100 MB, from_s: 60}
"""


def test_a_file_says_it_all(tmp_path):
    (tmp_path / "two-sites.yaml").write_text(FILE)
    scenario = Scenario.from_file(tmp_path / "two-sites.yaml")
    assert (scenario.name, scenario.seed, scenario.cache_nbytes, scenario.peers) == ("two-sites", 3, 2 * 10**9, True)
    assert scenario.pilots == (
        Pilot("eu", 4, "eu", "eu-1"),
        Pilot("spot-0", 8, "us", "us-0", workers=2, arrives_s=30.0, walltime_s=600.0),
        Pilot("spot-1", 8, "us", "us-1", workers=2, arrives_s=30.0, walltime_s=600.0),
    )
    assert scenario.stores == (Store("bucket", "eu"),)
    assert [data.id for data in scenario.data] == ["du-0", "du-1", "du-2", "du-3", "result"]
    assert scenario.data[3] == Data("du-3", 10**8, replicas=("bucket",))
    assert [unit.inputs for unit in scenario.units[:8]] == [(f"du-{i % 4}",) for i in range(8)]
    assert [unit.submitted_s for unit in scenario.units[:8]] == [2.0 * i for i in range(8)]
    assert len({unit.run_s for unit in scenario.units[:8]}) == 8
    assert scenario.units[8].outputs == ("result",)
    assert scenario.links == (
        Link(12.5e6, 0.08, ("eu", "us")),
        Link(1e9, distance=Distance.SAME_DATACENTER),
    )
    assert scenario.uplinks == (Uplink("eu", 5e7, 1e8, from_s=60.0),)
    assert Scenario.from_file(tmp_path / "two-sites.yaml") == scenario
    assert simulate(scenario).n_units == 9


def test_json_and_toml_say_the_same(tmp_path):
    plain = {"pilots": [{"id": "p", "slots": 2}], "units": [{"id": "cu", "run_s": 1.5, "count": 3}]}
    (tmp_path / "s.json").write_text(json.dumps(plain))
    (tmp_path / "s.yaml").write_text(yaml.safe_dump(plain))
    (tmp_path / "s.toml").write_text('[[pilots]]\nid = "p"\nslots = 2\n[[units]]\nid = "cu"\nrun_s = 1.5\ncount = 3\n')
    read = [Scenario.from_file(tmp_path / f"s.{kind}") for kind in ("json", "yaml", "toml")]
    assert read[0] == read[1] == read[2]
    assert [unit.id for unit in read[0].units] == ["cu-0", "cu-1", "cu-2"]


def test_a_workload_is_a_scenario_and_may_be_changed():
    scenario = Scenario.from_mapping({"workload": {"name": "uniform", "n_units": 12}, "name": "mine", "seed": 5})
    assert (scenario.name, scenario.seed, len(scenario.units), len(scenario.pilots)) == ("mine", 5, 12, 3)
    other = Scenario.from_mapping({"workload": "uniform", "pilots": [{"id": "p", "slots": 1}]})
    assert other.pilots == (Pilot("p", 1),)


def one(**more):
    fields = {"pilots": (Pilot("p", 2, "eu"),), "units": (Unit("cu", 1.0),), "stores": (Store("s"),)}
    return fields | more


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"pilots": ()}, "scenario: pilots .* is empty; without a pilot nothing runs"),
        ({"units": ()}, "scenario: units .* is empty"),
        ({"pilots": (Pilot("p", 1), Pilot("p", 1))}, "scenario: pilots 'p' is there twice; ids are unique"),
        ({"pilots": (Pilot("p", 0),)}, "pilot p: slots 0 is no whole number of at least 1"),
        ({"pilots": (Pilot("p", 1.5),)}, "pilot p: slots 1.5 is no whole number"),
        ({"pilots": (Pilot("p", 4, workers=3),)}, "pilot p: workers 3 do not share 4 slots evenly"),
        ({"pilots": (Pilot("p", 1, arrives_s=-1.0),)}, "pilot p: arrives_s -1.0 is not a number of seconds"),
        ({"pilots": (Pilot("p", 1, arrives_s=5.0, ends_s=5.0),)}, "ends_s 5.0 is not after arrives_s, 5.0"),
        ({"pilots": (Pilot("p", 1, walltime_s=0.0),)}, "walltime_s 0.0 is not a positive finite number"),
        ({"pilots": (Pilot("p", 1, submitted_s=5.0),)}, "submitted_s 5.0 is after arrives_s, 0.0"),
        ({"pilots": (Pilot("p", 1, speed=float("nan")),)}, "speed nan is not a positive finite number"),
        ({"data": (Data("d", -1),)}, "data d: nbytes -1 is no whole number of at least 0"),
        ({"data": (Data("d", 1, 0),)}, "data d: n_files 0 is no whole number of at least 1"),
        ({"data": (Data("d", 1, replicas=("x",)),)}, "data d: replicas 'x' is no store"),
        ({"links": (Link(1.0),)}, "link of None: between None and distance are two ways"),
        ({"links": (Link(0.0, between=("a", "b")),)}, "link between a and b: bandwidth_bytes_per_s 0.0"),
        ({"links": (Link(1.0, float("inf"), ("a", "b")),)}, "latency_s inf is not a number of seconds"),
        ({"uplinks": (Uplink("eu", 0.0, 1.0),)}, "uplink of eu: up_bytes_per_s 0.0 is not a positive"),
        ({"units": (Unit("cu", -1.0),)}, "unit cu: run_s -1.0 is not a number of seconds"),
        ({"units": (Unit("cu", 1.0, priority=float("nan")),)}, "unit cu: priority nan is not finite"),
        ({"units": (Unit("cu", 1.0, ("x",)),)}, "unit cu: inputs 'x' is no data unit"),
        (
            {"units": (Unit("cu", 1.0, ("d",)),), "data": (Data("d", 1),)},
            "inputs 'd' has no replica, and no unit writes",
        ),
        ({"units": (Unit("cu", 1.0, ("d",), ("d",)),), "data": (Data("d", 1),)}, "inputs 'd' is one of its outputs"),
        (
            {"units": (Unit("cu", 1.0, (), ("d",)),), "data": (Data("d", 1),), "stores": ()},
            "stores .* is empty, but units",
        ),
        ({"units": (Unit("cu", 1.0, affinity="must"),)}, "affinity 'must' is unknown; write 'prefer' or 'require'"),
        (
            {
                "units": (Unit("a", 1.0, ("x",), ("y",)), Unit("b", 1.0, ("y",), ("x",))),
                "data": (Data("x", 1), Data("y", 1)),
            },
            "unit a: .* waits, in a circle",
        ),
        ({"cache_nbytes": -1}, "cache_nbytes -1 is no whole number"),
        ({"lagging": 1.5}, "lagging 1.5 is no part"),
        ({"files_at_once": 0}, "files_at_once 0 is no whole number of at least 1"),
    ],
)
def test_what_is_wrong_is_refused(fields, message):
    with pytest.raises(DescriptionError, match=message):
        Scenario(**one(**fields))


@pytest.mark.parametrize(
    "unit",
    [Unit("cu", 1.0, slots=3), Unit("cu", 1.0, pilot="q"), Unit("cu", 1.0, datacenter="us", affinity="require")],
)
def test_a_unit_that_no_pilot_can_run_is_refused(unit):
    with pytest.raises(PlacementError, match="unit cu can run on none of the pilots"):
        Scenario(**one(units=(unit,)))


PILOTS = [{"id": "p", "slots": 1}]
UNITS = [{"id": "cu", "run_s": 1}]


@pytest.mark.parametrize(
    ("mapping", "message"),
    [
        ([], r"the scenario \[\] is no mapping"),
        ({"pilot": PILOTS}, "'pilot' is not a field of a scenario; did you mean 'pilots'?"),
        ({"pilots": {"id": "p"}}, "pilots {'id': 'p'} is no list"),
        ({"pilots": ["p"]}, r"pilots\[0\] 'p' is no pilot; write its fields"),
        ({"pilots": [{"id": "p"}]}, r"pilots\[0\]: slots is missing; add it"),
        ({"pilots": [{"id": "p", "slot": 1}]}, r"pilots\[0\]: 'slot' is not a field of a pilot; did you mean 'slots'?"),
        ({"pilots": [{"id": "p", "slots": "4"}]}, r"pilots\[0\]: slots '4' is not a whole number"),
        ({"pilots": [{"id": "p", "slots": 1, "speed": 0}]}, r"pilots\[0\]: speed 0 is not positive"),
        ({"units": [{"id": "u", "run_s": -1}]}, r"units\[0\]: run_s -1 is negative"),
        ({"units": [{"id": "u", "run_s": []}]}, r"units\[0\]: run_s \[\] is empty"),
        ({"units": [{"id": "u", "run_s": {"normal": 1}}]}, r"units\[0\]: run_s .* is no distribution"),
        ({"units": [{"id": "u", "run_s": {"uniform": 1}}]}, r"units\[0\]: run_s .* is no distribution"),
        ({"links": [{"between": ["eu"], "bandwidth": 1}]}, r"links\[0\]: between \['eu'\] does not name two sites"),
        (
            {"links": [{"distance": "far", "bandwidth": 1}]},
            r"links\[0\]: distance 'far' is no distance; write same-machine",
        ),
        ({"links": [{"between": ["a", "b"], "bandwidth": "fast"}]}, r"bandwidth 'fast' is not a bandwidth"),
        ({"peers": "yes"}, "the scenario: peers 'yes' is neither True nor False"),
        ({"workload": "unifrom"}, "workload 'unifrom' is unknown; did you mean 'uniform'?"),
        ({"workload": {"name": "uniform", "n": 3}}, "workload uniform: .*'n'"),
    ],
)
def test_what_is_wrong_in_a_file_is_refused(mapping, message):
    given = {"pilots": PILOTS, "units": UNITS, **mapping} if isinstance(mapping, dict) else mapping
    with pytest.raises(DescriptionError, match=message):
        Scenario.from_mapping(given)


@pytest.mark.parametrize(("name", "text"), [("a.yaml", "[:"), ("a.json", "{"), ("a.toml", "x ="), ("a.jsonl", "{")])
def test_a_file_that_cannot_be_understood_is_refused_by_name(tmp_path, name, text):
    (tmp_path / name).write_text(text)
    with pytest.raises(DescriptionError, match=rf"{name} cannot be"):
        Scenario.from_file(tmp_path / name)


def test_a_file_that_is_not_there_is_refused_by_name(tmp_path):
    with pytest.raises(DescriptionError, match=r"none\.yaml cannot be read"):
        Scenario.from_file(tmp_path / "none.yaml")


def test_what_is_wrong_in_a_file_is_said_with_its_name(tmp_path):
    (tmp_path / "a.yaml").write_text("pilots: [{id: p, slots: 0}]")
    with pytest.raises(DescriptionError, match=r"a\.yaml: pilots\[0\]: slots 0 is less than 1") as caught:
        Scenario.from_file(tmp_path / "a.yaml")
    assert (caught.value.field, caught.value.value) == ("slots", 0)
