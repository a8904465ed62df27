from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from raymed.config import Config, apply_settings, dotted_keys, load
from raymed.data.sources import load_settings
from raymed.errors import UsageError
from raymed.model.encoder_shapes import DEPTHS
from raymed.sections import Section
from tests.support.config_faults import faults


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    def _write(tree: Any, name: str = "run.yaml") -> Path:
        path = tmp_path / name
        path.write_text(tree if isinstance(tree, str) else yaml.safe_dump(tree))
        return path

    return _write


def test_defaults_are_the_papers_settings() -> None:
    config = load(None)
    assert config == Config()
    assert config.model.encoder == "vgg19"
    assert (config.model.hidden_size, config.model.embedding_size) == (512, 512)
    assert config.model.top_tags == 10
    assert config.data.vocabulary == 1000
    assert config.generation.stop_threshold == 0.5


def test_every_key_is_explained() -> None:
    explained = load(None).to_yaml(comments=True).splitlines()
    for key in dotted_keys():
        name = key.rpartition(".")[2]
        (place,) = (
            i
            for i, line in enumerate(explained)
            if line.startswith(f"  {name}:") and section_of(explained, i) == key.partition(".")[0]
        )
        assert explained[place - 1].startswith("  # ")
        assert len(explained[place - 1]) > 10


def section_of(lines: list[str], place: int) -> str:
    return next(line for line in reversed(lines[:place]) if not line.startswith(" ")).rstrip(":")


SPACE = {
    "loss.tag": {"log_uniform": [0.1, 10]},
    "loss.attention": {"log_uniform": [0.01, 1], "or": 0},
    "generation.stop_threshold": {"uniform": [0.2, 0.8]},
    "model.top_tags": {"integer": [2, 12]},
    "model.encoder": {"choice": ["small", "vgg11"]},
}


@pytest.mark.parametrize("comments", [False, True])
def test_yaml_round_trip(write: Callable[..., Path], comments: bool) -> None:
    config = load(
        write({"tune": {"space": SPACE}, "data": {"path": "a long path/" * 12 + "# not a note"}}),
        ["training.learning_rate=1e-4", "data.validation_images=7", "run.name=fold-2"],
    )
    again = load(write(config.to_yaml(comments), "again.yaml"))
    assert again == config
    assert again.to_yaml(comments) == config.to_yaml(comments)
    assert again.tune.space["loss.attention"].or_value == 0


def test_all_faults_at_once_with_the_nearest_names(write: Callable[..., Path]) -> None:
    path = write(
        {
            "model": {"hiden_size": 3, "encoder": "vgg18", "dropout": 1},
            "loss": {"tga": 1, "word": "much"},
            "training": {"epochs": 0},
            "traning": {},
            "seed": 3,
            "tune": {"space": {"loss.tag": {"loguniform": [1, 2]}}},
        }
    )
    assert sorted(faults(path, "generation.max_words=2.5")) == [
        "generation.max_words: input should be a valid integer, got a number with a fractional "
        "part (found 2.5)",
        "loss.tga: no such key; did you mean loss.tag?",
        "loss.word: input should be a valid number, unable to parse string as a number "
        "(found 'much')",
        "model.dropout: input should be less than 1 (found 1)",
        f"model.encoder: must be one of {', '.join(DEPTHS)}; did you mean vgg19? (found 'vgg18')",
        "model.hiden_size: no such key; did you mean model.hidden_size?",
        "seed: no such key; did you mean training.seed?",
        "training.epochs: input should be greater than or equal to 1 (found 0)",
        "traning: no such key; did you mean training?",
        "tune.space.loss.tag.loguniform: no such key; did you mean "
        "tune.space.loss.tag.log_uniform?",
    ]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("loss.tga=1", "loss.tga: no such key; did you mean loss.tag?"),
        ("epochs=3", "epochs: no such key; did you mean training.epochs?"),
        ("model.seed=3", "model.seed: no such key; did you mean training.seed?"),
        ("qqq=3", "qqq: no such key"),
        ("loss.tag=.nan", "loss.tag: input should be a finite number (found nan)"),
        ("loss.tag=-1", "loss.tag: input should be greater than or equal to 0 (found -1)"),
        ("generation.stop_threshold=.nan", "generation.stop_threshold: "),
        ("generation.stop_threshold=1.2", "generation.stop_threshold: "),
        ("training.learning_rate=0", "training.learning_rate: input should be greater than 0"),
        (
            "model.train_encoder=maybe",
            "model.train_encoder: input should be 'all', 'hidden' or 'none'",
        ),
        (
            "model.train_encoder=true",
            "model.train_encoder: must be all, hidden or none: write all for",
        ),
        (
            "model.train_encoder=false",
            "model.train_encoder: must be all, hidden or none: write none f",
        ),
        ("model.encoder=resnet5", "model.encoder: must be one of small, vgg11, "),
        (
            "run.name=../up",
            "run.name: must consist of letters (a to z), digits, dots, hyphens",
        ),
        ("run.name=", "run.name: must be a text (found None)"),
        ("run.name=true", "run.name: must be a text in quotes (found True)"),
        ("run.name=[1]", "run.name: must be a text (found ["),
        ("training.seed=1:30", "training.seed: input should be a valid integer"),
        ("loss=3", "loss: "),
        ("loss.tag.x=3", "loss.tag: "),
    ],
)
def test_fault_of_an_override(override: str, message: str) -> None:
    (fault,) = faults(None, override)
    assert fault.startswith(message)


