"""Self-critical training, against plain loops over single decisions."""

import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor

from raymed.config import Config
from raymed.data.batches import Batch
from raymed.data.vocabulary import Vocabulary
from raymed.errors import UsageError
from raymed.metrics.cider import CiderReward
from raymed.model.system import System
from raymed.model.systems import SYSTEMS
from raymed.sections import GenerationConfig, LossConfig
from raymed.tokens import PAD, SPECIAL, START
from raymed.training.checkpoint import MODEL_FILE, Checkpoint, latest
from raymed.training.errors import Interrupted
from raymed.training.log import METRICS_FILE, read_metrics
from raymed.training.loop import train
from raymed.training.loss import tag_loss
from raymed.training.objective import StepLosses
from raymed.training.prefetch import TrainingBatch
from raymed.training.sampling import GREEDY, SAMPLED, roll_out
from raymed.training.self_critical import SelfCritical
from raymed.training.setup import check
from raymed.training.worker import Worker
from tests.support.metric_rows import untimed
from tests.support.recording import Recorder
from tests.support.tiny_systems import IMAGES, TAGS, build_tiny

ALONE = Worker(torch.device("cpu"))
WRITING = [name for name in SYSTEMS if name != "vgg19_tags"]
VOCABULARY = Vocabulary(("lungs", "clear", "no", "effusion", "nodule"), tuple("abcdef"))
REFERENCES = [
    "lungs clear no effusion no nodule",
    "no effusion lungs clear",
    "nodule no effusion lungs clear no nodule",
    "nodule",
]
"""Of the training split; the batch has the rows 2, 0 and 1."""
ROWS = torch.tensor([2, 0, 1])
SETTINGS = GenerationConfig(max_sentences=3, max_words=4, stop_threshold=0.5)


def cider_d(reference: str, hypothesis: str) -> float:
    """CIDEr-D (Vedantam et al. 2015, section 5) with the document frequencies of `REFERENCES`."""

    def grams(text: str, n: int) -> Counter[tuple[str, ...]]:
        words = text.split()
        return Counter(tuple(words[i : i + n]) for i in range(len(words) - n + 1))

    total = 0.0
    for n in range(1, 5):
        seen = Counter(gram for text in REFERENCES for gram in set(grams(text, n)))
        theirs, ours = grams(reference, n), grams(hypothesis, n)

        def idf(gram: tuple[str, ...], seen: Counter = seen) -> float:
            return math.log(len(REFERENCES) / max(1, seen[gram]))

        product = sum(min(ours[g], theirs[g]) * theirs[g] * idf(g) ** 2 for g in ours)
        norms = [math.hypot(*(c * idf(g) for g, c in each.items()), 0.0) for each in (ours, theirs)]
        total += product / math.prod(norms) if all(norms) else 0.0
    lengths = (sum(grams(text, 2).values()) for text in (hypothesis, reference))
    difference = next(lengths) - next(lengths)
    return 10 * total / 4 * math.exp(-(difference**2) / (2 * 6.0**2))


def test_the_reward_is_cider_d_with_the_frequencies_of_the_training_split() -> None:
    reward = CiderReward(REFERENCES)
    hypotheses = ["no effusion lungs clear", "nodule nodule nodule", "lungs", "", "unseen word"]
    hypotheses += [REFERENCES[0], "no no effusion no nodule no nodule lungs clear " * 3]
    for reference in REFERENCES:
        found = reward([reference] * len(hypotheses), hypotheses)
        expected = [cider_d(reference, text) for text in hypotheses]
        assert found.tolist() == pytest.approx(expected, rel=1e-12, abs=1e-14)
    # Scored alone a pair has a reward; its frequencies are not those of what is scored with it.
    assert reward([REFERENCES[0]], [REFERENCES[0]])[0] == pytest.approx(10)


@pytest.fixture
def float64() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def objective_for(model: System, parallel: Any = None) -> SelfCritical:
    training: Any = SimpleNamespace(
        split=SimpleNamespace(references=REFERENCES), vocabulary=VOCABULARY
    )
    return SelfCritical(model, parallel or model, training, SETTINGS)


