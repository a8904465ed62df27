"""What a run reserves of a cluster's GPUs, and how long its workers wait for each other."""

import json
import subprocess
import sys
from datetime import timedelta
from unittest.mock import patch

import pytest

from raymed.config import Config
from raymed.errors import UsageError
from raymed.launch.trainer import check_room, describe_workers, scaling

CLUSTER = "raymed.launch.trainer.ray.cluster_resources"


@pytest.mark.parametrize(
    ("gpus", "workers", "words"),
    [
        (0.25, 2, r"launch.*a fraction of a GPU \(0.25\) is only for runs of one worker"),
        (0.25, [1, 2], "a fraction of a GPU"),
        (1.5, 1, "must be a whole number above 1, not 1.5"),
        (-1, 1, "greater than or equal to 0"),
    ],
)
def test_parts_of_gpus_that_cannot_be_are_refused(
    tiny: Config, gpus: float, workers: object, words: str
) -> None:
    with pytest.raises(UsageError, match=words):
        tiny.override({"launch.gpus_per_worker": gpus, "launch.workers": workers})


@pytest.mark.parametrize(
    ("gpus", "there", "room", "words"),
    [
        (0.25, 1, 4, "training on 1 worker(s), each with 1 CPU and 0.25 GPU"),
        (0.2, 1, 5, "training on 1 worker(s), each with 1 CPU and 0.2 GPU"),
        (None, 2, 2, "training on 1 worker(s), each with 1 CPU and 1 GPU"),
        (None, 0, 9, "training on 1 worker(s), each with 1 CPU and no GPU"),
        (0, 2, 9, "training on 1 worker(s), each with 1 CPU and no GPU"),
    ],
)
def test_room_for_runs_of_one_worker(
    tiny: Config, gpus: float | None, there: int, room: int, words: str
) -> None:
    config = tiny.override({"launch.gpus_per_worker": gpus, "launch.workers": 1})
    with patch(CLUSTER, lambda: {"CPU": 9.0, "GPU": float(there)}):
        assert check_room(config) == room
        assert describe_workers(config) == words
        assert scaling(config).use_gpu == (gpus != 0 and there > 0)


def test_fewer_gpus_than_workers_are_no_reason_to_train_on_cpus_without_a_word(
    tiny: Config,
) -> None:
    config = tiny.override({"launch.workers": 4})
    with (
        patch(CLUSTER, lambda: {"CPU": 9.0, "GPU": 2.0}),
        pytest.raises(UsageError, match=r"4 workers need 4 GPU, and the cluster has 2: .*0 trains"),
    ):
        check_room(config)


SHARING = """
import json, threading
from unittest.mock import patch
import ray, torch
import torch.distributed as dist
from raymed.config import Config
from raymed.launch import trainer

@ray.remote(num_cpus=0, max_concurrency=9)
class Meeting:
    def __init__(self):
        self.barrier = threading.Barrier(2)
    def meet(self):
        self.barrier.wait()

def work(settings):
    # Left by none before both are there at the same time.
    ray.get(settings["meeting"].meet.remote())
    backend = dist.group.WORLD._get_backend(torch.device("cpu"))
    return ray.get_gpu_ids(), backend.options._timeout.total_seconds()

ray.init("local", num_cpus=2, num_gpus=1, include_dashboard=True, log_to_driver=False)
config = Config().override({"launch.gpus_per_worker": 0.5})
meeting = Meeting.remote()
found = []
# NCCL asks for a GPU that is there; where the workers are placed does not depend on it.
ours = trainer._SigtermConfig
with patch.object(trainer, "_SigtermConfig", lambda **options: ours("gloo", **options)):
    def run():
        found.append(trainer.run_workers(work, {"meeting": meeting}, config, 0, "meeting"))
    threads = [threading.Thread(target=run) for _ in range(trainer.check_room(config))]
    for thread in threads: thread.start()
    for thread in threads: thread.join()
ray.shutdown()
print("found", json.dumps(found))
"""


@pytest.fixture(scope="module")
def shared() -> list[tuple[list[int], float]]:
    """The GPUs of each of two groups' workers, which ran at the same time on a Ray that believes
    this machine to have one, and the seconds that a worker waits for the others."""
    result = subprocess.run(
        [sys.executable, "-c", SHARING], capture_output=True, text=True, timeout=560, check=False
    )
    assert result.returncode == 0, result.stderr
    (line,) = [line for line in result.stdout.splitlines() if line.startswith("found ")]
    found: list[tuple[list[int], float]] = json.loads(line.removeprefix("found "))
    return found


@pytest.mark.ray
@pytest.mark.slow
def test_groups_share_a_gpu(shared: list[tuple[list[int], float]]) -> None:
    assert [gpus for gpus, _ in shared] == [[0]] * 2


@pytest.mark.ray
@pytest.mark.slow
def test_workers_wait_as_long_as_one_of_them_is_busy(
    shared: list[tuple[list[int], float]],
) -> None:
    assert min(seconds for _, seconds in shared) > timedelta(days=365).total_seconds()