@pytest.mark.parametrize("override", ["loss.tag", "=3", "loss.tag: 3"])
def test_malformed_override(override: str) -> None:
    with pytest.raises(UsageError, match="is not of the form key=value"):
        load(None, [override])


def test_override_with_invalid_yaml() -> None:
    with pytest.raises(UsageError, match=r"loss.tag: '\[' cannot be read as a YAML value"):
        load(None, ["loss.tag=["])


def test_overrides_win_and_the_last_one_most(write: Callable[..., Path]) -> None:
    path = write({"loss": {"tag": 2, "word": 3}})
    config = load(path, ["loss.tag=4", "loss.tag=5", "model.train_encoder=none"])
    assert (config.loss.tag, config.loss.word, config.loss.sent) == (5, 3, 1)
    assert config.model.train_encoder == "none"
    assert load(path, ["data.path=a=b"]).data.path == "a=b"


@pytest.mark.parametrize("text", ["1e-4", "1.0e-4", "1E-04", "0.0001"])
def test_scientific_notation(write: Callable[..., Path], text: str) -> None:
    """In YAML 1.1 ``1e-4`` is text."""
    in_file = load(write(f"training: {{learning_rate: {text}}}"))
    assert in_file.training.learning_rate == 1e-4
    assert load(None, [f"training.learning_rate={text}"]) == in_file


def test_override_method() -> None:
    config = Config().override({"loss.tag": 2.5, "model.top_tags": 4})
    assert (config.loss.tag, config.model.top_tags) == (2.5, 4)
    assert config.override({}) == config
    with pytest.raises(UsageError) as raised:
        config.override({"loss.tga": 1, "model.top_tags": 0}, origin="trial 3")
    assert str(raised.value).startswith("trial 3: 2 faults")


def test_an_empty_value_restores_none() -> None:
    assert load(None, ["launch.gpus_per_worker=2", "launch.gpus_per_worker="]) == Config()


def test_base_is_read_first_and_relative_to_the_file(write: Callable[..., Path]) -> None:
    (write({}).parent / "sub").mkdir()
    write({"loss": {"tag": 2, "word": 2}, "tune": {"space": SPACE}}, "base.yaml")
    write({"base": "../base.yaml", "loss": {"tag": 3}}, "sub/middle.yaml")
    top = write(
        {
            "base": "sub/middle.yaml",
            "loss": {"sent": 4},
            "tune": {"space": {"loss.tag": {"uniform": [1, 2]}}},
        },
        "top.yaml",
    )
    config = load(top)
    assert (config.loss.tag, config.loss.word, config.loss.sent) == (3, 2, 4)
    # A searched key is replaced as a whole; the others are kept.
    assert config.tune.space["loss.tag"].uniform == (1, 2)
    assert config.tune.space["loss.tag"].log_uniform is None
    assert set(config.tune.space) == set(SPACE)


def test_of_several_bases_the_later_wins(write: Callable[..., Path]) -> None:
    write({"loss": {"tag": 2, "word": 2}, "tune": {"trials": 5}}, "a.yaml")
    write({"loss": {"tag": 3}, "tune": {"space": SPACE}}, "b.yaml")
    config = load(write({"base": ["a.yaml", "b.yaml"], "tune": {"trials": 7}}))
    assert (config.loss.tag, config.loss.word, config.tune.trials) == (3, 2, 7)
    assert set(config.tune.space) == set(SPACE)
    with pytest.raises(UsageError, match=r"base: must be the path of a YAML file, not 3"):
        load(write({"base": ["a.yaml", 3]}))


def test_faults_of_files(write: Callable[..., Path], tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"absent.yaml: cannot be read"):
        load(tmp_path / "absent.yaml")
    with pytest.raises(UsageError, match="cannot be read"):
        load(tmp_path)
    with pytest.raises(UsageError, match=r"run.yaml: not valid YAML"):
        load(write("loss: ["))
    with pytest.raises(UsageError, match=r"run.yaml: must hold sections .* not a list"):
        load(write("[1, 2]"))
    with pytest.raises(UsageError, match=r"base: must be the path of a YAML file, not 3"):
        load(write({"base": 3}))
    with pytest.raises(UsageError, match=r"absent.yaml: cannot be read"):
        load(write({"base": "absent.yaml"}))
    write({"base": "run.yaml"}, "other.yaml")
    with pytest.raises(UsageError, match="is circular"):
        load(write({"base": "other.yaml"}))
    binary = tmp_path / "binary.yaml"
    binary.write_bytes(b"\xff\xfe\x00\x81")
    with pytest.raises(UsageError, match=r"binary.yaml: not valid YAML"):
        load(binary)
    assert load(write("")) == Config()
    with pytest.raises(UsageError, match=r"run.yaml: not valid YAML: the key tag is given twice"):
        load(write("loss: {tag: 1, word: 2, tag: 3}"))


