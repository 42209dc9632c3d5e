"""Reading images: what passes is tried again, what does not is told at once."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from lada_ray.features import reading as module
from lada_ray.features.reading import WAITS, read_image


class Flaky:
    """Fails a number of times, then reads."""

    def __init__(self, error: Exception, times: int) -> None:
        self.error, self.times, self.tries = error, times, 0

    def __call__(self, uri: str) -> bytes:
        self.tries += 1
        if self.tries <= self.times:
            raise self.error
        return Path(uri).read_bytes()


@pytest.fixture
def waited(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    waits: list[float] = []
    monkeypatch.setattr(module.time, "sleep", waits.append)
    return waits


STALE, IO = OSError(errno.ESTALE, "Stale file handle"), OSError(errno.EIO, "Input/output error")


@pytest.mark.parametrize("error", [STALE, IO, TimeoutError("timed out"), ConnectionResetError("reset")])
def test_what_may_pass_is_tried_again(
    error: OSError, waited: list[float], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a").write_text("hello")
    monkeypatch.setattr(module, "read_bytes", Flaky(error, 2))
    assert read_image(str(tmp_path / "a")) == b"hello"
    assert waited == list(WAITS[:2])


def test_it_counts_in_the_end(waited: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    flaky = Flaky(IO, 99)
    monkeypatch.setattr(module, "read_bytes", flaky)
    with pytest.raises(OSError, match="Input/output"):
        read_image("/a")
    assert (flaky.tries, waited) == (len(WAITS) + 1, list(WAITS))


@pytest.mark.parametrize(
    "error", [FileNotFoundError(errno.ENOENT, "gone"), PermissionError(errno.EACCES, "no")]
)
def test_what_does_not_pass_is_told_at_once(
    error: OSError, waited: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "read_bytes", Flaky(error, 99))
    with pytest.raises(type(error)):
        read_image("/a")
    assert waited == []
