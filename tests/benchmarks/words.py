"""A training step of soft_att and of lrcn, each against the plain way to write it: every word step
over the whole batch, however long each report is; the image's whole hidden layer as an input of
every word. Prints seconds and ratios, measured in turn in one run.

    python -m tests.benchmarks.words
"""

import time
from collections.abc import Callable

import torch
from torch import Tensor

from raymed.model.passages import Passages, select
from raymed.model.systems.lrcn import FactoredLSTM
from raymed.model.systems.soft_att import AttendingLSTM
from raymed.tokens import PAD, START

IMAGES, REGIONS, VISUAL, OVERALL, SIZE, VOCABULARY, ROUNDS = 16, 196, 512, 4096, 512, 1004, 3
MEAN_WORDS, SPREAD = 37, 0.5
"""Words of a report (IU X-Ray: 5.7 sentences of 6.5), log-normal."""


def passages() -> Passages:
    lengths = (torch.randn(IMAGES) * SPREAD).exp() * MEAN_WORDS
    lengths = lengths.round().long().clamp(min=3)
    ids = torch.full((IMAGES, int(lengths.max()) + 2), PAD)
    for row, length in zip(ids, lengths, strict=True):
        row[0] = START
        row[1 : length + 2] = torch.randint(4, VOCABULARY, (int(length) + 1,))
    images = torch.arange(IMAGES)
    return Passages.of(ids, images, images, torch.ones(IMAGES, 1, dtype=torch.bool))


def soft_att(reports: Passages, whole_batch: bool) -> Callable[[], Tensor]:
    torch.manual_seed(1)
    writer = AttendingLSTM(VOCABULARY, SIZE, VISUAL, SIZE)
    regions = torch.randn(IMAGES, REGIONS, VISUAL)

    def run() -> Tensor:
        context = (regions, writer.attention.keys(regions))
        if not whole_batch:
            logits = writer(context, reports).logits
        else:
            state, steps = writer.initial_state(context), []
            for words in reports.ids[:, :-1].unbind(dim=1):
                step, state = writer.step(words, state, context)
                steps.append(step)
            logits = select(torch.stack(steps, dim=1), reports.positions)
        return descend(writer, logits, reports)

    return run


def lrcn(reports: Passages, whole_layer: bool) -> Callable[[], Tensor]:
    torch.manual_seed(1)
    overall = torch.randn(IMAGES, OVERALL)
    w_image = torch.nn.Linear(OVERALL, SIZE)
    writer = FactoredLSTM(VOCABULARY, SIZE, SIZE)
    if whole_layer:
        writer.lstm_2 = type(writer.lstm_2)(SIZE + OVERALL, SIZE, batch_first=True)

    def run() -> Tensor:
        image = overall if whole_layer else w_image(overall)
        return descend(writer, writer((image,), reports).logits, reports)

    return run


def descend(writer: torch.nn.Module, logits: Tensor, reports: Passages) -> Tensor:
    loss = torch.nn.functional.cross_entropy(logits, reports.targets)
    writer.zero_grad()
    loss.backward()
    return loss.detach()


def main() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    reports = passages()
    words, longest = len(reports.targets) / IMAGES, reports.ids.shape[1] - 1
    print(f"{IMAGES} reports of {words:.0f} words on average, {longest} at most")
    for name, make, slow in (
        ("soft_att", soft_att, "every step over the whole batch"),
        ("lrcn", lrcn, f"{OVERALL} inputs for every word"),
    ):
        ways = {"raymed": make(reports, False), slow: make(reports, True)}
        seconds = dict.fromkeys(ways, float("inf"))
        losses = {}
        for _ in range(ROUNDS):
            for way, run in ways.items():
                began = time.perf_counter()
                losses[way] = run()
                seconds[way] = min(seconds[way], time.perf_counter() - began)
        for way, value in seconds.items():
            ratio = value / seconds["raymed"]
            print(f"{name:9s} {way:34s} {value:7.3f} s   {ratio:5.2f} x   loss {losses[way]:.4f}")


if __name__ == "__main__":
    main()
