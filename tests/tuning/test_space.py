import math

import optuna
import pytest

from raymed.config import Config
from raymed.errors import UsageError
from raymed.sections import Dimension
from raymed.tuning.space import propose, to_params, to_values
from raymed.tuning.study import build_sampler

SPACE = {
    "loss.tag": Dimension(log_uniform=(0.1, 10)),
    "loss.attention": Dimension.model_validate({"log_uniform": (0.001, 0.1), "or": 0}),
    "generation.stop_threshold": Dimension(uniform=(0.3, 0.7)),
    "model.top_tags": Dimension(integer=(2, 6)),
    "model.encoder": Dimension(choice=("small", "vgg11")),
}


@pytest.fixture(autouse=True)
def _quiet() -> None:
    optuna.logging.set_verbosity(optuna.logging.WARNING)


def test_each_kind_asks_optuna_for_its_distribution() -> None:
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    for _ in range(40):
        trial = study.ask()
        proposal = propose(trial, SPACE)
        assert list(proposal) == list(SPACE)
        kinds = dict(trial.distributions)
        zero = kinds.pop("loss.attention = 0")
        assert zero == optuna.distributions.CategoricalDistribution((False, True))
        expected = {
            "loss.tag": optuna.distributions.FloatDistribution(0.1, 10, log=True),
            "loss.attention": optuna.distributions.FloatDistribution(0.001, 0.1, log=True),
            "generation.stop_threshold": optuna.distributions.FloatDistribution(0.3, 0.7),
            "model.top_tags": optuna.distributions.IntDistribution(2, 6),
            "model.encoder": optuna.distributions.CategoricalDistribution(("small", "vgg11")),
        }
        if trial.params["loss.attention = 0"]:
            # Where it is off there is no range to ask about.
            del expected["loss.attention"]
            assert proposal["loss.attention"] == 0
        assert kinds == expected
        for key in expected:
            assert proposal[key] == trial.params[key]
        # A resumed sweep asks again, and the leaderboard reads what was answered.
        assert propose(trial, SPACE) == proposal == to_values(trial.params, SPACE)
        study.tell(trial, 0.0)


def test_or_is_taken_about_half_the_time() -> None:
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    zeros = sum(propose(study.ask(), SPACE)["loss.attention"] == 0 for _ in range(200))
    # Five standard deviations of a fair coin.
    assert abs(zeros - 100) < 5 * math.sqrt(200 / 4)


TAG = {"loss.tag": {"uniform": [0, 1]}}
CONDITIONAL = {
    "model.system": Dimension(choice=("lrcn", "co_attention", "semantic_only")),
    "model.top_tags": Dimension(
        integer=(2, 6), when={"model.system": ("co_attention", "semantic_only")}
    ),
    "loss.attention": Dimension.model_validate(
        {"uniform": (0.1, 1), "or": 0, "when": {"model.system": ["co_attention"]}}
    ),
}


@pytest.mark.parametrize("sampler", ["tpe", "random"])
def test_a_conditional_key_is_searched_under_its_condition_alone(sampler: str) -> None:
    config = Config().override({"tune.sampler": sampler, "tune.startup_trials": 3}).tune
    study = optuna.create_study()
    seen = set()
    for number in range(12):
        study.sampler = build_sampler(config, number)
        trial = study.ask()
        proposal = propose(trial, CONDITIONAL)
        system = proposal["model.system"]
        seen.add(system)
        assert ("model.top_tags" in proposal) == (system != "lrcn")
        assert ("loss.attention" in proposal) == (system == "co_attention")
        assert to_values(trial.params, CONDITIONAL) == proposal
        study.tell(trial, number / 10)
    assert len(seen) > 1


def test_points_come_first_and_what_they_leave_out_is_sampled() -> None:
    points = [
        {"loss.tag": 1, "loss.attention": 0},
        {"loss.attention": 0.05, "model.top_tags": 4, "model.encoder": "vgg11"},
    ]
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    for point in points:
        study.enqueue_trial(to_params(point, SPACE))
    for point in points:
        proposal = propose(study.ask(), SPACE)
        assert list(proposal) == list(SPACE)
        assert {key: proposal[key] for key in point} == point
    assert propose(study.ask(), SPACE)["loss.tag"] not in (1, proposal["loss.tag"])


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (
            {"tune.space": {"model.top_tags": {"integer": [2, 4], "when": {"loss.tag": [1]}}}},
            "tune.space.model.top_tags: when: loss.tag must be searched, and listed above it",
        ),
        (
            {
                "tune.space": {
                    "model.system": {"choice": ["lrcn", "co_attention"]},
                    "model.top_tags": {"integer": [2, 4], "when": {"model.system": ["soft_att"]}},
                }
            },
            "when: model.system never takes the value soft_att",
        ),
        (
            {
                "tune.space": {"loss.tag": {"uniform": [0, 1]}},
                "tune.points_to_evaluate": [{"loss.tag": 2}],
            },
            "tune.points_to_evaluate: point 1: loss.tag: 2 is out of range",
        ),
        (
            {
                "tune.space": {"loss.tag": {"uniform": [0, 1]}},
                "tune.points_to_evaluate": [{"loss.tagg": 1}],
            },
            "point 1: loss.tagg: no such key; did you mean loss.tag",
        ),
        (
            {
                "tune.space": {"generation.stop_threshold": {"uniform": [0.2, 0.8]}},
                "tune.free_threshold": True,
            },
            "tune.free_threshold: generation.stop_threshold is also searched",
        ),
        (
            {
                "tune.objectives": {"cider": "max", "seconds_per_report": "min"},
                "tune.sampler": "cma_es",
            },
            "tune.sampler: cma_es supports one objective only",
        ),
        ({"tune.objectives": {"speed": "min"}}, "tune.objectives.speed"),
        ({"tune.sampler": "grid"}, "tune.sampler: input should be 'tpe', 'cma_es', 'gp', 'qmc' or"),
    ],
)
def test_contradictions_are_named(settings: dict[str, object], words: str) -> None:
    with pytest.raises(UsageError) as caught:
        Config().override(settings)
    assert words in str(caught.value)


def test_whole_numbers_and_values_beside_the_range() -> None:
    tags, off = SPACE["model.top_tags"], SPACE["loss.attention"]
    assert [tags.holds(v) for v in (2, 6, 7, 2.5, True, "3")] == [True, True, *[False] * 4]
    assert [off.holds(v) for v in (0, 0.001, 0.0001, 0.1)] == [True, True, False, True]
    assert [SPACE["model.encoder"].holds(v) for v in ("small", "vgg16")] == [True, False]
