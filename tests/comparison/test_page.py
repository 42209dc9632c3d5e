"""The page: complete, self-contained, escaped."""

from __future__ import annotations

import numpy as np
import pandas as pd

from lada_ray.comparison import Outcome, comparison_html
from tests.comparison.outcomes import EVIL, outcome, three_seeds
from tests.pages import assert_self_contained, body_text


def test_page_is_self_contained_complete_and_escaped() -> None:
    outcomes = [*three_seeds(), *(outcome(EVIL, 0, 79, order=order) for order in (0, 1))]
    html = comparison_html(
        outcomes, "lada", title=EVIL, subtitle=EVIL, folder=EVIL, finished=EVIL, command=EVIL, notes=[EVIL]
    )
    assert assert_self_contained(html).tags.count("img") == 1
    assert html.count("&lt;script&gt;") > 12
    for expected in (
        "82.00 ± 2.00",
        "[−4.48, 0.48]",
        "p = 0.074",
        "/runs/0-2",
        "Order 1",
        "20 s",
        "Missing",
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


def test_equal_differences_have_no_verdict_and_no_interval() -> None:
    lada = [outcome("lada", seed, 80 + seed) for seed in (0, 1, 2)]
    other = [outcome("other", seed, 82 + seed) for seed in (0, 1, 2)]
    body = comparison_html([*lada, *other], "lada").split('id="differences"')[1].split("</section>")[0]
    assert '<td class="num"><span>+2.00</span></td>' in body
    assert "[2.00" not in body
    assert 'class="gain"' not in body


def test_a_variant_alone_has_no_differences() -> None:
    outcomes = [outcome("lada", seed, 80 + seed) for seed in (0, 1)]
    assert 'id="differences"' not in comparison_html(outcomes, "lada")


def test_page_holds_for_many_domains_and_nothing_defined() -> None:
    names = [f"domain_{k:02d}" for k in range(30)]
    accuracy = pd.DataFrame([[np.nan, *[50.0] * 29]], index=["all"], columns=names)
    html = comparison_html([Outcome(name, 0, 0, {}, accuracy, 1.0, "/x") for name in ("a", "b")], "a")
    assert "Left out for so many domains" in html
    assert "nan" not in body_text(html).lower()
    assert_self_contained(html)
