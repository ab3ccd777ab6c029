import copy
import dataclasses
import doctest
import functools
import inspect
import math
import os
import pickle
import posixpath
import re
import shlex
from pathlib import Path, PurePosixPath
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import dpilot.descriptions as package
from dpilot.descriptions import (
    ComputeUnitDescription,
    ComputeUnitSpec,
    DataUnitDescription,
    DataUnitSpec,
    Description,
    FileTransfer,
    Output,
    PilotComputeDescription,
    PilotDataDescription,
    PilotSpec,
    StoreSpec,
    check_coordination_url,
    did_you_mean,
    expand,
    expansion,
    parsers,
    redacted,
)
from dpilot.errors import DescriptionError, PilotError

DESCRIPTIONS = {
    PilotComputeDescription: (PilotSpec, {"service_url": "fork://localhost"}),
    ComputeUnitDescription: (ComputeUnitSpec, {"executable": "/bin/date"}),
    PilotDataDescription: (StoreSpec, {"service_url": "file:///data"}),
    DataUnitDescription: (DataUnitSpec, {"file_urls": ["/a"]}),
}
DU_URL = "dpilot://127.0.0.1:8786/du-0123456789ab"

each_description = pytest.mark.parametrize("cls", DESCRIPTIONS, ids=lambda cls: cls.__name__)


def pilot(**keys):
    return PilotComputeDescription(service_url="fork://localhost", **keys).validate()


def unit(**keys):
    return ComputeUnitDescription({"executable": "/bin/date"} | keys).validate()


def store(**keys):
    return PilotDataDescription({"service_url": "file:///data"} | keys).validate()


def data_unit(**keys):
    return DataUnitDescription(**keys).validate()


def refused(make, field, fix="", **keys):
    """The error of `make(**keys)`, which must name the field and contain `fix`."""
    with pytest.raises(DescriptionError) as caught:
        make(**keys)
    error = caught.value
    assert isinstance(error, PilotError)
    assert error.field == field
    assert field in str(error)
    assert fix in str(error)
    return error


# --- the example on which dpilot was founded ----------------------------------------------------


def test_the_seed_example():
    pilot_compute_description = {
        "service_url": "fork://localhost",
        "number_of_processes": 1,
        "working_directory": os.path.join(os.getcwd(), "work"),  # noqa: PTH118, PTH109 - verbatim
        "affinity_datacenter_label": "eu-de-south",
        "affinity_machine_label": "mymachine",
    }
    compute_unit_description = {
        "executable": "/bin/date",
        "arguments": [""],
        "number_of_processes": 1,
        "output": "stdout.txt",
        "error": "stderr.txt",
        "affinity_datacenter_label": "eu-de-south",
        "affinity_machine_label": "mymachine",
    }
    assert PilotComputeDescription.of(pilot_compute_description).validate() == PilotSpec(
        service_url="fork://localhost",
        slots=1,
        working_directory=str(Path.cwd() / "work"),
        datacenter="eu-de-south",
        machine="mymachine",
    )
    assert ComputeUnitDescription.of(compute_unit_description).validate() == ComputeUnitSpec(
        executable="/bin/date", datacenter="eu-de-south", machine="mymachine"
    )


# --- dicts with attributes ----------------------------------------------------------------------


@each_description
def test_only_the_required_key_gives_the_defaults(cls):
    spec, least = DESCRIPTIONS[cls]
    found = cls(least).validate()
    assert type(found) is spec
    for field in dataclasses.fields(spec):
        if field.default is not dataclasses.MISSING and field.name != "file_urls":
            assert getattr(found, field.name) == field.default


@each_description
def test_attributes_are_keys(cls):
    description = cls()
    assert isinstance(description, dict)
    description.affinity_datacenter_label = "eu"
    assert description == {"affinity_datacenter_label": "eu"}
    description["affinity_datacenter_label"] = "us"
    assert description.affinity_datacenter_label == "us"
    del description.affinity_datacenter_label
    assert description == {}
    assert description.affinity_datacenter_label is None
    with pytest.raises(AttributeError, match="affinity_datacenter_label"):
        del description.affinity_datacenter_label


@each_description
def test_an_unknown_attribute_is_an_error_that_helps(cls):
    with pytest.raises(AttributeError, match="did you mean 'affinity_machine_label'"):
        _ = cls().afinity_machine_label
    assert not hasattr(cls(), "_repr_html_")
    assert not hasattr(Description(), "executable")


def test_a_key_that_is_not_set_reads_as_its_default():
    assert ComputeUnitDescription().number_of_processes == 1
    assert ComputeUnitDescription().output == "stdout.txt"
    assert ComputeUnitDescription(total_cpu_count=3).number_of_processes == 3
    assert ComputeUnitDescription(walltime=3).wall_time_limit == 3
    # A change of such a default would be lost: it cannot be made.
    with pytest.raises(TypeError):
        ComputeUnitDescription().environment["X"] = "1"


@each_description
def test_completion_knows_the_keys(cls):
    keys = cls()._ipython_key_completions_()
    assert set(keys) <= set(dir(cls()))
    assert {"validate", "of", "items"} <= set(dir(cls()))
    assert set(DESCRIPTIONS[cls][1]) <= set(keys)


