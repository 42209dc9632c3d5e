"""What a comparison says: numbers by hand, missing partners, one seed, joint learners, and names with markup."""

from __future__ import annotations

import io
import math
import re
from html.parser import HTMLParser
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from rich.console import Console

from lada_ray.comparison import (
    METRICS,
    Outcome,
    comparison_html,
    comparison_notes,
    figure_png,
    last_by_domain,
    mean_matrix,
    paired,
    print_comparison,
    raw_results,
    summary,
    to_csv,
    to_markdown,
)
from lada_ray.errors import InputError

EVIL = "<script>alert('x')</script> [red]$_|*x*\n#"
DOMAINS = ("digits", "signs")


def outcome(
    variant: str,
    seed: int = 0,
    last: float | None = 80.0,
    order: int = 0,
    learnt: tuple[str, ...] | None = None,
    **other: Any,
) -> Outcome:
    """Make up a run on two domains, of which the second comes first in odd orders."""
    names = DOMAINS if order % 2 == 0 else DOMAINS[::-1]
    rows = names if learnt is None else learnt
    end = 50.0 if last is None else last
    values = np.array([[end - 20, 30.0], [end - 4, end + 4]])[-len(rows) :]
    metrics = {"transfer": 30.0, "average": 55.0, "last": last, "forgetting": 2.0, "backward_transfer": -1.0}
    zero_shot = {"zero_shot": 35.0, "zero_shot_per_domain": {"digits": 40.0, "signs": 30.0}}
    accuracy = pd.DataFrame(values, index=list(rows), columns=list(names))
    folder = f"/runs/{order}-{seed}"
    return Outcome(variant, order, seed, metrics | zero_shot | other, accuracy, 10.0 * (seed + 1), folder)


def three_seeds() -> list[Outcome]:
    """Last 80, 82, 84 against 78, 81, 81: differences -2, -1, -3."""
    lada = [outcome("lada", seed, last) for seed, last in enumerate((80, 82, 84))]
    return [*lada, *(outcome("rail_dual", seed, last) for seed, last in enumerate((78, 81, 81)))]


def joint(seed: int, last: float) -> Outcome:
    """A joint learner: one row, and no metric that needs a sequence."""
    undefined: dict[str, Any] = dict.fromkeys(("transfer", "average", "forgetting", "backward_transfer"))
    return outcome("joint", seed, last, learnt=("all",), **undefined)


def mean(outcomes: list[Outcome], variant: str, metric: str = "last") -> dict[str, Any]:
    """One metric of the summary."""
    row: dict[Any, Any] = summary(outcomes).to_dict("index")[variant]
    return {name: value for (of, name), value in row.items() if of == metric}


def difference(outcomes: list[Outcome], variant: str, metric: str = "last") -> dict[str, Any]:
    """One row of the differences to lada."""
    rows: dict[Any, Any] = paired(outcomes, "lada").to_dict("index")
    return rows[variant, metric]


def printed(outcomes: list[Outcome], width: int = 120) -> str:
    """Print a comparison with the first variant into a string, as into a file."""
    console = Console(file=io.StringIO(), width=width)
    print_comparison(outcomes, outcomes[0].variant, console)
    return console.file.getvalue()  # type: ignore[attr-defined]


def test_summary_is_mean_and_sample_deviation() -> None:
    outcomes = three_seeds()
    assert mean(outcomes, "lada") == {"mean": 82.0, "sd": 2.0, "n": 3}
    assert mean(outcomes, "rail_dual") == {"mean": 80.0, "sd": pytest.approx(math.sqrt(3)), "n": 3}
    assert mean(outcomes, "lada", "seconds") == {"mean": 20.0, "n": 3}


def test_variants_keep_their_order_and_one_seed_has_no_deviation() -> None:
    outcomes = [outcome("z"), outcome("a")]
    assert list(summary(outcomes).index) == ["z", "a"]
    assert mean(outcomes, "z") == {"mean": 80.0, "sd": pytest.approx(math.nan, nan_ok=True), "n": 1}


def test_paired_differences_by_hand() -> None:
    row = difference(three_seeds(), "rail_dual")
    half = 4.302652729911275 / math.sqrt(3)  # t of 0.975 with 2 degrees of freedom; the deviation is 1
    assert (row["mean"], row["sd"], row["n"], row["unpaired"]) == (-2.0, 1.0, 3, 0)
    assert row["low"] == pytest.approx(-2 - half)
    assert row["high"] == pytest.approx(-2 + half)
    # With 2 degrees of freedom p = 1 - |t| / sqrt(2 + t²), and t = -2 √3.
    assert row["p"] == pytest.approx(1 - 2 * math.sqrt(3) / math.sqrt(14))


