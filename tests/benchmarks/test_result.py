"""What benchmarks say: bars, lines, the page; and the made-up classes they are measured on."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from benchmarks import __main__ as command
from benchmarks import gpu
from benchmarks.classes import compare
from benchmarks.gpu import peak_of
from benchmarks.made_up import class_features, class_names
from benchmarks.page import results_html
from benchmarks.result import Bar, Result
from benchmarks.timing import fresh, interleaved
from lada_ray.encoder.clip import BATCH
from lada_ray.features.extract import encode_views

KEPT, MISSED = Bar("times faster", 4.0, "at least", 3), Bar("peak <b>, GB", 5.25, "at most", 4)


def test_a_bar_is_kept_or_missed() -> None:
    assert (KEPT.met, MISSED.met) == (True, False)
    assert str(KEPT) == "times faster 4 (at least 3)"
    assert str(MISSED) == "peak <b>, GB 5.25 (at most 4: MISSED)"


def test_a_line_says_all_that_counts() -> None:
    assert Result("step", "a step", (KEPT,), {}, "a machine").line == (
        "step: a step: times faster 4 (at least 3). a machine"
    )
    assert "cores" in Result("step", "a step", ()).machine
    assert Result("gpu", "a GPU", (), {"images/s": 9876.0, "peak": "not known"}, "it").line == (
        "gpu: a GPU: images/s 9.88e+03. it"
    )


def test_a_gpu_is_known_by_whole_words() -> None:
    peaks = {
        name: peak_of(f"NVIDIA {name}")
        for name in ("A10", "A10G", "A100-SXM4-80GB", "RTX A1000", "L4", "L40")
    }
    assert peaks == {
        "A10": 125,
        "A10G": None,
        "A100-SXM4-80GB": 312,
        "RTX A1000": None,
        "L4": 121,
        "L40": None,
    }
    assert (peak_of("NVIDIA H100 PCIe"), peak_of("NVIDIA H200")) == (756, 989)


def test_a_gpu_is_measured_with_the_products_batches_and_calls() -> None:
    assert (BATCH["cuda"], encode_views("cuda", 224)) == (gpu.BATCH, gpu.CALL)


@pytest.mark.accept
@pytest.mark.parametrize("name", [name for name in command.NAMES if name != "gpu"])
def test_each_runs_on_less(name: str, tmp_path: Path) -> None:
    assert command.main([name, "--quick", "--repeats", "1", "--out", str(tmp_path)]) == 0
    (said,) = json.loads((tmp_path / "results.json").read_text())["results"]
    assert said["figures"]


def test_the_page_and_the_json(tmp_path: Path) -> None:
    results = [Result("step", "a step", (KEPT, MISSED), {"a": 1.5, "b": "1 / 2"}, "a machine")]
    command.write(results, tmp_path, "python -m benchmarks step")
    html = (tmp_path / "results.html").read_text()
    assert html == results_html(results, "python -m benchmarks step")
    assert "peak &lt;b&gt;, GB" in html
    assert "missed" in html
    said = json.loads((tmp_path / "results.json").read_text())
    assert [bar["met"] for bar in said["results"][0]["bars"]] == [True, False]


def test_unknown_names_are_told(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        command.main(["stpe"])
    assert "there is no benchmark stpe" in capsys.readouterr().err


def test_functions_take_turns() -> None:
    calls: list[str] = []
    seconds = interleaved({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, 2)
    assert "".join(calls) == "ab" * 3
    assert set(seconds) == {"a", "b"}


def test_peak_memory_is_that_of_a_process_of_its_own() -> None:
    found = fresh("made_up:class_names", number=3)
    assert found["value"] == class_names(3)
    assert 1e7 < found["peak_bytes"] < 1e9
    with pytest.raises(RuntimeError, match="made_up:nothing failed"):
        fresh("made_up:nothing")


def test_made_up_classes_are_the_same_at_every_call() -> None:
    assert len(set(class_names(500))) == 500
    features = class_features(3, 5, 16, seed=1)
    assert (features.shape, features.dtype) == ((3, 5, 16), np.float32)
    np.testing.assert_array_equal(features, class_features(3, 5, 16, seed=1))


def test_classes_are_fitted_as_well_as_by_scikit_learn() -> None:
    found = compare(50, 20, width=32)
    assert abs(found["loss_percent"]) < 0.1
    assert found["ratio"] > 0