@each_description
def test_no_key_is_hidden_by_a_method_of_dict(cls):
    assert not set(cls()._ipython_key_completions_()) & {name for base in cls.__mro__ for name in vars(base)}


@each_description
def test_every_key_and_field_is_documented(cls):
    spec, _ = DESCRIPTIONS[cls]
    assert inspect.getdoc(cls).startswith(cls.__doc__.splitlines()[0])
    for key in cls()._ipython_key_completions_():
        assert re.search(rf"^(.*, )?{key}(, .*)?$", cls.__doc__, re.MULTILINE), key
    for field in dataclasses.fields(spec):
        assert f"\n{field.name} : {field.type}\n" in spec.__doc__


@each_description
def test_descriptions_are_copied_and_pickled_as_themselves(cls):
    description = cls(DESCRIPTIONS[cls][1])
    for clone in (
        description.copy(),
        copy.copy(description),
        copy.deepcopy(description),
        pickle.loads(pickle.dumps(description)),
    ):
        assert type(clone) is cls
        assert clone == description
        assert clone is not description


@each_description
def test_of_takes_a_dict_or_a_description(cls):
    least = DESCRIPTIONS[cls][1]
    description = cls.of(least)
    assert type(description) is cls
    assert description == least
    assert cls.of(description) is description


@each_description
@pytest.mark.parametrize("wrong", [None, "fork://localhost", 3, ["service_url"]], ids=repr)
def test_of_refuses_what_is_no_dict(cls, wrong):
    with pytest.raises(
        DescriptionError, match=f"a {cls.__name__}, or a dict .* is needed, not a {type(wrong).__name__}"
    ):
        cls.of(wrong)


def test_of_refuses_another_kind_of_description():
    with pytest.raises(DescriptionError, match="not a PilotDataDescription"):
        PilotComputeDescription.of(PilotDataDescription(service_url="file:///data"))


def test_users_may_derive_a_description():
    class Mine(ComputeUnitDescription):
        """With a default of my own."""

    assert Mine(executable="x").validate() == ComputeUnitSpec(executable="x")
    assert ComputeUnitDescription.of(Mine(executable="x")).validate().executable == "x"


@each_description
def test_validate_leaves_the_description_alone_and_the_spec_is_frozen(cls):
    description = cls(DESCRIPTIONS[cls][1] | {"affinity_datacenter_label": "eu"})
    before = copy.deepcopy(description)
    spec = description.validate()
    assert description == before
    assert pickle.loads(pickle.dumps(spec)) == spec
    with pytest.raises(dataclasses.FrozenInstanceError):
        spec.datacenter = "us"


def test_a_spec_does_not_follow_later_changes():
    keys = {"environment": {"A": "1"}, "arguments": ["a"], "file_transfer": ["/a > b"]}
    spec = unit(**keys)
    keys["environment"]["A"] = "2"
    keys["arguments"].append("b")
    assert spec.environment == {"A": "1"}
    assert spec.arguments == ("a",)


# --- what is wrong with any key -----------------------------------------------------------------


@each_description
def test_unknown_keys(cls):
    least = DESCRIPTIONS[cls][1]
    error = refused(cls(least, affinity_datacenter_lable="eu").validate, "affinity_datacenter_lable")
    assert "did you mean 'affinity_datacenter_label'?" in str(error)
    error = refused(cls(least, xyzzy="hush").validate, "xyzzy", "known are ")
    assert all(key in str(error) for key in cls()._ipython_key_completions_())
    assert "hush" not in str(error)
    with pytest.raises(DescriptionError, match="3 is not a key"):
        cls(least | {3: 4}).validate()


@pytest.mark.parametrize(
    ("cls", "field"),
    [
        (PilotComputeDescription, "service_url"),
        (ComputeUnitDescription, "executable"),
        (PilotDataDescription, "service_url"),
    ],
)
@pytest.mark.parametrize("given", [{}, None])
def test_required_keys(cls, field, given):
    keys = {} if given == {} else {field: None}
    refused(cls(keys).validate, field, f"is missing in a {cls.__name__}; write")


@each_description
def test_none_is_as_good_as_not_given(cls):
    _, least = DESCRIPTIONS[cls]
    others = dict.fromkeys(set(cls()._ipython_key_completions_()) - set(least))
    assert cls(least | others).validate() == cls(least).validate()


@pytest.mark.parametrize(
    ("make", "names", "attribute", "value", "expected"),
    [
        (pilot, ("number_of_processes", "total_cpu_count", "total_core_count"), "slots", 4, 4),
        (pilot, ("processes_per_node", "processes_per_host"), "slots_per_node", 2, 2),
        (pilot, ("walltime", "wall_time_limit"), "walltime_s", 1.5, 90.0),
        (unit, ("number_of_processes", "total_cpu_count", "total_core_count"), "slots", 4, 4),
        (unit, ("walltime", "wall_time_limit"), "walltime_s", 10, 600.0),
    ],
)
def test_further_names(make, names, attribute, value, expected):
    for name in names:
        assert getattr(make(**{name: value}), attribute) == expected
    assert getattr(make(**dict.fromkeys(names, value)), attribute) == expected
    assert getattr(make(**{names[0]: None, names[-1]: value}), attribute) == expected
    refused(make, names[-1], f"contradicts {names[0]} {value}", **{names[0]: value, names[-1]: value + 1})