def test_pairs_are_matched_by_order_and_seed_wherever_they_stand() -> None:
    lada = [outcome("lada", seed, 60 + 10 * order + seed, order) for order in (0, 1) for seed in (0, 1)]
    better = [outcome("better", o.seed, o.metrics["last"] + 1 + o.seed, o.order) for o in reversed(lada)]
    row = difference([*lada, *better], "better")
    assert (row["mean"], row["n"]) == (1.5, 4)
    assert row["sd"] == pytest.approx(math.sqrt(1 / 3))


def test_identical_differences_have_an_interval_of_no_width_and_no_p() -> None:
    # 0.1 + 0.2 is not 0.3: rounding must not pass for a spread.
    lada = [outcome("lada", seed, value) for seed, value in enumerate((70.1, 70.2, 70.3))]
    other = [outcome("other", one.seed, one.metrics["last"] + 0.1 + 0.2) for one in lada]
    row = difference([*lada, *other], "other")
    assert row["mean"] == pytest.approx(0.3)
    assert row["sd"] == 0.0
    assert row["low"] == row["high"] == row["mean"]
    assert math.isnan(row["p"])
    none = difference([*lada, *other], "other", "transfer")
    assert (none["mean"], none["low"], none["high"]) == (0.0, 0.0, 0.0)
    (note,) = comparison_notes([*lada, *other], "lada")
    assert note.startswith(
        "Transfer, Average, Last, Forgetting, BWT: the difference is the same in all pairs"
    )


def test_one_pair_has_a_difference_but_no_interval() -> None:
    outcomes = [outcome("lada", 0, 80), outcome("ncm", 0, 70.5)]
    row = difference(outcomes, "ncm")
    assert (row["mean"], row["n"]) == (-9.5, 1)
    assert all(math.isnan(row[name]) for name in ("sd", "low", "high", "p"))
    assert comparison_notes(outcomes, "lada") == ["One pair only, so no interval and no p: ncm."]
    assert "| ncm | +0.00 | +0.00 | −9.50 | +0.00 | +0.00 | 1 |" in to_markdown(outcomes, "lada")


def test_runs_without_a_partner_are_counted_and_named() -> None:
    outcomes = [o for o in three_seeds() if (o.variant, o.seed) not in {("lada", 2), ("rail_dual", 0)}]
    row = difference(outcomes, "rail_dual")
    assert (row["mean"], row["n"], row["unpaired"]) == (-1.0, 1, 2)
    note = comparison_notes(outcomes, "lada")[0]
    assert "order 0 seed 2 of rail_dual; order 0 seed 0 of lada" in note
    assert "(pairs of rail_dual with lada: 1)" in note
    assert mean(outcomes, "rail_dual")["n"] == 2
    assert "- Without a partner" in to_markdown(outcomes, "lada")
    assert "note: Without a partner" in printed(outcomes)


def test_variants_without_the_same_partners_share_a_note() -> None:
    outcomes = [outcome("lada", seed) for seed in range(9)]
    outcomes += [outcome(variant, seed, 70 + seed) for variant in ("a", "b") for seed in (0, 1)]
    note = comparison_notes(outcomes, "lada")[0]
    assert "order 0 seed 2, order 0 seed 3" in note
    assert "order 0 seed 7, 1 more of lada" in note
    assert "(pairs of a, b with lada: 2)" in note


@pytest.mark.parametrize("undefined", [None, float("nan")])
def test_metrics_that_are_undefined_stay_so(undefined: float | None) -> None:
    outcomes = [*three_seeds(), joint(0, 85), joint(1, 86), joint(2, 90)]
    outcomes[1] = outcome("lada", 1, 82, transfer=undefined)
    assert mean(outcomes, "joint", "transfer")["n"] == 0
    assert math.isnan(mean(outcomes, "joint", "transfer")["mean"])
    assert mean(outcomes, "lada", "transfer")["n"] == 2
    row = difference(outcomes, "joint", "transfer")
    assert (row["n"], row["unpaired"]) == (0, 2)
    assert difference(outcomes, "joint")["mean"] == 5.0
    notes = comparison_notes(outcomes, "lada")
    assert "Transfer, Average, Forgetting, BWT: undefined for joint." in notes
    assert "Transfer of lada is the mean of 2 of its 3 runs: the others do not have it." in notes
    assert "| joint | – | – | **87.00 ± 2.65** | – | – | 20 s | 3 |" in to_markdown(outcomes, "lada")
    assert "| joint | – | – | +5.00 [2.52, 7.48] | – | – | 3 |" in to_markdown(outcomes, "lada")


