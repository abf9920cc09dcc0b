"""A thousand malformed jobs: each ends with one message, and nothing is written outside of the run's own folder."""

from __future__ import annotations

import copy
import io
import random
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any, get_args

import huggingface_hub
import pytest
import yaml
from huggingface_hub.errors import LocalEntryNotFoundError
from huggingface_hub.utils import validate_repo_id
from PIL import Image

from trainer_core.cli import main
from trainer_core.config import DatasetConfig, JobConfig
from trainer_core.job import TrainingJob

JOBS = 1000
SECTIONS = ("model", "adapter", "train", "regularization", "validation", "save", "sample", "cache")
OPTIMIZERS = ("Adafactor", "ASGD", "Optimizer", "lr_scheduler", "prodigy", "torch.optim.SGD", "RAdam")
TOKEN = "hf_" + "AbCdEfGhIjKlMnOpQrStUvWxYz01234567"
VALUES: tuple[Any, ...] = (
    *(None, True, False, 0, 1, -1, 2**31, 2**63, -(2**70), 10**30, 0.5, -0.0, 1e-300, 1e308),
    *(float("inf"), float("nan"), "", " ", "x", "0", "1e-4", "-1", "nan", "yes", "~", "é", "名前", "\U0001f600"),
    *("a\0b", "\ud800", "\u202egnp.exe", "a\nb", "\x1b[31m", "{}", "[]", "%s{0}", "x" * 300, "y" * 5000, TOKEN),
    *([], {}, [None], [[]], {"a": {"b": {}}}, [1, "2", 3.0], ["x"] * 50, list(range(2000)), {"": ""}),
)
PATHS = (
    *("../outside", "../../../../../../tmp/x", "/etc/passwd", "/dev/zero", "/dev/null", "/proc/self/environ", "~", "."),
    *(
        "~nosuchuser/x",
        "C:\\Windows",
        "\\\\server\\share",
        "//server/share",
        "con",
        "nul.txt",
        "a/b",
        "a\\b",
        "..",
        "/",
    ),
    *("x" * 256, "pictures/../outside", "pictures\0", "file:///etc/passwd", "https://me:secret@host/x", "-rf", "$HOME"),
)
NAMES = ("step", "stepz", "__class__", "model_config", "0", "", " ", "名前", "x" * 400, "learning-rate", "a.b", TOKEN)
DAMAGE = (
    *(
        "&a ",
        "*a",
        "!!python/object/apply:os.system [id]",
        "!!binary aGk=",
        "<<: {a: 1}",
        "%YAML 9.9\n---",
        "---\n",
        "...",
    ),
    *(
        "\t",
        "{",
        "}",
        "[",
        "]",
        ":",
        "? ",
        "- ",
        "'",
        '"',
        "|",
        ">",
        "\0",
        "\x07",
        "\ufeff",
        "\x85",
        "#",
        "@",
        "`",
        "\\",
    ),
    *(
        "[" * 2000,
        "{a: " * 500,
        "steps: 1\nsteps: 2\n",
        "name: x\n",
        "0x" + "f" * 6000,
        "9" * 6000,
        "\u2028",
        "\r",
        "- " * 900,
    ),
)
NO_UTF8 = (b"\xff", b"\xc3(", b"\xed\xa0\x80", b"\xfe\xff\0n", b"\0\0\0")


