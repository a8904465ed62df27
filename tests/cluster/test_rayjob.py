"""cluster/kuberay-rayjob.yaml: valid for KubeRay and for Kubernetes, and a command of raymed's."""

import copy
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from kubernetes import client as kubernetes

from raymed.config import load

ROOT = Path(__file__).parents[2]
FILE = ROOT / "cluster" / "kuberay-rayjob.yaml"
DOCKERFILE = ROOT / "cluster" / "Dockerfile"
HOME = "/home/ray"
SPECS = ROOT.parent / "shared" / "specs"
SCHEMA = yaml.safe_load((Path(__file__).parent / "rayjob_schema.yaml").read_text())


@pytest.fixture
def job() -> dict[str, Any]:
    document: dict[str, Any] = yaml.safe_load(FILE.read_text())
    return document


def templates(job: dict[str, Any]) -> list[dict[str, Any]]:
    cluster = job["spec"]["rayClusterSpec"]
    groups = [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]
    return [group["template"] for group in groups]


def against(value: Any, kind: str, place: str) -> Iterator[str]:
    """What of a value a type of Kubernetes' own client does not know."""
    if item := re.fullmatch(r"[Ll]ist\[(.*)\]", kind):
        if not isinstance(value, list):
            yield f"{place}: is no list"
            return
        for number, each in enumerate(value):
            yield from against(each, item[1], f"{place}[{number}]")
    elif item := re.fullmatch(r"[Dd]ict[\[(](\w+), (\w+)[\])]", kind):
        for key, each in value.items():
            yield from against(each, item[2], f"{place}.{key}")
    elif hasattr(kubernetes, kind):
        model = getattr(kubernetes, kind)
        names = {name: attribute for attribute, name in model.attribute_map.items()}
        for key, each in value.items():
            if key not in names:
                yield f"{place}.{key}: unknown"
            else:
                yield from against(each, model.openapi_types[names[key]], f"{place}.{key}")
    elif not isinstance(value, {"str": str, "int": int, "bool": bool}[kind]):
        yield f"{place}: {value!r} is no {kind}"


def test_kuberay_takes_the_job(job: dict[str, Any]) -> None:
    jsonschema.validate(job, SCHEMA)


def strict(schema: Any) -> Any:
    """An OpenAPI schema of Kubernetes' as a JSON schema that knows no other keys than its own."""
    if isinstance(schema, list):
        return [strict(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    made = {key: strict(value) for key, value in schema.items()}
    if schema.get("type") == "object" and isinstance(schema.get("properties"), dict):
        made.setdefault("additionalProperties", False)
    return made


@pytest.fixture(scope="module")
def published() -> jsonschema.Draft202012Validator:
    """KubeRay's own schema of a RayJob, as its operator installs it."""
    file = SPECS / "ray.io_rayjobs.yaml"
    if not file.is_file():
        pytest.skip(f"{file}: KubeRay's own schema is not there")
    definition = yaml.load(file.read_text(), getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    (version,) = [one for one in definition["spec"]["versions"] if one["name"] == "v1"]
    # Its own check of the schema, as `jsonschema.validate` does, would take 20 seconds.
    return jsonschema.Draft202012Validator(strict(version["schema"]["openAPIV3Schema"]))


def test_the_job_follows_kuberays_own_schema_strictly(
    job: dict[str, Any], published: jsonschema.Draft202012Validator
) -> None:
    published.validate(job)
    cluster = job["spec"]["rayClusterSpec"]
    container = cluster["workerGroupSpecs"][0]["template"]["spec"]["containers"][0]
    container["imagePullPolicies"] = "Always"
    with pytest.raises(jsonschema.ValidationError, match="imagePullPolicies"):
        published.validate(job)


def test_kueue_takes_the_label(
    job: dict[str, Any], published: jsonschema.Draft202012Validator
) -> None:
    (line,) = re.findall(r"^  # (labels: .*)$", FILE.read_text(), re.MULTILINE)
    job["metadata"] |= yaml.safe_load(line)
    assert job["metadata"]["labels"] == {"kueue.x-k8s.io/queue-name": "user-queue"}
    published.validate(job)


@pytest.mark.parametrize(
    ("place", "wrong"),
    [
        (("spec", "ttlSecondsAfterFinish"), 5),
        (("spec", "rayClusterSpec", "headGroupSpec", "rayStartParams", "num-cpus"), 0),
        (("spec", "rayClusterSpec", "authOptions", "mode"), "tokens"),
    ],
)
def test_kuberay_refuses_a_wrong_field(
    job: dict[str, Any], place: tuple[str, ...], wrong: object
) -> None:
    parent = job
    for key in place[:-1]:
        parent = parent[key]
    parent[place[-1]] = wrong
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(job, SCHEMA)


def test_kubernetes_takes_the_pods(job: dict[str, Any]) -> None:
    for template in templates(job):
        assert list(against(template, "V1PodTemplateSpec", "template")) == []
        volumes = {volume["name"] for volume in template["spec"]["volumes"]}
        for container in template["spec"]["containers"]:
            assert {mount["name"] for mount in container["volumeMounts"]} == volumes


def test_kubernetes_refuses_wrong_pods(job: dict[str, Any]) -> None:
    template = copy.deepcopy(templates(job)[1])
    template["spec"]["toleration"] = template["spec"].pop("tolerations")
    template["spec"]["containers"][0]["volumeMounts"][0]["mountPath"] = 5
    template["spec"]["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] = 1
    found = [fault.split(": ")[0] for fault in against(template, "V1PodTemplateSpec", "pod")]
    assert sorted(found) == [
        "pod.spec.containers[0].resources.limits.nvidia.com/gpu",
        "pod.spec.containers[0].volumeMounts[0].mountPath",
        "pod.spec.toleration",
    ]


def test_the_job_is_a_command_of_ours_that_fits_its_workers(job: dict[str, Any]) -> None:
    name, command, file, *settings = shlex.split(job["spec"]["entrypoint"])
    assert (name, command) == ("raymed", "train")
    # Where the image has the examples.
    assert f"raymed init {HOME}\n" in DOCKERFILE.read_text()
    config = load(ROOT / Path(file).relative_to(HOME), settings)
    group = job["spec"]["rayClusterSpec"]["workerGroupSpecs"][0]
    limits = group["template"]["spec"]["containers"][0]["resources"]["limits"]
    assert config.launch.cpus_per_worker <= int(limits["cpu"])
    assert config.launch.gpus_per_worker == int(limits["nvidia.com/gpu"])
    # As many nodes from the start as it has workers: nothing is trained before all are there.
    assert config.launch.workers == group["replicas"] == group["minReplicas"]
    mounts = group["template"]["spec"]["containers"][0]["volumeMounts"]
    assert any(config.data.path.startswith(mount["mountPath"] + "/") for mount in mounts)


def test_it_asks_for_a_token_and_ends_by_itself(job: dict[str, Any]) -> None:
    cluster = job["spec"]["rayClusterSpec"]
    assert cluster["authOptions"] == {"mode": "token"}
    assert cluster["headGroupSpec"]["serviceType"] == "ClusterIP"
    assert cluster["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    assert job["spec"]["shutdownAfterJobFinishes"] is True
    assert job["spec"]["activeDeadlineSeconds"] > 0
