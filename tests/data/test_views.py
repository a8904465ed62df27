import pytest

from raymed.data.views import view_fault


@pytest.mark.parametrize("view", ["frontal", "Frontal", "PA", " ap ", "lateral", "LL", "Rl"])
def test_a_named_view_is_of_one_kind(view: str) -> None:
    kind = "frontal" if view.strip().lower() in ("frontal", "pa", "ap") else "lateral"
    other = {"frontal": "lateral", "lateral": "frontal"}[kind]
    assert view_fault(view, kind) is None
    assert view_fault(view, other) == f"view is {kind}, but only {other} is kept"


def test_views_that_are_unknown() -> None:
    assert view_fault(None, "lateral") == "view is unknown, but only lateral is kept"
    assert view_fault("oblique", "frontal") == "view is neither frontal nor lateral: oblique"
    assert view_fault(None, "all") is view_fault("oblique", "all") is None