@pytest.fixture(scope="module")
def sandbox(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where an attack would show: a data set, something beside it, and the user's files around."""
    root = tmp_path_factory.mktemp("sandbox")
    for folder in ("work/pictures", "work/masks", "outside"):
        (root / folder).mkdir(parents=True)
        Image.new("RGB", (64, 64), "red").save(root / folder / "a.png")
        (root / folder / "a.txt").write_text("a [trigger]", encoding="utf-8")
    return root


def valid() -> dict[str, Any]:
    """A small job that uses every section."""
    return {
        "name": "tiny",
        "model": {"family": "flux1", "source": "embedded", "device": "cpu", "dtype": "auto"},
        "adapter": {"rank": 2, "alpha": 1.0, "targets": "attention"},
        "datasets": [
            {"folder": "pictures", "resolutions": [64], "trigger": "zorble", "mask_folder": "masks", "weight": 2.0},
            {"folder": "masks", "resolutions": [64], "role": "validation", "default_caption": "x"},
        ],
        "train": {"steps": 2, "learning_rate": 1e-3, "optimizer": "adamw", "optimizer_options": {"amsgrad": False}},
        "regularization": {"blank_preservation": True},
        "validation": {"every": 1},
        "save": {"every": 1, "keep": 2, "weights": "raw"},
        "sample": {"prompts": ["[trigger]"], "width": 64, "height": 64, "seed": 3},
        "cache": {"limit_gb": 1.0},
    }


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The way to every value inside a value."""
    if path:
        yield path
    pairs = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in pairs:
        yield from places(inner, (*path, key))


def set_a_field(job: Any, rng: random.Random) -> None:
    """A field that there is, with a value at or beyond its bounds, or one of its choices."""
    section = rng.choice([*SECTIONS, "datasets"])
    around = job.setdefault(section, [{}] if section == "datasets" else {})
    around = rng.choice(around) if isinstance(around, list) and around else around
    kind = JobConfig.model_fields[section].annotation if section != "datasets" else DatasetConfig
    name, field = rng.choice(list(kind.model_fields.items()))
    bounds = [getattr(rule, end) for rule in field.metadata for end in ("gt", "ge", "lt", "le") if hasattr(rule, end)]
    near = [bound + sign * step for bound in bounds for sign in (-1, 0, 1) for step in (1, 1e-9)]
    values = [*get_args(field.annotation), *near, *map(int, near), *OPTIMIZERS, True, "x", 7, [7, 0.5], {"lr": 1}, None]
    if isinstance(around, dict):
        plain = [value for value in values if value is None or isinstance(value, str | int | float | list | dict)]
        around[name] = copy.deepcopy(rng.choice(plain))


def change(job: Any, rng: random.Random) -> None:
    """One thing that is wrong with a job, or odd."""
    if rng.random() < 0.4:
        set_a_field(job, rng)
        return
    *way, last = rng.choice(list(places(job)))
    around = job
    for key in way:
        around = around[key]
    kind = rng.randrange(8)
    if kind == 0:
        del around[last]
    elif kind == 1 and isinstance(around, dict):
        around[rng.choice(NAMES)] = rng.choice(VALUES)
    elif kind == 2 and isinstance(around[last], int | float):
        around[last] = rng.choice((around[last] * 10 ** rng.randrange(1, 12), -around[last], around[last] + 1, 0))
    elif kind == 3 and isinstance(around, dict):
        around[last] = {last: around[last]}
    elif kind == 4:
        around[last] = [copy.deepcopy(around[last]) for _ in range(rng.choice((1, 2, 30)))]  # else YAML writes anchors
    elif kind == 5 or isinstance(around[last], str):
        around[last] = rng.choice(PATHS)
    else:
        around[last] = copy.deepcopy(rng.choice(VALUES))


def text_of(job: Any, rng: random.Random) -> bytes:
    """A job as YAML, often damaged."""
    text = yaml.safe_dump(job, sort_keys=False, allow_unicode=rng.random() < 0.5)
    for _ in range(rng.choice((0, 0, 0, 0, 1, 3))):
        start = rng.randrange(len(text) + 1)
        text = text[:start] + rng.choice(DAMAGE) + text[start + rng.choice((0, 0, 1, 20)) :]
    data = text.encode("utf-8", "surrogatepass")
    if rng.random() < 0.05:
        start = rng.randrange(len(data) + 1)
        data = data[:start] + rng.choice(NO_UTF8) + data[start:]
    return data


def files(root: Path) -> dict[str, tuple[int, int]]:
    """All there is, with what would tell that it was written."""
    return {
        path.relative_to(root).as_posix(): (status.st_size, status.st_mtime_ns)
        for path in sorted(root.rglob("*"))
        if (status := path.lstat()) and not path.is_dir()
    }


def run(file: Path, runs: Path) -> tuple[int, str]:
    """What `lora-foundry train` gives: its exit code, and what it prints."""
    out, errors = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(errors):
        code = main(["train", str(file), "--runs", str(runs)])
    return code, out.getvalue() + errors.getvalue()


def not_downloaded(repo: str, **_: Any) -> str:
    """A job may well name a repository; none is asked for here."""
    validate_repo_id(repo)
    raise LocalEntryNotFoundError("no network")


@pytest.fixture
def attack(sandbox: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[bytes], tuple[int, str]]:
    """Tries a job file; a job that happens to be valid ends before it trains."""
    monkeypatch.setattr(TrainingJob, "run_here", lambda *_: "finished")
    monkeypatch.setattr(huggingface_hub, "snapshot_download", not_downloaded)
    monkeypatch.chdir(sandbox / "work")
    (sandbox / "home").mkdir(exist_ok=True)
    monkeypatch.setenv("HOME", str(sandbox / "home"))

    known = files(sandbox)

    def attempt(data: bytes) -> tuple[int, str]:
        file = sandbox / "work" / "job.yaml"
        file.write_bytes(data)
        before = known | {"work/job.yaml": files(file.parent)["job.yaml"]}
        code, told = run(file, sandbox / "runs")
        assert code in (0, 1), told
        if code:
            assert told.startswith("lora-foundry: "), told
            assert "unexpected error" not in told
            assert "Traceback" not in told
        assert len(told) < 20_000
        assert not re.search(r"hf_A|me:secret", told)
        after = files(sandbox)
        written = {path for path in after if after[path] != before.get(path)}
        assert before.keys() <= after.keys(), "something was deleted"
        assert {path.split("/")[0] for path in written} <= {"runs"}
        assert len({path.split("/")[1] for path in written}) <= 1, "one run has one folder"
        assert all(TOKEN.encode() not in (sandbox / path).read_bytes() for path in written)
        shutil.rmtree(sandbox / "runs", ignore_errors=True)
        return code, told

    return attempt


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.filterwarnings("ignore")
def test_malformed_jobs_end_with_a_message(seed: int, attack: Callable[[bytes], tuple[int, str]]) -> None:
    rng = random.Random(seed)
    refused = 0
    for number in range(JOBS // 4):
        job = valid()
        for _ in range(rng.choice((0, 1, 1, 2, 5))):
            change(job, rng)
            if not job:
                break
        data = text_of(job, rng)
        try:
            code, _ = attack(data)
        except BaseException as error:
            raise AssertionError(
                f"job {number} of seed {seed}: {type(error).__name__}: {error}\n{data!r:.3000}"
            ) from error
        refused += code == 1
    assert JOBS // 8 < refused < JOBS // 4, "most are malformed, and not all: else nothing was tried"


def test_the_job_that_is_changed_is_valid(attack: Callable[[bytes], tuple[int, str]]) -> None:
    assert attack(yaml.safe_dump(valid()).encode())[0] == 0
