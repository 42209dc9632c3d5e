"""Learning one task: its classes' memory vectors and a fresh text tuner, against everything seen so far."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from lada_ray.method import draws
from lada_ray.method.mixture import replay_features
from lada_ray.method.objective import Classifier, Rows, weighted_loss_backward
from lada_ray.method.replay import ReplayRows, importance, pulls
from lada_ray.method.settings import LadaSettings
from lada_ray.method.tuner import CausalTextTower, TextTuner

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Seen:
    """What earlier tasks left behind, all of it frozen. C old classes, M components of their mixtures."""

    text: Floats
    """Text features of the C classes, each frozen when its (newest) task ended, [C, d]."""
    memory: Floats
    """[B, L, d]: a block of vectors per class, or per class and task where tasks learnt more of a known class."""
    mask: npt.NDArray[np.bool_]
    """Which memory vectors exist, [B, L]."""
    means: Floats
    """Component means, raw, [M, d]."""
    variances: Floats
    """[M]"""
    weights: Floats
    """Mixture weights π, [M]."""
    labels: npt.NDArray[np.int64]
    """The class of each component, [M], in 0..C-1."""
    owner: npt.NDArray[np.int64] | None = None
    """The class of each block of memory, [B]; None: class by class."""

    @classmethod
    def nothing(cls, width: int) -> Seen:
        """The state before the first task; `width` is the feature width d."""
        f32 = np.float32
        return cls(
            text=np.zeros((0, width), f32),
            memory=np.zeros((0, 1, width), f32),
            mask=np.zeros((0, 1), np.bool_),
            means=np.zeros((0, width), f32),
            variances=np.zeros(0, f32),
            weights=np.zeros(0, f32),
            labels=np.zeros(0, np.int64),
        )


@dataclass(frozen=True)
class TaskData:
    """One task's training data as features. n images, V views each, c classes."""

    position: int
    """Number of tasks learnt before; part of every random draw."""
    views: Floats
    """Raw features of the views to train on, [n, V, d]."""
    labels: npt.NDArray[np.int64]
    """Class of each image within the task, [n], in 0..c-1."""
    memory: Floats
    """Initial memory vectors, [c, L, d]."""
    mask: npt.NDArray[np.bool_]
    """[c, L]"""
    text: Floats
    """CLIP's own text features of the c classes, [c, d]."""
    tokens: npt.NDArray[np.int64] | None = None
    """Tokenised prompts, [c, context]; needed by the text tuner alone."""
    columns: npt.NDArray[np.int64] | None = None
    """Index of each of the c classes among all seen ones, [c], where some were learnt before; None: all are new."""


@dataclass(frozen=True)
class Learnt:
    """What training leaves behind: text features [c, d] and memory vectors [c, L, d]."""

    text: Floats
    memory: Floats