def test_markdown_marks_the_best_of_each_column() -> None:
    outcomes = [outcome("lada", 0, 82, forgetting=1.0), outcome("ncm", 0, 70, transfer=30.001)]
    lines = to_markdown(outcomes, "lada").splitlines()
    assert lines[0] == "|  | Transfer | Average | Last | Forgetting | BWT | time | runs |"
    assert lines[2] == "| lada | **30.00** | **55.00** | **82.00** | **1.00** | **−1.00** | 10 s | 1 |"
    assert lines[3] == "| ncm | **30.00** | **55.00** | 70.00 | 2.00 | **−1.00** | 10 s | 1 |"


def test_a_variant_alone_has_no_differences_and_no_best() -> None:
    outcomes = [outcome("lada", seed, 80 + seed) for seed in (0, 1)]
    assert paired(outcomes, "lada").empty
    assert "**" not in to_markdown(outcomes, "lada")
    assert "Difference" not in to_markdown(outcomes, "lada") + printed(outcomes)
    assert 'id="differences"' not in comparison_html(outcomes, "lada")


def test_csv_comes_back_with_the_same_numbers() -> None:
    outcomes = [outcome('lada, "quoted"', 0, 80.1 + 0.2), joint(7, 100 / 3), outcome(EVIL, 1, None)]
    read = pd.read_csv(io.StringIO(to_csv(outcomes)))
    pd.testing.assert_frame_equal(read, raw_results(outcomes), check_exact=True)
    assert list(read.columns) == [
        "variant", "order", "seed", *METRICS, "zero_shot", "last.digits", "last.signs", "seconds", "folder",
    ]  # fmt: skip
    assert read["variant"].tolist() == ['lada, "quoted"', "joint", EVIL]
    numbers = (read["last"][0], read["last.digits"][0], read["last.signs"][0])
    assert numbers == pytest.approx((80.3, 76.3, 84.3))


def test_domains_align_by_name_over_orders() -> None:
    outcomes = [outcome("lada", 0, 60, order=1), outcome("lada", 0, 80, order=0), joint(0, 90)]
    # Order 0: digits 76, signs 84; order 1 learns signs first: signs 56, digits 64.
    last = last_by_domain(outcomes)
    assert list(last.columns) == ["digits", "signs"]
    assert last.to_numpy().tolist() == [[70.0, 70.0], [86.0, 94.0]]
    matrix = mean_matrix(outcomes, "lada", 1)
    assert list(matrix.index) == ["signs", "digits"]
    assert matrix.to_numpy().tolist() == [[30.0, 40.0], [64.0, 56.0]]


def test_mean_matrix_is_over_seeds() -> None:
    assert mean_matrix(three_seeds(), "lada", 0).to_numpy().tolist() == [[62.0, 30.0], [78.0, 86.0]]
    with pytest.raises(InputError, match="no outcome of 'lada' with order 3"):
        mean_matrix(three_seeds(), "lada", 3)


def test_all_reasons_why_nothing_compares_are_said_at_once() -> None:
    other = outcome("b", 1)
    renamed = Outcome("b", 0, 1, other.metrics, other.accuracy.rename(columns={"signs": "pets"}), 1.0, "/x")
    backwards = outcome("c", 0, learnt=("signs", "digits"))
    with pytest.raises(InputError) as caught:
        paired([outcome("a"), outcome("a"), renamed, backwards], "lada")
    assert len(caught.value.problems) == 4
    for part in (
        "a, order 0, seed 0 is there 2 times (/runs/0-0, /runs/0-0)",
        "b, order 0, seed 1 (/x) has domains digits, pets, others digits, signs",
        "c, order 0, seed 0 (/runs/0-0) learnt signs, digits, but a in the same order digits, signs",
        "the baseline 'lada' is not among the variants: a, b, c",
    ):
        assert part in str(caught.value)
    with pytest.raises(InputError, match="run at least one variant"):
        summary([])