@pytest.mark.parametrize(
    ("make", "field"),
    [
        (make, field)
        for make in (pilot, unit, store, data_unit)
        for field in ("affinity_datacenter_label", "affinity_machine_label")
    ]
    + [(pilot, "queue"), (pilot, "project"), (unit, "name"), (data_unit, "name")],
)
@pytest.mark.parametrize("wrong", ["", "  ", 3, ["eu"], b"eu", "eu\nus", "a\0b", "\ud800"], ids=repr)
def test_labels(make, field, wrong):
    error = refused(make, field, **{field: wrong})
    assert error.value == wrong
    assert "; write " in str(error) or "; take it out" in str(error)


@pytest.mark.parametrize("make", [pilot, unit, store, data_unit])
def test_labels_are_kept_as_they_are(make):
    spec = make(affinity_datacenter_label="eu de/süd", affinity_machine_label="m 1")
    assert (spec.datacenter, spec.machine) == ("eu de/süd", "m 1")


@pytest.mark.parametrize(
    ("make", "field", "least"),
    [
        (pilot, "number_of_processes", 1),
        (pilot, "processes_per_node", 1),
        (pilot, "threads_per_worker", 1),
        (unit, "number_of_processes", 1),
        (unit, "retries", 0),
        (data_unit, "number_of_replicas", 1),
    ],
)
def test_whole_numbers(make, field, least):
    for good in (least, np.int64(5), 2**40):
        assert int(good) in [v for v in dataclasses.astuple(make(**{field: good})) if type(v) is int]
    for wrong in (True, False, "4", 4.0, math.nan, [1], np.True_):
        assert refused(
            make,
            field,
            f"is not a whole number; write one without quotes or fraction, at least {least}",
            **{field: wrong},
        )
    for wrong in (least - 1, -7):
        assert refused(make, field, f"{field} {wrong} is less than {least}", **{field: wrong}).value == wrong


@pytest.mark.parametrize("make", [pilot, unit])
@pytest.mark.parametrize("wrong", [0, -1, True, "90", "01:30:00", math.inf, math.nan, 10**400, 1e308, [1]], ids=str)
def test_walltimes_are_positive_minutes(make, wrong):
    refused(make, "walltime", "is not a positive number of minutes; write such as 90", walltime=wrong)


@pytest.mark.parametrize(("value", "expected"), [(0, 0.0), (-2, -2.0), (2.5, 2.5), (np.float32(0.5), 0.5)])
def test_priorities(value, expected):
    assert unit(priority=value).priority == expected
    assert type(unit(priority=value).priority) is float


@pytest.mark.parametrize("wrong", [True, "high", math.inf, math.nan, 10**400], ids=str)
def test_priorities_are_finite_numbers(wrong):
    refused(unit, "priority", "write a finite one", priority=wrong)


@pytest.mark.parametrize(
    ("make", "field", "good"),
    [
        (pilot, "spmd_variation", ("single", "mpi")),
        (unit, "spmd_variation", ("single", "mpi")),
        (unit, "affinity", ("prefer", "require")),
    ],
)
def test_words_from_a_list(make, field, good):
    for word in good:
        assert getattr(make(**{field: word}), field) == word
    for wrong in ("", "both", 3, ["mpi"], {}):
        refused(make, field, f"is unknown; write {good[0]!r} or {good[1]!r}", **{field: wrong})


@pytest.mark.parametrize(
    ("make", "field"),
    [
        (pilot, "working_directory"),
        (pilot, "input"),
        (pilot, "output"),
        (pilot, "error"),
        (unit, "working_directory"),
        (functools.partial(store, service_url="sftp://host/x"), "userkey"),
    ],
)
def test_paths(make, field):
    assert "/a/b" in dataclasses.astuple(make(**{field: Path("/a/b")}))
    assert "../b c" in dataclasses.astuple(make(**{field: "../b c"}))
    for wrong in ("", 3, b"/a", ["/a"], "a\0b"):
        refused(make, field, **{field: wrong})


@pytest.mark.parametrize(
    ("make", "field"),
    [
        (pilot, "candidate_hosts"),
        (pilot, "file_transfer"),
        (unit, "file_transfer"),
        (unit, "input_data"),
        (unit, "output_data"),
        (data_unit, "file_urls"),
        (data_unit, "file_url_patterns"),
    ],
)
def test_lists(make, field):
    assert make(**{field: []}) == make(**{field: ()}) == make()
    refused(make, field, "is not a list; write ['/a > b']", **{field: "/a > b"})
    refused(make, field, "is not a list; write [...]", **{field: 3})


# --- pilots -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("fork://localhost", "fork://localhost"),
        ("local://", "local://"),
        ("FORK://localhost", "fork://localhost"),
        ("ssh://me@host.example.org:2222/path", "ssh://me@host.example.org:2222/path"),
        ("slurm+ssh://login1", "slurm+ssh://login1"),
        ("xyz://unheard-of", "xyz://unheard-of"),
        ("ssh://[::1]:22", "ssh://[::1]:22"),
    ],
)
def test_urls_of_pilots(url, expected):
    spec = PilotComputeDescription(service_url=url).validate()
    assert spec.service_url == expected
    assert spec.scheme == expected.partition(":")[0]