@pytest.mark.parametrize(
    ("key", "dimension", "message"),
    [
        (
            "los.tag",
            {"uniform": [1, 2]},
            "los.tag: no such key; did you mean loss.tag?",
        ),
        ("run.name", {"choice": ["a"]}, "tune.space: run.name: no such key"),
        ("loss.tag", {}, "exactly one of uniform, log_uniform, integer, choice must be given"),
        ("loss.tag", {"uniform": [1, 2], "choice": [1]}, "not uniform and choice"),
        (
            "loss.tag",
            {"uniform": [2, 1]},
            "lower bound must be below the upper, not [2.0, 1.0]",
        ),
        ("loss.tag", {"uniform": [1, 1]}, "the lower bound must be below the upper"),
        ("loss.tag", {"uniform": [1]}, "uniform.1: must be given"),
        ("loss.tag", {"choice": []}, "at least 1 item"),
        ("loss.tag", {"log_uniform": [0, 1]}, "write `or: 0` beside it"),
        ("loss.tag", 3, "tune.space.loss.tag: "),
        ("loss.tag", {"uniform": [-1, 1]}, "tune.space: loss.tag: input should be greater than or"),
        ("loss.tag", {"uniform": [1, float("inf")]}, "tune.space: loss.tag: input should be a fin"),
        ("loss.tag", {"log_uniform": [1, 2], "or": -3}, "(found -3.0)"),
        ("generation.stop_threshold", {"uniform": [0.1, 2]}, "(found 2.0)"),
        ("model.top_tags", {"integer": [0, 5]}, "tune.space: model.top_tags: input should be gre"),
        ("model.top_tags", {"integer": [1.5, 5]}, "input should be a valid integer"),
        (
            "model.top_tags",
            {"uniform": [1, 9]},
            "model.top_tags: input should be a valid int",
        ),
        ("model.encoder", {"choice": ["small", "vgg18"]}, "(found 'vgg18')"),
    ],
)
def test_faults_of_the_search_space(
    write: Callable[..., Path], key: str, dimension: Any, message: str
) -> None:
    (fault,) = faults(write({"tune": {"space": {key: dimension}}}))
    assert message in fault


def test_faults_of_several_searched_keys_at_once(write: Callable[..., Path]) -> None:
    space = {**SPACE, "model.top_tags": {"integer": [0, 5]}, "loss.wrod": {"uniform": [1, 2]}}
    assert len(faults(write({"tune": {"space": space}}))) == 2


def test_a_searched_key_from_the_command_line() -> None:
    config = load(None, ["tune.space.loss.tag={log_uniform: [0.1, 1]}"])
    assert config.tune.space["loss.tag"].log_uniform == (0.1, 1)
    # Another one is added to it.
    both = config.override({"tune.space.loss.word": {"uniform": [0.0, 1.0]}})
    assert set(both.tune.space) == {"loss.tag", "loss.word"}


def test_only_allowed_settings_apply_to_a_checkpoints_configuration() -> None:
    config = apply_settings(
        Config(), ["generation.max_words=9", "data.path=x"], ("generation.", "data.")
    )
    assert (config.generation.max_words, config.data.path) == (9, "x")
    with pytest.raises(UsageError, match=r"loss.tag: cannot be set here; only generation.\*"):
        apply_settings(Config(), ["generation.max_words=9", "loss.tag=2"], ("generation.",))


def test_settings_of_prepare() -> None:
    settings = load_settings(
        "table", ["out=x", "columns.report=text", "image_size=64", "views=frontal"]
    )
    assert (settings.out, settings.image_size, settings.columns) == ("x", 64, {"report": "text"})
    assert (settings.views, load_settings("table", ["out=x"]).views) == ("frontal", "all")
    texts = ["out=2024", "tag_separator=,", "images=0x1f", "columns.study=1e3", "address="]
    settings = load_settings("table", [*texts, 'columns.tags=["Edema, mild", 3D]'])
    assert (settings.out, settings.tag_separator, settings.images) == ("2024", ",", "0x1f")
    assert settings.columns == {"study": "1e3", "tags": ("Edema, mild", "3D")}
    assert settings.address is None
    with pytest.raises(UsageError, match=r"views: .*'frontal'.*\(found 'pa'\)"):
        load_settings("table", ["out=x", "views=pa"])
    with pytest.raises(UsageError) as raised:
        load_settings("table", ["image_sise=64", "split=random", "columns.raport=text"])
    text = str(raised.value)
    for fault in ("out: must be given", "did you mean image_size?", "(found 'random')", "raport"):
        assert fault in text


def test_sections_are_frozen_and_keys_are_dotted_names_of_them() -> None:
    config = Config()
    with pytest.raises(ValueError, match="frozen"):
        config.loss.tag = 3.0  # type: ignore[misc]
    for key in dotted_keys():
        section, _, name = key.partition(".")
        owner = getattr(config, section)
        assert isinstance(owner, Section)
        assert name in type(owner).model_fields
