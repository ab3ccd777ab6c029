import copy
import pickle

import pytest

import dpilot.errors as module
from dpilot.errors import DescriptionError, ExecutableError, PilotError, PilotTimeoutError, StoreFullError

ERRORS = [getattr(module, name) for name in module.__all__]


@pytest.mark.parametrize("cls", ERRORS)
@pytest.mark.parametrize("clone", [copy.copy, lambda error: pickle.loads(pickle.dumps(error))], ids=["copy", "pickle"])
def test_errors_cross_processes_with_all_they_know(cls, clone):
    error = clone(cls("name 'x' is wrong; write y", field="name", value=("x", 1), path="/a"))
    assert type(error) is cls
    assert isinstance(error, PilotError)
    assert str(error) == "name 'x' is wrong; write y"
    assert error.args == ("name 'x' is wrong; write y",)
    assert (error.field, error.value, error.path) == ("name", ("x", 1), "/a")


def test_every_error_has_a_docstring_and_is_listed():
    defined = {n for n, c in vars(module).items() if isinstance(c, type) and issubclass(c, PilotError)}
    assert defined == set(module.__all__)
    assert all(cls.__doc__ for cls in ERRORS)


@pytest.mark.parametrize(
    ("cls", "builtin"), [(DescriptionError, ValueError), (PilotTimeoutError, TimeoutError), (StoreFullError, OSError)]
)
def test_errors_are_what_python_calls_them_too(cls, builtin):
    with pytest.raises(builtin, match="no"):
        raise cls("no")


def test_details_that_were_not_given_have_defaults():
    assert ExecutableError("no").exit_code is None
    assert ExecutableError("no").stderr == ""
    assert DescriptionError("no").field is None