@pytest.mark.parametrize(
    "url",
    [
        "",
        "localhost",
        "fork:/localhost",
        "fork:localhost",
        "://localhost",
        "1fork://localhost",
        "fork ://localhost",
        "fork://local host",
        "fork://localhost\n",
        "ssh://host:port",
        "ssh://host:99999",
        "ssh://[::1",
        3,
        Path("/fork"),
        b"fork://localhost",
    ],
    ids=repr,
)
def test_malformed_urls_of_pilots(url):
    error = refused(PilotComputeDescription(service_url=url).validate, "service_url", "fork://localhost")
    assert error.value == url


def test_the_other_keys_of_a_pilot():
    spec = pilot(
        project="p",
        queue="q",
        candidate_hosts=["a", "b"],
        input="in",
        output="/log/out",
        error=Path("err"),
        file_transfer=["/data/x > BIGJOB_WORK_DIR"],
        threads_per_worker=4,
        memory_per_worker="4 GB",
        environment={"OMP_NUM_THREADS": 1},
        launcher_options={"partition": "short"},
    )
    assert (spec.project, spec.queue, spec.candidate_hosts) == ("p", "q", ("a", "b"))
    assert (spec.stdin, spec.stdout, spec.stderr) == ("in", "/log/out", "err")
    assert spec.file_transfer == (FileTransfer("/data/x", "x"),)
    assert (spec.threads_per_worker, spec.memory_per_worker_nbytes) == (4, 4_000_000_000)
    assert spec.environment == {"OMP_NUM_THREADS": "1"}
    assert spec.launcher_options == {"partition": "short"}


@pytest.mark.parametrize("wrong", ["short", ["a"], {1: 2}], ids=repr)
def test_options_are_dicts_with_names(wrong):
    refused(pilot, "launcher_options", launcher_options=wrong)


# --- compute units ------------------------------------------------------------------------------


def test_executables():
    assert unit(executable=Path("/bin/ls")).executable == "/bin/ls"
    assert not unit().is_callable
    for function in (len, print, dict, functools.partial(int, base=2), lambda: 1, Path.exists):
        assert unit(executable=function).executable is function
        assert unit(executable=function).is_callable
    for wrong in ("", " ", 3, b"/bin/ls", ["/bin/ls"], "a\0b"):
        refused(unit, "executable", "write its name or path, or give a Python callable", executable=wrong)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ([], ()),
        ([""], ()),  # BigJob's rule
        (("",), ()),
        ("", ()),
        (" ", ()),
        (["", ""], ("", "")),
        (["-e", ""], ("-e", "")),
        ([" "], (" ",)),
        (["a b", "c"], ("a b", "c")),
        ([1, 2.5, np.int64(3), Path("/x y")], ("1", "2.5", "3", "/x y")),
        ("a 'b c' d\\ e", ("a", "b c", "d e")),
        ("I am $TASK_NO", ("I", "am", "$TASK_NO")),
        (["I am a $TASK_SET task"], ("I am a $TASK_SET task",)),
        ("''", ("",)),
    ],
    ids=repr,
)
def test_arguments(given, expected):
    assert unit(arguments=given).arguments == expected


@pytest.mark.parametrize(
    ("wrong", "value"),
    [
        (["a", None], None),
        ([True], True),
        ([["a"]], ["a"]),
        ([b"a"], b"a"),
        (["a\0"], "a\0"),
        (["\udc80"], "\udc80"),
        ("a 'b", "a 'b"),
        (3, 3),
        ({"a": 1}, {"a": 1}),
    ],
    ids=repr,
)
def test_arguments_that_no_program_can_take(wrong, value):
    assert refused(unit, "arguments", ";", arguments=wrong).value == value


@given(st.lists(st.text(st.characters(codec="utf-8", exclude_characters="\0"))))
def test_arguments_survive_as_a_list_and_as_a_string(words):
    expected = () if words == [""] else tuple(words)
    assert unit(arguments=words).arguments == expected
    assert unit(arguments=shlex.join(words)).arguments == tuple(words)


def test_callables_have_args_and_kwargs():
    spec = unit(executable=pow, args=[2, np.arange(3)], kwargs={"mod": 5})
    assert spec.args[0] == 2
    assert spec.kwargs == {"mod": 5}
    assert unit(executable=pow, args=(2, 3)).args == (2, 3)
    refused(unit, "args", "is not a list; write ['ab']", executable=len, args="ab")
    refused(unit, "kwargs", "is not a dict", executable=len, kwargs=[1])
    assert refused(unit, "kwargs", "names", executable=len, kwargs={1: 2}).value == 1


@pytest.mark.parametrize(
    ("field", "value", "fix"),
    [
        ("arguments", ["x"], "write 'args' and 'kwargs'"),
        ("environment", {"A": 1}, "give it to the pilot"),
        ("input", "in.txt", "let it open the file"),
        ("output", "out.txt", "use result()"),
        ("error", "err.txt", "use exception()"),
        ("spmd_variation", "mpi", "write 'single'"),
    ],
)
def test_what_only_programs_have_is_refused_for_callables(field, value, fix):
    error = refused(unit, field, fix, executable=len, **{field: value})
    assert error.value == value
    assert "the executable is a Python callable" in str(error)


