"""Every documented command runs, or says why it does not, and every link leads somewhere."""

import re
import shlex
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from PIL import Image

import raymed
from raymed import config as configuration
from raymed.arguments import COMMANDS, parse
from raymed.cli import main

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
MARKDOWN = [*PAGES, ROOT / "CHANGELOG.md", *sorted((ROOT / "tune_configs").rglob("*.md"))]
TINY = [
    *("model.encoder=small", "model.encoder_weights=none", "model.top_tags=2", "launch.workers=0"),
    *("model.hidden_size=8", "model.embedding_size=8", "training.epochs=1"),
]
"""What makes a documented training run a matter of seconds."""
SMALLER = {
    "config": [],
    "prepare": ["image_size=32", "workers=0"],
    "train": TINY,
    "finetune": ["training.epochs=1"],
    "evaluate": [],
    "score": [],
    "compare": [],
    "predict": [],
    "export": [],
    "figure": ["split=train"],
}
"""Settings that each command is run with here, after the documented ones."""
SWEEP = {
    "prepare": ["studies=40", "overwrite=true", "workers=0"],
    "tune": [*TINY[:-1], "launch.workers=1", "training.epochs=2", "tune.trials=2"],
    "report": [],
    "finetune": ["training.epochs=3"],
}
"""The same for the commands that need Ray."""
PROGRAMS = {
    "aws",
    "docker",
    "export",
    "gcloud",
    "git",
    "kubectl",
    "mkdir",
    "mv",
    "ray",
    "sbatch",
    "tar",
    "tensorboard",
    "uv",
}
"""Programs of others in blocks that are not run."""
REPORTS = ("effusion on the left.", "the lungs are clear. no effusion.", "a nodule is seen.")


class Block(NamedTuple):
    """The commands of a fenced block, and why they are not run if they are not."""

    page: str
    commands: tuple[str, ...]
    not_run: str

    @property
    def needs_ray(self) -> bool:
        return any(command.startswith("raymed tune") for command in self.commands)


def blocks_of(page: Path) -> Iterator[Block]:
    pattern = r"(?:<!-- not run: ([^\n]+) -->\n)?```(?:sh|bash)\n(.*?)```"
    for not_run, text in re.findall(pattern, page.read_text(), re.DOTALL):
        lines = text.replace("\\\n", " ").splitlines()
        commands = (shlex.join(shlex.split(line, comments=True)) for line in lines)
        yield Block(page.name, tuple(filter(None, commands)), not_run)


