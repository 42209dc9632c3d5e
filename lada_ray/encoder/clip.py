"""The frozen open_clip model: pixels -> image features, prompts -> text features, and its fingerprint."""

from __future__ import annotations

import hashlib
import json
import socket
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from lada_ray.encoder.resolve import EncoderSpec, weights_file
from lada_ray.encoder.towers import why_not_tunable
from lada_ray.errors import InputError, IntegrityError
from lada_ray.pixels import PixelPipeline, full_float32
from lada_ray.views import Pixels

# Images are encoded in batches of exactly this size, padded: the same row alone and in a batch of another
# size differs in its last bits, and features must not depend on what else was missing from the bank.
BATCH = {"cpu": 64, "cuda": 256}
PROMPT_BATCH = 256
# What readers of weights raise when the file is something else.
NOT_WEIGHTS = (
    *("UnpicklingError", "SafetensorError"),
    *("EOFError", "KeyError", "StopIteration", "AttributeError"),
)


@dataclass(frozen=True)
class EncoderInfo:
    """What the rest of the program needs to know of an encoder without loading it."""

    fingerprint: str
    """Hash over architecture, weights, preprocessing and precision."""
    width: int
    """d, of image and text features."""
    tau: float
    """τ = exp(logit_scale)."""
    parameters: int
    not_tunable: str | None = None
    """Why the text tuner cannot tune its text tower; None when it can."""

    @property
    def feature_key(self) -> str:
        """Names the features in the bank. An encoder that a learner changes would add its deltas here."""
        return self.fingerprint[:16]

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


class Encoder:
    """A frozen CLIP on one device.

    Args:
        spec: what to build.
        device: "cpu" or "cuda".
    """

    def __init__(self, spec: EncoderSpec, device: str = "cpu") -> None:
        import open_clip

        self.spec, self.device = spec, torch.device(device)
        name = register_architecture(spec)
        self.model: Any = _build(spec, name)
        self.tokenizer = open_clip.get_tokenizer(name)
        self.model.eval().requires_grad_(False).to(self.device)
        mean, std, size = spec.preprocess.mean, spec.preprocess.std, BATCH[self.device.type]
        self._pipeline = PixelPipeline(
            lambda images: self.model.encode_image(images), mean, std, size, self.device, spec.precision
        )

    def info(self) -> EncoderInfo:
        """Fingerprint, width, τ, and whether it can be tuned."""
        return EncoderInfo(
            fingerprint=fingerprint(self.spec, self.model),
            width=self.spec.architecture["embed_dim"],
            tau=float(self.model.logit_scale.exp().item()),
            parameters=sum(p.numel() for p in self.model.parameters()),
            not_tunable=why_not_tunable(self.model),
        )

    def check(self, feature_key: str) -> None:
        """Make sure that this node's weights are those whose features are kept under `feature_key`.

        Raises:
            IntegrityError: if they are not, naming node and file.
        """
        found = self.info().feature_key
        if found != feature_key:
            raise IntegrityError(
                f"on the node {socket.gethostname()}, {weights_file(self.spec)} is another encoder ({found}) than this "
                f"run's ({feature_key}): its features must not be mixed with the others. Put the same file on every "
                "node, with the same versions of torch and open_clip, and start again"
            )

    def encode_pixels(self, pixels: Pixels) -> npt.NDArray[np.float32]:
        """Raw image features of uint8 pixels.

        Args:
            pixels: [n, size, size, 3].

        Returns:
            [n, d] float32, the image tower's output after its projection, not normalised.
        """
        if len(pixels) == 0:
            return np.zeros((0, self.spec.architecture["embed_dim"]), np.float32)
        return self._pipeline(pixels)

    @torch.inference_mode()
    def encode_text(self, prompts: Sequence[str]) -> npt.NDArray[np.float32]:
        """CLIP's own text features of prompts, raw, [n, d], in float32."""
        parts = []
        for start in range(0, len(prompts), PROMPT_BATCH):
            tokens = torch.from_numpy(self.tokenize(prompts[start : start + PROMPT_BATCH])).to(self.device)
            with full_float32():
                parts.append(self.model.encode_text(tokens).float().cpu().numpy())
        return (
            np.concatenate(parts) if parts else np.zeros((0, self.spec.architecture["embed_dim"]), np.float32)
        )

    def tokenize(self, prompts: Sequence[str]) -> npt.NDArray[np.int64]:
        """Tokens of prompts, [n, context]."""
        tokens: Tensor = self.tokenizer(list(prompts))
        return tokens.numpy()


def load_encoder(spec: EncoderSpec, device: str | None = None) -> Encoder:
    """Build the encoder, on the GPU if one is visible and `device` does not say otherwise.

    In a Ray worker always state the device (`device_for`): Ray shows all GPUs to workers that were given none.
    """
    return Encoder(spec, device or ("cuda" if torch.cuda.is_available() else "cpu"))


def device_for(gpus: float) -> str:
    """The device of a Ray task or actor that was given so many GPUs."""
    return "cuda" if gpus > 0 else "cpu"


def register_architecture(spec: EncoderSpec) -> str:
    """Make the architecture known to open_clip's factory under a name of its own, which is returned."""
    import open_clip

    text = json.dumps(spec.architecture, sort_keys=True)
    name = f"{Path(spec.model).name}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"{name}.json"
        path.write_text(text)
        open_clip.add_model_config(path)
    return name


def _build(spec: EncoderSpec, name: str) -> nn.Module:
    import open_clip

    path = weights_file(spec)
    try:
        model = open_clip.create_model(name, pretrained=str(path), weights_only=True)
    # Readers of weights raise whatever a file makes them stumble over.
    except Exception as error:
        raise InputError([f"{path}: {_why_not_loaded(error)}"], "The encoder cannot be loaded") from error
    _check_finite(model, path)
    return model


def _check_finite(model: nn.Module, path: Path) -> None:
    bad = [name for name, tensor in model.state_dict().items() if not torch.isfinite(tensor).all()]
    if bad:
        listed = ", ".join(bad[:3]) + (f" and {len(bad) - 3} more" if len(bad) > 3 else "")
        raise InputError(
            [f"{path}: has weights that are not finite, in {listed}"], "The encoder cannot be loaded"
        )


def _why_not_loaded(error: Exception) -> str:
    said = " ".join(str(error).split())
    if "TorchScript" in said:
        return (
            "a TorchScript archive (OpenAI's own .pt files are), which could run code when loaded. Convert "
            "it once where you trust it: "
            "torch.save(torch.jit.load(FILE, 'cpu').float().state_dict(), 'weights.pt')"
        )
    if "Unsupported global" in said or "Unsupported class" in said:
        return (
            "holds more than tensors, which could run code when loaded; save its state_dict alone, "
            "as safetensors"
        )
    if "size mismatch" in said or "Missing key" in said or "Unexpected key" in said:
        return f"does not fit the architecture: {said[:400]}"
    kind = type(error).__name__
    if "PytorchStreamReader" in said or kind in NOT_WEIGHTS:
        return f"is damaged, or neither safetensors nor a state dict ({kind}: {said[-200:]})"
    return f"{kind}: {said[:400]}"


def fingerprint(spec: EncoderSpec, model: nn.Module) -> str:
    """SHA-256 over architecture (activation included), weights, preprocessing and precision."""
    said = {
        "architecture": spec.architecture,
        "preprocess": asdict(spec.preprocess),
        "precision": spec.precision,
    }
    digest = hashlib.sha256(json.dumps(said, sort_keys=True).encode())
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
