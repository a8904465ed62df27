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
    python, module, name, command, file, *settings = shlex.split(job["spec"]["entrypoint"])
    assert (python, module, name, command) == ("python", "-m", "raymed", "train")
    config = load(ROOT / file, settings)
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
    environment = yaml.safe_load(job["spec"]["runtimeEnvYAML"])
    assert any("cluster/requirements.txt" in package for package in environment["pip"])
