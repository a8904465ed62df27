"""A training step of VGG-19 in float32 and in bfloat16, and with channels last in the convolutions'
memory, on this machine's processor. Prints seconds and ratios, measured in turn in one run.

    python -m tests.benchmarks.precision
"""

import time
from collections.abc import Callable

import torch

from raymed.model.encoder import build_encoder
from raymed.model.precision import precision_context
from raymed.training.precision import computes_bfloat16

IMAGES, PIXELS, ROUNDS = 4, 224, 3
HERE = torch.device("cpu")


def step(precision: torch.dtype, channels_last: bool) -> Callable[[], None]:
    encoder = build_encoder("vgg19")
    layout = torch.channels_last if channels_last else torch.contiguous_format
    encoder.convolutions.to(memory_format=layout)
    optimizer = torch.optim.AdamW(encoder.parameters(), fused=True)
    images = torch.randint(0, 256, (IMAGES, PIXELS, PIXELS), dtype=torch.uint8)

    def run() -> None:
        optimizer.zero_grad()
        with precision_context(precision, HERE):
            feature_map, hidden = encoder(images)
            loss = feature_map.float().mean() + hidden.float().mean()
        loss.backward()
        optimizer.step()

    return run


def main() -> None:
    torch.set_num_threads(1)
    native = "computes in" if computes_bfloat16(HERE) else "only emulates"
    print(f"this processor {native} bfloat16")
    layouts = {"channels first": False, "channels last": True}
    ways = {
        f"{name}, {layout}": step(getattr(torch, name), last)
        for name in ("float32", "bfloat16")
        for layout, last in layouts.items()
    }
    seconds = dict.fromkeys(ways, float("inf"))
    for _ in range(ROUNDS):
        for name, way in ways.items():
            began = time.perf_counter()
            way()
            seconds[name] = min(seconds[name], time.perf_counter() - began)
    first = next(iter(seconds.values()))
    for name, value in seconds.items():
        print(f"{name:28s} {value:8.2f} s a step of {IMAGES} images {first / value:6.2f} x as fast")


if __name__ == "__main__":
    main()
