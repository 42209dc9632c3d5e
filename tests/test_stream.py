"""The parts of the main loop that whole jobs (tests/jobs) do not reach."""

from __future__ import annotations

from lada_ray.evaluate import Row
from lada_ray.stream import progress_line


def test_a_line_says_what_learning_did() -> None:
    total = {"a": [10], "b": [10]}
    rows = [Row("zero-shot", {"a": [4], "b": [2]}, total), Row("a", {"a": [9], "b": [2]}, total)]
    assert progress_line(rows, 2) == "  task 1 of 2: learnt a, 40.0 -> 90.0 %; mean of the 1 seen: 90.0 %"
    rows.append(Row("b", {"a": [8], "b": [7]}, total))
    assert progress_line(rows, 2).endswith("learnt b, 20.0 -> 70.0 %; mean of the 2 seen: 75.0 %")
