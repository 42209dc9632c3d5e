"""What a sweep shows: its table, its CSV file, its picture, its page; from made-up trials."""

from __future__ import annotations

import io
import math
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from rich.console import Console

from lada_ray.sweep_page import (
    Parameter,
    Scale,
    SweepData,
    print_trials,
    short_names,
    sweep_html,
    sweep_picture,
    trials_csv,
    value_text,
)
from lada_ray.trials import Status, Trial, best
from tests.pages import assert_self_contained, body_text

EVIL = "<script>alert('x')</script> [red]$_|*x*\n#"
SPACE: dict[str, dict[str, list[Any]]] = {
    "method.beta": {"loguniform": [0.3, 10]},
    "method.memory_per_class": {"choice": [8, 4]},
}
TESTED = {"transfer": 51.04, "average": 66.1, "last": 79.93, "forgetting": None, "zero_shot": 57.0}


def trial(
    beta: float, score: float, status: Status = "finished", tasks: int = 3, error: str | None = None
) -> Trial:
    values = {"method.beta": beta, "method.memory_per_class": 8 if beta < 2 else 4}
    scores = [
        {"score": score - tasks + k, "transfer": 50.0 + k, "average": 60.0 + k, "last": score - tasks + k}
        for k in range(1, tasks + 1)
    ]
    return Trial(values, status, tuple(scores), 75.0 * beta, error)


TRIALS = [
    trial(0.5, 70.5),
    trial(9.0, 99.0, "stopped", tasks=2),
    trial(2.5, 80.25),
    trial(4.0, 0.0, "failed", tasks=0, error="ValueError: NaN in the loss"),
    trial(5.0, 0.0, "failed", tasks=1, error="ValueError: NaN in the loss"),
    trial(1.0, 75.0),
]
SHARES = {"method.memory_per_class": 0.7, "method.beta": 0.3}


def data(trials: list[Trial] = TRIALS, **other: Any) -> SweepData:
    winner = best(trials)
    assert winner is not None
    given = SweepData(
        "x", "last", trials, winner, SPACE, SHARES, TESTED, "/runs/x.sweep", "run it", ["a note"]
    )
    return replace(given, **other)


def printed(
    trials: list[Trial] = TRIALS, width: int = 80, importance: dict[str, float] = SHARES, metric: str = ""
) -> list[str]:
    console = Console(file=io.StringIO(), width=width)
    winner = best(trials)
    assert winner is not None
    print_trials(trials, winner, importance, console, metric)
    return console.file.getvalue().splitlines()  # type: ignore[attr-defined]


# ---------------------------------------------------------------- terminal and CSV


def test_the_best_are_printed_best_first() -> None:
    lines = printed(width=100)
    assert lines[0] == (
        "6 trials: 3 finished, 1 stopped early, 2 failed; the best on validation images, in %"
    )
    rows = [line.split() for line in lines if line[:1].isdigit() and "trials" not in line]
    assert rows == [
        ["1", "80.25", "53.00", "63.00", "80.25", "4", "2.5"],
        ["2", "75.00", "53.00", "63.00", "75.00", "8", "1"],
        ["3", "70.50", "53.00", "63.00", "70.50", "8", "0.5"],
    ]
    heading = next(line for line in lines if "score" in line).split()
    assert heading == ["score", "Transfer", "Average", "Last", "class", "beta"]  # memory / per / class
    assert lines[-2:] == [
        "importance: memory_per_class 70 %, beta 30 %",
        "failed (2): ValueError: NaN in the loss",
    ]


@pytest.mark.parametrize(
    ("metric", "shown", "cells"),
    [
        ("average", ["(Average)", "Transfer", "Last"], ["80.25", "53.00", "80.25"]),
        ("last", ["(Last)", "Transfer", "Average"], ["80.25", "53.00", "63.00"]),
        ("balanced", ["(balanced)", "Transfer", "Average", "Last"], ["80.25", "53.00", "63.00", "80.25"]),
    ],
)
def test_the_score_says_what_it_is_and_is_shown_once(metric: str, shown: list[str], cells: list[str]) -> None:
    lines = printed(width=100, metric=metric)
    assert sum("score" in line.split() for line in lines) == 1
    heading = next(line for line in lines if f"({shown[0][1:]}" in line).split()
    assert heading[: len(shown)] == shown
    best_row = next(line for line in lines if line.startswith("1")).split()
    assert best_row == ["1", *cells, "4", "2.5"]


def test_ten_are_printed_and_unknown_importance_is_said() -> None:
    lines = printed([trial(1 + k / 10, 70 + k) for k in range(14)], importance={})
    assert [line.split()[1] for line in lines if line[:1].isdigit() and "trials" not in line] == [
        f"{score}.00" for score in range(83, 73, -1)
    ]
    assert lines[-1] == "importance: not known (it takes four finished trials whose scores differ)"


