"""Selecting images by view."""

import re

_VIEWS = {
    "frontal": "frontal",
    "pa": "frontal",
    "ap": "frontal",
    "lateral": "lateral",
    "ll": "lateral",
    "rl": "lateral",
}
"""A source's name for the view, including DICOM view positions -> the view."""


def view_of(name: str) -> str | None:
    """Return ``frontal`` or ``lateral`` for a source's name of the view; None if unknown."""
    return _VIEWS.get(name.strip().lower())


def view_in(name: str) -> str | None:
    """Return the view that is a word of a column's name, such as ``frontal_path``; None if none."""
    return next(filter(None, map(view_of, re.split(r"[^A-Za-z]+", name))), None)


def view_fault(view: str | None, wanted: str) -> str | None:
    """Return why an image is left out because of its view; None if it is kept.

    Args:
        view: The source's name of the view, in any case; PA and AP are frontal, LL and RL (left
            and right lateral) are lateral.
        wanted: ``frontal``, ``lateral`` or ``all``, which also keeps images of unknown view.
    """
    if wanted == "all":
        return None
    if not view:
        return f"view is unknown, but only {wanted} is kept"
    named = view_of(view)
    if named is None:
        return f"view is neither frontal nor lateral: {view}"
    return None if named == wanted else f"view is {named}, but only {wanted} is kept"
