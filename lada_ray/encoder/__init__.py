"""The frozen CLIP: which one it is (`resolve`), what it computes (`clip`), whether it can be tuned (`towers`)."""

from lada_ray.encoder.clip import Encoder, EncoderInfo, device_for, load_encoder
from lada_ray.encoder.resolve import EncoderSpec, resolve_encoder

__all__ = ["Encoder", "EncoderInfo", "EncoderSpec", "device_for", "load_encoder", "resolve_encoder"]
