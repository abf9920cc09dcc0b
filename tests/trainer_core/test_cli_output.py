"""What commands print: JSON that is nothing else, names that do nothing to a terminal, and readers who are gone."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from trainer_core.cli import main
from trainer_core.commands.terminal import printable
from trainer_core.config import SampleConfig, load_job
from trainer_core.runs.queue import DeviceQueue
from trainer_core.runs.run_folder import RunFolder
from trainer_core.sampling.preview import Drawn

from .complaints import complaint

Make = Callable[..., Path]
ODD_STATUS = {
    "huge count": '{"state": "stopped", "step": 1e400, "steps": 4, "error": null, "updated": 1.0}',
    "integer of 400 digits": f'{{"state": "stopped", "step": 1, "steps": 4, "error": null, "updated": 1{"0" * 400}}}',
    "integer of 5000 digits": f'{{"state": "stopped", "step": 1, "steps": 4, "error": null, "updated": 1{"0" * 5000}}}',
    "infinite time": '{"state": "stopped", "step": 1, "steps": 4, "error": null, "updated": 1e999}',
    "nan": '{"state": "stopped", "step": 1, "steps": 4, "error": null, "updated": NaN}',
    "time that no clock shows": '{"state": "stopped", "step": 1, "steps": 4, "error": null, "updated": 1e300}',
    "negative time": '{"state": "stopped", "step": 1, "steps": 4, "error": null, "updated": -1e300}',
    "wrong types": '{"state": ["stopped"], "step": {}, "steps": "4", "error": 7, "updated": "now"}',
    "nested": "[" * 100_000,
    "no text": "\udcff",
}


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")


def strict(text: str) -> Any:
    """The value of a text that is one JSON document as RFC 8259 has it, with nothing before or after."""

    def refuse(constant: str) -> NoReturn:
        raise AssertionError(f"{constant} is no JSON")

    return json.loads(text, parse_constant=refuse)


def drawing(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """Replaces the drawing of pictures by one that only counts; gives each call's prompts, the negative one last."""
    asked: list[list[str]] = []

    def preview(
        model: object, prompts: list[str], *, sample: SampleConfig, progress: Callable[[int, int], None], **_: object
    ) -> Drawn:
        asked.append([*prompts, sample.negative_prompt])
        progress(0, len(prompts))
        return Drawn([[Image.new("RGB", (8, 8))] for _ in prompts], None)

    monkeypatch.setattr("trainer_core.sampling.preview.preview_frames", preview)
    return asked


def run_of(make_job: Make, name: str, **sections: Any) -> RunFolder:
    """A run with one checkpoint."""
    run = RunFolder.create(Path("runs"), load_job(make_job(name, **sections)))
    run.save_checkpoint(1, {"lora.safetensors": b"x", "state.safetensors": b"y"})
    return run


# JSON