@pytest.mark.parametrize("width", [40, 80, 120, 200])
def test_printed_tables_fit_and_keep_every_number(width: int) -> None:
    outcomes = [*three_seeds(), joint(0, 85), joint(1, 86), joint(2, 90)]
    outcomes += [
        outcome("lada with a name that is longer than anybody would wish", s, 75 + s) for s in (0, 1, 2)
    ]
    text = printed(outcomes, width)
    assert max(map(len, text.splitlines())) <= width
    assert "\x1b" not in text
    assert all(number in text for number in ("82.00 ± 2.00", "−2.00 [−4.48, 0.48]", "+5.00 [2.52, 7.48]"))
    assert "lada with" in text or width == 40


def test_names_are_shown_as_they_are_and_never_as_markup() -> None:
    outcomes = [outcome(EVIL, 0, 80), outcome("[bold]rail_dual[/bold]", 0, 70)]
    text = printed(outcomes)
    assert "[bold]rail_dual[/bold]" in text
    assert "[red]$_|*x* #" in text
    markdown = to_markdown(outcomes, EVIL)
    assert "<script" not in markdown
    assert r"&lt;script&gt;alert('x')&lt;/script&gt; \[red\]\$\_\|\*x\* \#" in markdown
    assert r"| \[bold\]rail_dual\[/bold\] |" in markdown
    assert figure_png(outcomes).startswith(b"\x89PNG")  # "$_" is no formula


class Page(HTMLParser):
    """Collects what a page loads, its elements, and whether its tags are balanced."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.loads: list[str] = []
        self.tags: list[str] = []
        self.open: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Note a tag and what it refers to."""
        self.tags.append(tag)
        self.loads += [value or "" for name, value in attrs if name in ("src", "href")]
        if tag not in ("meta", "img", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        """Check that the tag closes the one opened last."""
        assert self.open.pop() == tag


def test_page_is_self_contained_complete_and_escaped() -> None:
    outcomes = [*three_seeds(), *(outcome(EVIL, 0, 79, order=order) for order in (0, 1))]
    html = comparison_html(
        outcomes, "lada", title=EVIL, subtitle=EVIL, folder=EVIL, finished=EVIL, command=EVIL, notes=[EVIL]
    )
    page = Page(html)
    assert page.open == []
    assert all(target.startswith(("data:image/png;base64,", "#")) for target in page.loads)
    assert page.tags.count("img") == 1
    assert "script" not in page.tags
    assert "url(" not in html
    assert html.count("&lt;script&gt;") > 12
    for expected in (
        "82.00 ± 2.00",
        "[−4.48, 0.48]",
        "p = 0.074",
        "/runs/0-2",
        "Order 1",
        "20 s",
        "Without a",
    ):
        assert expected in html


def test_only_differences_whose_interval_leaves_out_zero_are_coloured() -> None:
    lada = [outcome("lada", seed, 80 + seed) for seed in (0, 1, 2)]
    better = [outcome("b", s, 85 + s + 0.1 * s**2, forgetting=1 + 0.1 * s) for s in (0, 1, 2)]
    body = comparison_html([*lada, *better], "lada").split('id="differences"')[1].split("</section>")[0]
    assert '<span class="gain">+5.17</span>' in body
    assert '<span class="gain">−0.90</span>' in body  # less forgetting
    assert body.count('class="gain"') == 2
    assert 'class="loss"' not in body


@pytest.mark.parametrize(("variants", "seeds", "orders"), [(1, 1, 1), (3, 2, 2), (15, 2, 1)])
def test_picture_grows_with_the_variants(variants: int, seeds: int, orders: int) -> None:
    outcomes = [
        outcome(f"variant {v}", seed, 60 + v + seed, order)
        for v in range(variants)
        for seed in range(seeds)
        for order in range(orders)
    ]
    with Image.open(io.BytesIO(figure_png(outcomes))) as drawn:
        assert drawn.format == "PNG"
        assert drawn.width == 1650
        assert drawn.height == pytest.approx(375 + 99 * variants, abs=2)


def test_picture_and_page_hold_for_many_domains_and_nothing_defined() -> None:
    names = [f"domain_{k:02d}" for k in range(30)]
    accuracy = pd.DataFrame([[np.nan, *[50.0] * 29]], index=["all"], columns=names)
    outcomes = [Outcome(name, 0, 0, {}, accuracy, 1.0, "/x") for name in ("a", "b")]
    assert figure_png(outcomes).startswith(b"\x89PNG")
    html = comparison_html(outcomes, "a")
    assert "Left out for so many domains" in html
    assert "nan" not in re.sub(r'base64,[^"]+', "", html.split("</style>")[1]).lower()
    assert Page(html).open == []
