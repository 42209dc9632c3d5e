"""Images that are parts of larger files, named by a fragment: `file#part`."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Protocol
from urllib.parse import quote, unquote

from lada_ray.store import Store

# A "#" may stand in an image file's own name: only these forms, which no image file's name ends in, name parts.
_IDX = re.compile(r"(.+[-.]idx3-ubyte(?:\.gz)?)#(\d+)", re.DOTALL)
_ROW = re.compile(r"(.+\.parquet)#column=([^#&]+)&row=(\d+)", re.DOTALL)


class Part(Protocol):
    """Names an image within a file."""

    def read(self, store: Store, key: str) -> bytes:
        """Read the bytes of the image out of that file.

        Raises:
            OSError: the file is not there, is damaged, or has no such part.
        """
        ...


@dataclass(frozen=True)
class IdxImage:
    """The image at a position in an IDX file, plain or gzipped; as PNG."""

    index: int

    def read(self, store: Store, key: str) -> bytes:
        """See `Part.read`."""
        from lada_ray.domains.idx import read_image

        return read_image(store, key, self.index)

    def __str__(self) -> str:
        return f"#{self.index:06}"


@dataclass(frozen=True)
class ParquetRow:
    """The image in a column and row of a Parquet file."""

    column: str
    row: int

    def read(self, store: Store, key: str) -> bytes:
        """See `Part.read`."""
        from lada_ray.domains.rows import read_row

        return read_row(store, key, self.column, self.row)

    def __str__(self) -> str:
        return f"#column={quote(self.column, safe='')}&row={self.row:06}"


def split_part(uri: str) -> tuple[str, Part | None]:
    """Take a URI apart into the file and the part of it; the part is None where the file is the image.

    Forms of parts: `…idx3-ubyte#17`, `…idx3-ubyte.gz#17`, `….parquet#column=image&row=12`.
    """
    if found := _IDX.fullmatch(uri):
        return found[1], IdxImage(int(found[2]))
    if found := _ROW.fullmatch(uri):
        return found[1], ParquetRow(unquote(found[2]), int(found[3]))
    return uri, None
