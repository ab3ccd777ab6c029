"""Credentials are where they are needed, and are seen nowhere."""

from __future__ import annotations

import gzip
import logging
from pathlib import Path
from typing import Any

import fsspec
import pytest

from dpilot import ComputeDataService, DataUnit, PilotCompute, PilotData, PilotDataService, StoreError
from tests import units
from tests.helpers import LONG_S, eventually
from tests.services import S3

pytestmark = [pytest.mark.cluster, pytest.mark.s3]

SECRET = "planted-wrong-secret-8d1f"


@pytest.fixture
def log(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    """All that is logged here, in every detail."""
    caplog.set_level(logging.DEBUG, "dpilot")
    caplog.set_level(logging.DEBUG, "distributed")
    caplog.set_level(logging.DEBUG, "fsspec")
    caplog.set_level(logging.DEBUG, "s3fs")
    return caplog


def texts(value: Any) -> str:
    """Everything that can be read in a value."""
    return repr(value) + str(value)


def test_credentials_are_seen_nowhere(
    cds: ComputeDataService,
    pds: PilotDataService,
    pilot: PilotCompute,
    s3: S3,
    log: pytest.LogCaptureFixture,
    tmp_path: Path,
) -> None:
    bucket = s3.place()
    far = pds.create_pilot({"service_url": f"s3://{bucket}/far", "storage_options": s3.storage_options, "size": "1 MB"})
    near = pds.create_pilot({"service_url": f"file://{tmp_path}/near"})
    (tmp_path / "in.txt").write_text("input\n")
    data = far.submit_data_unit({"file_urls": [tmp_path / "in.txt"]})
    assert data.wait(LONG_S) == "Running", data.exception()
    near.put_du(data)
    fetched = near.submit_data_unit(
        {"file_urls": [f"s3://{bucket}/far/{data.id}/in.txt"], "storage_options": s3.storage_options}
    )
    unit = cds.submit_compute_unit(
        {
            "executable": "/bin/cat",
            "arguments": ["in.txt"],
            "input_data": [data],
            "output_data": [{"out": "stdout.txt"}],
        }
    )
    failing = cds.submit(int, "no number", input_data=[fetched])
    assert cds.wait(LONG_S) == "Running"
    assert unit.state == "Done", unit.exception()
    data.verify(timeout=LONG_S)
    handles: list[Any] = [cds, pds, pilot, far, near, data, fetched, unit, failing, *unit.output_data.values()]
    seen = [texts(handle) + texts(handle.get_details()) + handle.get_url() for handle in handles]
    seen += [texts(cds.transfers()), texts(unit.explain()), texts(failing.exception()), texts(data.list())]
    seen += [texts(far.url_for_du(data)), texts(far._store), texts(cds.why_waiting())]

    client = cds.client
    dump = tmp_path / "dump"
    client.dump_cluster_state(str(dump))
    seen.append(gzip.decompress(dump.with_suffix(".msgpack.gz").read_bytes()).decode("latin-1"))
    seen.append(texts(client.scheduler_info(n_workers=-1)))
    seen.append(texts(client.get_scheduler_logs()) + texts(client.get_worker_logs()))
    seen.append(texts(client.get_events()))
    seen.append(log.text)

    for root in (tmp_path / "near", tmp_path / "work"):
        seen += [path.read_bytes().decode("latin-1") for path in root.rglob("*") if path.is_file()]
    files = fsspec.filesystem("s3", use_listings_cache=False, **s3.storage_options)
    stored = files.find(f"{bucket}/far")
    assert any(path.endswith(".dpilot-manifest.json") for path in stored)
    seen += [files.cat_file(path).decode("latin-1") for path in stored]

    assert sum(map(len, seen)) > 10_000  # there was something to look at
    assert [text[max(0, text.find(s3.secret) - 200) :][:400] for text in seen if s3.secret in text] == []


def test_wrong_credentials_are_not_told_either(pds: PilotDataService, s3: S3, log: pytest.LogCaptureFixture) -> None:
    options = {**s3.storage_options, "secret": SECRET}
    url = f"s3://{s3.place()}/x"
    with pytest.raises(StoreError) as caught:
        pds.create_pilot({"service_url": url, "storage_options": options})
    error: BaseException | None = caught.value
    assert url in str(error)
    while error is not None:
        assert SECRET not in texts(error)
        error = error.__cause__ or error.__context__
    assert SECRET not in log.text


def test_credentials_that_are_lost_later(
    cds: ComputeDataService, pds: PilotDataService, pilot: PilotCompute, s3: S3, tmp_path: Path
) -> None:
    """A store that cannot be read any more is named in the error of the unit, without what it was opened with."""
    bucket = s3.place()
    far: PilotData = pds.create_pilot({"service_url": f"s3://{bucket}/far", "storage_options": s3.storage_options})
    (tmp_path / "in.txt").write_text("input\n")
    data: DataUnit = far.submit_data_unit({"file_urls": [tmp_path / "in.txt"]})
    assert data.wait(LONG_S) == "Running", data.exception()
    files = fsspec.filesystem("s3", use_listings_cache=False, **s3.storage_options)
    files.rm(f"{bucket}/far/{data.id}/in.txt")
    unit = cds.submit_compute_unit({"executable": "/bin/cat", "arguments": ["in.txt"], "input_data": [data]})
    assert unit.wait(LONG_S) == "Failed"
    assert "in.txt" in str(unit.exception())
    assert s3.secret not in texts(unit.exception())
    eventually(lambda: data.exception() is not None, "the damage is told")
    assert s3.secret not in texts(data.exception())


def test_what_a_unit_was_given_is_not_in_the_log_of_its_worker(
    cds: ComputeDataService, pilot: PilotCompute, tmp_path: Path
) -> None:
    """Dask logs what fails with all that it was given; of units, that would be their environment and arguments."""
    program = cds.submit_compute_unit({"executable": "/bin/false", "environment": {"TOKEN": SECRET}})
    call = cds.submit(units.odd_only, 2, note=SECRET)
    assert [unit.wait(LONG_S) for unit in (program, call)] == ["Failed", "Failed"]
    assert SECRET not in repr(call.exception())
    pilot.cancel()
    pilot.wait(LONG_S)
    (log,) = tmp_path.rglob(f"{pilot.id}.log")
    text = log.read_text()
    assert "distributed" in text  # it is the log
    assert SECRET not in text
    assert "Compute Failed" not in text
