"""Stores of one machine, read and written from elsewhere through a worker that sees them."""

from __future__ import annotations

import datetime
import hashlib
import os
import pickle
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from textwrap import dedent
from typing import Any

import dask
import fsspec
import pytest

from dpilot import (
    ComputeDataService,
    ComputeUnit,
    DataUnit,
    ManifestError,
    PilotCompute,
    PilotComputeService,
    PilotData,
    PilotDataService,
    PilotError,
    StoreError,
)
from dpilot.data import Hasher, Manifest, Store, download, expand_sources, upload
from dpilot.data.names import MANIFEST, MARKER
from dpilot.data.retry import Retry
from dpilot.runtime import adapter
from dpilot.runtime.peer import PeerLocation
from dpilot.runtime.wire import Wire
from tests.helpers import LONG_S, eventually, script, workers
from tests.netns import Network

pytestmark = [pytest.mark.cluster]

#: More than is in one message, and no multiple of it.
NBYTES = 4 * 1024 * 1024 * 3 + 12_345


def write(path: Path, nbytes: int = NBYTES) -> str:
    path.write_bytes(os.urandom(nbytes))
    return str(path)


def ready(unit: DataUnit) -> DataUnit:
    assert unit.wait(LONG_S) == "Running", unit.exception()
    return unit


# -- one machine: all that can be done with a place can be done with one that a worker serves


@pytest.fixture
def direct(pilot: PilotCompute, store: PilotData) -> Store:
    """A store that this process and a worker see."""
    assert pilot.wait_running(LONG_S) == "Running"
    eventually(lambda: store._session.call("host", store=store._store.store_id)[0], "a worker that sees the store")
    return store._store


@pytest.fixture
def through(direct: Store, store: PilotData) -> Store:
    """The same, reached through the worker."""
    session = store._session
    host, _ = session.call("host", store=direct.store_id)
    root = PeerLocation("file", direct.url, "", store_id=direct.store_id or "", host=host, scheduler=session.address)
    return direct.through(root)


def test_a_store_is_written_and_read_through_a_worker(direct: Store, through: Store, tmp_path: Path) -> None:
    names = {"a.bin": NBYTES, "sub/b c.bin": 17, "empty": 0, "-leading\nnewline ü.txt": 5, "exact": 8 * 1024 * 1024}
    source = tmp_path / "source"
    for name, nbytes in names.items():
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        write(source / name, nbytes)
    manifest = upload(expand_sources([str(source) + "/"]), through, "du-1")
    assert manifest == direct.read_manifest("du-1") == through.read_manifest("du-1")
    assert sorted(through.unit("du-1").sizes()) == sorted([*manifest.names, MANIFEST])
    assert through.unit("du-1").sizes() == direct.unit("du-1").sizes()
    assert through.list_units() == direct.list_units() == ["du-1"]
    assert through.local_path("du-1") is None
    mode = (direct.local_path("du-1", manifest.names[0]) or source).stat().st_mode
    assert mode & 0o222 == 0  # as files of stores are

    target = tmp_path / "target"
    assert download(through, manifest, target) == sum(names.values())
    for entry in manifest.files:
        assert (target / entry.name).read_bytes() == (
            direct.unit("du-1").child(entry.name).local or source
        ).read_bytes()

    rest = through.remove_files("du-1", [name for name in manifest.names if "/" in name])
    assert direct.read_manifest("du-1") == rest
    assert direct.unit("du-1").sizes().keys() == {*rest.names, MANIFEST}
    through.remove("du-1")
    assert direct.list_units() == []
    assert not (direct.root.child("du-1").local or source).exists()


def test_places_travel(through: Store) -> None:
    copy = pickle.loads(pickle.dumps(through))
    assert copy.root == through.root
    assert copy.root.child(MARKER).read_bytes() == through.root.child(MARKER).read_bytes() != b""


def test_files_are_read_at_random(direct: Store, through: Store, tmp_path: Path) -> None:
    content = Path(write(tmp_path / "a.bin")).read_bytes()
    upload(expand_sources([str(tmp_path / "a.bin")]), direct, "du-1")
    with through.open_file("du-1", "a.bin") as file:
        assert file.seek(-10, os.SEEK_END) == NBYTES - 10
        assert file.read() == content[-10:]
        assert file.read(1) == b""
        file.seek(1_000_000)
        assert file.read(5_000_000) == content[1_000_000:6_000_000]
        assert file.tell() == 6_000_000
        file.seek(0)
        assert file.read() == content
    (tmp_path / "t.txt").write_text("zwölf\nBoxkämpfer\n")
    upload(expand_sources([str(tmp_path / "t.txt")]), direct, "du-2")
    with through.open_file("du-2", "t.txt", "r") as text:
        assert text.readlines() == ["zwölf\n", "Boxkämpfer\n"]