def a_batch(model: System) -> TrainingBatch:
    reports = torch.tensor([[[START, 4, PAD]]] * 3)
    batch = Batch(
        images=IMAGES,
        reports=reports,
        stops=torch.tensor([[1]] * 3),
        tags=torch.eye(TAGS)[:3],
        weights=torch.full((3,), 1 / 3),
        seeds=torch.tensor([11, 2**60, 12]),
        rows=ROWS,
    )
    return TrainingBatch(batch, model.passages(reports))


def decided(model: System, image: Tensor, report: list[list[int]]) -> Tensor:
    """log p of a sampled report, one decision at a time, by steps as in generation."""
    reading = model.read(image, SETTINGS.max_sentences)
    log_p = torch.zeros(())
    used = [passage for passage in report if passage[0] != PAD]
    for number, passage in enumerate(used):
        context = tuple(each[:, number] for each in reading.context)
        state, last = model.writer.initial_state(context), START
        for word in passage:
            if word == PAD:
                break
            logits, state = model.writer.step(torch.tensor([last]), state, context)
            allowed = [w for w in range(logits.shape[1]) if w not in model.writer.forbidden_ids]
            log_p = log_p + logits[0, word] - logits[0, allowed].logsumexp(dim=0)
            last = word
        if reading.stop_logits is not None and number < SETTINGS.max_sentences - 1:
            stops = int(number == len(used) - 1)
            log_p = log_p + reading.stop_logits[0, number].log_softmax(dim=0)[stops]
    return log_p


def text(report: list[list[int]]) -> str:
    """A report's words; of a report in one passage only those of the first three sentences."""
    if len(report) > 1:
        report = [[word for word in passage if word >= len(SPECIAL)] for passage in report]
        return " ".join(VOCABULARY.words[w - len(SPECIAL)] for passage in report for w in passage)
    words, starts = [], 0
    for word in report[0]:
        starts += word == START
        if word >= len(SPECIAL) and starts < SETTINGS.max_sentences:
            words.append(VOCABULARY.words[word - len(SPECIAL)])
    return " ".join(words)


@pytest.mark.parametrize("system", WRITING)
def test_the_gradient_is_that_of_a_plain_policy_gradient(system: str, float64: None) -> None:  # noqa: ARG001
    model = build_tiny(system, len(VOCABULARY))
    training_batch = a_batch(model)
    found: StepLosses = objective_for(model)(training_batch)
    weights = LossConfig(tag=2.0, sent=1.0, word=1.0, attention=0.0)
    (found.terms.total(weights) * training_batch.batch.weights).sum().backward()
    gradients = {name: p.grad for name, p in model.named_parameters()}

    model.zero_grad()
    batch = training_batch.batch
    words = roll_out(model, IMAGES, batch.seeds, SETTINGS).tolist()
    loss, advantages = torch.zeros(()), []
    for i, row in enumerate(ROWS.tolist()):
        rewards = [cider_d(REFERENCES[row], text(each[i])) for each in words]
        for kind in (SAMPLED, GREEDY):
            assert found.measured[kind][i].item() == pytest.approx(rewards[kind], abs=1e-12)
        advantages.append(rewards[SAMPLED] - rewards[GREEDY])
        image = IMAGES[i : i + 1]
        loss = loss - advantages[-1] * decided(model, image, words[SAMPLED][i]) / 3
        logits = model.encode(image, None).tag_logits
        loss = loss + 2 * tag_loss(logits, batch.tags[i : i + 1]).sum() / 3
    assert any(abs(advantage) > 0.01 for advantage in advantages)
    loss.backward()
    for name, p in model.named_parameters():
        expected = torch.zeros_like(p) if p.grad is None else p.grad
        ours = gradients[name]
        ours = torch.zeros_like(p) if ours is None else ours
        torch.testing.assert_close(ours, expected, rtol=1e-8, atol=1e-10, msg=name)


