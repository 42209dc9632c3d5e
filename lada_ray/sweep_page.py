"""What a sweep looks like: the printed table, the CSV file, the picture, and `sweep.html`.

Nothing here reads storage or knows about Ray: plain data goes in (`SweepData`), text and bytes come out. The page's
layout is `sweep.html.jinja`.
"""

from __future__ import annotations

import io
import json
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from rich.console import Console
from rich.text import Text

from lada_ray.distributions import FORMS, LISTS
from lada_ray.page import duration, page_environment, points, shorten
from lada_ray.report import METRIC_ROWS, column_names, print_columns
from lada_ray.trials import Trial

PRINTED = 10
HEADING_WIDTH = 10
METRICS = ("transfer", "average", "last")
SCORES = {name: METRIC_ROWS[name] for name in METRICS} | {"balanced": "mean of Transfer, Average and Last"}
STATUSES = {"finished": "finished", "stopped": "stopped early", "failed": "failed"}
INK, SOFT, BLUE, ORANGE, GREY = "#1d2430", "#5b6675", "#2f6fb2", "#e07b1a", "#98a2af"
DOTS: dict[str, dict[str, Any]] = {
    "finished": {"marker": "o", "color": BLUE, "alpha": 0.65, "markersize": 5.5, "markeredgewidth": 0},
    "below": {"marker": "v", "color": BLUE, "alpha": 0.65, "markersize": 5.5, "markeredgewidth": 0},
    "stopped": {"marker": "o", "color": GREY, "alpha": 0.7, "markersize": 3, "markeredgewidth": 0},
    "failed": {"marker": "x", "color": GREY, "markersize": 4.5, "markeredgewidth": 1.2},
    "winner": {"marker": "*", "color": ORANGE, "markersize": 15, "markeredgecolor": "white", "zorder": 5},
}
LEGEND = {
    "finished": "finished",
    "winner": "the winner",
    "below": "finished, below the axis",
    "stopped": "stopped early: scored on fewer tasks, so its value alone is shown",
    "failed": "failed",
}


@dataclass(frozen=True)
class SweepData:
    """Everything that the picture and the page of a sweep show.

    Attributes:
        name: the sweep's name.
        metric: what trials were judged by: transfer, average, last or balanced, their mean.
        trials: all that came to an end, in the order in which they were asked for.
        best: the winner, one of the finished trials.
        space: what was searched: of each key the distribution and its arguments, {"loguniform": [0.3, 10]}.
        importance: share of each key, from 0 to 1; empty when it is not known.
        tested: metrics.json of the winner, learnt on all training images and tested.
        folder: the sweep's folder.
        command: what learns the winner again.
        notes: warnings to show at the top.
        earlier: runs of trials that won before the sweep went on, and were tested too.
    """

    name: str
    metric: str
    trials: Sequence[Trial]
    best: Trial
    space: Mapping[str, Mapping[str, list[Any]]]
    importance: Mapping[str, float]
    tested: Mapping[str, Any]
    folder: str
    command: str
    notes: Sequence[str] = ()
    earlier: Sequence[str] = ()


# Words


def value_text(value: Any) -> str:
    """A parameter's value: numbers to three digits, the rest as in YAML."""
    if isinstance(value, float):
        return f"{value:.3g}"
    return value if isinstance(value, str) else json.dumps(value)


def short_names(keys: Iterable[str]) -> dict[str, str]:
    """The last part of each dotted key, or all of it where several keys end alike."""
    last = {key: key.rpartition(".")[2] for key in keys}
    ends = Counter(last.values())
    return {key: name if ends[name] == 1 else key for key, name in last.items()}


def _values_text(values: Mapping[str, Any]) -> str:
    names = short_names(values)
    return ", ".join(f"{names[key]} {value_text(value)}" for key, value in values.items())


