"""The files in cluster/: valid for Ray and the clouds, one Ray version, nothing exposed."""

import json
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from importlib import metadata, resources
from pathlib import Path
from typing import Any

import botocore.session
import botocore.validate
import jsonschema
import pytest
import yaml
from packaging.requirements import Requirement
from ray.autoscaler._private.util import prepare_config, validate_config

from raymed import config as configuration

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "cluster"
LAUNCHED = ("aws", "gcp", "onprem")
RAYJOB = FOLDER / "kuberay-rayjob.yaml"
REQUIREMENTS = FOLDER / "requirements.txt"


def load(name: str) -> dict[str, Any]:
    config: dict[str, Any] = yaml.safe_load((FOLDER / f"{name}.yaml").read_text())
    return config


def node_configs(name: str) -> dict[str, dict[str, Any]]:
    return {kind: node["node_config"] for kind, node in load(name)["available_node_types"].items()}


def requirements(lines: list[str]) -> dict[str, Requirement]:
    found = [Requirement(line) for line in lines if not line.startswith("#")]
    return {requirement.name: requirement for requirement in found}


@pytest.fixture
def pinned() -> dict[str, Requirement]:
    return requirements(REQUIREMENTS.read_text().splitlines())


@pytest.fixture
def dependencies() -> dict[str, Requirement]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    return requirements(project["dependencies"])


@pytest.mark.parametrize("name", LAUNCHED)
def test_ray_accepts_the_file(name: str) -> None:
    validate_config(prepare_config(load(name)))


@pytest.mark.parametrize("name", LAUNCHED)
def test_ray_rejects_an_unknown_key(name: str) -> None:
    with pytest.raises(jsonschema.ValidationError, match="idle_minutes"):
        validate_config(prepare_config({**load(name), "idle_minutes": 5}))


@pytest.mark.parametrize("kind", ["head", "gpu"])
def test_aws_accepts_the_nodes(kind: str) -> None:
    # The API model in AWS's own client finds unknown keys and wrong types.
    service = botocore.session.get_session().get_service_model("ec2")
    shape = service.operation_model("RunInstances").input_shape
    request = {**node_configs("aws")[kind], "MinCount": 1, "MaxCount": 1}
    report = botocore.validate.ParamValidator().validate(request, shape)
    assert not report.has_errors(), report.generate_report()


@pytest.mark.parametrize("kind", ["head", "gpu"])
def test_google_accepts_the_nodes(kind: str) -> None:
    # The API description that ships with Google's own client.
    documents = resources.files("googleapiclient.discovery_cache") / "documents"
    schemas = json.loads((documents / "compute.v1.json").read_text())["schemas"]
    assert list(against(node_configs("gcp")[kind], {"$ref": "Instance"}, schemas, "node")) == []


def against(
    value: Any, schema: dict[str, Any], schemas: dict[str, Any], place: str
) -> Iterator[str]:
    """Where a value violates a schema in Google's discovery format."""
    schema = schemas[schema["$ref"]] if "$ref" in schema else schema
    kinds = {"object": dict, "array": list, "string": str, "boolean": bool, "integer": int}
    kind = schema["type"]
    # In this format 64-bit numbers are strings, but numbers are accepted too.
    if kind == "string" and schema.get("format") == "int64" and isinstance(value, int):
        return
    if not isinstance(value, kinds[kind]):
        yield f"{place}: {value!r} is not of type {kind}"
    elif kind == "object" and "properties" in schema:
        for key, item in value.items():
            if key not in schema["properties"]:
                yield f"{place}.{key}: unknown"
            else:
                yield from against(item, schema["properties"][key], schemas, f"{place}.{key}")
    elif kind == "array":
        for item in value:
            yield from against(item, schema["items"], schemas, place)
    elif "enum" in schema and value not in schema["enum"]:
        yield f"{place}: {value!r} is not one of {schema['enum']}"


def test_an_invalid_node_is_detected() -> None:
    documents = resources.files("googleapiclient.discovery_cache") / "documents"
    schemas = json.loads((documents / "compute.v1.json").read_text())["schemas"]
    wrong = {
        "machineTyp": "g2",
        "scheduling": [{"preemptible": True}],
        "disks": [{"boot": "yes", "type": "PERMANENT"}],
    }
    found = list(against(wrong, {"$ref": "Instance"}, schemas, "node"))
    assert [fault.split(":")[0] for fault in found] == [
        "node.machineTyp",
        "node.scheduling",
        "node.disks.boot",
        "node.disks.type",
    ]


@pytest.mark.parametrize("name", ["aws", "gcp"])
def test_the_head_is_on_demand_and_idle_spot_workers_stop(name: str) -> None:
    config, nodes = load(name), node_configs(name)
    types = config["available_node_types"]
    assert config["head_node_type"] == "head"
    assert types["head"]["resources"]["CPU"] == 0
    assert "GPU" not in types["head"]["resources"]
    assert types["gpu"]["resources"]["GPU"] == 1
    assert types["gpu"]["min_workers"] == 0
    assert types["gpu"]["max_workers"] == config["max_workers"]
    assert 0 < config["idle_timeout_minutes"] <= 15
    # Otherwise Ray only stops idle nodes, whose disks still cost money.
    assert config["provider"]["cache_stopped_nodes"] is False
    if name == "aws":
        assert nodes["gpu"]["InstanceMarketOptions"]["MarketType"] == "spot"
        assert "InstanceMarketOptions" not in nodes["head"]
    else:
        assert nodes["gpu"]["scheduling"]["provisioningModel"] == "SPOT"
        assert "scheduling" not in nodes["head"]
    assert not {"aws_access_key_id", "gcp_credentials"} & set(config["provider"])


