"""The bank's key of the tiny encoder: what encodes into a bank checks that it is that bank's encoder."""

from __future__ import annotations

import pytest

from lada_ray.encoder import EncoderSpec, load_encoder


@pytest.fixture(scope="session")
def tiny_key(tiny_encoder: EncoderSpec) -> str:
    """The feature key of the tiny encoder."""
    return load_encoder(tiny_encoder, "cpu").info().feature_key
