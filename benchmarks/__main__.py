"""python -m benchmarks [names] [--quick] [--repeats N] [--out FOLDER]."""

from __future__ import annotations

import argparse
import json
import logging
import shlex
import sys
from importlib import import_module
from pathlib import Path

from benchmarks.result import Result

NAMES = ("extract", "stream", "classes", "step", "predict_head", "tasks", "gpu")


def main(argv: list[str] | None = None) -> int:
    """Run benchmarks; returns 1 if a bar was missed."""
    arguments = _arguments(sys.argv[1:] if argv is None else argv)
    # open_clip warns that weights are random: they are meant to be.
    logging.getLogger().setLevel(logging.ERROR)
    results = []
    for name in arguments.names or NAMES:
        result = import_module(f"benchmarks.{name}").measure(arguments.repeats, arguments.quick)
        print(result.line, flush=True)
        results.append(result)
        if arguments.out:
            # After each: an hour of measuring should not be lost to the last one.
            write(results, arguments.out, shlex.join(["python", "-m", "benchmarks", *sys.argv[1:]]))
    if arguments.out:
        print(f"results: {arguments.out / 'results.html'}")
    # What is measured on less is not what was promised.
    return int(not arguments.quick and any(not bar.met for result in results for bar in result.bars))


def _arguments(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="Measure, side by side.")
    parser.add_argument("names", nargs="*", metavar="name", help=f"of {', '.join(NAMES)} (none: all)")
    parser.add_argument("--quick", action="store_true", help="on less, to see that it runs: not for quoting")
    parser.add_argument("--repeats", type=int, default=5, help="of everything that is timed")
    parser.add_argument("--out", type=Path, help="folder for results.json and results.html")
    arguments = parser.parse_args(argv)
    unknown = [name for name in arguments.names if name not in NAMES]
    if unknown:
        parser.error(f"there is no benchmark {', '.join(unknown)}; there are {', '.join(NAMES)}")
    return arguments


def write(results: list[Result], folder: Path, command: str) -> None:
    """Write results.json and, where the package's pages can be made, results.html."""
    folder.mkdir(parents=True, exist_ok=True)
    said = [result.to_json() for result in results]
    (folder / "results.json").write_text(json.dumps({"command": command, "results": said}, indent=1))
    # The GPU's benchmark runs where only torch and open_clip are installed.
    try:
        from benchmarks.page import results_html
    except ImportError as error:
        print(f"no page: {error}", file=sys.stderr)
        return
    (folder / "results.html").write_text(results_html(results, command), encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