def test_a_callable_may_have_what_programs_have_by_default():
    keys = {
        "arguments": [""],
        "environment": {},
        "output": "stdout.txt",
        "error": "stderr.txt",
        "spmd_variation": "single",
    }
    assert unit(executable=len, **keys) == ComputeUnitSpec(executable=len)


@pytest.mark.parametrize(("field", "value"), [("args", (1,)), ("kwargs", {"a": 1})])
def test_what_only_callables_have_is_refused_for_programs(field, value):
    refused(unit, field, "write 'arguments'", **{field: value})


@pytest.mark.parametrize("make", [pilot, unit])
@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, {}),
        ({"A": "x", "B": 1, "C": 0.5, "D": Path("/d"), "E": ""}, {"A": "x", "B": "1", "C": "0.5", "D": "/d", "E": ""}),
        (["TBD_DIR=/tmp", "A=b=c", "E="], {"TBD_DIR": "/tmp", "A": "b=c", "E": ""}),
    ],
    ids=str,
)
def test_environments(make, given, expected):
    assert make(environment=given).environment == expected


def test_the_environment_of_this_process_will_do():
    assert unit(environment=os.environ).environment == dict(os.environ)


@pytest.mark.parametrize(
    "wrong",
    [{"A": None}, {"A": True}, {"A": ["b"]}, {"": "x"}, {3: "x"}, {"A=B": "x"}, {"A": "\0"}, ["A"], [3], "A=b", 3],
    ids=repr,
)
def test_environments_that_no_process_can_have(wrong):
    refused(unit, "environment", ";", environment=wrong)


ESCAPES = ["/etc/passwd", "//x", "..", "../x", "a/../x", "a/../../x", "a/.."]
NO_FILES = ["", ".", "./", "a/", "a\0b", 3, None]


@pytest.mark.parametrize("field", ["output", "error", "input"])
def test_files_in_the_sandbox(field):
    attribute = {"output": "stdout", "error": "stderr", "input": "stdin"}[field]
    for name, expected in [
        ("a.txt", "a.txt"),
        ("./a//b.txt", "a/b.txt"),
        (Path("a/b"), "a/b"),
        ("..a", "..a"),
        ("a b", "a b"),
    ]:
        assert getattr(unit(**{field: name}), attribute) == expected
    for wrong in ESCAPES:
        if not (field == "input" and wrong.startswith("/")):
            assert refused(unit, field, "would escape the sandbox; write a path", **{field: wrong}).value == wrong
    for wrong in NO_FILES[:-1]:
        refused(unit, field, **{field: wrong})


def test_an_input_may_be_an_absolute_path():
    assert unit(input="/dev/null").stdin == "/dev/null"
    assert unit(input=Path("/a/../b")).stdin == "/a/../b"


@given(st.text(st.sampled_from("ab./*?[]~$ "), min_size=1, max_size=12))
def test_no_name_that_is_accepted_leads_out_of_its_directory(name):
    try:
        safe = parsers.safe_name(name)
    except parsers.Wrong:
        return
    assert posixpath.normpath(posixpath.join("/root", safe)).startswith("/root/")
    assert ".." not in PurePosixPath(safe).parts
    assert parsers.safe_name(safe) == safe


class Handle:
    """Like a DataUnit: hashable, with an id and a URL."""

    id = "du-0123456789ab"

    def get_url(self):
        raise AssertionError("the scheduler is not asked while a description is checked")


def test_input_data():
    handle, bare = Handle(), SimpleNamespace(id="du-1")
    assert unit(input_data=[handle, DU_URL, bare]).input_data == (handle, DU_URL, bare)


@pytest.mark.parametrize(
    "wrong",
    [
        "/data/a.txt",
        "file:///data/a.txt",
        "",
        DU_URL + "/a.txt",
        DU_URL.replace("du-", "cu-"),
        SimpleNamespace(id="cu-0123456789ab"),
        SimpleNamespace(id="pd-0123456789ab"),
        3,
        None,
        Handle,
        {"file_urls": ["/a"]},
        DataUnitDescription(file_urls=["/a"]),
    ],
    ids=repr,
)
def test_input_data_that_is_no_data_unit(wrong):
    assert refused(unit, "input_data", "data unit", input_data=[DU_URL, wrong]).value == wrong


def test_output_data():
    handle = Handle()
    spec = unit(output_data=[{handle: ["*.out", "./a//b"]}, {DU_URL: "std*", "results": ("**/*.csv",)}])
    assert spec.output_data == (
        Output(handle, ("*.out", "a/b")),
        Output(DU_URL, ("std*",)),
        Output("results", ("**/*.csv",)),
    )


@pytest.mark.parametrize("glob", [*ESCAPES, "/*", "../*", "*/../..", "**/../x"])
def test_output_globs_that_escape_the_sandbox(glob):
    for globs in (glob, [glob], ["*.out", glob]):
        error = refused(unit, "output_data", "would escape the sandbox", output_data=[{"results": globs}])
        assert error.value == glob


