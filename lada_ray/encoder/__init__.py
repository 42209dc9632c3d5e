"""The frozen CLIP: which one it is (`resolve`), and what it computes (`clip`)."""

from lada_ray.encoder.clip import Encoder, EncoderInfo, load_encoder
from lada_ray.encoder.resolve import EncoderSpec, resolve_encoder

__all__ = ["Encoder", "EncoderInfo", "EncoderSpec", "load_encoder", "resolve_encoder"]