@pytest.mark.parametrize("name", ["aws", "gcp"])
def test_as_many_trials_as_the_file_says_share_a_node(name: str) -> None:
    text = re.sub(r"\s+#?\s*", " ", (FOLDER / f"{name}.yaml").read_text())
    (words,) = re.findall(r"Four trials of a sweep .*? (launch\S+) and (launch\S+)\. ", text)
    launch = configuration.load(ROOT / "tune_configs" / "iu_xray_joint.yaml", words).launch
    node = load(name)["available_node_types"]["gpu"]["resources"]
    assert launch.gpus_per_worker is not None
    assert node["GPU"] / launch.gpus_per_worker == node["CPU"] / launch.cpus_per_worker == 4


@pytest.mark.parametrize("name", LAUNCHED)
def test_nothing_listens_without_a_token(name: str) -> None:
    config = load(name)
    assert config["file_mounts"]["~/.ray/auth_token"] == "~/.ray/auth_token"
    for where in ("head", "worker"):
        starts = [c for c in config[f"{where}_start_ray_commands"] if "ray start" in c]
        assert len(starts) == 1
        assert "export RAY_AUTH_MODE=token" in starts[0].split("ray start")[0]
    head = next(c for c in config["head_start_ray_commands"] if "ray start" in c)
    assert "--dashboard-host=127.0.0.1" in head
    assert "--num-cpus=0" in head


def test_one_ray_version_everywhere(
    pinned: dict[str, Requirement], dependencies: dict[str, Requirement]
) -> None:
    version = metadata.version("ray")
    job = yaml.safe_load(RAYJOB.read_text())["spec"]["rayClusterSpec"]
    assert str(pinned["ray"].specifier) == f"=={version}"
    assert str(dependencies["ray"].specifier) == f"=={version}"
    assert job["rayVersion"] == version
    versions = [
        found
        for file in [*FOLDER.iterdir()]
        for found in re.findall(r"\bray(?:\[[a-z,]*\])?(?:==|:)(\d+\.\d+\.\d+)", file.read_text())
    ]
    assert len(versions) >= 2
    assert set(versions) == {version}


def test_the_image_is_rays_own_of_that_version_and_python_with_the_pinned_packages() -> None:
    lines = (FOLDER / "Dockerfile").read_text().splitlines()
    (base,) = [line for line in lines if line.startswith("FROM ")]
    assert base == f"FROM rayproject/ray:{metadata.version('ray')}-py311-gpu"
    assert any(f"--requirement /tmp/raymed/{REQUIREMENTS.name}" in line for line in lines)
    # What is sent to the builder has all that is copied, and nothing else.
    copied = [line.split()[1] for line in lines if line.startswith("COPY ")]
    ignored = (FOLDER / "Dockerfile.dockerignore").read_text().split()
    assert ignored == ["*", *(f"!{name}" for name in copied)]
    job = yaml.safe_load(RAYJOB.read_text())["spec"]["rayClusterSpec"]
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    for group in (job["headGroupSpec"], *job["workerGroupSpecs"]):
        (container,) = group["template"]["spec"]["containers"]
        assert container["image"].endswith(f"/raymed:{version}")


def test_hadolint_has_nothing_to_say_about_the_image() -> None:
    hadolint = Path(sys.executable).with_name("hadolint")
    assert subprocess.run([hadolint, FOLDER / "Dockerfile"]).returncode == 0
    wrong = "FROM rayproject/ray\nRUN cd /tmp && pip install torch\n"
    done = subprocess.run([hadolint, "-"], input=wrong, capture_output=True, text=True)
    assert done.returncode == 1
    assert "DL3006" in done.stdout


def test_nodes_install_what_the_project_needs(
    pinned: dict[str, Requirement], dependencies: dict[str, Requirement]
) -> None:
    assert set(pinned) == set(dependencies)
    for name, needed in dependencies.items():
        (exact,) = pinned[name].specifier
        assert exact.operator == "=="
        assert needed.specifier.contains(exact.version), name
        assert pinned[name].extras == needed.extras


@pytest.mark.parametrize("name", LAUNCHED)
def test_nodes_install_from_the_pinned_list(name: str) -> None:
    config = load(name)
    (mounted,) = (there for there, here in config["file_mounts"].items() if "requirements" in here)
    assert (ROOT / config["file_mounts"][mounted]) == REQUIREMENTS
    assert sum(f"--requirement {mounted}" in command for command in config["setup_commands"]) == 1


@pytest.mark.parametrize("file", sorted(FOLDER.iterdir()), ids=lambda file: file.name)
def test_files_contain_no_secrets(file: Path) -> None:
    text = file.read_text()
    for secret in (
        r"AKIA[0-9A-Z]{16}",
        r"-----BEGIN [A-Z ]*PRIVATE KEY",
        r"(?i)(password|secret|token)\w*\s*[:=]\s*['\"]?[0-9a-z/+_-]{16,}",
        r"\b[0-9a-f]{64}\b",
    ):
        assert re.search(secret, text) is None
