"""What surrounds each call of the library: where it prints, and what an interrupt leaves behind."""

import gc
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager

import rich
from rich.console import Console

from raymed.errors import UsageError
from raymed.progress import show_progress_on


def choose_console(console: Console | None, quiet: bool) -> Console:
    """The console that a call prints on.

    Args:
        console: The caller's; None: standard output.
        quiet: Whether nothing is to be printed.

    Raises:
        UsageError: Both were given.
    """
    if quiet:
        if console is not None:
            raise UsageError("quiet: prints nothing, so it cannot be combined with console")
        return Console(quiet=True, force_terminal=False)
    if console is not None:
        return console
    own = rich.get_console()
    # In a notebook, rich makes each line a block of HTML of its own, and a bar leaves escape codes.
    return Console(force_jupyter=False, force_terminal=False) if own.is_jupyter else own


@contextmanager
def session(console: Console | None, quiet: bool) -> Iterator[Console]:
    """Run a call's work inside the block, with all its output on one console; yields it.

    An interrupt leaves no model in memory. A notebook keeps the last error, whose frames refer to
    the model, its gradients and the optimiser's state: on a GPU these would be in the way of the
    next run.

    Args:
        console: As in `choose_console`.
        quiet: As there.
    """
    chosen = choose_console(console, quiet)
    try:
        with show_progress_on(chosen):
            yield chosen
    except KeyboardInterrupt as interrupt:
        _forget_variables(interrupt)
        raise


def _forget_variables(error: BaseException) -> None:
    """Clear the variables of the frames that an error has left, and free the memory."""
    left: BaseException | None = error
    while left is not None:
        traceback.clear_frames(left.__traceback__)
        left = left.__context__
    gc.collect()
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        torch.cuda.empty_cache()