def test_sample_prints_nothing_but_json(
    make_job: Make, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    drawing(monkeypatch)
    run_of(make_job, "tiny")
    assert main(["sample", "tiny", "--prompt", "a cat", "--json"]) == 0
    captured = capsys.readouterr()
    assert [one["prompt"] for one in strict(captured.out)] == ["a cat"]
    assert "drawing" in captured.err


def test_sample_of_a_video_writes_its_first_frame_and_what_moves(
    make_job: Make, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def preview(model: object, prompts: list[str], *, sample: SampleConfig, **_: object) -> Drawn:
        return Drawn([[Image.new("RGB", (8, 8), (k, 0, 99)) for k in range(0, 250, 250 // (sample.frames or 1))]], 12.0)

    monkeypatch.setattr("trainer_core.sampling.preview.preview_frames", preview)
    run_of(make_job, "tiny")
    assert main(["sample", "tiny", "--prompt", "a cat", "--frames", "5"]) == 0
    (still,), (clip,) = Path().rglob("tiny_0001.png"), Path().rglob("tiny_0001.webp")
    with Image.open(still) as first, Image.open(clip) as moving:
        assert first.getpixel((4, 4)) == (0, 0, 99)
        assert moving.n_frames == 5
    assert str(clip) in capsys.readouterr().out.replace("\n", "")


def test_what_is_no_number_in_json_becomes_null(capsys: pytest.CaptureFixture[str]) -> None:
    tensors = {"m.lora_A.weight": torch.ones(1, 2), "m.lora_B.weight": torch.ones(2, 1)}
    save_file({**tensors, "m.alpha": torch.tensor(float("inf"))}, "odd.safetensors")
    assert main(["inspect", "odd.safetensors", "--json"]) == 0
    assert strict(capsys.readouterr().out)["alpha"] == [None]


@pytest.mark.parametrize("odd", ODD_STATUS)
def test_one_odd_run_hides_no_other(odd: str, make_job: Make, capsys: pytest.CaptureFixture[str]) -> None:
    strange, good = run_of(make_job, "strange"), run_of(make_job, "good")
    (strange.path / "run.json").write_bytes(ODD_STATUS[odd].encode("utf-8", "surrogateescape"))
    (strange.path / "metrics.jsonl").write_text('{"step": 1e999}\n', encoding="utf-8")
    DeviceQueue("cpu").add(strange.path)
    DeviceQueue("cpu").add(good.path)
    for command in ("runs", "queue"):
        assert main([command]) == 0
        table = capsys.readouterr().out
        assert "good" in table
        assert "strange" in table
        assert main([command, "--json"]) == 0
        found = {one["name"]: one for one in strict(capsys.readouterr().out)}
        assert found["good"]["state"] == "queued"
        assert (found["strange"]["state"], found["strange"]["step"]) == ("stopped", 1), "its checkpoint says so"


def test_a_run_that_cannot_be_looked_at_hides_no_other(
    make_job: Make, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Whatever it is that fails."""
    run_of(make_job, "strange"), run_of(make_job, "good")
    status = RunFolder.status
    monkeypatch.setattr(RunFolder, "status", lambda self: 1 / 0 if self.name == "strange" else status(self))
    assert main(["runs", "--json"]) == 0
    captured = capsys.readouterr()
    assert [one["name"] for one in strict(captured.out)] == ["good"]
    assert "strange cannot be read" in captured.err


# names and metadata of others

ESCAPES = "\x1b]0;title\x07\x1b[2J\x9b31m\u202egnp.exe"
SHOWN = r"\x1b]0;title\x07\x1b[2J\x9b31m\u202egnp.exe"


def test_control_characters_are_shown() -> None:
    assert printable(ESCAPES) == SHOWN
    assert printable("a\tb\nc\rd é漢\U0001f600") == "a\tb\nc\\rd é漢\U0001f600"
    assert printable("a\tb\nc", lines=False) == r"a\tb\nc"


def test_a_file_cannot_write_to_the_terminal(make_dataset: Make, capsys: pytest.CaptureFixture[str]) -> None:
    tensors = {"m.lora_A.weight": torch.ones(1, 2), "m.lora_B.weight": torch.ones(2, 1)}
    save_file(tensors, "odd.safetensors", {"modelspec.trigger_phrase": ESCAPES, ESCAPES: "x"})
    assert main(["inspect", "odd.safetensors"]) == 0
    assert main(["captions", str(make_dataset(1, caption=f"a cat {ESCAPES}"))]) == 0
    shown = capsys.readouterr().out
    assert shown.count(SHOWN) == 4
    assert not {letter for letter in shown if letter != "\n" and not letter.isprintable()}
    assert SHOWN in complaint(capsys, "inspect", f"{ESCAPES}.safetensors")


def test_only_one_module_of_the_commands_prints() -> None:
    folder = Path(__file__).parents[2] / "trainer_core" / "commands"
    texts = {path.name: path.read_text(encoding="utf-8") for path in folder.glob("*.py")}
    assert [name for name, text in texts.items() if " print(" in text] == ["terminal.py"]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes here")
def test_a_pipe_instead_of_a_lora_does_not_hang(capsys: pytest.CaptureFixture[str]) -> None:
    os.mkfifo("pipe.safetensors")
    assert "no regular file" in complaint(capsys, "inspect", "pipe.safetensors")


# who reads


def shell(command: str) -> subprocess.CompletedProcess[str]:
    """A command line that calls us as `$F`."""
    environment = {**os.environ, "F": f'"{sys.executable}" -m trainer_core'}
    return subprocess.run(
        ["bash", "-c", command.replace("$F", environment["F"])], capture_output=True, text=True, timeout=120
    )


@pytest.mark.skipif(sys.platform == "win32", reason="needs a shell")
@pytest.mark.parametrize(
    ("command", "code"),
    [
        ("$F runs >&-", 0),
        ("$F families --json >&-", 0),
        ("$F runs >&- 2>&-", 0),
        ("$F resume nothing 2>&-", 1),
        ("$F resume nothing >&- 2>&-", 1),
        ("set -o pipefail; $F families --json | true", 1),
        ("set -o pipefail; $F resume nothing 2>&1 | true", 1),
    ],
)
def test_nobody_reads(command: str, code: int) -> None:
    done = shell(f"sleep 0; {command}")
    assert (done.returncode, done.stderr) == (code, "")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is full")
def test_output_that_cannot_be_written_is_one_message() -> None:
    done = shell("$F families --json > /dev/full")
    assert done.returncode == 1
    assert "No space left" in done.stderr
    assert "Traceback" not in done.stderr
    assert "Exception ignored" not in done.stderr


@pytest.mark.skipif(sys.platform == "win32", reason="needs a shell")
def test_training_with_a_closed_output(make_job: Make) -> None:
    """The first file that is opened would get the output's number, and what libraries print would land in it."""
    done = shell(f'$F train "{make_job(train={"steps": 1})}" >&-')
    assert done.returncode == 0, done.stderr
    assert json.loads(Path("runs/tiny/run.json").read_text(encoding="utf-8"))["state"] == "finished"


# names of pictures, and their prompts


def test_a_dot_in_a_runs_name_stays_in_its_pictures(make_job: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    drawing(monkeypatch)
    run = run_of(make_job, "a.b")
    assert main(["sample", "a.b", "--prompt", "x"]) == 0
    assert main(["sample", str(run.path), "--prompt", "x"]) == 0
    monkeypatch.chdir(run.path)
    assert main(["sample", ".", "--prompt", "x"]) == 0
    beside = Path("../../samples")
    assert sorted(path.name for path in beside.iterdir()) == ["a.b_0001.png", "a.b_0002.png"]
    assert [path.name for path in Path("samples").glob("a*")] == ["a.b_0001.png"]


@pytest.mark.parametrize(
    ("prompt", "without", "with_one"),
    [
        ("a photo of [trigger] in a park", "a photo of in a park", "a photo of zorble in a park"),
        ("[trigger], a lighthouse", "a lighthouse", "zorble, a lighthouse"),
        ("a red [trigger]", "a red", "a red zorble"),
        ("a cat", "a cat", "a cat"),
    ],
)
def test_the_placeholder_means_the_same_in_every_prompt_and_caption(
    prompt: str, without: str, with_one: str, make_job: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    from trainer_core.config import DatasetConfig
    from trainer_core.data.captions import encoder_text
    from trainer_core.training.previews import negative_text, preview_texts

    asked = drawing(monkeypatch)
    for trigger, expected in ((None, without), ("zorble", with_one)):
        job = load_job(make_job(sample={"prompts": [prompt], "negative_prompt": prompt}))
        dataset = job.datasets[0].but(trigger=trigger)
        job = job.model_copy(update={"datasets": (dataset,)})
        assert preview_texts(job) == [expected]
        assert negative_text(job) == expected
        assert encoder_text(
            prompt, DatasetConfig(folder="x", trigger=trigger, trigger_placement="only_placeholder")
        ) == (expected)
        run = RunFolder.create(Path("runs"), job)
        run.save_checkpoint(1, {"lora.safetensors": b"x", "state.safetensors": b"y"})
        assert main(["sample", run.name]) == 0
        assert asked[-1] == [expected, expected]
