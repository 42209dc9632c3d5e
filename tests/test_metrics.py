"""Metrics of the accuracy matrix, against the published matrix and against matrices worked out by hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from numpy.testing import assert_allclose

from lada_ray.errors import InputError
from lada_ray.metrics import stream_metrics

PUBLISHED = Path(__file__).resolve().parents[2] / "shared" / "reference" / "lada_16shot_order1.csv"
NAN = float("nan")


@pytest.fixture
def published() -> pd.DataFrame:
    """The 10 x 10 matrix of the LADA paper (16 shots, order I), with its `learnt` column."""
    if not PUBLISHED.is_file():
        pytest.skip(f"the published matrix is not here: {PUBLISHED}")
    return pd.read_csv(PUBLISHED)


def test_published_matrix_gives_the_published_numbers(published: pd.DataFrame) -> None:
    means = stream_metrics(published).means()
    print({name: round(value, 3) for name, value in means.items()})
    assert [round(means[name], 1) for name in ("transfer", "average", "last")] == [61.6, 72.7, 83.1]


def test_published_matrix_reads_the_same_as_frame_index_or_array(published: pd.DataFrame) -> None:
    indexed = published.set_index("learnt")
    expected = stream_metrics(published)
    for form in (indexed, indexed.to_numpy(), indexed.to_numpy().tolist()):
        assert stream_metrics(form).means() == expected.means()


def test_three_domains_by_hand() -> None:
    metrics = stream_metrics([[90, 20, 30], [80, 70, 40], [84, 60, 50]])
    assert_allclose(metrics.transfer, [NAN, 20, 35])
    assert_allclose(metrics.average, [254 / 3, 50, 40])
    assert_allclose(metrics.last, [84, 60, 50])
    assert_allclose(metrics.forgetting, [6, 10, NAN])
    assert_allclose(metrics.backward_transfer, [-6, -10, NAN])
    means = metrics.means()
    assert_allclose([means[n] for n in ("transfer", "average", "last")], [27.5, (254 / 3 + 90) / 3, 194 / 3])
    assert_allclose([means["forgetting"], means["backward_transfer"]], [8, -8])


def test_forgetting_takes_the_best_since_learning_and_may_be_negative() -> None:
    metrics = stream_metrics([[50, 99, 0, 0], [70, 40, 0, 0], [60, 45, 10, 0], [65, 47, 12, 5]])
    assert_allclose(metrics.forgetting, [5, -2, -2, NAN])
    assert_allclose(metrics.backward_transfer, [15, 7, 2, NAN])


def test_one_domain_has_no_transfer_and_no_forgetting() -> None:
    metrics = stream_metrics([[75.0]])
    assert_allclose(metrics.last, [75])
    means = metrics.means()
    assert (means["average"], means["last"]) == (75.0, 75.0)
    assert all(np.isnan(means[name]) for name in ("transfer", "forgetting", "backward_transfer"))


def test_a_stream_under_way_leaves_domains_not_learnt_undefined() -> None:
    metrics = stream_metrics([[90, 20, 30, 10], [80, 70, 40, 20]])
    assert_allclose(metrics.transfer, [NAN, 20, 35, 15])
    assert_allclose(metrics.average, [85, 45, 35, 15])
    assert_allclose(metrics.last, [80, 70, NAN, NAN])
    assert_allclose(metrics.forgetting, [10, NAN, NAN, NAN])
    assert_allclose(metrics.backward_transfer, [-10, NAN, NAN, NAN])


def test_argument_is_not_changed() -> None:
    frame = pd.DataFrame([[90, 20], [80, 70]], columns=["a", "b"], index=["a", "b"])
    before = frame.copy(deep=True)
    array = frame.to_numpy(dtype=float)
    metrics = stream_metrics(frame)
    stream_metrics(array).last[:] = 0
    metrics.average[:] = 0
    pd.testing.assert_frame_equal(frame, before)
    assert_allclose(array, before)


@pytest.mark.parametrize(
    ("matrix", "message"),
    [
        ([[1, 2], [3, 4], [5, 6]], "3 rows for 2 domains"),
        ([1, 2, 3], r"shape \(3,\)"),
        ([], "non-empty"),
        ([[1, NAN], [3, 4]], "1 of its 4 values are missing"),
        ([[1, 2], [3, 140]], "from 1 to 140"),
        ([["x", 2], [3, 4]], "not a number"),
    ],
)
def test_what_is_no_accuracy_matrix_is_refused(matrix: list[object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        stream_metrics(matrix)


def test_rows_in_another_order_than_columns_are_refused_with_all_problems() -> None:
    frame = pd.DataFrame(np.eye(2) * 150, columns=["a", "b"], index=["b", "a"])
    with pytest.raises(InputError) as caught:
        stream_metrics(frame)
    assert len(caught.value.problems) == 3
    assert "row 1 is 'b', but column 1 is 'a'" in str(caught.value)


def test_joint_training_has_a_last_row_and_nothing_else() -> None:
    row = pd.DataFrame([[90.0, 20.0, 40.0]], columns=["a", "b", "c"], index=["all domains"])
    named = row.rename_axis("learnt").reset_index()
    for frame in (row, named):
        metrics = stream_metrics(frame)
        assert_allclose(metrics.last, [90, 20, 40])
        means = metrics.means()
        assert means["last"] == 50.0
        assert all(np.isnan(means[n]) for n in ("transfer", "average", "forgetting", "backward_transfer"))
    # The same numbers after the first of three domains are a stream under way.
    assert_allclose(stream_metrics(row.set_axis(["a"])).last, [90, NAN, NAN])
    one = pd.DataFrame([[75.0]], columns=["a"], index=["all domains"])
    assert stream_metrics(one).means()["last"] == 75.0


def test_joint_rows_are_checked_like_others() -> None:
    with pytest.raises(InputError, match="from 20 to 190"):
        stream_metrics(pd.DataFrame([[190.0, 20.0]], columns=["a", "b"], index=["all domains"]))
    two = pd.DataFrame(np.eye(2), columns=["a", "b"], index=["all domains", "b"])
    with pytest.raises(InputError, match="row 1 is 'all domains', but column 1 is 'a'"):
        stream_metrics(two)