def test_many_parameters_fit_a_terminal_and_nothing_is_markup() -> None:
    values = {f"method.a_long_name_of_number_{k}": "[red]x" if k else 1e-4 for k in range(9)}
    lines = printed([Trial(values, "finished", TRIALS[0].scores)])
    assert max(map(len, lines)) <= 80
    assert sum(line.count("[red]x") for line in lines) == 8
    assert sum("0.0001" in line for line in lines) == 1


def test_csv_has_a_row_per_trial_with_the_same_numbers() -> None:
    trials = [*TRIALS, trial(1 / 3, 100 / 3, error=EVIL)]
    read = pd.read_csv(io.StringIO(trials_csv(trials)))
    assert list(read.columns) == [
        "trial", "method.beta", "method.memory_per_class", "status", "tasks", "score", "transfer", "average", "last",
        "seconds", "error",
    ]  # fmt: skip
    assert read["trial"].tolist() == [t.key for t in trials]
    assert read["method.beta"].tolist() == [0.5, 9.0, 2.5, 4.0, 5.0, 1.0, 1 / 3]
    assert read["status"].tolist() == [t.status for t in trials]
    assert read["tasks"].tolist() == [3, 2, 3, 0, 1, 3, 3]
    assert read["score"][6] == 100 / 3
    assert math.isnan(read["score"][3])
    assert read["error"][6] == EVIL


def test_values_are_written_as_in_the_yaml() -> None:
    assert [value_text(v) for v in (0.00123456, 8, True, None, "gated")] == [
        "0.00123",
        "8",
        "true",
        "null",
        "gated",
    ]
    assert short_names(["method.lr", "views", "a.beta", "b.beta"]) == {
        "method.lr": "lr", "views": "views", "a.beta": "a.beta", "b.beta": "b.beta"
    }  # fmt: skip


# ---------------------------------------------------------------- picture


@pytest.mark.parametrize(("number", "rows"), [(1, 1), (2, 1), (3, 1), (4, 2), (5, 2), (9, 3), (14, 5)])
def test_picture_grows_with_the_parameters(number: int, rows: int) -> None:
    space = {f"method.p{k}": {"uniform": [0, 1]} for k in range(number)}
    random = np.random.default_rng(0)
    trials = [
        Trial({k: float(random.random()) for k in space}, "finished", t.scores)
        for t in (TRIALS[0], TRIALS[2])
    ]
    drawn = Image.open(io.BytesIO(sweep_picture(data(trials, space=space, importance={}))))
    assert drawn.format == "PNG"
    assert drawn.size == (1620, int(150 * (0.75 + (3.3 if rows == 1 else 2.75) * rows)))


@pytest.mark.parametrize(
    ("distribution", "arguments", "values"),
    [
        ("loguniform", [1e-4, 1e-2], [1e-4, 0.0012, 1e-2]),
        ("lograndint", [10, 121], [10, 40, 120]),
        ("qloguniform", [0.5, 8, 0.5], [0.5, 1, 8.0]),
        ("quniform", [0, 1, 0.25], [0.0, 0.25, 1.0]),
        ("randint", [0, 3], [0, 1, 2]),
        ("randn", [10, 1], [9.0, 10.0, 11.0]),
        ("randn", [], [9.0, 9.0, 9.0]),
        ("grid_search", [1], [1, 1, 1]),
        ("choice", ["gated", "$_additive"], ["gated", "$_additive", "gated"]),
        ("choice", [True, False], [True, False, True]),
        ("choice", [1, "auto", None], [1, "auto", None]),
    ],
    ids=str,
)
def test_picture_takes_every_distribution(distribution: str, arguments: list[Any], values: list[Any]) -> None:
    statuses: tuple[Status, ...] = ("finished", "stopped", "failed")
    trials = [
        Trial({"views": v}, status, TRIALS[k].scores)
        for k, (v, status) in enumerate(zip(values, statuses, strict=True))
    ]
    space = {"views": {distribution: arguments}}
    assert sweep_picture(data(trials, name=EVIL, space=space)).startswith(b"\x89PNG")


def test_a_logarithmic_axis_ends_where_the_space_ends() -> None:
    log = Parameter("method.beta", "loguniform", (0.1, 10))
    low, high = log.limits([1.0])
    assert (low, high) == pytest.approx((10**-1.08, 10**1.08))
    assert (log.log, log.listed) == (True, False)
    assert Parameter("method.beta", "qlograndint", (1, 9, 2)).log
    assert not Parameter("method.beta", "uniform", (0, 1)).log
    assert Parameter("method.beta", "uniform", (0, 1)).limits([0.5]) == pytest.approx((-0.04, 1.04))