class TaskLearner:
    """The optimisation of one task; `step()` until `done`, then `learnt()`.

    Args:
        task: the current task's features.
        seen: everything from earlier tasks.
        tower: the frozen text tower; None when `settings.text_tuner` is "none".
        tau: τ, CLIP's logit scale.
        settings: hyperparameters.
        seed: of the run.
        device: where to compute.
        shard: (rank, workers): this worker's share of every batch and of the replayed components.
        all_reduce: sums a tensor over all workers in place; None for a single worker.
    """

    def __init__(
        self,
        task: TaskData,
        seen: Seen,
        tower: CausalTextTower | None,
        tau: float,
        settings: LadaSettings,
        seed: int,
        device: str | torch.device = "cpu",
        shard: tuple[int, int] = (0, 1),
        all_reduce: Callable[[Tensor], None] | None = None,
    ) -> None:
        self.task, self.settings, self.seed = task, settings, seed
        self.device, self.shard, self.all_reduce = torch.device(device), shard, all_reduce
        self.scales = (tau, settings.alpha, settings.beta)
        self.total_steps = settings.epochs * self.steps_per_epoch
        self.steps_done = 0
        self._place_seen(seen)
        self._place_task(tower)
        self.optimizer, self.schedule = self._optimizer()

    @property
    def steps_per_epoch(self) -> int:
        """Optimiser steps per pass over the task's images."""
        return draws.steps_per_epoch(len(self.task.labels), self.settings.batch_size)

    @property
    def done(self) -> bool:
        """Whether all steps are made, or there is nothing to train."""
        return self.steps_done >= self.total_steps or not self.parameters()

    def parameters(self) -> list[Tensor]:
        """What is trained: the text tuner's weights and the task's memory vectors, unless switched off."""
        tuner: list[Tensor] = [] if self.tuner is None else list(self.tuner.parameters())
        return tuner if self.settings.alpha == 0 else [*tuner, self.memory]

    def step(self) -> float:
        """One optimiser step on a batch of current views and one replayed feature per component that is drawn.

        Returns:
            The loss over the rows of all workers.
        """
        self.optimizer.zero_grad(set_to_none=True)
        text = self._text_features()
        # The gradient stops at the text features first: the row chunks add to it there (and workers share it
        # there), and the text tower is differentiated once.
        leaf = text.detach().requires_grad_(text.requires_grad)
        rows, total = self._rows(self.steps_done)
        new = Classifier(leaf, self.memory, self.mask)
        loss = torch.tensor(
            weighted_loss_backward(rows, self.old, new, self.scales, total, self.columns), device=self.device
        )
        self._sum_over_workers([loss, leaf.grad, self.memory.grad])
        if leaf.grad is not None:
            text.backward(leaf.grad)
        self.optimizer.step()
        self.schedule.step()
        self.steps_done += 1
        return loss.item()

    @torch.no_grad()
    def learnt(self) -> Learnt:
        """The task's text features, frozen from now on, and its memory vectors."""
        text = self.text if self.tuner is None else self._raw_text()
        return Learnt(text.float().cpu().numpy(), self.memory.detach().cpu().numpy())

    def state_dict(self) -> dict[str, Any]:
        """Everything needed to go on from here bit by bit: tensors and numbers that `weights_only` loads."""
        return {
            "steps_done": self.steps_done,
            "memory": self.memory.detach(),
            "tuner": {} if self.tuner is None else self.tuner.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a state made by `state_dict` of a learner of the same task."""
        with torch.no_grad():
            self.memory.copy_(state["memory"])
        if self.tuner is not None:
            self.tuner.load_state_dict(state["tuner"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.schedule.load_state_dict(state["schedule"])
        self.steps_done = state["steps_done"]

    def _place_seen(self, seen: Seen) -> None:
        text = F.normalize(self._tensor(seen.text), dim=-1)
        owner = None if seen.owner is None else self._tensor(seen.owner)
        self.old = Classifier(text, self._tensor(seen.memory), self._tensor(seen.mask), owner)
        self.components = tuple(
            self._tensor(array) for array in (seen.means, seen.variances, seen.weights, seen.labels)
        )
        if not self.settings.replay:
            self.components = tuple(t[:0] for t in self.components)
        self._replay: ReplayRows | None = None

    def _place_task(self, tower: CausalTextTower | None) -> None:
        self.memory = self._tensor(self.task.memory).clone().requires_grad_(self.settings.alpha != 0)
        self.mask = self._tensor(self.task.mask)
        self.text = self._tensor(self.task.text)
        self.columns = None if self.task.columns is None else self._tensor(self.task.columns)
        self.tower = self.tuner = None
        if self.settings.text_tuner == "none":
            return
        if tower is None or self.task.tokens is None:
            raise ValueError("the text tuner needs the text tower and the task's tokenised prompts")
        init = draws.torch_generator(self.seed, "tuner", self.task.position)
        tuner = TextTuner(tower.width, len(tower.blocks), self.settings.tuner_bottleneck, init)
        self.tower, self.tuner = tower.to(self.device), tuner.to(self.device)
        with self._mixed():
            self.prompts = tower.begin(self._tensor(self.task.tokens))

    def _optimizer(self) -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.OneCycleLR]:
        parameters = self.parameters() or [torch.zeros(1, requires_grad=True)]
        optimizer = torch.optim.AdamW(
            parameters, self.settings.lr, weight_decay=self.settings.weight_decay, fused=True
        )
        schedule = torch.optim.lr_scheduler.OneCycleLR(
            optimizer, max_lr=self.settings.lr, total_steps=max(1, self.total_steps)
        )
        return optimizer, schedule

    def _raw_text(self) -> Tensor:
        if self.tower is None:
            return self.text
        with self._mixed():
            return self.tower(self.prompts, self.tuner).float()

    def _mixed(self) -> AbstractContextManager[Any]:
        """Mixed precision of the text tower on a GPU, as published; float32 on a CPU."""
        return torch.autocast("cuda", torch.bfloat16) if self.device.type == "cuda" else nullcontext()

    def _text_features(self) -> Tensor:
        return F.normalize(self._raw_text(), dim=-1)

    def _rows(self, step: int) -> tuple[Rows, int]:
        """This worker's share of a step's rows, and the number of rows over all workers."""
        batch = draws.batch_rows(
            self.seed, self.task.position, step, len(self.task.labels), self.settings.batch_size
        )
        images, labels, weights = self._current(step, batch)
        replayed, old_labels, old_weights = self._replayed(step)
        features = F.normalize(torch.cat([images, replayed]), dim=-1)
        rows = Rows(features, torch.cat([labels, old_labels]), torch.cat([weights, old_weights]))
        return rows, len(batch) + len(self.components[0])

    def _current(self, step: int, batch: npt.NDArray[np.int64]) -> tuple[Tensor, Tensor, Tensor]:
        rank, workers = self.shard
        views = draws.view_choice(self.seed, self.task.position, step, len(batch), self.task.views.shape[1])
        images, views = batch[rank::workers], views[rank::workers]
        features = self._tensor(self.task.views[images, views])
        labels = self._tensor(self.task.labels[images])
        labels = labels + len(self.old.text) if self.columns is None else self.columns[labels]
        return features, labels, torch.ones(len(images), device=self.device)

    def _choose_replay(self) -> ReplayRows:
        """What decides the components of each step, where there are more than the budget allows.

        It depends on the state in which the task starts, so that going on from a checkpoint changes nothing.
        """
        means, _, weights, labels = self.components
        new = Classifier(F.normalize(self.text, dim=-1), self._tensor(self.task.memory), self.mask)
        pull = torch.zeros(len(means), device=self.device)
        # All workers must draw the same rows, though the last bits of what they compute may differ: one computes.
        if self.shard[0] == 0:
            pull = pulls(F.normalize(means, dim=-1), labels, self.old, new, self.scales, self.columns)
        self._sum_over_workers([pull])
        found = importance(weights.cpu().numpy(), pull.cpu().numpy())
        return ReplayRows(found, self.settings.replay_rows or 1, self.seed, self.task.position)

    def _drawn(self, step: int) -> tuple[int, tuple[Tensor, ...]]:
        """How many components are replayed at a step, and this worker's share: means, variances, weights, labels."""
        rank, workers = self.shard
        budget = self.settings.replay_rows
        if budget is None or len(self.components[0]) <= budget:
            return len(self.components[0]), tuple(t[rank::workers] for t in self.components)
        self._replay = self._replay or self._choose_replay()
        drawn, factor = self._replay.draw(step)
        own = self._tensor(drawn[rank::workers])
        means, variances, weights, labels = (t[own] for t in self.components)
        return len(drawn), (means, variances, weights * self._tensor(factor[rank::workers]), labels)

    def _replayed(self, step: int) -> tuple[Tensor, Tensor, Tensor]:
        rank, workers = self.shard
        rows, (means, variances, weights, labels) = self._drawn(step)
        noise = None
        if self.settings.replay_noise and rows:
            shape = (rows, means.shape[1])
            noise = self._tensor(
                draws.replay_noise(self.seed, self.task.position, step, *shape)[rank::workers]
            )
        return replay_features(means, variances, noise), labels, self.settings.replay_weight * weights

    def _sum_over_workers(self, tensors: list[Tensor | None]) -> None:
        if self.all_reduce is None:
            return
        for tensor in tensors:
            if tensor is not None:
                self.all_reduce(tensor)

    def _tensor(self, array: npt.NDArray[Any]) -> Tensor:
        # A copy, 64-byte aligned by torch: last bits of a product must not depend on where a file was mapped.
        return torch.tensor(array, device=self.device)
