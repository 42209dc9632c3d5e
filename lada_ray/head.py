"""What predicts from features: what a learner's packs add to CLIP's text logits, a class per kind of learner."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from lada_ray.method import fusion, rail
from lada_ray.method.calibration import probabilities
from lada_ray.method.memory import memory_logits
from lada_ray.method.ncm import prototype_logits
from lada_ray.method.settings import FIXED
from lada_ray.pack import Label, TaskPack

# Images whose logits exist at once when predicting: at 10 000 classes 160 MB.
ROWS = 4096
Floats = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Prediction:
    """The parameters of the method that act when predicting."""

    tau: float
    alpha: float
    beta: float
    fusion: fusion.Fusion
    kind: str = "lada"
    """The learner that the packs come from."""


class Head:
    """Zero-shot CLIP over the labels of the packs, and what all heads share.

    Args:
        packs: in order of learning.
        prediction: τ, and what the learner needs.
        width: d, for a model without packs.
        temperatures: T_seen and T_unseen (`calibration.py`), of `scores` alone; what is predicted does not depend on
            them.
    """

    fusion: fusion.Fusion = "additive"

    def __init__(
        self,
        packs: Sequence[TaskPack],
        prediction: Prediction,
        width: int,
        temperatures: tuple[float, float] = (1.0, 1.0),
    ) -> None:
        self.packs, self.prediction, self.width = list(packs), prediction, width
        self.temperatures = temperatures
        self.labels: list[Label] = list(dict.fromkeys(label for pack in packs for label in pack.labels))
        index = {label: i for i, label in enumerate(self.labels)}
        self.rows = [np.array([index[label] for label in pack.labels], np.int64) for pack in packs]
        self.text = self.newest("text")
        self.load()

    def load(self) -> None:
        """Take from the packs what `combined` needs."""

    def newest(self, name: str) -> Floats:
        """A tensor with a row per label, [C, d]: a label that stands in several packs has the newest one's."""
        table = np.zeros((len(self.labels), self.width), np.float32)
        for pack, rows in zip(self.packs, self.rows, strict=True):
            table[rows] = pack.tensors[name]
        return table

    def combined(self, unit: Tensor, text: Tensor) -> Tensor:
        """What the prediction is the largest of, [N, C + U]; before the gate, if there is one.

        Here the text logits; what other learners make of them is said in their class.

        Args:
            unit: unit features, [N, d].
            text: text logits over seen, then unseen classes, [N, C + U].
        """
        return text

    @torch.inference_mode()
    def logits(self, features: Floats, unseen_text: Floats | None = None) -> Floats:
        """See `LadaModel.logits`."""
        unit, text = self._text_logits(features, unseen_text)
        return self.combined(unit, text).numpy()

    def predict(self, features: Floats, unseen_text: Floats | None = None) -> npt.NDArray[np.int64]:
        """See `LadaModel.predict_features`; done in chunks of `ROWS` images."""
        chosen = [np.zeros(0, np.int64)]
        for start in range(0, len(features), ROWS):
            chosen.append(self.decide(features[start : start + ROWS], unseen_text)[0])
        return np.concatenate(chosen)

    def predict_scored(
        self, features: Floats, unseen_text: Floats | None = None
    ) -> tuple[npt.NDArray[np.int64], Floats]:
        """Predicted classes [N], and how sure each is (`scores`), [N]."""
        chosen, logits = self.decide(features, unseen_text)
        return chosen, self.scores(logits, chosen)[np.arange(len(chosen)), chosen]

    @torch.inference_mode()
    def decide(
        self, features: Floats, unseen_text: Floats | None = None
    ) -> tuple[npt.NDArray[np.int64], Floats]:
        """Predicted classes [N], and the `logits` that they were chosen by, [N, C + U]."""
        unit, text = self._text_logits(features, unseen_text)
        logits = self.combined(unit, text)
        return fusion.predict(text, logits, len(self.labels), self.fusion).numpy(), logits.numpy()

    def scores(self, logits: Floats, chosen: npt.NDArray[np.int64]) -> Floats:
        """How sure each class is, [N, C + U], in 0..1 (`method.calibration.probabilities`).

        The softmax of `logits` at the temperature of the chosen side of the gate, among that side's classes; without a
        gate among all of them.

        Args:
            logits: what `combined` gives, [N, C + U].
            chosen: index of the chosen class of each image, [N].
        """
        seen = len(self.labels)
        on_seen = torch.as_tensor(chosen < seen) if self.fusion == "gated" else None
        return probabilities(torch.as_tensor(logits), on_seen, seen, self.temperatures).numpy()

    def _text_logits(self, features: Floats, unseen_text: Floats | None) -> tuple[Tensor, Tensor]:
        """Unit features [N, d], and text logits over seen, then unseen classes, [N, C + U]."""
        features = np.asarray(features, np.float32)
        if features.ndim != 2 or features.shape[1] != self.width:
            raise ValueError(
                f"features must be [N, {self.width}], as this model's encoder gives them; got {features.shape}"
            )
        unit = F.normalize(torch.tensor(features), dim=-1)
        unseen = np.zeros((0, self.width)) if unseen_text is None else unseen_text
        text = torch.tensor(np.concatenate([self.text, np.asarray(unseen, np.float32)]))
        return unit, self.prediction.tau * unit @ F.normalize(text, dim=-1).T


