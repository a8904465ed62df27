"""The optimiser: its parameter groups, its learning-rate schedule, its state on all workers."""

import math

import torch
import torch.distributed as dist

from raymed.model.system import System
from raymed.sections import TrainingConfig
from raymed.training.worker import Worker


def build_optimizer(model: System, config: TrainingConfig) -> torch.optim.AdamW:
    """AdamW with one learning rate for the encoder and one for the rest; only matrices decay."""
    encoder = {id(p) for p in model.encoder.parameters()} if model.encoder else set()
    groups = []
    for in_encoder, rate in (
        (False, config.learning_rate),
        (True, config.encoder_learning_rate),
    ):
        for decays in (True, False):
            params = [
                p
                for p in model.parameters()
                if p.requires_grad and (id(p) in encoder) == in_encoder and (p.ndim > 1) == decays
            ]
            decay = config.weight_decay if decays else 0.0
            groups.append({"params": params, "base_rate": rate, "weight_decay": decay})
    return torch.optim.AdamW([group for group in groups if group["params"]], fused=True)


def set_learning_rates(
    optimizer: torch.optim.Optimizer, config: TrainingConfig, done: int, steps: int
) -> None:
    """Set each group's learning rate for the step that follows ``done`` steps of the run.

    The rate rises linearly over the first ``config.warmup`` of the run, then falls along a half
    cosine to ``config.final_rate`` of its peak.

    Args:
        optimizer: From `build_optimizer`.
        config: The training section of the configuration.
        done: Steps done since the start of the run.
        steps: Steps per epoch.
    """
    share, floor = (done + 1) / (config.epochs * steps), config.final_rate
    if share < config.warmup:
        factor = share / config.warmup
    else:
        fallen = (share - config.warmup) / (1 - config.warmup) if config.warmup < 1 else 0.0
        factor = floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * fallen))
    for group in optimizer.param_groups:
        group["lr"] = group["base_rate"] * factor


def broadcast_state(optimizer: torch.optim.Optimizer, worker: Worker) -> None:
    """Copy the first worker's optimiser state to all others, as DDP copies its weights."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    layouts = worker.first(
        lambda: [
            {name: (value.shape, value.dtype) for name, value in optimizer.state[p].items()}
            for p in parameters
        ]
    )
    for parameter, layout in zip(parameters, layouts, strict=True):
        for name, (shape, dtype) in layout.items():
            own = optimizer.state[parameter].get(name)
            sent = torch.empty(shape, dtype=dtype, device=parameter.device)
            if worker.rank == 0:
                sent.copy_(own)
            dist.broadcast(sent, 0)
            if worker.rank != 0:
                like = parameter if parameter.shape == shape else sent
                optimizer.state[parameter][name] = torch.empty_like(like, dtype=dtype).copy_(sent)