def _counts(trials: Sequence[Trial]) -> str:
    found = Counter[str](trial.status for trial in trials)
    parts = [f"{found[status]} {said}" for status, said in STATUSES.items() if found[status]]
    return f"{len(trials)} trial{'s' if len(trials) > 1 else ''}: {', '.join(parts)}"


def _share_text(share: float) -> str:
    return f"{100 * share:.0f} %"


def _scored(trial: Trial, metric: str) -> float:
    """A metric of a trial after the last task that it learnt, in %; NaN if there is none."""
    return trial.scores[-1].get(metric, math.nan) if trial.scores else math.nan


def _ranked(trials: Iterable[Trial]) -> list[Trial]:
    """Finished trials with the best first, then those that got furthest, then those that failed."""
    order = list(STATUSES)

    def rank(trial: Trial) -> tuple[int, int, float]:
        score = trial.score if math.isfinite(trial.score) else -math.inf
        return order.index(trial.status), -len(trial.scores), -score

    return sorted(trials, key=rank)


def _finished(trials: Iterable[Trial]) -> list[Trial]:
    return [trial for trial in _ranked(trials) if trial.status == "finished"]


def _failures(trials: Iterable[Trial]) -> dict[str, list[Trial]]:
    """Failed trials by reason."""
    reasons: dict[str, list[Trial]] = {}
    for trial in trials:
        if trial.status == "failed":
            reasons.setdefault(trial.error or "no reason is known", []).append(trial)
    return reasons


def _by_importance(space: Iterable[str], importance: Mapping[str, float]) -> list[str]:
    """Keys with the largest share first; in the order of the space where shares are equal or unknown."""
    return sorted(space, key=lambda key: -importance.get(key, 0.0))


# Files and the terminal


def trials_csv(trials: Sequence[Trial]) -> str:
    """All trials for people's own statistics.

    Args:
        trials: in the order of the rows.

    Returns:
        CSV with a header and a row per trial: `trial` (the name of its file in the sweep's folder), its values by key,
        status, tasks (learnt), score, transfer, average and last in % after the last of them (validation; empty where
        undefined), seconds, error.
    """
    rows = [
        {
            "trial": trial.key,
            **trial.values,
            "status": trial.status,
            "tasks": len(trial.scores),
            **{name: _scored(trial, name) for name in ("score", *METRICS)},
            "seconds": round(trial.seconds, 3),
            "error": trial.error,
        }
        for trial in trials
    ]
    return pd.DataFrame(rows).to_csv(index=False)


def print_trials(
    trials: Sequence[Trial], best: Trial, importance: Mapping[str, float], console: Console, metric: str = ""
) -> None:
    """Print how many trials ended how, the ten best, and how much each parameter mattered.

    Args:
        trials: all of them, in any order.
        best: the winner, shown in bold.
        importance: share of each key, from 0 to 1; empty when it is not known.
        console: where to print.
        metric: what trials were judged by, as in `SweepData`; it is not shown twice.
    """
    shown = _finished(trials)[:PRINTED]
    _say(console, f"{_counts(trials)}; the best on validation images, in %", style="bold")
    ranks = [str(rank) for rank in range(1, len(shown) + 1)]
    print_columns(console, ranks, _columns(shown, best, importance, metric))
    names = short_names(best.values)
    shares = [f"{names.get(key, key)} {_share_text(share)}" for key, share in importance.items()]
    said = ", ".join(shares) or "not known (it takes four finished trials whose scores differ)"
    _say(console, f"importance: {said}")
    for reason, failed in _failures(trials).items():
        _say(console, f"failed ({len(failed)}): {shorten(' '.join(reason.split()), 300)}")


