"""The title of a sweep's page."""

import pytest
from jinja2 import Environment, PackageLoader


@pytest.mark.parametrize(
    ("name", "title"),
    [
        ("sweep", "sweep"),
        ("Sweep-2", "Sweep-2"),
        ("medpix", "Sweep medpix"),
        ("a&b", "Sweep a&amp;b"),
    ],
)
def test_the_word_sweep_occurs_once(name: str, title: str) -> None:
    pages = Environment(loader=PackageLoader("raymed.reports"), autoescape=True)
    template = pages.get_template("sweep.html")
    assert "".join(template.blocks["title"](template.new_context({"name": name}))) == title