BLOCKS = [block for page in PAGES for block in blocks_of(page)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A reader's working directory: the shipped files, two tables of images, and trained runs."""
    folder = tmp_path_factory.mktemp("docs")
    shutil.copytree(ROOT / "tune_configs", folder / "tune_configs")
    (folder / "images").mkdir()
    rows, mapped = ["image,report,tags,split"], ["file,findings,impression,tags,split"]
    for number in range(1, 10):
        name = f"film-{number:02}.png"
        Image.new("L", (32, 32), 20 * number).save(folder / "images" / name)
        report, tag = REPORTS[number % 3], ("mass", "normal", "nodule")[number % 3]
        split = ("train", "val", "test")[number % 3] if number > 5 else "train"
        rows.append(f"{name},{report},{tag},{split}")
        mapped.append(f"{name},{report},stable.,{tag},{split}")
    (folder / "reports.csv").write_text("\n".join(rows))
    (folder / "mapped.csv").write_text("\n".join(mapped))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
        run("raymed prepare table reports.csv out=data/own images=images", SMALLER)
        run("raymed train tune_configs/own.yaml", SMALLER)
        visual = ["run.name=own-visual", "model.system=visual_only"]
        run(shlex.join(["raymed", "train", "tune_configs/own.yaml", *visual]), SMALLER)
        yield folder


def run(command: str, smaller: dict[str, list[str]]) -> None:
    program, name, *arguments = shlex.split(command)
    assert program == "raymed", f"{command}: mark the block as `not run`, with the reason"
    assert name in smaller, f"{command}: say in this test how to run it cheaply, or mark it"
    if name == "prepare" and any(argument.startswith("out=") for argument in arguments):
        arguments.append("overwrite=true")
    given = [a for a in arguments if a.partition("=")[0] not in keys_of(smaller[name])]
    if name == "prepare" and not any(argument.startswith("out=") for argument in arguments):
        assert main([name, *given]) == 0
    else:
        assert main([name, *given, *smaller[name]]) == 0


def keys_of(settings: list[str]) -> set[str]:
    return {setting.partition("=")[0] for setting in settings}


@pytest.mark.parametrize(
    "block",
    [block for block in BLOCKS if not block.not_run and not block.needs_ray],
    ids=lambda block: f"{block.page}: {block.commands[0]}",
)
def test_the_commands_of_a_page_run(block: Block, folder: Path) -> None:
    assert folder == Path.cwd()
    for command in block.commands:
        run(command, SMALLER)


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.parametrize(
    "block",
    [block for block in BLOCKS if not block.not_run and block.needs_ray],
    ids=lambda block: block.page,
)
def test_the_commands_of_a_sweep_run(
    block: Block,
    folder: Path,
    ray: None,  # noqa: ARG001
) -> None:
    assert folder == Path.cwd()
    for command in block.commands:
        run(command, SWEEP)


@pytest.mark.parametrize(
    "block",
    [block for block in BLOCKS if block.not_run],
    ids=lambda block: f"{block.page}: {block.commands[0]}",
)
def test_commands_that_are_not_run_are_well_formed(block: Block) -> None:
    assert len(block.not_run) > 10
    for command in block.commands:
        for part in command.split(" '&&' "):
            check(shlex.split(part))


def check(words: list[str]) -> None:
    """Check a command that cannot run here: its arguments, and the files that it names."""
    words = [word for word in words if not re.fullmatch(r"RAY_\w+=\w+", word)]
    for word in words:
        if word.startswith(("tune_configs/", "cluster/")):
            assert (ROOT / word).is_file(), word
    if "--" in words:
        words = words[words.index("--") + 1 :]
    if words[:3] == ["python", "-m", "raymed"]:
        words = words[2:]
    program, *arguments = words
    if program == "raymed":
        options = parse(dict.fromkeys(COMMANDS, print), arguments)
        if options.name in ("train", "tune"):
            configuration.load(ROOT / options.file, options.settings)
    elif program == "make":
        assert re.search(rf"^{arguments[0]}:", (ROOT / "Makefile").read_text(), re.MULTILINE)
    elif program == "python" and arguments[0].endswith(".py"):
        assert (ROOT / arguments[0]).is_file()
    elif program == "python":
        assert (ROOT / arguments[1].replace(".", "/")).with_suffix(".py").is_file()
    else:
        assert program in PROGRAMS, program


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.usefixtures("ray")
def test_the_library_page_runs(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert folder == Path.cwd()
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "docs/library.md").read_text(), re.DOTALL)
    names: dict[str, Any] = {}
    for block in blocks:
        exec(compile(block, "docs/library.md", "exec"), names)
    for function in set(raymed.__all__) & {"prepare", "train", "tune", "evaluate", "load"}:
        assert any(f"raymed.{function}(" in block for block in blocks), function
    assert names["info"].counts == {"train": 7, "val": 1, "test": 1}
    assert len(names["run"].dataframe()) == 2
    assert len(names["sweep"].dataframe()) == 2
    assert names["evaluation"].split == "val"
    first, second, _ = names["several"]
    assert first.report.sentences == second.report.sentences == names["scaled"].report.sentences
    with Image.open("figure.png") as figure:
        assert min(figure.size) > 300
    assert capsys.readouterr().out.count("film-0") >= 9


def test_yaml_in_a_page_is_a_valid_configuration(tmp_path: Path) -> None:
    found = [
        text
        for page in PAGES
        for text in re.findall(r"```yaml\n(.*?)```", page.read_text(), re.DOTALL)
    ]
    assert found
    for text in found:
        file = tmp_path / "page.yaml"
        file.write_text(text)
        configuration.load(file)


@pytest.mark.parametrize("page", MARKDOWN, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    text = re.sub(r"```.*?```|`[^`\n]*`", "", page.read_text(), flags=re.DOTALL)
    links = re.findall(r"\]\(([^)\s]+)\)", text) + re.findall(r"<(https?:[^>\s]+)>", text)
    for link in links:
        if "://" in link:
            assert re.fullmatch(r"https://[\w.-]+\.[a-z]+(/[\w./#%-]*)?", link), link
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), link
        if anchor:
            assert anchor in anchors(target), link
    bare = re.sub(r"\]\([^)]*\)|<https?:[^>]*>", "", text)
    assert "http://" not in bare


def anchors(page: Path) -> set[str]:
    """The anchors that GitHub gives the headings of a page."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading).lower().replace(" ", "-") for heading in headings}


def test_every_page_is_linked_from_the_readme() -> None:
    text = (ROOT / "README.md").read_text()
    for page in sorted((ROOT / "docs").glob("*.md")):
        assert f"(docs/{page.name})" in text
    assert len(re.findall(r"\w+", re.sub(r"[|`*]", "", text))) < 1100
    assert (ROOT / "docs" / "images" / "attention.png").stat().st_size < 300_000