def _columns(
    trials: Sequence[Trial], best: Trial, importance: Mapping[str, float], metric: str
) -> dict[str, list[Text]]:
    """Cells by heading: what the trials scored, then their values, the parameter that matters most first."""
    styles = ["bold" if trial.key == best.key else "" for trial in trials]

    def column(cells: Iterable[str]) -> list[Text]:
        return [Text(cell, style=style) for cell, style in zip(cells, styles, strict=True)]

    scores = {"score": f"score\n({METRIC_ROWS.get(metric, metric)})" if metric else "score"}
    scores |= {name: METRIC_ROWS[name] for name in METRICS if name != metric}
    columns = {said: column(points(_scored(t, name)) for t in trials) for name, said in scores.items()}
    keys = _by_importance(best.values, importance)
    headings = column_names(list(short_names(keys).values()), HEADING_WIDTH)
    for key, heading in zip(keys, headings, strict=True):
        columns[heading] = column(value_text(t.values.get(key)) for t in trials)
    return columns


def _say(console: Console, text: str, style: str = "") -> None:
    console.print(Text(text, style=style))


# The picture


@dataclass(frozen=True)
class Scale:
    """The axis of the scores, with room below it for trials that have none.

    Attributes:
        low: the lowest score that it shows; what is lower stands at its end.
        high: the highest.
        strip: whether trials without a comparable score are to be shown.
    """

    low: float
    high: float
    strip: bool

    @classmethod
    def of(cls, trials: Sequence[Trial]) -> Scale:
        """The scale for trials, such that a few very bad ones do not press the good ones together."""
        scores = np.array([t.score for t in trials if t.status == "finished" and math.isfinite(t.score)])
        quartile, high = np.quantile(scores, 0.25), scores.max()
        low = max(scores.min(), quartile - 2 * (high - quartile))
        pad = max(0.0, (1 - (high - low)) / 2)  # never zoom into less than a point
        return cls(float(low - pad), float(high + pad), any(t.status != "finished" for t in trials))

    @property
    def margin(self) -> float:
        """Room above the highest score and below the lowest."""
        return 0.08 * (self.high - self.low)

    @property
    def floor(self) -> float:
        """Where the axis ends and the strip begins."""
        return self.low - self.margin

    @property
    def bottom(self) -> float:
        """The lower end of the picture."""
        return self.floor - (0.2 * (self.high - self.low) if self.strip else 0.0)

    def ticks(self) -> list[float]:
        """Round scores, none of them in the strip."""
        from matplotlib.ticker import MaxNLocator

        found = MaxNLocator(nbins=5, steps=[1, 2, 5, 10]).tick_values(self.low, self.high)
        return [float(t) for t in found if self.floor <= t <= self.high + self.margin]


@dataclass(frozen=True)
class Parameter:
    """The axis of a parameter.

    Attributes:
        key: of the configuration.
        distribution: as Ray Tune calls it.
        arguments: its arguments.
    """

    key: str
    distribution: str
    arguments: tuple[Any, ...]

    @property
    def listed(self) -> bool:
        """Whether its values are listed; they stand side by side then, whatever lies between them."""
        return self.distribution in LISTS

    @property
    def log(self) -> bool:
        """Whether its scale is logarithmic."""
        return not self.listed and FORMS[self.distribution].log

    @property
    def levels(self) -> list[Any]:
        """Listed values, numbers in order."""
        values = list(self.arguments)
        numbers = all(isinstance(value, int | float) for value in values)
        return sorted(values) if numbers else values

    def place(self, value: Any, position: int = 0) -> float:
        """Where a value stands; NaN: nowhere.

        Args:
            value: of a trial.
            position: of the trial: equal listed values stand beside each other.
        """
        if not self.listed:
            return float(value) if isinstance(value, int | float) else math.nan
        if value not in self.levels:
            return math.nan
        # Multiples of the golden ratio spread evenly, however many there are.
        aside = (position * 0.618034) % 1 - 0.5
        return self.levels.index(value) + (0.5 * aside if position else 0.0)

    def limits(self, values: Sequence[float]) -> tuple[float, float]:
        """Ends of the axis: those of the space where it has any, so that a winner at its edge is seen."""
        if self.listed:
            return -0.5, len(self.levels) - 0.5
        bounded = not self.distribution.endswith("randn")
        ends = self.arguments[:2] if bounded else (min(values), max(values))
        low, high = (math.log(end) if self.log else float(end) for end in ends)
        margin = 0.04 * (high - low) or 0.5
        low, high = low - margin, high + margin
        return (math.exp(low), math.exp(high)) if self.log else (low, high)


