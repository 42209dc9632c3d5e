"""The printed tables, Markdown and CSV; names with markup in them."""

from __future__ import annotations

import io

import pandas as pd
import pytest
from rich.console import Console

from lada_ray.comparison import METRICS, Outcome, print_comparison, raw_results, to_csv, to_markdown
from tests.comparison.outcomes import EVIL, joint, outcome, three_seeds


def printed(outcomes: list[Outcome], width: int = 120) -> str:
    """Print a comparison with the first variant into a string, as into a file."""
    console = Console(file=io.StringIO(), width=width)
    print_comparison(outcomes, outcomes[0].variant, console)
    return console.file.getvalue()  # type: ignore[attr-defined]


def test_markdown_marks_the_best_of_each_column() -> None:
    outcomes = [outcome("lada", 0, 82, forgetting=1.0), outcome("ncm", 0, 70, transfer=30.001)]
    lines = to_markdown(outcomes, "lada").splitlines()
    assert lines[0] == "|  | Transfer | Average | Last | Forgetting | BWT | time | runs |"
    assert lines[2] == "| lada | **30.00** | **55.00** | **82.00** | **1.00** | **−1.00** | 10 s | 1 |"
    assert lines[3] == "| ncm | **30.00** | **55.00** | 70.00 | 2.00 | **−1.00** | 10 s | 1 |"


def test_a_variant_alone_has_no_differences_and_no_best() -> None:
    outcomes = [outcome("lada", seed, 80 + seed) for seed in (0, 1)]
    assert "**" not in to_markdown(outcomes, "lada")
    assert "Difference" not in to_markdown(outcomes, "lada") + printed(outcomes)


def test_markdown_holds_undefined_metrics_single_pairs_and_notes() -> None:
    outcomes = [*three_seeds(), joint(0, 85), joint(1, 86), joint(2, 90), outcome("ncm", 0, 70.5)]
    text = to_markdown(outcomes, "lada")
    assert "| joint | – | – | **87.00 ± 2.65** | – | – | 20 s | 3 |" in text
    assert "| joint | – | – | +5.00 [2.52, 7.48] | – | – | 3 |" in text
    assert "| ncm | +0.00 | +0.00 | −9.50 | +0.00 | +0.00 | 1 |" in text
    missing = "Missing, so that partners count in the means only: order 0 seed 1, order 0 seed 2 of ncm."
    assert f"\n- {missing}\n" in text
    assert f"\nnote: {missing}\n" in printed(outcomes)


def test_the_number_of_observations_is_from_the_fewest_to_the_most_of_the_metrics() -> None:
    outcomes = [*three_seeds(), *(outcome("b", seed, 79, transfer=30.0 + seed) for seed in range(3))]
    lines = to_markdown(outcomes, "lada").splitlines()
    assert "|  | Transfer | Average | Last | Forgetting | BWT | n |" in lines
    assert "| b | +1.00 [−1.48, 3.48] | +0.00 | −3.00 [−7.97, 1.97] | +0.00 | +0.00 | 1–3 |" in lines
    assert "where the seed changes neither of the two, each order is." in lines[-3] + lines[-4] + lines[-5]


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
