"""The command line as a user meets it: what it prints, what it leaves on the disk, and its exit codes."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import yaml
from PIL import Image
from safetensors import safe_open

from trainer_core.cli import main
from trainer_core.commands.starter import starter_job
from trainer_core.config import JobConfig, load_job, validated
from trainer_core.demo import demo_job
from trainer_core.errors import ConfigError
from trainer_core.families.registry import family_spec
from trainer_core.presets import preset

from .complaints import complaint

Make = Callable[..., Path]


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Defaults such as ./runs must not touch the checkout."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")


def state(run: str) -> dict[str, Any]:
    return json.loads((Path("runs") / run / "run.json").read_text(encoding="utf-8"))


def logged_steps(run: str) -> list[int]:
    lines = (Path("runs") / run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line)["step"] for line in lines]


def checkpoint_steps(run: str) -> list[int]:
    return sorted(int(path.name.removeprefix("step_")) for path in (Path("runs") / run / "checkpoints").glob("step_*"))


# init


def test_starter_job_is_a_valid_job() -> None:
    job = validated(JobConfig, yaml.safe_load(starter_job()))
    assert job.model.source == "embedded"
    assert Path(job.datasets[0].folder).name == "demo_dataset"


def test_starter_job_shows_every_setting_at_its_default() -> None:
    """Taking the `#` off every setting changes nothing, and leaves no setting of the config out."""
    starter = starter_job()
    opened = yaml.safe_load(re.sub(r"^(\s*)#(?=\w+:)", r"\1", starter, flags=re.MULTILINE))
    assert validated(JobConfig, opened) == validated(JobConfig, yaml.safe_load(starter))
    dumped = json.loads(validated(JobConfig, opened).model_dump_json())
    assert list(opened) == list(dumped), "in the config's order"
    for name, value in dumped.items():
        shown, settings = (opened[name][0], value[0]) if name == "datasets" else (opened[name], value)
        if isinstance(settings, dict):
            assert shown.keys() == settings.keys()


def test_starter_job_is_the_demos_recipe() -> None:
    """But for the device, the previews, and the name, and with the trigger set once, for the whole job."""
    starter, demo = validated(JobConfig, yaml.safe_load(starter_job())), demo_job()
    assert starter.preview_trigger == starter.trigger == demo.preview_trigger
    assert starter.datasets == demo.datasets
    assert starter.model == demo.model.but(device="auto")
    for section in ("adapter", "train", "regularization", "validation", "save", "cache"):
        assert getattr(starter, section) == getattr(demo, section), section
    assert len(starter.sample.prompts) == 1


def test_starter_job_explains_every_setting_and_fits_a_terminal() -> None:
    lines = starter_job().splitlines()
    for before, line in pairwise(lines):
        if re.match(r"^\s*(- )?#?\w+:", line):
            assert before.lstrip().startswith("# "), line
        assert len(line) <= 120 or "folder:" in line


def test_init_writes_once_and_never_over_a_file(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["init"]) == 0
    assert load_job(Path("job.yaml")).name == "my_first_lora"
    Path("job.yaml").write_text("mine", encoding="utf-8")
    assert main(["init"]) == 1
    assert "exists already" in capsys.readouterr().err
    assert Path("job.yaml").read_text(encoding="utf-8") == "mine"
    assert main(["init", "other.yaml"]) == 0
    assert Path("other.yaml").is_file()


def test_init_in_a_missing_folder_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["init", str(Path("nowhere") / "job.yaml")]) == 1
    assert "cannot be written" in capsys.readouterr().err


@pytest.mark.parametrize("subject", ["character", "style", "object"])
def test_init_writes_presets_that_are_valid_jobs_with_their_reasons(
    subject: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["init", "--preset", subject, "--vram", "12", "--family", "sdxl"]) == 0
    assert "note:" not in capsys.readouterr().out
    job, text = load_job(Path("job.yaml")), Path("job.yaml").read_text(encoding="utf-8")
    assert (job.model.family, job.model.source) == ("sdxl", "stabilityai/stable-diffusion-xl-base-1.0")
    changes = preset(subject, 12, family_spec("sdxl"))
    for change in changes:
        section = job.datasets[0] if change.part == "dataset" else getattr(job, change.part)
        assert getattr(section, change.field) == change.value
    assert text.count("# Preset: ") == len(changes)
    assert ["[trigger]" in prompt for prompt in job.sample.prompts] == [True, True, False]
    assert all(len(line) <= 120 or "prompts:" in line for line in text.splitlines())


def test_init_says_that_memory_is_short(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["init", "--preset", "style", "--vram", "8", "--family", "flux1"]) == 0
    assert "note: FLUX.1 needs 24 GB" in capsys.readouterr().out


@pytest.mark.parametrize("options", [["--vram", "8"], ["--family", "sdxl"]])
def test_memory_and_family_are_for_presets(options: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["init", *options]) == 1
    assert "--preset" in capsys.readouterr().err
    assert not Path("job.yaml").exists()


def test_init_with_a_family_that_is_not_there(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["init", "--preset", "style", "--family", "sdxxl"]) == 1
    assert "did you mean `sdxl`?" in capsys.readouterr().err


# the whole way


def test_init_train_sample_inspect(capsys: pytest.CaptureFixture[str]) -> None:
    main(["init"])
    starter = yaml.safe_load(Path("job.yaml").read_text(encoding="utf-8"))
    starter["model"]["device"] = "cpu"
    starter["adapter"]["rank"] = 4
    starter["train"].update(steps=3, batch_size=1)
    starter["sample"].update(steps=2, every=3, before_training=False)
    Path("job.yaml").write_text(yaml.safe_dump(starter), encoding="utf-8")
    capsys.readouterr()

    assert main(["train", "job.yaml"]) == 0
    printed = capsys.readouterr().out
    assert re.search(r"^step 3/3  loss \d+\.\d{4}  \d+\.\d\d s/step  ETA 0:00  peak \d", printed, re.MULTILINE)
    assert (state("my_first_lora")["state"], state("my_first_lora")["step"]) == ("finished", 3)
    assert logged_steps("my_first_lora") == [1, 2, 3]
    lora = Path("runs/my_first_lora/checkpoints/step_00000003/lora.safetensors")
    assert str(lora) in printed
    assert len(list(Path("runs/my_first_lora/samples/step_00000003").glob("*.png"))) == 1

    assert main(["resume", "my_first_lora"]) == 0
    assert "finished already" in capsys.readouterr().out

    for _ in range(2):
        assert main(["sample", "my_first_lora", "--prompt", "a red [trigger]", "--steps", "2", "--json"]) == 0
        drawn = json.loads(capsys.readouterr().out.partition("[")[2].join(["[", ""]))
        assert [one["prompt"] for one in drawn] == ["a red zorble"]
        with Image.open(drawn[0]["path"]) as picture:
            assert picture.size == (64, 64)
    assert len(list(Path("samples").glob("*.png"))) == 2, "a picture was overwritten"

    assert main(["sample", str(lora), "--steps", "1", "--out", "file"]) == 0, "a LoRA file knows its base and prompts"
    assert "a red zorble on a white background" in capsys.readouterr().out

    assert main(["inspect", str(lora), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    with safe_open(lora, framework="pt") as file:
        assert facts["keys"] == len(list(file.keys()))
        assert facts["metadata"] == file.metadata()
    assert facts["trigger"] == "zorble"
    assert facts["size_bytes"] == lora.stat().st_size
    assert main(["inspect", str(lora)]) == 0
    table = capsys.readouterr().out
    assert "zorble" in table
    assert max(map(len, table.splitlines())) < 200


@pytest.mark.skipif(sys.platform == "win32", reason="Windows cannot send Ctrl-C to one process of a test run")
def test_interrupt_saves_and_resume_finishes(make_job: Make, capsys: pytest.CaptureFixture[str]) -> None:
    job = make_job(train={"steps": 30})
    command = [sys.executable, "-m", "trainer_core", "train", str(job)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        printed = ""
        for line in process.stdout:
            printed += line
            if line.startswith("step 1/"):
                process.send_signal(signal.SIGINT)
        code = process.wait()
        complaints = process.stderr.read() if process.stderr else ""
    assert code == 130, complaints
    assert "Traceback" not in complaints
    assert state("tiny")["state"] == "stopped"
    done = state("tiny")["step"]
    assert 1 <= done < 30
    assert logged_steps("tiny") == list(range(1, done + 1))
    assert checkpoint_steps("tiny") == [done]
    assert printed.splitlines()[-1] == f"stopped, saved at step {done}. To go on: lora-foundry resume tiny"

    assert main(["resume", "tiny"]) == 0
    assert f"step {done + 1}/30" in capsys.readouterr().out
    assert state("tiny")["state"] == "finished"
    assert logged_steps("tiny") == list(range(1, 31))


def test_demo_gets_what_the_command_line_says(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def run_demo(out: Path, json_file: Path | None, seed: int, emit: Callable[[str], None]) -> None:
        emit(f"{out} {json_file} {seed}")

    monkeypatch.setattr("trainer_core.api.run_demo", run_demo)
    assert main(["demo"]) == 0
    assert main(["demo", "--out", "there", "--json", "figures.json", "--seed", "7"]) == 0
    assert capsys.readouterr().out.splitlines() == ["demo None 42", "there figures.json 7"]


# bad input


def broken(job: Path, **changes: Any) -> str:
    """A job file with changed settings."""
    data = yaml.safe_load(job.read_text(encoding="utf-8")) | changes
    job.write_text(yaml.safe_dump(data), encoding="utf-8")
    return str(job)


def test_bad_jobs_are_refused_before_anything_is_written(
    make_job: Make, make_dataset: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "empty").mkdir()
    silent = make_dataset(caption=None, name="silent")
    damaged = make_dataset(name="damaged")
    (damaged / "1_green.png").write_bytes(b"\x89PNG\r\n\x1a\n not a picture")

    def says(**changes: Any) -> str:
        return complaint(capsys, "train", broken(make_job(), **changes))

    def dataset(folder: Path) -> list[dict[str, Any]]:
        return [{"folder": str(folder), "resolutions": [64]}]

    assert "no such file" in complaint(capsys, "train", "nix.yaml")
    assert "did you mean `steps`?" in says(train={"stepz": 3})
    assert "path separators" in says(name="../up")
    assert str(tmp_path / "nowhere") in says(datasets=dataset(tmp_path / "nowhere"))
    assert str(tmp_path / "empty") in says(datasets=dataset(tmp_path / "empty"))
    assert "0_red.png" in says(datasets=dataset(silent))
    assert "1_green.png" in says(datasets=dataset(damaged))
    assert "no such family" in says(model={"family": "flux11"})
    assert "no_such_base" in says(model={"source": "no_such_base"})
    assert list(Path.cwd().iterdir()) == []


def test_other_commands_name_what_is_wrong(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    not_lora = tmp_path / "not.safetensors"
    not_lora.write_bytes(b"nothing of the kind")
    assert "not.safetensors" in complaint(capsys, "inspect", str(not_lora))
    assert "missing.safetensors" in complaint(capsys, "inspect", "missing.safetensors")
    assert "no run 'x'" in complaint(capsys, "resume", "x")
    assert "no run 'x'" in complaint(capsys, "sample", "x", "--prompt", "y")
    assert "no such folder" in complaint(capsys, "captions", "nowhere")
    assert list(Path.cwd().iterdir()) == []


def test_unknown_run_lists_those_that_are_there(capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("beta", "alpha"):
        folder = Path("mine") / name
        folder.mkdir(parents=True)
        (folder / "run.json").touch()
    assert "mine holds: alpha, beta" in complaint(capsys, "resume", "gamma", "--runs", "mine")


def test_debug_shows_the_traceback() -> None:
    with pytest.raises(ConfigError):
        main(["train", "nix.yaml", "--debug"])
    with pytest.raises(ConfigError):
        main(["--debug", "train", "nix.yaml"])


def test_a_bug_of_ours_is_one_message_too(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("trainer_core.commands.listing.inspect_dataset", lambda dataset: 1 / 0)
    message = complaint(capsys, "captions", "anywhere")
    assert "unexpected error: ZeroDivisionError" in message
    assert "--debug" in message


@pytest.mark.parametrize(
    "argv",
    [
        [],
        ["bogus"],
        ["train"],
        ["resume"],
        ["demo", "--seed", "x"],
        ["demo", "--seed", "-1"],
        ["sample", "a", "--strength", "nan"],
    ],
)
def test_wrong_usage_exits_with_2(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(argv)
    assert caught.value.code == 2
    assert capsys.readouterr().err.startswith("usage: ")


# tables


def test_captions_are_what_the_encoder_sees(make_dataset: Make, capsys: pytest.CaptureFixture[str]) -> None:
    folder = make_dataset(2, caption="a {colour} [trigger]")
    (folder / "1_green.txt").write_text("grün 漢\n", encoding="utf-8")
    assert main(["captions", str(folder), "--trigger", "zorble", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["captions"] == [
        {"file": "0_red.png", "caption": "a red zorble"},
        {"file": "1_green.png", "caption": "zorble grün 漢"},
    ]
    assert main(["captions", str(folder), "--trigger", "zorble", "--placement", "end"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "image        caption",
        "---------------------------",
        "0_red.png    a red zorble",
        "1_green.png  grün 漢 zorble",
    ]


def test_output_survives_a_console_that_lacks_letters(make_dataset: Make) -> None:
    folder = make_dataset(1, caption="漢")
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    done = subprocess.run(
        [sys.executable, "-m", "trainer_core", "captions", str(folder)], capture_output=True, env=environment
    )
    assert done.returncode == 0, done.stderr
    assert rb"\u6f22" in done.stdout


def test_families_lists_flux(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["families"]) == 0
    told = capsys.readouterr().out
    assert "black-forest-labs/FLUX.1-dev" in told
    assert "unet, text_encoder, text_encoder_2, vae" in told
    assert main(["families", "--json"]) == 0
    assert "flux1" in [family["name"] for family in json.loads(capsys.readouterr().out)]


def test_version_from_the_module() -> None:
    done = subprocess.run([sys.executable, "-m", "trainer_core", "--version"], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "LoRA Foundry 0.1.0\n")
