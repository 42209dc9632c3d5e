"""What README.md says can be typed, can be: its commands parse, its YAML loads, its links lead somewhere.

Its Python is run by tests/jobs/test_submit.py, which has a model to ask.
"""

from __future__ import annotations

import importlib
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import click
import pytest
from PIL import Image

from lada_ray import StreamConfig
from lada_ray.inbox import scan, validate

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def commands():
    """Every command of the shell blocks, without its comment, as words."""
    lines = [line for block in blocks("sh") for line in block.replace("\\\n", " ").splitlines()]
    return [words for line in lines if (words := shlex.split(line, comments=True))]


def makefile(*arguments):
    done = subprocess.run(["make", *arguments], cwd=ROOT, capture_output=True, text=True, check=True)
    return done.stdout


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """A folder that holds what the README's reader has: the checkout, the example's YAML and its images."""
    for name in ("configs", "jobs", "runtime_env.yaml", "constraints.txt", "pyproject.toml"):
        (tmp_path / name).symlink_to(ROOT / name)
    (tmp_path / "animals.yaml").write_text(blocks("yaml")[0])
    for domain, classes in {"pets": ["tabby_cat", "hound"], "birds": ["owl", "snow_goose"]}.items():
        for name in classes:
            folder = tmp_path / "data" / domain / name
            folder.mkdir(parents=True)
            for i in range(20):
                Image.new("RGB", (8, 8), (i, len(name), 0)).save(folder / f"{i}.png")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def check_job(words, monkeypatch, expected):
    """Run a job's main with its work taken out: its command line is read as it will be."""
    job = importlib.import_module(f"jobs.{Path(words[1]).stem}")
    worked = []
    monkeypatch.setattr("lada_ray.job.quiet_libraries", lambda: None)

    def work(*given):
        worked.append(given)
        return 0

    if hasattr(job, "COMMANDS"):
        for name, (flags, _) in job.COMMANDS.items():
            monkeypatch.setitem(job.COMMANDS, name, (flags, work))
    else:
        monkeypatch.setattr(job, "run", work)
    if "--help" in words:
        with pytest.raises(SystemExit) as stopped:
            job.main(words[2:])
        assert stopped.value.code == 0
    else:
        assert job.main(words[2:]) == 0
        assert len(worked) == 1
    expected.append(words[1])


def check_submit(words, monkeypatch, expected):
    from ray.dashboard.modules.job.cli import submit

    flags, entry = words[3 : words.index("--")], words[words.index("--") + 1 :]
    given = submit.make_context("submit", [*flags, "--", *entry]).params
    assert Path(given["working_dir"]).samefile(".")
    assert Path(given["runtime_env"]).is_file()
    check_job([word.replace("$PWD", str(Path.cwd())) for word in entry], monkeypatch, expected)


def check_click(words):
    """Let ray's and mlflow's own command lines read it."""
    if words[0] == "ray":
        from ray.scripts.scripts import cli
    else:
        from mlflow.cli import cli
    command = cli.get_command(click.Context(cli), words[1])
    assert command is not None, words
    command.make_context(words[1], words[2:])


def check(words, monkeypatch, seen):
    match words:
        case ["make", target, *_]:
            assert re.search(rf"^{target} ", makefile("help"), re.MULTILINE)
        case ["python", "-m", module, *arguments]:
            job = module.removeprefix("lada_ray.jobs.")
            check_job(["python", f"jobs/{job}.py", *arguments], monkeypatch, seen)
        case ["python", job, *_]:
            assert (ROOT / job).is_file()
            check_job(words, monkeypatch, seen)
        case ["ray", "job", "submit", *_]:
            check_submit(words, monkeypatch, seen)
        case ["ray" | "mlflow", *_]:
            check_click(words)
        case ["pip", "install", "--constraint", constraints, "."]:
            assert Path(constraints).is_file()
        case ["source", ".venv/bin/activate"] | ["export", *_]:
            pass
        case _:
            pytest.fail(f"README has a command that no test knows: {shlex.join(words)}")


def test_every_command_is_accepted(checkout, monkeypatch):
    seen = []
    for words in commands():
        check(words, monkeypatch, seen)
    jobs = {
        "run_stream",
        "log_run",
        "bank",
        "compare",
        "tune_stream",
        "verify",
        "retrain",
        "model",
        "predict",
    }
    assert set(seen) == {f"jobs/{job}.py" for job in jobs}


def test_first_commands_are_the_two():
    assert commands()[:2] == [["make", "demo"], ["make", "test"]]


def test_example_configuration_finds_its_images(checkout, monkeypatch):
    block = blocks("yaml")[0]
    assert len([line for line in block.splitlines() if not line.startswith("#")]) <= 10
    check(shlex.split(block.splitlines()[0].removeprefix("# ")), monkeypatch, [])
    config = StreamConfig.from_yaml("animals.yaml")
    pets, birds = (domain.load(config.storage) for domain in config.domains)
    assert pets.class_names == ("hound", "tabby cat")
    assert birds.prompt == "a photo of a {}, a type of bird."
    for domain in (pets, birds):
        assert len(domain.train) + len(domain.test) == 40
        assert 2 <= len(domain.test) <= 16  # a fifth, chosen by a hash of each path


def test_example_card_is_one(checkout):
    card = blocks("yaml")[1]
    assert card.startswith("# inbox/birds/domain.yaml\n")
    inbox = Path("inbox")
    shutil.copytree(Path("data/birds"), inbox / "birds")
    (inbox / "birds" / "domain.yaml").write_text(card)
    (inbox / "birds" / "_READY").touch()
    (entry,) = scan(inbox).entries
    arrival = validate(entry, [], "runs")
    assert (arrival.domain.name, arrival.card.owner) == ("birds", "the bird team")


def test_files_that_it_names_exist():
    names = set(re.findall(r"`((?:[\w.-]+/)*[\w-]+\.(?:md|yaml|txt|py))`|`(Dockerfile)`", README))
    theirs = {"domain.yaml"}  # an inbox entry's
    missing = [name for pair in names for name in pair if name and not (ROOT / name).exists()]
    missing = [name for name in missing if name not in theirs]
    assert missing == []


def test_makefile_has_the_targets():
    listed = [line.split()[0] for line in makefile("help").splitlines()]
    assert {"install", "demo", "test", "accept", "lint", "bench", "clean"} <= set(listed)


@pytest.mark.parametrize(
    ("target", "command"),
    [
        (["demo", "ARGS=--views 0"], "jobs/run_stream.py --config configs/demo.yaml --views 0"),
        (["test"], 'pytest -q -m "not accept"'),
        (["accept", "ISSUE=2"], "tests/accept/test_issue_2*.py"),
    ],
)
def test_make_runs(target, command):
    assert command in makefile("--dry-run", *target)
