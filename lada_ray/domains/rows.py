"""Images in Parquet files: one row is read without reading the file, a whole file without reading it twice.

What is read at once is one column of one row group. Footers and the newest row groups are kept per process.
"""

from __future__ import annotations

from bisect import bisect_right
from functools import lru_cache
from itertools import accumulate
from typing import Any

from lada_ray.store import Store, join, open_store

GROUPS = 2
"""Row groups that a process keeps: rows are asked for in file order, but for few-shot choices."""
FOOTERS = 256


def read_row(store: Store, key: str, column: str, row: int) -> bytes:
    """Read the image bytes in a column and row.

    Args:
        store: where the file lies.
        key: the file.
        column: of type binary, or a struct with a binary field `bytes` (as the Hugging Face hub has it).
        row: counted from 0 over all row groups.

    Raises:
        OSError: no such file, column, row, no bytes there, or the file is damaged.
    """
    try:
        return _read_row(store, key, column, row)
    except ValueError as error:  # pyarrow's ArrowInvalid
        raise OSError(f"{join(store.uri, key)}: {error}") from None


def _read_row(store: Store, key: str, column: str, row: int) -> bytes:
    version, where = store.stat(key).version, f"{join(store.uri, key)}#row={row}"
    _, starts = _footer(store.uri, key, version)
    if row >= starts[-1]:
        raise OSError(f"{where}: the file has {starts[-1]} rows")
    group = bisect_right(starts, row) - 1
    value = _column(store.uri, key, version, group, column)[row - starts[group]].as_py()
    data = value.get("bytes") if isinstance(value, dict) else value
    if not isinstance(data, bytes):
        raise OSError(f"{where}: column {column!r} holds no image bytes there")
    return data


@lru_cache(maxsize=FOOTERS)
def _footer(uri: str, key: str, version: str) -> tuple[Any, list[int]]:
    """A file's metadata, and the first row of each row group with the number of rows behind them."""
    import pyarrow.parquet as pq

    with open_store(uri).open(key) as file:
        metadata = pq.read_metadata(file)
    sizes = (metadata.row_group(i).num_rows for i in range(metadata.num_row_groups))
    return metadata, list(accumulate(sizes, initial=0))


@lru_cache(maxsize=GROUPS)
def _column(uri: str, key: str, version: str, group: int, column: str) -> Any:
    """One column of one row group."""
    import pyarrow.parquet as pq

    metadata, _ = _footer(uri, key, version)
    with open_store(uri).open(key) as file:
        table = pq.ParquetFile(file, metadata=metadata).read_row_group(group, columns=[column])
    if column not in table.column_names:
        raise OSError(f"{join(uri, key)}: has no column {column!r}")
    return table[column]
