"""The published procedure, implemented plainly: what the product is measured against."""

from __future__ import annotations

import time
import warnings
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from sklearn.cluster import KMeans
from sklearn.exceptions import ConvergenceWarning
from sklearn.mixture import GaussianMixture
from torch import Tensor

from lada_ray.encoder import Encoder
from lada_ray.features.extract import render_image
from lada_ray.features.fill import Images
from lada_ray.fit.plan import TaskPlan
from lada_ray.method import draws, fusion
from lada_ray.method.tuner import TextTuner
from lada_ray.pixels import PixelPipeline
from lada_ray.prepare import Stream, plan_fit, plan_tasks, plan_tests
from lada_ray.views import TEST_VIEW

Floats = npt.NDArray[np.float32]


def fit_memory(unit: Floats, vectors: int) -> Floats:
    """k-means centres of one class, [λ1, d], with scikit-learn; of few images the images themselves."""
    if len(unit) <= vectors:
        return unit
    return (
        KMeans(vectors, n_init=10, random_state=42)
        .fit(unit.astype(np.float64))
        .cluster_centers_.astype(np.float32)
    )


def fit_mixture(raw: Floats, components: int) -> tuple[Floats, Floats, Floats]:
    """Means [K, d], variances and weights [K] of one class, with scikit-learn."""
    model = GaussianMixture(min(components, len(raw)), covariance_type="spherical", random_state=42)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        model.fit(raw.astype(np.float64))
    means, variances, weights = model.means_, model.covariances_, model.weights_
    return means.astype(np.float32), variances.astype(np.float32), weights.astype(np.float32)


@dataclass
class Outcome:
    """Accuracy [tasks, domains] in %, seconds of learning and testing, and image encodings."""

    accuracy: npt.NDArray[np.float64]
    seconds: float = 0.0
    encoded: int = 0


