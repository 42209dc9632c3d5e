"""What a benchmark says: ratios with their bars, and the figures that they come from."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal


@dataclass(frozen=True)
class Bar:
    """A figure that was promised."""

    what: str
    value: float
    side: Literal["at least", "at most"]
    limit: float

    @property
    def met(self) -> bool:
        """Whether it was kept."""
        return self.value >= self.limit if self.side == "at least" else self.value <= self.limit

    def __str__(self) -> str:
        return f"{self.what} {self.value:.3g} ({self.side} {self.limit:g}{'' if self.met else ': MISSED'})"


@dataclass(frozen=True)
class Result:
    """One benchmark's outcome.

    name: of the benchmark. what: what was measured, against what. bars: what counts. figures: seconds, bytes, counts
    and percentages behind them, by name.
    """

    name: str
    what: str
    bars: tuple[Bar, ...]
    figures: Mapping[str, Any] = field(default_factory=dict)
    machine: str = field(default_factory=lambda: machine())

    @property
    def line(self) -> str:
        """All that counts, in one line: the bars, or the figures where nothing was promised."""
        figures = [f"{name} {value:.3g}" for name, value in self.figures.items() if isinstance(value, float)]
        said = "; ".join(map(str, self.bars)) or "; ".join(figures) or "nothing measured"
        return f"{self.name}: {self.what}: {said}. {self.machine}"

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        bars = [{**asdict(bar), "met": bar.met} for bar in self.bars]
        return {**asdict(self), "bars": bars}


def machine() -> str:
    """Processor, cores, memory, and the GPU if there is one."""
    import torch

    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9
    gpu = f", {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ""
    return f"{_processor()}, {os.cpu_count()} cores, {memory:.0f} GB{gpu}, torch {torch.__version__}"


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()
