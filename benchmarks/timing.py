"""Measuring: interleaved repeats and their median; peak memory in a process of its own."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from importlib import import_module
from pathlib import Path
from statistics import median
from typing import Any


def interleaved(
    functions: Mapping[str, Callable[[], Any]], repeats: int, warm_up: bool = True
) -> dict[str, float]:
    """Median seconds of each function, called in turn: what the machine does meanwhile strikes all alike.

    Args:
        functions: by name.
        repeats: of each.
        warm_up: call each once before, untimed.
    """
    if warm_up:
        for function in functions.values():
            function()
    seconds: dict[str, list[float]] = {name: [] for name in functions}
    for _ in range(repeats):
        for name, function in functions.items():
            started = time.perf_counter()
            function()
            seconds[name].append(time.perf_counter() - started)
    return {name: median(values) for name, values in seconds.items()}


def fresh(function: str, **arguments: Any) -> dict[str, Any]:
    """Call a function of this package in a fresh process.

    Args:
        function: "module:name" below `benchmarks`; takes and returns what JSON can hold.
        arguments: by name.

    Returns:
        "value", what it returned, and "peak_bytes", the largest resident memory of its process.
    """
    command = [sys.executable, "-m", "benchmarks.timing", function, json.dumps(arguments)]
    root = Path(__file__).resolve().parents[1]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{function} failed in its process:\n{done.stderr[-3000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def peak_bytes() -> int:
    """The most memory that this program has held.

    Of its own: getrusage counts, on Linux, what the process that started it held before.
    """
    status = Path("/proc/self/status").read_text()
    line = next(line for line in status.splitlines() if line.startswith("VmHWM:"))
    return int(line.split()[1]) * 1024


def _main(function: str, arguments: str) -> None:
    module, _, name = function.partition(":")
    value = getattr(import_module(f"benchmarks.{module}"), name)(**json.loads(arguments))
    sys.stdout.write(json.dumps({"value": value, "peak_bytes": peak_bytes()}) + "\n")


if __name__ == "__main__":
    _main(*sys.argv[1:])