def test_listed_values_stand_side_by_side_numbers_in_order() -> None:
    views = Parameter("views", "choice", (8, 0, 4))
    assert views.levels == [0, 4, 8]
    assert views.place(4) == 1
    assert all(0.74 < views.place(4, position) < 1.26 for position in range(1, 50))
    assert len({views.place(4, position) for position in range(1, 50)}) == 49
    assert math.isnan(views.place(5))
    assert Parameter("method.fusion", "choice", ("gated", "additive")).levels == ["gated", "additive"]


def test_a_very_bad_trial_does_not_press_the_others_together() -> None:
    good = [trial(1 + k / 10, 80 + k) for k in range(8)]
    scale = Scale.of([*good, trial(3.0, 5.0)])
    # Of 5, 80, ..., 87 the lower quartile is 81; twice its distance from the best is 12.
    assert (scale.low, scale.high) == (69, 87)
    assert Scale.of(good).low == 80
    assert all(69 <= tick <= 87 + scale.margin for tick in scale.ticks())


def test_stopped_trials_do_not_move_the_scale_and_stand_below_it() -> None:
    scale = Scale.of(TRIALS)
    assert (scale.low, scale.high, scale.strip) == (70.5, 80.25, True)
    assert scale.bottom < scale.floor < min(scale.ticks())
    alone = Scale.of([TRIALS[0]])
    assert (alone.high - alone.low, alone.bottom) == (1.0, alone.floor)  # no strip, never less than a point


# ---------------------------------------------------------------- page


def test_page_is_self_contained_and_says_what_counts() -> None:
    html = sweep_html(data())
    page = assert_self_contained(html)
    assert page.tags.count("img") == 1
    text = " ".join(body_text(html).split())
    for expected in (
        "6 trials: 3 finished, 1 stopped early, 2 failed · judged by Last",
        "The best trial scores <b>80.25 %</b> on validation images, with <b>beta 2.5, memory_per_class 4</b>.",
        "it recognises <b>79.93 %</b> of the test images after the last task (CLIP zero-shot: 57.00 %)",
        "Trials were judged on training images left out of their learning;",
        "the test images were used once, by the winner.",
        '<td class="num">53.00</td><td class="num"><b>51.04</b></td>',
        '<td class="mono break">loguniform [0.3, 10]</td><td class="num"><b>2.5</b></td><td class="num">30 %</td>',
        '<div class="note">a note</div>',
        "<pre>run it</pre>",
        "3 min 08 s",
    ):
        assert expected in text


def test_earlier_winners_that_were_tested_are_named() -> None:
    html = sweep_html(data(earlier=["x.best-abc123", EVIL]))
    assert_self_contained(html)
    text = " ".join(body_text(html).split())
    assert "decided nothing: they were used by the winner, and by x.best-abc123, &lt;script&gt;" in text
    assert "which won before the sweep went on. The best of many" in text
    assert "used once" not in text


def test_parameters_come_by_importance_and_trials_by_score() -> None:
    text = body_text(sweep_html(data()))
    assert text.index(">method.memory_per_class<") < text.index(">method.beta<")
    table = text.split('id="trials"')[1].split("</section>")[0]
    scores = ("80.25", "75.00", "70.50", "99.00")
    assert sorted(scores, key=table.index) == list(scores)  # stopped ones last, however high
    assert table.count('<tr class="aside">') == 3
    assert table.count('<tr class="main">') == 1


def test_failed_trials_share_a_reason() -> None:
    failed = body_text(sweep_html(data())).split('id="failed"')[1].split("</section>")[0]
    assert failed.count("ValueError: NaN in the loss") == 1
    assert "beta 4, memory_per_class 4<br>beta 5, memory_per_class 4<br>" in failed
    assert 'id="failed"' not in sweep_html(data([TRIALS[0]]))


def test_page_holds_for_one_trial_and_nothing_known() -> None:
    one = Trial(TRIALS[0].values, "finished", ({"score": 50.0, "transfer": math.nan},))
    html = sweep_html(
        data([one], importance={}, metric="balanced", tested={"zero_shot": None}, command="", notes=())
    )
    assert_self_contained(html)
    assert "nan" not in body_text(html).lower().replace("fanova", "")
    assert "1 trial: 1 finished · judged by mean of Transfer, Average and Last" in html
    assert "Importance is not known" in html
    assert 'id="again"' not in html


def test_whatever_comes_from_users_is_escaped() -> None:
    values = {"method.fusion": EVIL}
    trials = [
        Trial(values, "finished", TRIALS[0].scores),
        Trial({"method.fusion": "b"}, "failed", (), error=EVIL),
    ]
    space = {"method.fusion": {"choice": [EVIL, "b"]}}
    html = sweep_html(
        data(trials, name=EVIL, space=space, folder=EVIL, command=EVIL, notes=[EVIL], importance={})
    )
    assert_self_contained(html)
    assert html.count("&lt;script&gt;") >= 9
