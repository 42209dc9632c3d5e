"""A model: an encoder and an ordered list of task packs, and the predictions they make together."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import numpy.typing as npt
import pandas as pd

from lada_ray.calibration import Calibration, read_calibration, write_calibration
from lada_ray.domains.base import read_bytes
from lada_ray.encoder import Encoder, EncoderSpec, load_encoder
from lada_ray.encoder.resolve import weights_file
from lada_ray.errors import Conflict, InputError, IntegrityError, LostLease
from lada_ray.head import HEADS, Prediction, make_head
from lada_ray.pack import Label, TaskPack
from lada_ray.store import Store, is_remote, join, open_store
from lada_ray.views import TEST_VIEW, Pixels, decode, render

if TYPE_CHECKING:
    from PIL import Image

    AnyImage = str | Path | bytes | Image.Image


MODEL = "model.json"
FORMAT = 1
# Images whose pixels exist at once when predicting.
IMAGES = 512
UNREAD = "These images cannot be read"
Floats = npt.NDArray[np.float32]


@dataclass(frozen=True)
class ModelFile:
    """The content of model.json: the truth about which packs make up the model."""

    encoder: Mapping[str, Any]
    """{"spec": ..., "fingerprint": ..., "prompt": ...}"""
    prediction: Prediction
    packs: tuple[str, ...] = ()
    """Digests, in order of learning."""
    prompts: Mapping[str, str] = field(default_factory=dict)
    """Prompt template of each learnt domain."""
    identity: Mapping[str, Any] = field(default_factory=dict)
    """What identifies the run that writes this model."""
    run: str = ""
    """Id of that run."""
    epoch: int = 0
    """Raised by every process that takes the run over; a writer with an older one cannot commit."""
    history: tuple[Mapping[str, Any], ...] = ()
    """Every version of a production model, the newest last (versions.py); empty for a run."""

    def to_bytes(self) -> bytes:
        """The bytes of model.json."""
        return json.dumps({"format": FORMAT, **asdict(self)}, indent=1, ensure_ascii=False).encode()

    @classmethod
    def from_bytes(cls, data: bytes, where: str) -> ModelFile:
        """Parse model.json, found at `where`.

        Raises:
            IntegrityError: if it is not a model.json that this version reads, or of a learner that it does not know.
        """
        try:
            values = json.loads(data)
            if values.pop("format") != FORMAT:
                raise IntegrityError(
                    f"{where} was written by another version of lada_ray; this one reads format {FORMAT}"
                )
            prediction = Prediction(**values.pop("prediction"))
            if prediction.kind not in HEADS:
                raise IntegrityError(
                    f"{where} was written by a newer version of lada_ray, with a learner {prediction.kind!r} that "
                    f"this one does not know (it knows {', '.join(HEADS)}); upgrade lada_ray"
                )
            packs, history = tuple(values.pop("packs")), tuple(values.pop("history", ()))
            return cls(prediction=prediction, packs=packs, history=history, **values)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise IntegrityError(f"{where} is damaged: {error}") from error


def read_model_file(store: Store, name: str = MODEL) -> tuple[ModelFile, str] | None:
    """model.json (or a candidate's file) and its version in storage, for `commit`; None if there is none."""
    found = store.read_version(name)
    return None if found is None else (ModelFile.from_bytes(found[0], f"{store.uri}/{name}"), found[1])


def commit(store: Store, pack: TaskPack, prompts: Mapping[str, str], epoch: int, name: str = MODEL) -> None:
    """Append a pack to the model: write it under its digest, then replace model.json if it is still ours.

    Args:
        store: the model's folder.
        pack: its parent has to be the model's newest pack.
        prompts: the template that each of its domains' text features were made with.
        epoch: of the writer.
        name: of the model's file; a candidate's is another one.

    Raises:
        LostLease: another process has taken the run over.
        Conflict: the model's newest pack is not the parent of this one.
    """
    pack.write(store)
    found = read_model_file(store, name)
    if found is None:
        raise Conflict(f"{store.uri}/{name} is gone: somebody removed or moved the run")
    model, version = found
    check_epoch(model, epoch, store)
    if pack.digest in model.packs:
        return
    if (model.packs[-1] if model.packs else None) != pack.parent:
        raise Conflict(f"{store.uri}: the newest pack is not the parent of {pack.digest[:12]}")
    new = replace(model, packs=(*model.packs, pack.digest), prompts={**model.prompts, **prompts})
    try:
        store.replace(name, new.to_bytes(), version)
    except Conflict:
        # An object store may have taken the write although its answer was lost.
        newest = read_model_file(store, name)
        if newest is not None:
            check_epoch(newest[0], epoch, store)
        if newest is None or newest[0].packs != new.packs:
            raise


def check_epoch(model: ModelFile, epoch: int, store: Store) -> None:
    """Make sure that a writer with this epoch still owns the model in this store.

    Raises:
        LostLease: another process has taken it over.
    """
    if model.epoch != epoch:
        raise LostLease(
            f"{store.uri} was taken over by another process (epoch {model.epoch}, this one has {epoch})"
        )


@lru_cache(maxsize=256)
def cached_pack(uri: str, digest: str) -> TaskPack:
    """A pack that was read and checked before by this process; packs never change."""
    return TaskPack.read(open_store(uri), digest)


class LadaModel:
    """An encoder and the packs learnt with it. Load one with `LadaModel.load`.

    Args:
        file: the content of model.json.
        packs: the packs it names.
        encoder: loaded when first needed, unless given.
        calibration: of the packs; None: they are not calibrated.

    Attributes:
        calibration: temperatures of scores, and what tells outliers; its `problem` says if it is missing.
    """

    def __init__(
        self,
        file: ModelFile,
        packs: Sequence[TaskPack],
        encoder: Encoder | None = None,
        calibration: Calibration | None = None,
    ) -> None:
        self.file, self.packs, self._encoder = file, list(packs), encoder
        self.calibration = calibration or Calibration((None,) * len(self.packs))
        self.spec = EncoderSpec.from_json(file.encoder["spec"])
        width = self.spec.architecture["embed_dim"]
        self.head = make_head(self.packs, file.prediction, width, self.calibration.temperatures)

    @classmethod
    def load(cls, path_or_uri: str | Path) -> LadaModel:
        """Load a model from a folder: a run's `model/`, or where `save` put it; local or in an object store.

        Raises:
            FileNotFoundError: there is no model.
            IntegrityError: a pack is missing, cut short or changed; or a pack's calibration is damaged.
        """
        store = open_store(path_or_uri)
        found = read_model_file(store)
        if found is None:
            hint = f"; the model of this run is {store.uri}/model" if store.exists(f"model/{MODEL}") else ""
            raise FileNotFoundError(f"no model at {store.uri}: it has no {MODEL}{hint}")
        file = found[0]
        packs = [TaskPack.read(store, digest) for digest in file.packs]
        for pack, parent in zip(packs, [None, *file.packs], strict=False):
            if pack.parent != parent:
                raise IntegrityError(
                    f"{store.uri}: pack {pack.digest[:12]} does not follow the pack before it"
                )
        return cls(_with_own_encoder(file, store), packs, calibration=read_calibration(store, file.packs))

    def save(self, path: str | Path) -> None:
        """Write the model to a folder (or URI) that needs nothing else: packs, their calibration, local weights."""
        store = open_store(path)
        for pack in self.packs:
            pack.write(store)
        write_calibration(store, self.file.packs, self.calibration)
        encoder = dict(self.file.encoder)
        if self.spec.local_weights is not None or is_remote(self.spec.pretrained):
            weights = weights_file(self.spec)
            name = f"encoder/{weights.name}"
            store.write(name, weights.read_bytes())
            encoder["spec"] = {**encoder["spec"], "pretrained": f"./{name}"}
        store.write(MODEL, replace(self.file, encoder=encoder).to_bytes())

    @property
    def encoder(self) -> Encoder:
        """The frozen CLIP.

        Raises:
            IntegrityError: its weights are not those that the packs were learnt with.
        """
        if self._encoder is None:
            encoder = load_encoder(self.spec)
            if encoder.info().fingerprint != self.file.encoder["fingerprint"]:
                raise IntegrityError(
                    f"the encoder {self.spec.model} / {self.spec.pretrained} is not the one this model was learnt with "
                    "(other weights); its features would mean nothing to the packs"
                )
            self._encoder = encoder
        return self._encoder

    @property
    def domains(self) -> list[str]:
        """Names of the domains learnt, in order."""
        return list(dict.fromkeys(label.domain for pack in self.packs for label in pack.labels))

    @property
    def class_names(self) -> list[Label]:
        """The seen labels (domain, name), in the order of the logits."""
        return list(self.head.labels)

    def logits(self, features: Floats, unseen_text: Floats | None = None) -> Floats:
        """What the prediction is made of, by learner.

        LADA, joint: ungated sums, text + α memory for seen classes, text logits for unseen ones. Nearest mean: τ times
        the cosine to a seen class's mean, ungated, and text logits for unseen ones. Zero-shot: text logits. RAIL: no
        logits, but zero-shot probabilities with the regression mixed in, the gate included.

        Args:
            features: raw image features, [N, d].
            unseen_text: CLIP's own text features of U classes not learnt, raw or unit, [U, d].

        Returns:
            [N, C + U] float32.
        """
        return self.head.logits(features, unseen_text)

    def predict_features(self, features: Floats, unseen_text: Floats | None = None) -> npt.NDArray[np.int64]:
        """Predicted class of each image, [N]: an index into `class_names`, then into the unseen classes.

        LADA, joint (unless their fusion is additive) and nearest mean: the text logits decide between seen and unseen
        classes (method.fusion), `logits` among the seen ones. RAIL and zero-shot: the largest of `logits`. Arguments as
        in `logits`.
        """
        return self.head.predict(features, unseen_text)

    def predict(
        self, images: AnyImage | Iterable[AnyImage], extra_classes: Sequence[str] = ()
    ) -> pd.DataFrame:
        """Classify images.

        Args:
            images: paths, URIs, encoded bytes or PIL images; or a single one.
            extra_classes: names of classes that were not learnt, to be recognised zero-shot.

        Returns:
            A row per image: `domain` (None for an extra class), `class`, and `score`, in 0..1: the softmax of the
            logits, among the classes on the chosen side where a gate decides (`predict_features`), at the temperature
            that was fitted for that side; of RAIL its mixture of probability and regression, which is no probability.
            A warning (UserWarning) says if the packs are not calibrated.

        Raises:
            InputError: naming every image that cannot be read, or if there is no class to choose from.
        """
        if isinstance(images, (str, Path, bytes)) or hasattr(images, "convert"):
            images = [cast("AnyImage", images)]
        if isinstance(extra_classes, str) or not all(str(name).strip() for name in extra_classes):
            raise InputError(
                ["extra_classes: give a list of names, such as ['zebra crossing']"], "Nothing predicted"
            )
        unseen = self.encode_classes([str(name) for name in extra_classes]) if extra_classes else None
        names = [*self.head.labels, *((None, name) for name in extra_classes)]
        if not names:
            raise InputError(["nothing is learnt yet: give extra_classes"], "Nothing to predict")
        self.warn_uncalibrated()
        rows, problems = [], []
        for start, some in _chunks(images, IMAGES):
            pixels, unread = self._pixels(some, start)
            problems += unread
            if not problems:
                chosen, scores = self.head.predict_scored(self.encoder.encode_pixels(pixels), unseen)
                rows += [(*names[j], score) for j, score in zip(chosen, scores, strict=True)]
        if problems:
            raise InputError(problems, UNREAD)
        return pd.DataFrame(rows, columns=["domain", "class", "score"])

    def encode(self, images: Iterable[AnyImage]) -> Floats:
        """Raw features of images under the deterministic view, [N, d].

        Raises:
            InputError: naming every image that cannot be read.
        """
        pixels, problems = self._pixels(images)
        if problems:
            raise InputError(problems, UNREAD)
        return self.encoder.encode_pixels(pixels)

    def encode_classes(self, class_names: Sequence[str]) -> Floats:
        """CLIP's own text features of U classes by name, with the model's prompt, raw, [U, d]."""
        prompts = [self.file.encoder["prompt"].replace("{}", name.replace("_", " ")) for name in class_names]
        return self.encoder.encode_text(prompts)

    def warn_uncalibrated(self) -> None:
        """Warn (UserWarning) that scores are not calibrated, if so."""
        if self.calibration.problem:
            warnings.warn(self.calibration.problem, stacklevel=3)

    def _pixels(self, images: Iterable[AnyImage], start: int = 0) -> tuple[Pixels, list[str]]:
        """Pixels [N, size, size, 3], and a line for each image that cannot be read."""
        pixels, problems = [np.zeros((0, *(self.spec.preprocess.size,) * 2, 3), np.uint8)], []
        for i, image in enumerate(images, start):
            try:
                pixels.append(render(_open(image), "", TEST_VIEW, self.spec.preprocess)[None])
            # Whatever a decoder stumbles over is told with the image's name.
            except Exception as error:
                name = image if isinstance(image, (str, Path)) else type(image).__name__
                problems.append(f"image {i} ({name}): {error}")
        return np.concatenate(pixels), problems


def _chunks(images: Iterable[AnyImage], size: int) -> Iterator[tuple[int, list[AnyImage]]]:
    rest, start = iter(images), 0
    while some := list(islice(rest, size)):
        yield start, some
        start += len(some)


def _open(image: AnyImage) -> Image.Image:
    if isinstance(image, (str, Path)):
        return decode(read_bytes(str(image)))
    if isinstance(image, bytes):
        return decode(image)
    if not hasattr(image, "convert"):
        raise TypeError("give a path, a URI, encoded bytes or a PIL image")
    return image.convert("RGB")


def _with_own_encoder(file: ModelFile, store: Store) -> ModelFile:
    """A saved model carries its encoder's weights; they are found beside model.json, wherever that is now."""
    pretrained = str(file.encoder["spec"]["pretrained"])
    if not pretrained.startswith("./"):
        return file
    where = join(store.uri, pretrained.removeprefix("./"))
    return replace(file, encoder={**file.encoder, "spec": {**file.encoder["spec"], "pretrained": where}})
