"""A recorded run is read again: the format, what is made of it, and what is refused."""

import json
import re
from pathlib import Path

import pytest

from dpilot.errors import DescriptionError
from dpilot.simulator import Link, Pilot, Scenario, simulate, workloads
from dpilot.simulator.reading import FIELDS
from dpilot.simulator.recording import HAPPENED
from tests.simulator.helpers import check

MB = 10**6
EU, US = {"datacenter": "eu", "machine": "e"}, {"datacenter": "us", "machine": "u"}

RECORDS = [
    {"record": "run", "format": "dpilot-run", "version": 1, "name": "tuesday", "peers": False},
    {"record": "pilot", "id": "pc-1", "slots": 2, **EU},
    {"record": "pilot", "id": "pc-2", "slots": 2, **US, "submitted_s": 0.0, "arrives_s": 2.0, "ends_s": 60.0},
    {"record": "store", "id": "pd-1", **EU},
    {"record": "data", "id": "du-1", "nbytes": 20 * MB, "n_files": 1, "replicas": ["pd-1"]},
    {"record": "unit", "id": "cu-1", "run_s": 2.0, "inputs": ["du-1"], "kind": "f", "submitted_s": 0.5,
     "ran_on": "pc-2", "ready_s": 0.5, "bound_s": 2.0, "slot_s": 2.0, "started_s": 4.1, "ended_s": 6.1,
     "far_nbytes": 20 * MB},
    {"record": "unit", "id": "cu-2", "run_s": 1.0, "inputs": ["du-1"], "submitted_s": 0.5,
     "ran_on": "pc-1", "bound_s": 0.5, "ended_s": 1.5, "local_nbytes": 20 * MB},
    {"record": "transfer", "data": "du-1", "source": EU, "target": US, "nbytes": 20 * MB, "begun_s": 2.0,
     "seconds": 2.0},
    {"record": "transfer", "data": "du-2", "source": US, "target": EU, "nbytes": 20 * MB, "begun_s": 3.0,
     "seconds": 3.0},
    {"record": "transfer", "data": "du-3", "source": EU, "target": US, "nbytes": 10, "n_files": 2, "begun_s": 9.0,
     "seconds": 0.16},
]  # fmt: skip


def test_what_was_there_and_what_happened():
    recording = Scenario.from_records(RECORDS)
    scenario, result = recording.scenario, recording.result
    assert scenario.name == "tuesday"
    assert scenario.pilots[1] == Pilot("pc-2", 2, "us", "u", submitted_s=0.0, arrives_s=2.0, ends_s=60.0)
    # 40 MB in the four seconds in which any were moving; two small files in 0.16 s
    assert scenario.links == (Link(10 * MB, 0.08, ("eu", "us")),)
    assert (result.policy, result.n_units, result.makespan_s) == ("recorded", 2, 6.1)
    assert result.nbytes == (20 * MB, 0, 20 * MB)
    assert result.flow_s == pytest.approx((5.6 + 1.0) / 2)
    check(simulate(scenario), scenario)


def test_a_file_of_lines(tmp_path):
    path = tmp_path / "run.jsonl"
    path.write_text("\n".join(json.dumps(record) for record in RECORDS) + "\n\n")
    assert Scenario.from_records(path) == Scenario.from_records(RECORDS)
    assert Scenario.from_file(path) == Scenario.from_records(RECORDS).scenario


def test_without_ends_there_is_a_scenario_but_no_result():
    records = [{k: v for k, v in record.items() if k != "ended_s"} for record in RECORDS]
    assert Scenario.from_records(records).result is None


def test_a_run_that_was_simulated_can_be_recorded_and_replayed():
    """What is written of a simulated run gives the same run again."""
    scenario = workloads.hotspot()
    result = simulate(scenario, "labels")
    records = [RECORDS[0]]
    for pilot in scenario.pilots:
        records.append({"record": "pilot", "id": pilot.id, "slots": pilot.slots, **site(pilot)})
    records += [{"record": "store", "id": store.id, **site(store)} for store in scenario.stores]
    for data in scenario.data:
        records.append({"record": "data", "id": data.id, "nbytes": data.nbytes, "replicas": list(data.replicas)})
    ended = {row["unit"]: row for row in result.trace}
    for unit in scenario.units:
        row = ended[unit.id]
        moments = {name: row[name] for name in HAPPENED["unit"] if name in row}
        records.append(
            {
                "record": "unit",
                "id": unit.id,
                "run_s": unit.run_s,
                "inputs": list(unit.inputs),
                "kind": unit.kind,
                **moments,
            }
        )
    recording = Scenario.from_records(records)
    assert recording.result.makespan_s == result.makespan_s
    assert recording.result.waits_s == pytest.approx(result.waits_s)
    again = simulate(
        recording.scenario.replace(links=scenario.links, uplinks=scenario.uplinks, seed=scenario.seed), "labels"
    )
    assert again.makespan_s == result.makespan_s


def site(place):
    return {"datacenter": place.datacenter, "machine": place.machine}


@pytest.mark.parametrize(
    ("records", "message"),
    [
        ([], "a recorded run begins with one record"),
        (RECORDS[1:], "a recorded run begins with one record"),
        ([{**RECORDS[0], "version": 2}, *RECORDS[1:]], r"version.*2"),
        ([*RECORDS, {"record": "units", "id": "x"}], r"records\[10\]: record 'units' is unknown; did you mean 'unit'?"),
        ([*RECORDS, ["x"]], r"records\[10\]: record None is unknown"),
        ([*RECORDS, {"record": "unit", "id": "x"}], r"records\[10\]: run_s is missing"),
        ([*RECORDS, {"record": "unit", "id": "x", "run": 1}], "'run' is not a field of a unit; did you mean 'run_s'?"),
        ([*RECORDS, {"record": "transfer", "data": "d", "source": "eu"}], "source 'eu' is no site"),
    ],
)
def test_what_is_wrong_is_refused(records, message):
    with pytest.raises(DescriptionError, match=message):
        Scenario.from_records(records)


def test_the_documented_schema_has_the_fields_that_are_read():
    text = (Path(__file__).parents[2] / "docs" / "simulator.md").read_text()
    schema = json.loads(re.search(r"```json\n(\{\n  \"\$schema\".*?)```", text, re.DOTALL)[1])
    documented = {}
    for kind in schema["oneOf"]:
        properties = set(kind["properties"])
        documented[kind["properties"]["record"]["const"]] = (
            properties - {"record"},
            set(kind["required"]) - {"record"},
        )
    read = {}
    for kind, more in HAPPENED.items():
        marked = {**FIELDS.get(kind, {}), **more}
        names = {name.rstrip("!") for name in marked}
        read[kind] = names, {name[:-1] for name in marked if name.endswith("!")}
    assert documented == read