class Published:
    """The procedure as published: images encoded at every epoch and every test, a dense classifier, full contexts.

    It draws the same batches, views and noise as the product, so that both have to come to the same accuracies.

    Args:
        stream: prepared, with Ray or without.
        images: the chosen images.
        encoder: on this machine.
    """

    def __init__(self, stream: Stream, images: Images, encoder: Encoder) -> None:
        self.stream, self.images, self.encoder = stream, images, encoder
        self.plan = plan_fit(stream, plan_tasks(stream, images))
        self.tests = plan_tests(stream.config, images)
        self.tau, self.settings = stream.info.tau, self.plan.settings
        self.uris = {sha: uri for uri, sha in images.hashes.items()}
        self.text = getattr(encoder.model, "text", encoder.model)
        self.encoded = 0
        self.old: list[dict[str, Tensor]] = []

    def run(self) -> Outcome:
        """Learn and test the whole stream."""
        started = time.perf_counter()
        accuracy = []
        with ThreadPoolExecutor(2) as self.readers:
            for task in self.plan.tasks:
                self.old.append(self._learn(task))
                accuracy.append(self._test())
        return Outcome(np.array(accuracy), time.perf_counter() - started, self.encoded)

    def _encode(self, shas: Sequence[str], views: Sequence[str]) -> Tensor:
        """Read, decode, render and encode images, one view of each; raw features [n, d]."""
        parts = []
        for start in range(0, len(shas), 64):
            part = slice(start, start + 64)
            pixels = list(self.readers.map(self._render, shas[part], views[part]))
            spec = self.encoder.spec.preprocess
            pipeline = PixelPipeline(
                self.encoder.model.encode_image, spec.mean, spec.std, len(pixels), torch.device("cpu"), "fp32"
            )
            parts.append(torch.from_numpy(pipeline(np.stack(pixels))))
        self.encoded += len(shas)
        return torch.cat(parts)

    def _render(self, sha: str, view: str) -> npt.NDArray[np.uint8]:
        return render_image(self.uris[sha], (view,), self.encoder.spec.preprocess, sha).pixels[0]

    def _learn(self, task: TaskPlan) -> dict[str, Tensor]:
        """Train a fresh tuner and the task's memory vectors, and fit its mixtures."""
        (part,) = task.parts
        raw = self._encode(part.shas, [TEST_VIEW] * len(part.shas))
        by_class = [raw[torch.from_numpy(task.labels == j)].numpy() for j in range(task.classes)]
        s = self.settings
        memory = [
            fit_memory(x / np.linalg.norm(x, axis=1, keepdims=True), s.memory_per_class) for x in by_class
        ]
        vectors = torch.from_numpy(np.concatenate(memory)).requires_grad_()
        owner = torch.from_numpy(np.repeat(np.arange(task.classes), [len(m) for m in memory]))
        tokens = torch.from_numpy(self.encoder.tokenize(part.prompts))
        init = draws.torch_generator(self.plan.seed, "tuner", task.position)
        width, blocks = self.text.positional_embedding.shape[1], self.text.transformer.resblocks
        tuner = TextTuner(width, len(blocks), s.tuner_bottleneck, init)
        steps = task.epochs * draws.steps_per_epoch(len(part.shas), s.batch_size)
        optimizer = torch.optim.AdamW([*tuner.parameters(), vectors], s.lr, weight_decay=s.weight_decay)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=s.lr, total_steps=steps)
        for step in range(steps):
            optimizer.zero_grad()
            text = self._tuned_text(tokens, tuner)
            self._loss(task, step, text, vectors, owner).backward()
            optimizer.step()
            schedule.step()
        with torch.no_grad():
            text = self._tuned_text(tokens, tuner)
        mixtures = [fit_mixture(x, s.mixture_components) for x in by_class]
        means, variances, weights = (torch.from_numpy(np.concatenate(a)) for a in zip(*mixtures, strict=True))
        labels = torch.from_numpy(np.repeat(np.arange(task.classes), [len(m[2]) for m in mixtures]))
        return {
            "text": text, "memory": vectors.detach(), "owner": owner,
            "means": means, "variances": variances, "weights": weights, "labels": labels,
        }  # fmt: skip

    def _tuned_text(self, tokens: Tensor, tuner: TextTuner) -> Tensor:
        """Text features [c, d] of whole contexts [c, 77]: open_clip's forward pass, with the adapters."""
        x = self.text.token_embedding(tokens) + self.text.positional_embedding
        for block, adapter in zip(self.text.transformer.resblocks, tuner.adapters, strict=True):
            x = x + block.attention(block.ln_1(x), attn_mask=self.text.attn_mask)
            x = x + block.mlp(block.ln_2(x)) + adapter(x)
        ends = tokens.argmax(dim=-1)
        x = self.text.ln_final(x[torch.arange(len(x)), ends])
        projection = self.text.text_projection
        return projection(x) if isinstance(projection, torch.nn.Linear) else x @ projection

    def _loss(self, task: TaskPlan, step: int, text: Tensor, vectors: Tensor, owner: Tensor) -> Tensor:
        (part,), s, seed = task.parts, self.settings, self.plan.seed
        batch = draws.batch_rows(seed, task.position, step, len(part.shas), s.batch_size)
        chosen = draws.view_choice(seed, task.position, step, len(batch), len(part.views))
        images = self._encode([part.shas[i] for i in batch], [part.views[v] for v in chosen])
        first = sum(len(old["text"]) for old in self.old)
        labels = [torch.from_numpy(task.labels[batch]) + first]
        weights, rows = [torch.ones(len(batch))], [images]
        if self.old:
            means, variances, mixed = (
                torch.cat([o[n] for o in self.old]) for n in ("means", "variances", "weights")
            )
            noise = torch.from_numpy(draws.replay_noise(seed, task.position, step, *means.shape))
            rows.append(means + noise * variances.sqrt()[:, None])
            labels.append(self._stacked("labels"))
            weights.append(s.replay_weight * mixed)
        z = F.normalize(torch.cat(rows), dim=-1)
        logits = self._logits(z, text, vectors, owner)
        return (torch.cat(weights) * F.cross_entropy(logits, torch.cat(labels), reduction="none")).mean()

    def _stacked(self, name: str, new: Tensor | None = None) -> Tensor:
        """Class indices of all tasks, those of the current one last."""
        starts = np.cumsum([0, *(len(old["text"]) for old in self.old)])
        parts = [old[name] + int(start) for old, start in zip(self.old, starts, strict=False)]
        return torch.cat(parts if new is None else [*parts, new + int(starts[-1])])

    def _logits(self, z: Tensor, text: Tensor, vectors: Tensor, owner: Tensor) -> Tensor:
        """Over all seen classes: every affinity times a dense matrix that says whose it is."""
        texts = torch.cat([*(old["text"] for old in self.old), text])
        memory = torch.cat([*(old["memory"] for old in self.old), vectors])
        dense = F.one_hot(self._stacked("owner", owner), len(texts)).float()
        affinities = torch.exp(-self.settings.beta * (1 - z @ memory.T))
        return self.tau * z @ F.normalize(texts, dim=-1).T + self.settings.alpha * affinities @ dense

    @torch.no_grad()
    def _test(self) -> list[float]:
        """Encode every test image, and classify it among all classes of all domains; accuracy by domain, in %."""
        *before, last = self.old
        self.old, kept = before, self.old
        own = [torch.from_numpy(self.encoder.encode_text(test.prompts)) for test in self.tests]
        unseen = torch.cat([torch.zeros(0, last["text"].shape[1]), *own[len(kept) :]])
        sizes = np.cumsum([0, *(len(test.prompts) for test in self.tests)])
        row = []
        for test, first in zip(self.tests, sizes, strict=False):
            z = F.normalize(self._encode(test.shas, [TEST_VIEW] * len(test.shas)), dim=-1)
            seen = self._logits(z, last["text"], last["memory"], last["owner"])
            texts = torch.cat([*(old["text"] for old in kept), unseen])
            text = self.tau * z @ F.normalize(texts, dim=-1).T
            logits = torch.cat([seen, text[:, seen.shape[1] :]], dim=1)
            found = fusion.predict(text, logits, seen.shape[1], self.stream.config.method.fusion).numpy()
            row.append(100.0 * float((found == np.array(test.labels) + first).mean()))
        self.old = kept
        return row