@pytest.mark.parametrize("globs", [*NO_FILES, [], [""], [3], {"a": "b"}], ids=repr)
def test_output_globs_that_are_none(globs):
    refused(unit, "output_data", ";", output_data=[{"results": globs}])


@pytest.mark.parametrize(
    "target", ["", "a/b", "s3://bucket", DU_URL + "/x", DU_URL.replace("du-", "pd-"), 3, None], ids=repr
)
def test_output_targets_that_are_no_data_unit(target):
    assert refused(unit, "output_data", ";", output_data=[{target: "*"}]).value == target


@pytest.mark.parametrize("item", ["results", Handle(), ["*"], 3], ids=["str", "handle", "list", "int"])
def test_output_data_must_say_which_files(item):
    refused(unit, "output_data", "does not say which files; write {data_unit: ['*.out']}", output_data=[item])


@pytest.mark.parametrize("make", [pilot, unit])
@pytest.mark.parametrize(
    ("given", "source", "target"),
    [
        ("/a/x.txt > BIGJOB_WORK_DIR", "/a/x.txt", "x.txt"),
        ("/a/x.txt > DPILOT_WORK_DIR/", "/a/x.txt", "x.txt"),
        ("/a/x.txt > $DPILOT_WORK_DIR/sub/", "/a/x.txt", "sub/x.txt"),
        ("/a/x.txt > ${BIGJOB_WORK_DIR}/y.txt", "/a/x.txt", "y.txt"),
        ("/a/x.txt>y.txt", "/a/x.txt", "y.txt"),
        ("  a b.txt   >   c d.txt ", "a b.txt", "c d.txt"),
        ("ssh:///a/../x.txt > BIGJOB_WORK_DIR", "/a/../x.txt", "x.txt"),
        ("ssh://localhost/a/x.txt > y", "/a/x.txt", "y"),
        ("file:///a/x.txt > y", "/a/x.txt", "y"),
        ("ssh://me@host/a/x.txt > BIGJOB_WORK_DIR", "ssh://me@host/a/x.txt", "x.txt"),
        ("ssh://localhost:2222/x > y", "ssh://localhost:2222/x", "y"),
        ("s3://bucket/x > y", "s3://bucket/x", "y"),
        ("/a/dir/ > BIGJOB_WORK_DIR", "/a/dir/", "dir"),
        ("x > BIGJOB_WORK_DIRECTORY", "x", "BIGJOB_WORK_DIRECTORY"),
    ],
)
def test_file_transfers(make, given, source, target):
    assert make(file_transfer=[given]).file_transfer == (FileTransfer(source, target),)


@pytest.mark.parametrize(
    "wrong",
    [
        "",
        "a",
        ">",
        "a >",
        "> b",
        "a >> b",
        "a > b > c",
        "a < b",
        "a > /etc/b",
        "a > ../b",
        "a > BIGJOB_WORK_DIR/../b",
        "a > DPILOT_WORK_DIR//etc/passwd",
        "a > ssh://host/b",
        "/a/.. > BIGJOB_WORK_DIR",
        3,
        ("a", "b"),
    ],
    ids=repr,
)
def test_file_transfers_that_are_none(wrong):
    assert refused(unit, "file_transfer", ";", file_transfer=[wrong]).value == wrong


# --- stores and data units ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("file:///data/store", "file:///data/store"),
        ("file:///data/my store/", "file:///data/my store"),
        ("file://localhost/data", "file:///data"),
        ("FILE:///Data", "file:///Data"),
        ("s3://bucket/prefix//", "s3://bucket/prefix"),
        ("s3://bucket", "s3://bucket"),
        ("memory://x", "memory://x"),
        ("xyz://unheard/of", "xyz://unheard/of"),
        ("sftp://me@host:2222/p", "sftp://me@host:2222/p"),
        ("ssh://localhost/tmp/pilotdata-1/", "file:///tmp/pilotdata-1"),  # as in BigJob's examples
        ("ssh://me@localhost/tmp", "ssh://me@localhost/tmp"),
        ("ssh://localhost:2222/tmp", "ssh://localhost:2222/tmp"),
        ("http://host:8080/a@b", "http://host:8080/a@b"),
    ],
)
def test_urls_of_stores(url, expected):
    assert store(service_url=url).url == expected


def test_a_store_with_options_is_reached_by_ssh_as_it_says():
    for keys in ({"storage_options": {"port": 2222}}, {"userkey": "/home/me/.ssh/id"}):
        assert store(service_url="ssh://localhost/tmp", **keys).url == "ssh://localhost/tmp"
    refused(store, "userkey", "is not reached by ssh", service_url="s3://bucket/x", userkey="/home/me/.ssh/id")


@pytest.mark.parametrize(
    "url",
    [
        "",
        "/data",
        "data",
        "file:/data",
        "file://",
        "s3://",
        "file://data/store",
        "file://~/x",
        "s3:bucket",
        "s3://a\nb",
        3,
        Path("/d"),
    ],
    ids=repr,
)
def test_malformed_urls_of_stores(url):
    error = refused(store, "service_url", "file:///", service_url=url)
    assert error.value == url