@torch.no_grad()
def test_attention_is_regularised_over_the_sampled_sentences(float64: None) -> None:  # noqa: ARG001
    model = build_tiny("co_attention", len(VOCABULARY))
    training_batch = a_batch(model)
    penalty = objective_for(model)(training_batch).terms.attention
    seeds = training_batch.batch.seeds
    words = roll_out(model, IMAGES, seeds, SETTINGS)[SAMPLED]
    reading = model.read(IMAGES, SETTINGS.max_sentences)
    for i, report in enumerate(words.tolist()):
        count = sum(passage[0] != PAD for passage in report)
        expected = sum(
            float((1 - sum(each[i, s] for s in range(count))).square().sum())
            for each in (reading.alpha, reading.beta)
        )
        assert penalty[i].item() == pytest.approx(expected)


@pytest.fixture
def stage(learner: Config, trained: Path) -> Config:
    return learner.override(
        {
            "training.objective": "cider",
            "training.start_from": str(trained),
            "training.learning_rate": 2e-3,
            "training.epochs": 2,
            "loss.attention": 0.01,
        }
    )


def run(config: Config, folder: Path) -> list[dict[str, float]]:
    recorder = Recorder()
    train(config, folder, ALONE, recorder)
    return recorder.rows


def test_a_runs_rewards_are_those_of_its_reports(stage: Config, tmp_path: Path) -> None:
    rows = run(stage, tmp_path)
    assert read_metrics(tmp_path / METRICS_FILE) == rows
    assert all(0 < row["reward"] < 10 for row in rows)
    assert all(0 <= row["reward_greedy"] < 10 for row in rows)


@pytest.mark.parametrize("system", ["co_attention", "soft_att"])
def test_the_mean_reward_rises(system: str, float64: None) -> None:  # noqa: ARG001
    model = build_tiny(system, len(VOCABULARY))
    objective = objective_for(model)
    once = a_batch(model).batch
    picked = torch.arange(24) % 3
    many = Batch(**{name: value[picked] for name, value in vars(once).items()})
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    rewards = []
    for step in range(80):
        batch = replace(many, seeds=torch.arange(24) * 97 + step * 10_007)
        found = objective(TrainingBatch(batch, model.passages(batch.reports)))
        optimizer.zero_grad()
        (found.terms.sent + found.terms.word).mean().backward()
        optimizer.step()
        rewards.append(found.measured[SAMPLED].mean().item())
    assert sum(rewards[-10:]) > 1.3 * sum(rewards[:10])


def test_a_resumed_run_ends_where_the_uninterrupted_one_ends(stage: Config, tmp_path: Path) -> None:
    whole = run(stage, tmp_path / "whole")

    for end in ((1, 2), (2, 3)):
        torch.manual_seed(end[1])
        recorder = Recorder(at_step=lambda status, end=end: (status.epoch, status.done) == end)
        with pytest.raises(Interrupted):
            train(stage, tmp_path / "run", ALONE, recorder)
    run(stage, tmp_path / "run")
    last = latest(tmp_path / "run")
    assert last is not None
    assert untimed(Checkpoint.open(last).history) == untimed(whole)
    ours, expected = (
        safetensors.torch.load_file(latest(tmp_path / name) / MODEL_FILE)
        for name in ("run", "whole")
    )
    assert all(torch.equal(ours[name], expected[name]) for name in expected)


def test_what_cannot_be_trained_for_its_score_is_refused(stage: Config) -> None:
    with pytest.raises(UsageError, match=r"model\.system=vgg19_tags writes none: .*co_attention"):
        check(stage.override({"model.system": "vgg19_tags"}))
    with pytest.raises(UsageError, match=r"training\.objective: .* set training\.start_from"):
        check(stage.override({"training.start_from": None}))
    with pytest.raises(UsageError, match=r"loss\.label_smoothing: 0\.1 smooths .* set it to 0"):
        check(stage.override({"loss.label_smoothing": 0.1}))
    same: Any = SimpleNamespace(split=SimpleNamespace(references=["no nodule"] * 3))
    model = build_tiny("lrcn", 9)
    with pytest.raises(UsageError, match="all training reports are the same"):
        SelfCritical(model, model, same, SETTINGS)
