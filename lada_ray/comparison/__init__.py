"""How several variants compare: means and spread, paired differences to a baseline, table, picture and page.

A variant is a learner or a setting of one; each was run for the same orders of domains and the same seeds. An
order and a seed decide the stream and its shots, hence how hard the problem is, so variants are compared pair by pair
on the same (order, seed). Nothing here reads storage or knows about Ray: `Outcome`s go in, text and bytes come out.
"""

from lada_ray.comparison.notes import comparison_notes
from lada_ray.comparison.numbers import (
    METRICS,
    Outcome,
    last_by_domain,
    mean_matrix,
    paired,
    raw_results,
    summary,
)
from lada_ray.comparison.page import comparison_html
from lada_ray.comparison.picture import figure_png
from lada_ray.comparison.tables import print_comparison, to_csv, to_markdown

__all__ = [
    "METRICS",
    "Outcome",
    "comparison_html",
    "comparison_notes",
    "figure_png",
    "last_by_domain",
    "mean_matrix",
    "paired",
    "print_comparison",
    "raw_results",
    "summary",
    "to_csv",
    "to_markdown",
]
