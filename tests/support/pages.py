"""The content of a page, parsed without a browser."""

from html.parser import HTMLParser
from pathlib import Path


class Page(HTMLParser):
    """A page's text, its elements and every address in it."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[tuple[str, str]] = []  # the innermost element, and the text
        self.open: list[str] = []
        self.source = path.read_text(encoding="utf-8")
        self.feed(self.source)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag, "elements are closed in turn"

    def handle_data(self, data: str) -> None:
        if data.strip():
            self.texts.append((self.open[-1], " ".join(data.split())))

    def all(self, tag: str) -> list[dict[str, str | None]]:
        """The attributes of each element of that name."""
        return [attributes for name, attributes in self.elements if name == tag]

    def within(self, tag: str) -> list[str]:
        """The texts directly in elements of that name."""
        return [text for name, text in self.texts if name == tag]

    def assert_self_contained(self) -> None:
        """The page refers to no other address and contains no script."""
        assert not self.open
        for tag, attributes in self.elements:
            assert tag not in ("script", "link", "iframe", "object", "base")
            for name, value in attributes.items():
                assert not name.startswith("on")
                if name in ("src", "href"):
                    assert value is not None
                    assert value.startswith(("data:image/png;base64,", "#")), value
        assert "url(" not in self.source
        assert "@import" not in self.source