SIZES = {"B": 1, "kB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12, "PB": 10**15}
SIZES |= {"KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "TiB": 2**40, "PiB": 2**50}


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("10 GB", 10**10),
        ("10GB", 10**10),
        (" 1.5 gib ", 3 * 2**29),
        ("10g", 10**10),
        ("2Mi", 2**21),
        ("7 b", 7),
        (".5k", 500),
        ("1.1 GB", 1_100_000_000),
        ("9007199254740993 B", 9007199254740993),
    ],
)
def test_sizes_with_a_unit(value, expected):
    assert store(size=value).size_nbytes == expected
    assert pilot(memory_per_worker=value).memory_per_worker_nbytes == expected


def test_numbers_are_megabytes_of_a_store_and_bytes_of_memory():
    for number in (100, 100.0, "100", np.int32(100)):
        assert store(size=number).size_nbytes == 100_000_000
        assert pilot(memory_per_worker=number).memory_per_worker_nbytes == 100
    assert store(size=0.5).size_nbytes == 500_000


@given(st.integers(1, 8 * 10**18), st.sampled_from(list(SIZES)))
def test_sizes_survive_in_every_unit(size, name):
    if size * SIZES[name] < 2**63:
        assert parsers.nbytes(f"{size} {name}") == size * SIZES[name]
    assert parsers.nbytes(size) == parsers.nbytes(str(size)) == size


@pytest.mark.parametrize(
    "wrong",
    [
        "",
        "lots",
        "GB",
        "10 XB",
        "10 iB",
        "-1 GB",
        "1e3",
        "1,5 GB",
        "1 GB free",
        "0",
        "0.1 B",
        "\u0661 GB",
        0,
        -1,
        True,
        math.nan,
        math.inf,
        10**400,
        "9" * 30,
        [1],
    ],
    ids=lambda wrong: repr(wrong)[:20],
)
def test_sizes_that_cannot_be_read(wrong):
    for make, field, word in [(store, "size", "megabytes"), (pilot, "memory_per_worker", "bytes")]:
        refused(make, field, f"is not a size; write a positive number of {word}, or", **{field: wrong})


def test_memory_and_gpus():
    assert unit(memory="1 GB").memory_nbytes == 1_000_000_000
    assert unit(gpus=1).gpus == 1
    assert unit(gpus=0).gpus == 0


def test_storage_options():
    options = {"key": "AK", "client_kwargs": {"endpoint_url": "http://h"}}
    spec = store(storage_options=options)
    assert spec.storage_options == options
    assert spec.storage_options is not options


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (["/a/b.txt", Path("/c"), "data/*.csv"], ("/a/b.txt", "/c", "data/*.csv")),
        (("s3://b/x", "https://h/y?z=1"), ("s3://b/x", "https://h/y?z=1")),
    ],
)
def test_file_urls(given, expected):
    assert data_unit(file_urls=given).file_urls == expected
    assert data_unit(file_url_patterns=given).file_url_patterns == expected


@pytest.mark.parametrize("wrong", ["", 3, None, b"/a", ["/a"], "a\0"], ids=repr)
def test_file_urls_that_are_none(wrong):
    assert refused(data_unit, "file_urls", ";", file_urls=["/a", wrong]).value == wrong


def test_one_file_must_still_be_a_list():
    refused(data_unit, "file_urls", "is not a list; write ['/a/b.txt']", file_urls="/a/b.txt")


def test_a_data_unit_may_be_empty():
    assert data_unit() == DataUnitSpec()
    assert data_unit(number_of_replicas=2, name="results") == DataUnitSpec(replicas=2, name="results")
    refused(data_unit, "register", "neither True nor False", register=1)
    refused(data_unit, "name", "one word", name="a/b")


def test_files_may_be_registered_where_they_lie():
    spec = data_unit(file_urls=["s3://b/x"], register=True, checksums=True, storage_options={"key": "k"})
    assert (spec.register, spec.checksums, spec.storage_options) == (True, True, {"key": "k"})
    refused(data_unit, "register", "name them in file_urls", register=True)
    refused(data_unit, "checksums", "goes with register", file_urls=["/a"], checksums=True)


# --- secrets ------------------------------------------------------------------------------------


def test_no_repr_shows_a_secret():
    description = PilotDataDescription(
        service_url="s3://user:hush/hush@bucket/x",
        storage_options={"key": "hush", "client_kwargs": {"password": "hush"}},
        secret_access_key="hush",
        storage_option={"secret": "hush"},
    )
    for text in (repr(description), str(description), f"{description}", f"{[description]}"):
        assert "hush" not in text
        assert all(name in text for name in ("s3://user:***@bucket", "'key'", "client_kwargs", "'secret'"))
    assert "hush" not in repr(store(storage_options={"key": "hush"}))
    assert repr(ComputeUnitDescription(executable="/bin/date", arguments=["a"])) == (
        "ComputeUnitDescription({'executable': '/bin/date', 'arguments': ['a']})"
    )


