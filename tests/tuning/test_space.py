import math

import optuna
import pytest

from raymed.sections import Dimension
from raymed.tuning.space import propose
from raymed.tuning.trial import NUMBER

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
    for number in range(40):
        trial = study.ask()
        proposal = propose(trial, SPACE)
        assert proposal.keys() == {NUMBER, *SPACE}
        assert proposal[NUMBER] == number
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
        study.tell(trial, 0.0)


def test_or_is_taken_about_half_the_time() -> None:
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    zeros = sum(propose(study.ask(), SPACE)["loss.attention"] == 0 for _ in range(200))
    # Five standard deviations of a fair coin.
    assert abs(zeros - 100) < 5 * math.sqrt(200 / 4)