def sweep_picture(data: SweepData) -> bytes:
    """Draw a small panel per parameter, score against value, the parameter that matters most first.

    Trials that were stopped have a score of fewer tasks, which is no match for the others'. They, and those that
    failed, stand in a strip below the axis, by their value alone.

    Args:
        data: of 1 to about 15 parameters.

    Returns:
        PNG bytes.
    """
    # Imported here: it costs half a second, and tables do without. No pyplot: it is global state.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    keys = _by_importance(data.space, data.importance)
    columns = {1: 1, 2: 2, 4: 2}.get(len(keys), 3)
    rows = math.ceil(len(keys) / columns)
    figure = Figure(figsize=(10.8, 0.75 + (3.3 if rows == 1 else 2.75) * rows), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    figure.get_layout_engine().set(wspace=0.04, hspace=0.06)  # type: ignore[call-arg, union-attr]
    scale = Scale.of(data.trials)
    for position, key in enumerate(keys):
        axes = figure.add_subplot(rows, columns, position + 1)
        _draw_parameter(axes, data, key, scale)
        axes.tick_params(labelleft=position % columns == 0)
    _draw_legend(figure, data)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()


def _parameter(space: Mapping[str, Mapping[str, list[Any]]], key: str) -> Parameter:
    ((name, arguments),) = space[key].items()
    return Parameter(key, name, tuple(arguments))


def _kind(trial: Trial, best: Trial, scale: Scale) -> str:
    """How a trial is drawn."""
    if trial.key == best.key:
        return "winner"
    if trial.status == "finished" and trial.score < scale.low:
        return "below"
    return trial.status


def _draw_parameter(axes: Any, data: SweepData, key: str, scale: Scale) -> None:
    parameter = _parameter(data.space, key)
    places = [
        parameter.place(trial.values.get(key), 0 if trial.key == data.best.key else position)
        for position, trial in enumerate(data.trials, start=1)
    ]
    if scale.strip:
        axes.axhspan(scale.bottom, scale.floor, color="#f2f4f7", linewidth=0, zorder=0)
    for position, (trial, x) in enumerate(zip(data.trials, places, strict=True)):
        kind = _kind(trial, data.best, scale)
        axes.plot([x], [_height(trial, kind, position, scale)], **DOTS[kind])
    axes.set_ylim(scale.bottom, scale.high + scale.margin)
    axes.set_yticks(scale.ticks())
    axes.set_xscale("log" if parameter.log else "linear")
    axes.set_xlim(*parameter.limits([x for x in places if math.isfinite(x)]))
    _name_values(axes, parameter)
    _finish(axes, data, key)


def _height(trial: Trial, kind: str, position: int, scale: Scale) -> float:
    """Of a dot; in the strip they stand at different heights, so that few are hidden."""
    if kind in ("stopped", "failed"):
        lane = 0.15 + 0.7 * ((position * 0.414214) % 1)
        return scale.bottom + lane * (scale.floor - scale.bottom)
    return max(trial.score, scale.low)


def _name_values(axes: Any, parameter: Parameter) -> None:
    """Label the values as a person writes them: 0.001, not 10^-3."""
    from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

    if parameter.listed:
        texts = [shorten(value_text(value), 14) for value in parameter.levels]
        axes.set_xticks(range(len(texts)), texts, parse_math=False)
    elif parameter.log:
        low, high = axes.get_xlim()
        decades = math.log10(high / low)
        axes.xaxis.set_major_locator(
            LogLocator(subs=(1, 2, 5) if decades < 1.8 else (1, 3) if decades < 3 else (1,))
        )
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.xaxis.set_minor_formatter(NullFormatter())
    else:
        axes.xaxis.set_major_locator(MaxNLocator(nbins=6, steps=[1, 2, 5, 10]))


def _finish(axes: Any, data: SweepData, key: str) -> None:
    name, share = short_names(data.space)[key], data.importance.get(key)
    axes.set_title(shorten(name, 26), fontsize=10, fontweight="bold", loc="left", parse_math=False)
    if share is not None:
        axes.set_title(f"importance {_share_text(share)}", fontsize=9, loc="right", color=SOFT)
    winner = shorten(value_text(data.best.values.get(key)), 24)
    axes.set_xlabel(f"winner: {winner}", fontsize=8.5, color="#b35a00", parse_math=False)
    axes.tick_params(labelsize=8, color=SOFT)
    axes.grid(axis="y", color="#dfe4ea", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def _draw_legend(figure: Any, data: SweepData) -> None:
    scale = Scale.of(data.trials)
    kinds = {_kind(trial, data.best, scale) for trial in data.trials}
    axes = figure.axes[0]
    drawn = [axes.plot([], [], linestyle="", label=LEGEND[k], **DOTS[k])[0] for k in LEGEND if k in kinds]
    figure.legend(handles=drawn, loc="outside lower center", ncols=5, fontsize=8.5, frameon=False)
    title = f"{shorten(data.name, 40)}: score ({_score_text(data.metric)}) on validation images in %, by parameter"
    figure.suptitle(title, fontsize=11, x=0.01, ha="left", parse_math=False)


def _score_text(metric: str) -> str:
    return SCORES.get(metric, metric)


# The page


def sweep_html(data: SweepData) -> str:
    """Render the sweep: one file, nothing loaded from elsewhere.

    Args:
        data: what to show.

    Returns:
        the page's HTML.
    """
    return (
        page_environment()
        .get_template("sweep.html.jinja")
        .render(
            data=data,
            counts=_counts(data.trials),
            score=_score_text(data.metric),
            winner=_values_text(data.best.values),
            winner_rows=_winner_rows(data),
            picture=sweep_picture(data),
            parameters=_parameter_rows(data),
            names=short_names(data.space),
            trials=_trial_rows(data),
            failures=_failure_rows(data.trials),
        )
    )


def _winner_rows(data: SweepData) -> list[dict[str, Any]]:
    """Transfer, Average and Last of the winner, judged in the search and tested."""
    return [
        {
            "name": METRIC_ROWS[name],
            "judged_by": data.metric in (name, "balanced"),
            "validation": _scored(data.best, name),
            "test": data.tested.get(name),
        }
        for name in METRICS
    ]


def _parameter_rows(data: SweepData) -> list[dict[str, Any]]:
    rows = []
    for key in _by_importance(data.space, data.importance):
        parameter = _parameter(data.space, key)
        arguments = ", ".join(value_text(value) for value in parameter.arguments)
        share = data.importance.get(key)
        rows.append(
            {
                "key": key,
                "searched": f"{parameter.distribution} [{arguments}]",
                "winner": value_text(data.best.values.get(key)),
                "share": None
                if share is None
                else {"text": _share_text(share), "width": f"{100 * share:.1f}"},
            }
        )
    return rows


def _trial_rows(data: SweepData) -> list[dict[str, Any]]:
    return [
        {
            "rank": rank if trial.status == "finished" else "",
            "kind": "main" if trial.key == data.best.key else "" if trial.status == "finished" else "aside",
            "values": [value_text(trial.values.get(key)) for key in data.space],
            "status": STATUSES[trial.status],
            "tasks": len(trial.scores),
            "scores": [_scored(trial, name) for name in ("score", *METRICS)],
            "time": duration(trial.seconds),
        }
        for rank, trial in enumerate(_ranked(data.trials), start=1)
    ]


def _failure_rows(trials: Sequence[Trial]) -> list[dict[str, Any]]:
    return [
        {"reason": reason, "trials": [_values_text(trial.values) for trial in failed]}
        for reason, failed in _failures(trials).items()
    ]
