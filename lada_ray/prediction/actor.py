"""What runs on the cluster: tasks that read and decode, and actors that encode and predict."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from lada_ray.errors import LadaError
from lada_ray.features.extract import NOT_FINITE, Batch, EncoderActor, Rendered, render_image, stated
from lada_ray.head import Floats
from lada_ray.method.outliers import Nearest, Residuals, nearest
from lada_ray.model import LadaModel
from lada_ray.prediction.asked import Options
from lada_ray.prediction.drift import residuals_to_json
from lada_ray.prediction.parts import Prediction
from lada_ray.prediction.shipment import Shipment
from lada_ray.serving import ranking
from lada_ray.store import is_remote
from lada_ray.views import TEST_VIEW, Preprocess

# Parallel requests of a read task, where images lie in an object store.
REQUESTS = 8
# A row's bits must not depend on what else is predicted with it: the head gets so many rows at once, padded.
HEAD_ROWS = 64


class RenderImages:
    """Reads and decodes images; pixels are uint8."""

    def __init__(self, preprocess: Preprocess) -> None:
        self.preprocess = preprocess

    def __call__(self, batch: Batch) -> Batch:
        """Map rows (image, chunk, uri) to rows with pixels, or why there are none."""
        uris = [str(uri) for uri in batch["uri"]]
        if is_remote(uris[0]):
            with ThreadPoolExecutor(REQUESTS) as pool:
                rendered = list(pool.map(self._render, uris))
        else:
            rendered = [self._render(uri) for uri in uris]
        return {
            "image": np.asarray(batch["image"]),
            "chunk": np.asarray(batch["chunk"]),
            "pixels": np.concatenate([one.pixels for one in rendered]),
            "reason": np.array([one.reason for one in rendered]),
            "unread": np.array([one.unread for one in rendered]),
        }

    def _render(self, uri: str) -> Rendered:
        return render_image(uri, (TEST_VIEW,), self.preprocess)


class Predictor(EncoderActor):
    """An actor that holds a whole model: pixels in, predictions out.

    Args:
        shipment: the model.
        options: what is asked of each image.
        threads: of torch.
        device: "cuda" if the actor was given GPUs.
    """

    def __init__(self, shipment: Shipment, options: Options, threads: int, device: str = "cpu") -> None:
        self.options = options
        try:
            with shipment.received() as (spec, model):
                super().__init__(spec, model.file.encoder["fingerprint"][:16], threads, device)
        except LadaError as error:
            self.refused = error
        if self.refused is None:
            self.head, self.packs, self.unseen = model.head, model.calibration.outliers, self._text(model)

    def _text(self, model: LadaModel) -> Floats | None:
        whole = LadaModel(model.file, model.packs, self.encoder)
        return whole.encode_classes(self.options.classes) if self.options.classes else None

    def work(self, batch: Batch) -> dict[str, Any]:
        """Encode rows of pixels and predict; images are named by their position in the listing."""
        started = time.perf_counter()
        good, features, not_finite = self.encode(batch)
        images, chunks = batch["image"], batch["chunk"][good]
        predictions, found = self.predict(features)
        unread = stated(batch, "image", "unread") | {str(images[i]): NOT_FINITE for i in not_finite}
        return {
            "images": images[good].tolist(),
            "predictions": predictions,
            "residuals": {} if found is None else self._residuals(features, found, chunks),
            "bad": stated(batch, "image", "reason"),
            "unread": unread,
            "seconds": time.perf_counter() - started,
        }

    def predict(self, features: Floats) -> tuple[list[Prediction], Nearest | None]:
        """A prediction for each row of raw features, [n, d], whose bits depend on that row alone.

        Returns:
            The predictions, and where the images lie among what the packs know; None if these are not calibrated.
        """
        predictions: list[Prediction] = []
        found: list[Nearest] = []
        for start in range(0, len(features), HEAD_ROWS):
            some = features[start : start + HEAD_ROWS]
            padded = np.zeros((HEAD_ROWS, features.shape[1]), np.float32)
            padded[: len(some)] = some
            ranked = ranking(self.head, padded, self.unseen, self.options.top_k)[: len(some)]
            if not self.packs:
                predictions += [Prediction(classes) for classes in ranked]
                continue
            near = nearest(padded, self.packs).at(slice(len(some)))
            judged = zip(ranked, near.outside.tolist(), near.distance.tolist(), strict=True)
            predictions += [Prediction(*one) for one in judged]
            found.append(near)
        if not found:
            return predictions, None
        return predictions, Nearest(*(np.concatenate(parts) for parts in zip(*found, strict=True)))

    def _residuals(self, features: Floats, found: Nearest, chunks: np.ndarray[Any, Any]) -> dict[str, Any]:
        """The residuals of the images of each chunk, as plain values."""
        sums = {}
        for chunk in np.unique(chunks):
            here = chunks == chunk
            some = Residuals.of(features[here], found.at(here), self.packs)
            sums[str(chunk)] = residuals_to_json(some)
        return sums