def test_what_is_not_there(through: Store) -> None:
    place = through.root.child("du-1").child("a")
    assert not place.exists()
    assert place.read_bytes() is None
    place.remove()
    assert through.find_manifest("du-1") is None
    for read in (lambda: list(place.read(None)), lambda: place.open(), place.version):
        with pytest.raises(StoreError, match=r"cannot read file://.*/du-1/a: there is no such file") as caught:
            read()
        assert not caught.value.transient


def test_a_file_that_is_longer_than_it_should_be_is_found_out(direct: Store, through: Store, tmp_path: Path) -> None:
    manifest = upload(expand_sources([write(tmp_path / "a.bin")]), direct, "du-1")
    path = direct.local_path("du-1", "a.bin")
    assert path is not None
    path.chmod(0o644)
    with path.open("ab") as file:
        file.write(b"x")
    with pytest.raises(PilotError, match=r"has more than .* bytes, but its manifest says"):
        download(through, manifest, tmp_path / "target")


@pytest.mark.parametrize(
    ("place", "error"),
    [
        ("../secret", "not one plain name"),
        ("/etc/passwd", "not one plain name"),
        ("du-1/../../secret", "contains '..'"),
        ("du-1//etc/passwd", "is absolute"),
        ("du-1/a/.dpilot-store.json", "keeps for itself"),
        ("du-1/a\0b", "NUL"),
        ("out/secret", "leads out of its store by a link"),
    ],
)
def test_nothing_but_a_store_is_served(direct: Store, through: Store, place: str, error: str, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("secret")
    (Path(direct.root.path) / "out").symlink_to(tmp_path)
    root: Any = through.root
    requests: list[dict[str, Any]] = [{"what": "read", "start": 0, "nbytes": 9}, {"what": "remove_tree"}]
    for request in [*requests, {"what": "read_bytes"}, {"what": "write_bytes", "data": b"x"}, {"what": "sizes"}]:
        with pytest.raises((StoreError, ManifestError), match=error):
            Wire.here().request(root.host, op=adapter.HANDLER, store=root.store_id, place=place, **request)
    assert (tmp_path / "secret").read_text() == "secret"


def test_a_store_itself_is_not_changed_from_elsewhere(through: Store) -> None:
    for act in (through.root.remove_tree, through.root.child(MARKER).remove):
        with pytest.raises(StoreError, match="cannot be changed from elsewhere"):
            act()
    with pytest.raises(StoreError, match="cannot be changed from elsewhere"):
        through.root.child(MARKER).write([b"x"])
    with pytest.raises(StoreError, match="'unlink' is nothing that can be done"):
        through.root._call("read", "unlink")  # type: ignore[attr-defined]


def test_only_stores_that_are_in_use_and_seen_are_served(direct: Store, through: Store, store: PilotData) -> None:
    marker = direct.root.child(MARKER).local
    assert marker is not None
    hidden = marker.rename(marker.with_name("hidden"))
    with pytest.raises(StoreError, match="are not visible here"):
        through.list_units()
    hidden.rename(marker)
    assert through.list_units() == []
    store.cancel()
    refused = eventually(lambda: _refusal(through), "the worker to forget the store")
    assert "is not served here" in refused


def _refusal(store: Store) -> str:
    try:
        store.list_units()
    except StoreError as error:
        return str(error)
    return ""


def left(store: Store, du: str) -> list[str]:
    return sorted(path.name for path in (Path(store.root.path) / du).iterdir())


def test_a_write_that_ends_in_an_error_leaves_nothing(direct: Store, through: Store) -> None:
    place = through.root.child("du-1").child("a.bin")
    place.write([b"as it was"])

    def chunks() -> Iterator[bytes]:
        for _ in range(6):
            yield bytes(4 * 1024 * 1024)
        raise StoreError("the source is gone")

    with pytest.raises(StoreError, match="the source is gone"):
        place.write(chunks())
    assert left(direct, "du-1") == ["a.bin"]
    assert place.read_bytes() == b"as it was"
    (Path(direct.root.path) / "du-2").write_text("no directory")
    with pytest.raises(StoreError, match=r"cannot write file://.*/du-2/a.bin: (Not a directory|File exists)"):
        through.root.child("du-2").child("a.bin").write(iter([bytes(4 * 1024 * 1024)] * 9))
    assert through.list_units() == []  # the connection is of use for others


def test_what_a_client_that_vanished_was_writing_is_removed(direct: Store, through: Store) -> None:
    root: Any = through.root
    for _ in range(3):
        line = Wire.here().line(root.host)
        line.send(op=adapter.HANDLER, what="write", store=root.store_id, place="du-1/a.bin", mode=0o444)
        line.receive()
        line.send(data=bytes(1000))
        assert line.under_way == 1
        assert len(left(direct, "du-1")) == 1
        line.close()
        eventually(lambda: left(direct, "du-1") == [], "the temporary file to be removed")


def test_a_worker_that_dies_while_it_is_read_from(
    pcs: PilotComputeService, pilot: PilotCompute, direct: Store, through: Store, tmp_path: Path
) -> None:
    upload(expand_sources([write(tmp_path / "a.bin", 64 * 1024 * 1024)]), direct, "du-1")
    content = (tmp_path / "a.bin").read_bytes()
    place = through.root.child("du-1").child("a.bin")
    chunks = place.read(64 * 1024 * 1024)
    read = bytearray(next(chunks))
    host = through.root.host  # type: ignore[attr-defined]
    name = next(row["name"] for address, row in pcs.client.scheduler_info(-1)["workers"].items() if address == host)
    process = workers(pcs, pilot)[name]
    process.send_signal(signal.SIGKILL)
    process.wait(LONG_S)
    failure = None
    try:
        for chunk in chunks:
            read += chunk
    except StoreError as error:  # the scheduler did not know yet, and so could not name the other worker
        failure = error
    assert content.startswith(read)
    if failure is None:
        assert len(read) == len(content)
    else:
        assert failure.transient
        assert re.search(rf"cannot read {direct.url}/du-1/a.bin .* through the worker {host}", str(failure))
    # The pilot's other worker sees it, too.
    eventually(lambda: host not in pcs.client.scheduler_info(-1)["workers"], "the worker to be gone")
    with dask.config.set({"dpilot.scheduler.connect-timeout": "500ms"}):
        assert through.list_units() == ["du-1"]
        assert b"".join(place.read(64 * 1024 * 1024)) == content


def test_a_plain_process_reaches_it_too_and_ends_without_a_word(direct: Store, through: Store, tmp_path: Path) -> None:
    upload(expand_sources([write(tmp_path / "a.bin")]), direct, "du-1")
    (tmp_path / "store.pickle").write_bytes(pickle.dumps(through))
    code = """
        import os, pickle, sys
        from pathlib import Path
        from dpilot.data import Hasher
        store = pickle.loads(Path(sys.argv[1]).read_bytes())
        def digest():
            hasher = Hasher()
            for chunk in store.unit("du-1").child("a.bin").read(None):
                hasher.update(chunk)
            print(f"{hasher.hexdigest()} ", end="", flush=True)  # in one write: two processes share the pipe
        digest()
        pid = os.fork()
        digest()  # in both: a fork has connections of its own
        if pid:
            assert os.waitpid(pid, 0)[1] == 0
        """
    hasher = Hasher()
    hasher.update((tmp_path / "a.bin").read_bytes())
    with script(code, str(tmp_path / "store.pickle"), PYTHONWARNINGS="error::ResourceWarning") as process:
        out, errors = process.end()
    assert out.split() == [hasher.hexdigest()] * 3
    assert errors == ""


# -- two machines


class Grid:
    """Services at the scheduler of a network, and what is made with them."""

    def __init__(self, network: Network, scheduler: str) -> None:
        self.network = network
        self.scheduler = scheduler
        self.pcs = PilotComputeService(scheduler)
        self.pds = PilotDataService(scheduler)
        self.cds = ComputeDataService(coordination_url=scheduler)
        self.cds.add_pilot_compute_service(self.pcs)
        self.cds.add_pilot_data_service(self.pds)

    def pilot(self, site: str, slots: int = 1) -> PilotCompute:
        """A pilot at a site."""
        pilot = self.pcs.create_pilot(
            {
                "service_url": f"netns://{site}",
                "number_of_processes": slots,
                "working_directory": str(self.network.directory / f"work-{site}"),
                "affinity_datacenter_label": f"lab-{site}",
                "affinity_machine_label": f"host-{site}",
            }
        )
        assert pilot.wait_running(LONG_S) == "Running"
        return pilot

    def store(self, site: str) -> PilotData:
        """The store of a site: all have the same path."""
        return self.pds.create_pilot(
            {
                "service_url": f"file://{self.network.data / 'store'}",
                "affinity_datacenter_label": f"lab-{site}",
                "affinity_machine_label": f"host-{site}",
            }
        )

    def run(self, site: str, script: str, **keys: Any) -> ComputeUnit:
        """Run a unit at a site."""
        unit = self.cds.submit_compute_unit(
            {
                "executable": "/bin/sh",
                "arguments": ["-c", script],
                "affinity_machine_label": f"host-{site}",
                "affinity": "require",
                **keys,
            }
        )
        unit.wait(LONG_S)
        assert unit.get_state() == "Done", unit.exception()
        return unit


@pytest.fixture
def grid(network: Network) -> Grid:
    return Grid(network, network.scheduler())


def check_two_machines(grid: Grid, directory: Path) -> None:
    """Data at one machine is read at another one, which writes into the store of the first."""
    grid.pilot("a"), grid.pilot("b")
    store = grid.store("a")
    there = grid.network.sites["a"] / "store"
    source = Path(write(directory / "in.bin"))
    data = ready(store.submit_data_unit({"file_urls": [str(source)]}))
    # This process does not see the store: a worker took what it uploaded.
    assert not (grid.network.data / "store").exists()
    assert (there / data.id / "in.bin").read_bytes() == source.read_bytes()
    assert data.list()["in.bin"]["local"] is None
    with fsspec.open(f"{data.get_url()}/in.bin") as file:
        assert file.read() == source.read_bytes()
    for site in ("a", "b"):
        script = "sha256sum < in.bin > sum.txt; readlink in.bin > link.txt; cp in.bin out.bin"
        unit = grid.run(site, script, input_data=[data], output_data=[{"made": ["*.txt", "out.bin"]}])
        made = unit.output_data["made"]
        assert [replica.id for replica in made.list_pilot_data()] == [store.id]
        assert (there / made.id / "out.bin").read_bytes() == source.read_bytes()
        target = made.export(directory / f"export-{site}")
        assert (target / "sum.txt").read_text().split()[0] == hashlib.sha256(source.read_bytes()).hexdigest()
        linked = (target / "link.txt").read_text()
        assert (str(grid.network.data) in linked) == (site == "a")  # to the store; to the cache


def test_two_machines(grid: Grid, tmp_path: Path) -> None:
    check_two_machines(grid, tmp_path)


def test_replicas_of_machines_that_do_not_see_each_other(grid: Grid, tmp_path: Path) -> None:
    grid.pilot("a"), grid.pilot("b")
    a, b = grid.store("a"), grid.store("b")
    assert a._store.store_id != b._store.store_id  # though their paths are the same
    data = ready(a.submit_data_unit({"file_urls": [write(tmp_path / "in.bin"), write(tmp_path / "other.bin", 3)]}))
    b.put_du(data)
    for site in ("a", "b"):
        replica = grid.network.sites[site] / "store" / data.id
        assert {path.name for path in replica.iterdir()} == {MANIFEST, "in.bin", "other.bin"}
        assert (replica / "in.bin").read_bytes() == (tmp_path / "in.bin").read_bytes()
    assert [data.id] == [unit.id for unit in b.list_data_units()]
    a.remove_du(data)
    assert not (grid.network.sites["a"] / "store" / data.id).exists()
    grid.run("a", "test -s in.bin", input_data=[data])


def test_files_that_are_registered_where_they_lie(grid: Grid, tmp_path: Path) -> None:
    there = grid.network.sites["a"] / "mine"
    (there / "sub").mkdir(parents=True)
    content = Path(write(there / "in.bin")).read_bytes()
    (there / "sub" / "b.txt").write_text("b\n")
    grid.pilot("a"), grid.pilot("b")
    code = """
        import pickle, sys
        from dpilot.data import expand_sources
        from dpilot.data.registered import Registered
        sources = expand_sources([sys.argv[1] + "/"])
        store = Registered.of("du-000000000001", sources, datacenter="lab-a", machine="host-a")
        print(pickle.dumps(store).hex())
        """
    command = grid.network.at("a", sys.executable, "-c", dedent(code), str(grid.network.data / "mine"))
    made = subprocess.run(command, check=True, capture_output=True, text=True, cwd=Path(__file__).parents[1])
    store = pickle.loads(bytes.fromhex(made.stdout))
    session, id = grid.cds._session, store.manifest.du
    request = {"id": id, "description": {"name": None, "replicas": 1, "datacenter": None, "machine": None}}
    session.call(
        "add_data", owner=grid.cds.id, client="", requests=[{**request, "registered": (store, store.manifest)}]
    )
    data = DataUnit(session.url(id))
    target = data.export(tmp_path / "export")
    assert (target / "in.bin").read_bytes() == content
    assert (target / "sub" / "b.txt").read_text() == "b\n"
    digest = hashlib.sha256(content).hexdigest()
    grid.run("b", f"sha256sum in.bin | grep {digest}", input_data=[data])
    ((_, reached),) = data._replicas()
    with pytest.raises(StoreError, match=r"cannot write .*: it is no place in a store of this machine"):
        reached.unit(id).child("in.bin").write([b"x"])
    with pytest.raises(StoreError, match="cannot remove"):
        reached.unit(id).child("in.bin").remove()
    assert (there / "in.bin").read_bytes() == content


def test_a_shared_directory_is_linked(grid: Grid, tmp_path: Path) -> None:
    """As NFS does it: both machines see the store, so nothing need be moved."""
    grid.pilot("a"), grid.pilot("b")
    store = grid.pds.create_pilot({"service_url": f"file://{tmp_path / 'shared'}"})
    data = ready(store.submit_data_unit({"file_urls": [write(tmp_path / "in.bin")]}))
    for site in ("a", "b"):
        unit = grid.run(site, "readlink in.bin > link", input_data=[data], output_data=[{"link": ["link"]}])
        link = unit.output_data["link"].export(tmp_path / site) / "link"
        assert link.read_text() == f"{tmp_path}/shared/{data.id}/in.bin\n"


def test_a_store_whose_only_worker_is_gone_waits_for_another_one(grid: Grid, tmp_path: Path) -> None:
    pilot = grid.pilot("a")
    grid.pilot("b")
    store = grid.store("a")
    data = ready(store.submit_data_unit({"file_urls": [write(tmp_path / "in.bin")]}))
    reached = data._replicas()[0][1]
    assert list(reached.unit(data.id).child("in.bin").sizes()) == []
    pilot.cancel()
    pilot.wait(LONG_S)
    reason = rf"cannot reach {store.service_url}/.* no worker is there now that sees the marker .* start a pilot on"
    eventually(lambda: grid.cds._session.call("host", store=reached.store_id) == (None, False), "the worker to be gone")
    with dask.config.set({"dpilot.scheduler.connect-timeout": "500ms"}):
        with pytest.raises(StoreError, match=reason) as caught:
            download(reached, reached.read_manifest(data.id), tmp_path / "none", retry=Retry(0))
        assert not caught.value.transient
        assert not (tmp_path / "none").exists()
        grid.pilot("a")
        assert (data.export(tmp_path / "back") / "in.bin").read_bytes() == (tmp_path / "in.bin").read_bytes()
        manifest: Manifest = reached.read_manifest(data.id)  # which knew the first worker only
        assert manifest.names == ("in.bin",)


def test_tls(network: Network, tmp_path: Path) -> None:
    certificates = make_certificates(tmp_path)
    tls = {
        f"tls.{role}.{part}": path
        for role in ("client", "worker", "scheduler")
        for part, path in certificates.items()
        if part != "ca-file"
    }
    settings = {"require-encryption": True, "tls.ca-file": certificates["ca-file"], **tls}
    options = [f"--tls-{part}={path}" for part, path in certificates.items()]
    with dask.config.set({f"distributed.comm.{key}": value for key, value in settings.items()}):
        scheduler = network.scheduler(*options, protocol="tls")
        assert scheduler.startswith("tls://")
        grid = Grid(network, scheduler)
        try:
            check_two_machines(grid, tmp_path)
        finally:
            grid.cds._session.close()


def make_certificates(directory: Path) -> dict[str, str]:
    """A certificate that signs itself, for all."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509.oid import NameOID

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "dpilot tests")])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(key, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    (directory / "cert.pem").write_bytes(certificate.public_bytes(pem))
    private = key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    (directory / "key.pem").write_bytes(private)
    cert = str(directory / "cert.pem")
    return {"ca-file": cert, "cert": cert, "key": str(directory / "key.pem")}
