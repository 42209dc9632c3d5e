"""How much each searched parameter mattered: fANOVA over a sweep's finished trials.

Hutter, Hoos, Leyton-Brown: An Efficient Approach for Assessing Hyperparameter Importance, ICML 2014, as Optuna has it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import optuna
from optuna.distributions import FloatDistribution
from optuna.importance import FanovaImportanceEvaluator, get_param_importances

from lada_ray.space import Space

FEWEST = 4
"""Trials below which nothing is said."""


def importances(space: Space, trials: Sequence[tuple[Mapping[str, Any], float]]) -> dict[str, float]:
    """The share of each parameter in what makes the metric vary over the space, the largest first.

    A forest learns the metric from the parameters; a parameter's share is the variance of the metric averaged over
    all others, as if they were drawn from the space. Interactions are not counted. With few trials it is a hint.

    Args:
        space: what was searched.
        trials: (values by key, metric) of the finished trials. Those with values that are not in the space, or
            with a metric that is not finite, are left out.

    Returns:
        Shares that sum to 1, the same at every call; empty where there is nothing to learn from: fewer than
        4 trials, or the same metric in all of them.
    """
    placed = [(space.positions(values), metric) for values, metric in trials if math.isfinite(metric)]
    usable = [(positions, metric) for positions, metric in placed if positions is not None]
    if len(usable) < FEWEST or len({metric for _, metric in usable}) == 1:
        return {}
    with _quiet():
        shares = get_param_importances(_study(usable), evaluator=FanovaImportanceEvaluator(seed=0))
    return {key: float(share) for key, share in shares.items()}


def _study(trials: Sequence[tuple[Mapping[str, float], float]]) -> optuna.Study:
    """Trials as Optuna takes them: every parameter by its position in [0, 1].

    On that scale all values are equally likely, so that a logarithmic range counts as it is drawn, and a list
    of values by their number.
    """
    study = optuna.create_study()
    unit = FloatDistribution(0.0, 1.0)
    for positions, metric in trials:
        trial = optuna.trial.create_trial(
            params=dict(positions), distributions=dict.fromkeys(positions, unit), value=metric
        )
        study.add_trial(trial)
    return study


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep Optuna from telling that it has made a study."""
    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        yield
    finally:
        optuna.logging.set_verbosity(before)
