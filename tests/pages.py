"""Reading the pages that the package makes."""

from __future__ import annotations

import re
from html.parser import HTMLParser


class Page(HTMLParser):
    """Collects what a page loads, its elements, and whether its tags are balanced."""

    VOID = frozenset({"meta", "img", "path", "polyline", "circle", "br"})

    def __init__(self, html: str) -> None:
        super().__init__()
        self.loads: list[str] = []
        self.tags: list[str] = []
        self.open: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Note a tag and what it refers to."""
        self.tags.append(tag)
        self.loads += [value or "" for name, value in attrs if name in ("src", "href", "srcset", "data")]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        """Check that the tag closes the one opened last."""
        if tag not in self.VOID:
            assert self.open.pop() == tag


def assert_self_contained(html: str) -> Page:
    """A page that loads nothing, runs nothing, and closes what it opens."""
    page = Page(html)
    assert page.open == []
    assert all(target.startswith(("data:image/", "#")) for target in page.loads)
    assert "script" not in page.tags
    assert "url(" not in html
    assert html.count("Content-Security-Policy") == 1
    return page


def body_text(html: str) -> str:
    """A page without its stylesheet and its pictures."""
    return re.sub(r'base64,[^"]+', "", html.split("</style>")[1])