@pytest.mark.parametrize(
    ("make", "field", "value"),
    [
        (store, "service_url", "s3://user:hush@bucket"),
        (store, "service_url", "s3://user:hush/hush@bucket"),
        (store, "service_url", "s3://:hush@bucket"),
        (store, "storage_options", "hush"),
        (store, "storage_options", {1: "hush"}),
        (data_unit, "storage_options", "hush"),
        (data_unit, "file_urls", ["https://user:hush@host/x"]),
        (unit, "file_transfer", ["ssh://user:hush@host/x > y"]),
    ],
)
def test_no_error_shows_a_secret(make, field, value):
    error = refused(make, field, "***", **{field: value})
    assert "hush" not in str(error)
    assert "hush" not in str(error.value)


def test_a_password_in_the_url_of_a_pilot_is_refused():
    description = PilotComputeDescription(service_url="ssh://me:hush@host")
    error = refused(description.validate, "service_url", "holds a password; take it out")
    assert error.value == "ssh://me:***@host"


@pytest.mark.parametrize(
    "text", ["https://host:8080/a@b", "ssh://me@host:22/p", "http://[::1]:80/a@b", "a:b@c", "tcp://h:1"]
)
def test_what_is_no_password_is_shown(text):
    assert redacted(text) == text


# --- helpers ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("argument", "expected"),
    [
        ("I am a $TASK_SET task with id $TASK_NO", "I am a A task with id 7"),
        ("${TASK_SET}$TASK_NO", "A7"),
        ("$TASK_NO.txt", "7.txt"),
        ("$TASK_NOW", "$TASK_NOW"),
        ("${TASK_NO", "${TASK_NO"),
        ("$", "$"),
        ("$$", "$$"),
        ("$$TASK_NO", "$$TASK_NO"),
        ("$$$TASK_NO", "$$7"),
        ("awk '{print $1}'", "awk '{print $1}'"),
        (r"\$TASK_NO \${TASK_NO}", "$TASK_NO ${TASK_NO}"),
        (r"\$OTHER", r"\$OTHER"),
        ("$NESTED", "$TASK_NO"),
        ("${}", "${}"),
        ("${TASK_NO:-x}", "${TASK_NO:-x}"),
        ("$(date) `date` *", "$(date) `date` *"),
        ("", ""),
        ("$EMPTY.", "."),
    ],
)
def test_expand(argument, expected):
    environment = {"TASK_SET": "A", "TASK_NO": "7", "NESTED": "$TASK_NO", "EMPTY": ""}
    assert expand(argument, environment) == expected


@given(st.text(), st.dictionaries(st.from_regex(r"[A-Za-z_][A-Za-z0-9_]{0,5}", fullmatch=True), st.text(), max_size=4))
def test_expand_touches_only_references_to_known_names(text, environment):
    assert expand(text, {}) == text
    plain = text.replace("$", "").replace("\\", "")
    assert expand(plain, environment) == plain
    for name, value in environment.items():
        assert expand(f"{plain}${{{name}}}{plain}", environment) == plain + value + plain


@pytest.mark.parametrize("url", [None, "tcp://127.0.0.1:8786", "tls://node-1.example.org:8786", "tcp://[::1]:8786"])
def test_coordination_urls(url):
    assert check_coordination_url(url) == url


def test_the_slash_at_the_end_of_a_coordination_url_goes():
    assert check_coordination_url("tcp://h:8786/") == "tcp://h:8786"


@pytest.mark.parametrize(
    "url",
    ["redis://localhost:6379", "redis://me:hush@host:6379", "advert://host/?dbtype=postgresql", "REDIS://host"],
)
def test_the_coordination_urls_of_bigjob_are_refused_with_what_to_write(url):
    with pytest.raises(DescriptionError, match="which dpilot does not need; write tcp://HOST:PORT") as caught:
        check_coordination_url(url)
    assert "`dask scheduler`, or leave it out for an embedded one" in str(caught.value)
    assert "hush" not in str(caught.value)
    assert caught.value.field == "coordination_url"


@pytest.mark.parametrize(
    "url",
    [
        "",
        "localhost:8786",
        "tcp://*:10001",
        "tcp://h",
        "tcp://h:0",
        "tcp://h:65536",
        "tcp://h:1/x",
        "tcp://h:1\n",
        "http://h:1",
        "dpilot://h:1/pcs-0123456789ab",
        "tcp://",
        8786,
        b"tcp://h:1",
    ],
    ids=repr,
)
def test_what_is_no_coordination_url(url):
    with pytest.raises(
        DescriptionError, match="is not the address of a Dask scheduler; write tcp://HOST:PORT"
    ) as caught:
        check_coordination_url(url)
    assert caught.value.value == url


def test_long_values_are_cut_in_messages():
    error = refused(unit, "affinity", affinity="x" * 10_000)
    assert len(str(error)) < 400
    assert error.value == "x" * 10_000


@pytest.mark.parametrize("module", [parsers, expansion])
def test_the_examples_in_docstrings(module):
    results = doctest.testmod(module)
    assert results.attempted
    assert not results.failed


def test_did_you_mean():
    assert did_you_mean("frok", ["fork", "local"]) == "did you mean 'fork'?"
    assert did_you_mean(3, ["fork", "local"]) == "known are fork, local"


def test_every_public_name_is_there_and_documented():
    assert sorted(package.__all__) == package.__all__
    assert all(inspect.getdoc(getattr(package, name)) for name in package.__all__)
