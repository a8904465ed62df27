"""`raymed table`: from a configuration to the paper's table with our figures."""

from rich.console import Console

from raymed.config import Config
from raymed.data.dataset import PreparedDataset
from raymed.errors import UsageError
from raymed.run_folder import TableFolder
from raymed.storage import AnyPath, atomic_write_text, reason
from raymed.tables.paper import table_systems
from raymed.tables.render import markdown_table, terminal_table
from raymed.tables.results import RUNS_FILE, table_rows, write_runs
from raymed.tables.runs import SPLIT, finished_runs

HALVES = {"iu_xray": "IU X-Ray", "peir_gross": "PEIR Gross"}


def make_table(table: str, config: Config, console: Console) -> AnyPath:
    """Train what is missing, print the table, and write it as Markdown and its runs as Parquet.

    Args:
        table: ``1``, ``2``, ``3`` or ``attention``.
        config: The configuration of the runs, with its table section.
        console: Where to print.

    Returns:
        The Markdown file.

    Raises:
        UsageError: As `finished_runs`; the attention is to be measured, and the dataset does not
            say where findings are; or the folder cannot be written.
    """
    dataset = PreparedDataset.open(config.data.path)
    if table == "attention" and not any(dataset.split(SPLIT).findings):
        raise UsageError(
            f"data.path: {config.data.path} does not say where any finding is, so attention "
            "cannot be measured on it; give a phantom dataset"
        )
    runs = finished_runs(config, table_systems(table, config.table.systems), console)
    rows = table_rows(table, config.table.paper, runs)
    note = _note(table, config, dataset)
    missing = {run.scores()["meteor_missing"] for run in runs} - {None}
    if table == "1" and missing:
        note += f" METEOR is missing where it could not be run: {'; '.join(sorted(missing))}."
    console.print(terminal_table(table, rows))
    console.print(note, highlight=False, markup=False)
    folder = TableFolder.of(config)
    file = folder.path / f"table-{table}.md"
    try:
        # If all runs are given, there is none yet, and nothing marks the folder as a table's.
        folder.runs.mkdir(parents=True, exist_ok=True)
        atomic_write_text(file, markdown_table(table, rows, note))
        write_runs(folder.path / f"table-{table}-{RUNS_FILE}", runs)
    except OSError as error:
        raise UsageError(f"{folder.path}: cannot be written ({reason(error)})") from error
    return file


def _note(table: str, config: Config, dataset: PreparedDataset) -> str:
    info = dataset.info
    limit = "" if config.training.patience is None else "at most "
    what = (
        f"{info.source} ({config.data.path}), {info.counts['train']:,} training and "
        f"{info.counts[SPLIT]:,} test images of {info.image_size} pixels; encoder "
        f"{config.model.encoder}, weights {config.model.encoder_weights}; "
        f"{limit}{config.training.epochs} epochs. Mean ± standard deviation over the runs"
    )
    if table == "attention":
        return (
            what + ". Over the test sentences that name a finding. true: share that name one "
            "which the image has. Of these, region: share whose strongest region falls on the "
            "finding; fixed: the same for the best single region of all images; chance: the same "
            "for a random region; tag: share whose strongest tag is the finding's; chance: the "
            "same for a random one of the attended tags."
        )
    return f"{what}. The paper's figures are of {HALVES[config.table.paper]}."
