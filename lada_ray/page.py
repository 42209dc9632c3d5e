"""What the pages share: their frame and stylesheet, and how numbers, times, sizes and names are written.

A page is one self-contained file, without scripts and with nothing loaded from elsewhere; whatever comes from users
(names, paths, reasons) is escaped by the template engine. Pages extend `page.html.jinja`, which holds `page.css`.
"""

from __future__ import annotations

import base64
from pathlib import Path

import jinja2
from markupsafe import Markup

FOLDER = Path(__file__).parent
UNDEFINED = "\u2013"  # en dash
MINUS = "\u2212"


def page_environment() -> jinja2.Environment:
    """The template engine for all pages; templates are named by their path inside the package.

    Filters: `n1` (one decimal), `points` (two), `signed`, `seconds`, `bytes`, `image` (a data URI) and `short`.
    """
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(FOLDER),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(
        n1=number, points=points, signed=signed, seconds=duration, bytes=size, image=data_uri, short=shorten
    )
    # Ours, not the users', so it goes in unescaped.
    environment.globals["stylesheet"] = Markup((FOLDER / "page.css").read_text(encoding="utf-8"))
    return environment


def number(value: float, signed: bool = False) -> str:
    """A value with one decimal, such as an accuracy in %.

    Args:
        value: any number; NaN is written as a dash.
        signed: write a plus sign too.
    """
    if value != value:
        return UNDEFINED
    value = round(float(value), 1) + 0.0  # never "-0.0"
    return f"{value:+.1f}" if signed else f"{value:.1f}"


def signed(value: float) -> str:
    """A difference with one decimal, its sign, and a true minus."""
    return number(value, signed=True).replace("-", MINUS)


def points(value: float | None, signed: bool = False) -> str:
    """A value with two decimals and a true minus: differences between good methods are often below half a point.

    Args:
        value: any number; None and NaN are written as a dash.
        signed: write a plus sign too.
    """
    if value is None or value != value:
        return UNDEFINED
    value = round(float(value), 2) + 0.0  # never "-0.00"
    return (f"{value:+.2f}" if signed else f"{value:.2f}").replace("-", MINUS)


def duration(seconds: float) -> str:
    """Say a length of time the way people read it.

    Args:
        seconds: how long.

    Returns:
        such as "0.4 s", "12 s", "3 min 20 s", "2 h 05 min".
    """
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def size(count: float) -> str:
    """Say a number of bytes the way people read it.

    Args:
        count: bytes.

    Returns:
        such as "840 B", "1.2 MB" (decimal units).
    """
    for unit in ("B", "kB", "MB", "GB"):
        if count < 999.5:
            return f"{count:.0f} {unit}" if unit == "B" or count >= 99.5 else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"


def shorten(name: str, width: int) -> str:
    """Cut a name in its middle, so that names which differ at either end stay different.

    Args:
        name: any text.
        width: characters allowed, at least 3.

    Returns:
        at most `width` characters: `caltech101` in 7 is `cal…101`.
    """
    if len(name) <= width:
        return name
    tail = (width - 1) // 2
    return f"{name[: width - 1 - tail]}…{name[len(name) - tail :]}"


def data_uri(image: bytes) -> Markup:
    """An encoded picture (PNG, JPEG, GIF or WebP) as the address that a page shows it under."""
    kinds = {b"\x89PNG": "png", b"\xff\xd8": "jpeg", b"GIF8": "gif", b"RIFF": "webp"}
    kind = next((name for magic, name in kinds.items() if image.startswith(magic)), "png")
    return Markup(f"data:image/{kind};base64,{base64.b64encode(image).decode()}")
