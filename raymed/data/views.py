"""Choosing images by their view."""

_VIEWS = {
    "frontal": "frontal",
    "pa": "frontal",
    "ap": "frontal",
    "lateral": "lateral",
    "ll": "lateral",
    "rl": "lateral",
}
"""As a source may name it, DICOM's view positions among them -> the view."""


def view_of(name: str) -> str | None:
    """Return ``frontal`` or ``lateral`` for a view as a source names it, None for another name."""
    return _VIEWS.get(name.strip().lower())


def view_fault(view: str | None, wanted: str) -> str | None:
    """Return in words why an image of this view is left out; None if it is wanted.

    Args:
        view: as the source names it, in any case; PA and AP count as frontal, LL and RL (left
            and right lateral) as lateral.
        wanted: ``frontal``, ``lateral`` or ``all``, which asks for no view to be known.
    """
    if wanted == "all":
        return None
    if not view:
        return f"view is not known, and only {wanted} is wanted"
    named = view_of(view)
    if named is None:
        return f"view is neither frontal nor lateral: {view}"
    return None if named == wanted else f"view is {named}, and only {wanted} is wanted"
