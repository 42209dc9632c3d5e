"""From an accuracy matrix to the numbers of a stream: Transfer, Average, Last, forgetting, backward transfer.

A[j, k] is the accuracy in % on domain k after learning task j, among all classes of all domains. Transfer,
Average and Last are defined as in the X-TAIL setting (Xu et al., NeurIPS 2024), in which LADA reports;
forgetting and backward transfer are the standard ones (Chaudhry et al., 2018; Lopez-Paz and Ranzato, 2017).
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from lada_ray.domains.base import ALL_DOMAINS
from lada_ray.errors import InputError

FloatArray = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class StreamMetrics:
    """The metrics of one stream, one value per domain, in %.

    Attributes:
        transfer: [K] zero-shot ability kept: the mean before the domain was learnt; NaN for the first domain.
        average: [K] the mean over all rows.
        last: [K] accuracy after the last task; NaN for domains not learnt yet.
        forgetting: [K] best earlier accuracy since the domain was learnt, minus the last; negative when the
            last is the best; NaN for the newest domain and for domains not learnt yet.
        backward_transfer: [K] last accuracy minus the one right after learning; NaN where forgetting is.
    """

    transfer: FloatArray
    average: FloatArray
    last: FloatArray
    forgetting: FloatArray
    backward_transfer: FloatArray

    def means(self) -> dict[str, float]:
        """Mean of each metric over the domains for which it is defined, in %.

        Returns:
            {"transfer", "average", "last", "forgetting", "backward_transfer"}; NaN for a metric that is
            undefined everywhere (transfer, forgetting and backward transfer of a stream of one domain).
        """
        return {field.name: _mean_of_defined(getattr(self, field.name)) for field in fields(self)}


def stream_metrics(accuracy: pd.DataFrame | ArrayLike) -> StreamMetrics:
    """All metrics of an accuracy matrix.

    Args:
        accuracy: [J, K] accuracies in %: row j after learning the j-th domain, a column per domain in the
            order of learning. J = K for a finished stream; a stream under way may have fewer rows, and
            then Last, forgetting and backward transfer of the domains not learnt yet are undefined.
            A DataFrame may name the domains in its index or in a column `learnt`. It is not changed. The only
            row of joint training is called "all domains": of it there is a Last, and nothing else.

    Returns:
        StreamMetrics, arrays of length K.

    Raises:
        InputError: not a matrix of numbers from 0 to 100, more rows than columns, or rows and columns in
            different orders.
    """
    matrix = _as_matrix(accuracy)
    if isinstance(accuracy, pd.DataFrame) and _learnt_at_once(accuracy):
        undefined = np.full(matrix.shape[1], np.nan)
        return StreamMetrics(undefined, undefined, matrix[0], undefined, undefined)
    return StreamMetrics(
        transfer=transfer(matrix),
        average=average(matrix),
        last=last(matrix),
        forgetting=forgetting(matrix),
        backward_transfer=backward_transfer(matrix),
    )


def _learnt_at_once(accuracy: pd.DataFrame) -> bool:
    return list(accuracy.get("learnt", accuracy.index)) == [ALL_DOMAINS]


def transfer(matrix: FloatArray) -> FloatArray:
    """Transfer[k] = mean of A[j, k] over j < k, the tasks before the domain was learnt.

    Args:
        matrix: [J, K] in %.

    Returns:
        [K] in %; NaN for the first domain.
    """
    values = [matrix[:k, k].mean() if k > 0 else np.nan for k in range(matrix.shape[1])]
    return np.array(values, dtype=np.float64)


def average(matrix: FloatArray) -> FloatArray:
    """Average[k] = mean of A[j, k] over all j.

    Args:
        matrix: [J, K] in %.

    Returns:
        [K] in %.
    """
    return matrix.mean(axis=0)


def last(matrix: FloatArray) -> FloatArray:
    """Last[k] = A[J, k], the accuracy after the last task.

    Args:
        matrix: [J, K] in %.

    Returns:
        [K] in %; NaN for domains not learnt yet.
    """
    return _where_learnt(matrix[-1], learnt=matrix.shape[0])


def forgetting(matrix: FloatArray) -> FloatArray:
    """Forgetting[k] = max of A[j, k] over k <= j < J, minus A[J, k].

    Args:
        matrix: [J, K] in %.

    Returns:
        [K] in %; NaN for the newest domain, which no task followed, and for domains not learnt yet.
    """
    newest = matrix.shape[0] - 1
    best = [matrix[k:newest, k].max() if k < newest else np.nan for k in range(matrix.shape[1])]
    return np.array(best, dtype=np.float64) - matrix[newest]


def backward_transfer(matrix: FloatArray) -> FloatArray:
    """Backward transfer[k] = A[J, k] - A[k, k], the last accuracy minus the one right after learning.

    Args:
        matrix: [J, K] in %.

    Returns:
        [K] in %; NaN for the newest domain and for domains not learnt yet.
    """
    newest = matrix.shape[0] - 1
    just_learnt = np.pad(np.diagonal(matrix), (0, matrix.shape[1] - newest - 1), constant_values=np.nan)
    return _where_learnt(matrix[newest] - just_learnt, learnt=newest)


def _where_learnt(values: FloatArray, learnt: int) -> FloatArray:
    return np.where(np.arange(len(values)) < learnt, values, np.nan)


def _mean_of_defined(values: FloatArray) -> float:
    defined = values[~np.isnan(values)]
    return float(defined.mean()) if len(defined) else float("nan")


def _as_matrix(accuracy: pd.DataFrame | ArrayLike) -> FloatArray:
    """Check `accuracy` and copy it to float64, so that nothing below can change the caller's data."""
    problems: list[str] = []
    table: object = accuracy
    if isinstance(accuracy, pd.DataFrame):
        if "learnt" in accuracy.columns:
            accuracy = accuracy.set_index("learnt")
        problems += _order_problems(list(accuracy.index), list(accuracy.columns))
        table = accuracy.to_numpy()
    try:
        matrix = np.array(table, dtype=np.float64)
    except (TypeError, ValueError) as error:
        problems.append(f"it holds something that is not a number: {error}")
        raise InputError(problems, "The accuracy matrix cannot be used") from error
    problems += _shape_problems(matrix)
    if problems:
        raise InputError(problems, "The accuracy matrix cannot be used")
    return matrix


def _order_problems(rows: list[object], columns: list[object]) -> list[str]:
    if not all(isinstance(row, str) for row in rows) or len(rows) > len(columns) or rows == [ALL_DOMAINS]:
        return []
    return [
        f"row {position + 1} is {row!r}, but column {position + 1} is {column!r}: "
        "rows and columns must both stand in the order of learning"
        for position, (row, column) in enumerate(zip(rows, columns, strict=False))
        if row != column
    ]


def _shape_problems(matrix: FloatArray) -> list[str]:
    if matrix.ndim != 2 or 0 in matrix.shape:
        return [f"it must be a non-empty matrix [tasks, domains], not an array of shape {matrix.shape}"]
    tasks, domains = matrix.shape
    problems = []
    if tasks > domains:
        problems.append(f"it has {tasks} rows for {domains} domains; one row per learnt domain is expected")
    if not np.isfinite(matrix).all():
        problems.append(
            f"{int((~np.isfinite(matrix)).sum())} of its {matrix.size} values are missing or infinite"
        )
    elif matrix.min() < 0 or matrix.max() > 100:
        problems.append(
            f"accuracies are in %, from 0 to 100; these go from {matrix.min():g} to {matrix.max():g}"
        )
    return problems