class LadaHead(Head):
    """text_j + α memory_j (method.md): a label that stands in several packs has the maximum of their memory logits."""

    def load(self) -> None:
        """Take the memory vectors, pack by pack."""
        self.fusion = self.prediction.fusion
        self._memory = [
            (torch.tensor(pack.tensors["memory"]).float(), torch.tensor(pack.tensors["mask"]).bool())
            for pack in self.packs
        ]

    def combined(self, unit: Tensor, text: Tensor) -> Tensor:
        """See Head."""
        memory = torch.full((len(unit), len(self.labels)), -torch.inf)
        for (vectors, mask), rows in zip(self._memory, self.rows, strict=True):
            own = memory_logits(unit, vectors, self.prediction.beta, mask)
            memory[:, rows] = torch.maximum(memory[:, rows], own)
        return fusion.add_memory(text, memory, self.prediction.alpha)


class NcmHead(Head):
    """Nearest class mean, gated: τ times the cosine to a seen class's mean; the text logit of an unseen class."""

    fusion = "gated"

    def load(self) -> None:
        """Take the class means."""
        self._prototypes = torch.tensor(self.newest("prototypes"))

    def combined(self, unit: Tensor, text: Tensor) -> Tensor:
        """See Head."""
        own = self.prediction.tau * prototype_logits(unit, self._prototypes)
        return torch.cat([own, text[:, len(self.labels) :]], dim=1)


class RailHead(Head):
    """RAIL mixes ridge regression into the softmax of the text logits where zero-shot CLIP says "seen".

    Its `logits` are these mixtures: zero-shot probabilities where CLIP says "unseen", and where it says "seen" values
    near 0..1 that need not add up to 1. The gate is in them, so that the prediction is the largest of all.

    The newest pack holds the whole solution, which supersedes those of the packs before it, and says with which
    constants it was made: those of a later version do not alter it.
    """

    def constant(self, name: str) -> float:
        """One of `FIXED`, as it was when the newest pack was learnt."""
        learnt = self.packs[-1].meta["config"].get("method", {}) if self.packs else {}
        return learnt.get(name, FIXED[self.prediction.kind][name])

    def combined(self, unit: Tensor, text: Tensor) -> Tensor:
        """See Head."""
        seen = len(self.labels)
        regression = self.regression(unit) if seen else torch.zeros(len(unit), 0)
        return rail.mixed(text, regression, self.constant("mix"))

    def regression(self, unit: Tensor) -> Tensor:
        """The ridge regression onto one-hot labels, [N, C]."""
        raise NotImplementedError

    def scores(self, logits: Floats, chosen: npt.NDArray[np.int64]) -> Floats:
        """See Head: the mixture itself, cut to 0..1, which regressed values leave now and then."""
        return logits.clip(0, 1)


class RailPrimalHead(RailHead):
    """On random features; the first pack holds the projection."""

    def load(self) -> None:
        """Take the projection and the newest solution."""
        if self.packs:
            self._projection = torch.tensor(self.packs[0].tensors["projection"])
            self._weights = torch.tensor(self.packs[-1].tensors["weights"])

    def regression(self, unit: Tensor) -> Tensor:
        """See RailHead."""
        return rail.primal_regression(unit, self._projection, self._weights)


class RailDualHead(RailHead):
    """With a Gaussian kernel to all training features, which the packs hold."""

    def load(self) -> None:
        """Take all features and the newest solution."""
        if self.packs:
            self._features = torch.tensor(np.concatenate([pack.tensors["features"] for pack in self.packs]))
            self._coefficients = torch.tensor(self.packs[-1].tensors["coefficients"])

    def regression(self, unit: Tensor) -> Tensor:
        """See RailHead."""
        return rail.dual_regression(unit, self._features, self._coefficients, self.constant("gamma"))


HEADS: dict[str, type[Head]] = {
    "lada": LadaHead,
    "joint": LadaHead,
    "zero_shot": Head,
    "ncm": NcmHead,
    "rail_primal": RailPrimalHead,
    "rail_dual": RailDualHead,
}


def make_head(
    packs: Sequence[TaskPack],
    prediction: Prediction,
    width: int,
    temperatures: tuple[float, float] = (1.0, 1.0),
) -> Head:
    """The head of the learner that the packs come from; arguments as of `Head`."""
    return HEADS[prediction.kind](packs, prediction, width, temperatures)
