"""`dpilot simulate` and what-if."""

import json

import pytest
from click.testing import CliRunner

from dpilot.cli import main
from dpilot.errors import DescriptionError
from dpilot.simulator import POLICIES, Link, Pilot, what_if, workloads
from dpilot.simulator.changes import changed
from tests.simulator.test_recording import RECORDS


def run(*argv):
    return CliRunner().invoke(main, ["simulate", *map(str, argv)])


def test_it_is_told_of_in_the_help():
    assert "simulate" in CliRunner().invoke(main, ["--help"]).output


def test_all_policies_and_a_plan():
    done = run("hotspot", "--plans", 40)
    assert done.exit_code == 0, done.output
    lines = done.output.splitlines()
    assert lines[0].startswith("hotspot: 48 units, 6 slots of 3 pilots, 24 data units")
    assert [line.split()[0] for line in lines[2:-1]] == [*POLICIES, "plan"]
    assert lines[-1].startswith("  no policy can take less than 3.576 s (links)")
    assert run("hotspot", "--plans", 40).output == done.output


def test_one_policy_and_a_trace(tmp_path):
    for name in ("trace.csv", "trace.jsonl"):
        done = run("uniform", "--policy", "labels", "--plans", 0, "--trace", tmp_path / name)
        assert done.exit_code == 0, done.output
    assert len((tmp_path / "trace.csv").read_text().splitlines()) == 49
    assert json.loads((tmp_path / "trace.jsonl").read_text().splitlines()[0])["outcome"] == "done"


def test_what_a_second_pilot_would_bring():
    done = run("hotspot", "--what-if", "pilot eu/eu slots=3", "--what-if", "link eu us bandwidth=1Gbit/s")
    assert done.exit_code == 0, done.output
    assert "times as fast with: pilot eu/eu slots=3; link eu us bandwidth=1Gbit/s" in done.output
    assert any(line.split()[:4] == ["eu/eu-1", "eu/eu", "3", line.split()[3]] for line in done.output.splitlines()[5:])


def test_a_recorded_run_stands_beside_its_replays(tmp_path):
    path = tmp_path / "run.jsonl"
    path.write_text("\n".join(map(json.dumps, RECORDS)))
    done = run(path, "--policy", "dpilot", "--plans", 10)
    assert done.exit_code == 0, done.output
    assert [line.split()[0] for line in done.output.splitlines()[2:-1]] == ["recorded", "dpilot", "plan"]


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["nowhere"], "'nowhere' is neither a file nor a workload; known are uniform"),
        (["uniform", "--policy", "dplot"], "policy 'dplot' is unknown; did you mean 'dpilot'?"),
        (["uniform", "--trace", "t.xls"], "--trace 't.xls' is of no known kind; write .csv or .jsonl"),
        (["uniform", "--what-if", "pilots eu"], "'pilots eu' is no change of a scenario: did you mean 'pilot'?"),
        (["uniform", "--what-if", "pilot eu"], "slots is missing"),
        (["uniform", "--what-if", "pilot eu slots=x"], "slots 'x' is not a whole number"),
        (["uniform", "--what-if", "link eu bandwidth=1"], "write link SITE SITE bandwidth=B"),
        (["uniform", "--what-if", "without x"], "'x' is no pilot of the scenario"),
        (["uniform", "--what-if", "replica x store-eu"], "'x' is no data unit of the scenario"),
        (["uniform", "--what-if", "replica du-000 store"], "data du-000: replicas 'store' is no store"),
        (["uniform", "--what-if", "without 'x"], "No closing quotation"),
        (["uniform", "--what-if", ""], "'' is no change of a scenario"),
    ],
)
def test_what_is_wrong_is_said_in_one_line_and_nothing_is_run(argv, message):
    done = run(*argv)
    assert done.exit_code == 1
    assert message in done.output
    assert "Traceback" not in done.output


def test_changes_in_words():
    base = workloads.uniform()
    assert changed(base, "pilot us-east slots=8 workers=2 arrives_s=1.5").pilots[-1] == Pilot(
        "us-east-1", 8, "us-east", workers=2, arrives_s=1.5
    )
    assert changed(base, "pilot us-east/m slots=8 id=mine").pilots[-1] == Pilot("mine", 8, "us-east", "m")
    assert [pilot.id for pilot in changed(base, "without pilot-us").pilots] == ["pilot-eu", "pilot-ap"]
    assert all("store-eu" in data.replicas for data in changed(base, "replica du-* store-eu").data)
    assert changed(base, "link eu us bandwidth=1e6 latency_s=0.1 from_s=3").links[-1] == Link(
        1e6, 0.1, ("eu", "us"), from_s=3
    )


def test_what_if_runs_both():
    base = workloads.hotspot()
    answer = what_if(base, add_pilots=[Pilot("more", 4, "eu", "eu")])
    assert answer.speedup > 1
    assert len(answer.changed.utilisation) == len(answer.base.utilisation) + 1
    assert what_if(base).speedup == 1
    slower = what_if(base, without=["pilot-ap"], links=[Link(1e5, 1.0, ("eu", "us"))])
    assert slower.speedup < 1
    with pytest.raises(DescriptionError, match="'nobody' is no pilot"):
        what_if(base, without=["nobody"])
