"""The picture, for few and many variants and domains."""

from __future__ import annotations

import io

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from lada_ray.comparison import Outcome, figure_png
from tests.comparison.outcomes import EVIL, outcome


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


def test_picture_holds_for_many_domains_and_nothing_defined() -> None:
    names = [f"domain_{k:02d}" for k in range(30)]
    accuracy = pd.DataFrame([[np.nan, *[50.0] * 29]], index=["all"], columns=names)
    outcomes = [Outcome(name, 0, 0, {}, accuracy, 1.0, "/x") for name in ("a", "b")]
    assert figure_png(outcomes).startswith(b"\x89PNG")


def test_names_are_no_formulas() -> None:
    assert figure_png([outcome(EVIL, 0, 80)]).startswith(b"\x89PNG")
