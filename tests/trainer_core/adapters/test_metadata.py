"""What a LoRA file says of itself: what other tools read, and nothing about the machine that made it."""

from __future__ import annotations

import json
import shutil
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from trainer_core.adapters.export import describe_lora
from trainer_core.adapters.metadata import _images, without_paths
from trainer_core.config import JobConfig, ModelConfig
from trainer_core.families.registry import open_base
from trainer_core.families.sources import source as sources
from trainer_core.job import TrainingJob
from trainer_core.safetensors_file import read_header

Jobs = Callable[..., JobConfig]
Train = Callable[..., TrainingJob]


def metadata(training: TrainingJob) -> dict[str, str]:
    latest = training.run.latest()
    assert latest is not None
    found: dict[str, str] = read_header(latest.lora)["__metadata__"]
    return found


def test_what_other_tools_read(job_of: Jobs, train: Train) -> None:
    sections = {"adapter": {"rank": 4, "alpha": 2.0}, "train": {"steps": 2, "batch_size": 2, "seed": 9}}
    training = train(job_of("my style", **sections))
    found = metadata(training)
    assert all(isinstance(value, str) for value in found.values())
    expected = {
        "modelspec.sai_model_spec": "1.0.1",
        "modelspec.title": "my style",
        "modelspec.trigger_phrase": "zorble",
        "modelspec.resolution": "64x64",
        "ss_output_name": "my style",
        "ss_network_module": "networks.lora",
        "ss_network_dim": "4",
        "ss_network_alpha": "2.0",
        "ss_learning_rate": "0.01",
        "ss_steps": "2",
        "ss_max_train_steps": "2",
        "ss_batch_size_per_device": "2",
        "ss_seed": "9",
        "ss_num_train_images": "4",
        "ss_sd_model_name": "embedded",
    }
    assert {key: found.get(key) for key in expected} == expected
    assert json.loads(found["ss_tag_frequency"])[Path(training.job.datasets[0].folder).name] == {"zorble": 4}
    assert float(found["lora_foundry.final_loss"]) == pytest.approx(
        sum(line["loss"] for line in training.run.metrics()) / 2, rel=1e-5
    )
    assert describe_lora(training.run.latest().lora)["trigger"] == "zorble"  # type: ignore[union-attr]


def test_images_are_counted_once_whatever_their_sizes_and_data_sets(job_of: Jobs, train: Train, pictures: Path) -> None:
    """At two resolutions each; and of two data sets, each trigger has the images of its own."""
    other = Path(shutil.copytree(pictures, pictures.parent / "others", dirs_exist_ok=True))
    (other / "red.png").unlink()
    job = job_of(datasets=[{"resolutions": (48, 64)}, {"folder": str(other), "trigger": "snark"}], train={"steps": 1})
    found = metadata(train(job))
    assert found["ss_num_train_images"] == "7"
    assert json.loads(found["ss_tag_frequency"]) == {pictures.name: {"zorble": 4}, "others": {"snark": 3}}
    assert found["modelspec.trigger_phrase"] == "snark, zorble"


def test_folders_of_one_name_are_added_up_and_regularization_is_counted_apart(job_of: Jobs) -> None:
    folders = [{"folder": "x/set"}, {"folder": "y/set"}, {"folder": "w/set", "trigger": "snark"}]
    job = job_of(datasets=[*folders, {"folder": "z/reg", "role": "regularization", "trigger": None}])
    found = _images(job, [4, 3, 2, 9])
    assert (found["ss_num_train_images"], found["ss_num_reg_images"]) == (9, 9)
    assert json.loads(found["ss_tag_frequency"]) == {"set": {"zorble": 7, "snark": 2}}


def test_nothing_about_the_machine(job_of: Jobs, train: Train, pictures: Path, tmp_path: Path) -> None:
    secret = tmp_path / "home" / "jane.doe" / "private"
    secret.mkdir(parents=True)
    folder = shutil.copytree(pictures, secret / "set")
    base = secret / "my base"
    shutil.copytree(sources.EMBEDDED, base)
    first = train(job_of("first"))
    lora = shutil.copy(first.run.latest().lora, secret / "first.safetensors")  # type: ignore[union-attr]
    job = job_of(model={"source": str(base)}, dataset={"folder": str(folder)}, adapter={"warm_start": str(lora)})
    training = train(job, root=secret / "runs")
    told = json.dumps(metadata(training), ensure_ascii=False)
    for word in ("jane.doe", "private", str(tmp_path), str(Path.home()), socket.gethostname()):
        assert word not in told
    config = json.loads(metadata(training)["lora_foundry.config"])
    assert config["datasets"][0]["folder"] == "set"
    assert config["model"]["source"] == "my base"
    assert config["adapter"]["warm_start"] == "first.safetensors"


def test_the_config_is_the_whole_one(job_of: Jobs, train: Train) -> None:
    job = job_of()
    config = json.loads(metadata(train(job))["lora_foundry.config"])
    config["datasets"][0]["folder"] = job.datasets[0].folder
    found = job.model_copy(update={"model": job.model.but(family="flux1")})  # it was `auto`
    assert JobConfig.model_validate(config) == found


def test_hashes_follow_the_base_and_the_data(job_of: Jobs, train: Train, pictures: Path, tmp_path: Path) -> None:
    one = metadata(train(job_of()))
    base, folder = tmp_path / "base", Path(shutil.copytree(pictures, tmp_path / "set"))
    shutil.copytree(sources.EMBEDDED, base)
    (folder / "red.txt").write_text("other")
    other = metadata(train(job_of(model={"source": str(base)}, dataset={"folder": str(folder)})))
    assert one["lora_foundry.base_hash"] == other["lora_foundry.base_hash"], "the same weights elsewhere"
    assert one["lora_foundry.dataset_digest"] != other["lora_foundry.dataset_digest"]
    (weights,) = (base / "transformer").glob("*.safetensors")
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    assert (
        metadata(train(job_of(model={"source": str(base)})))["lora_foundry.base_hash"] != one["lora_foundry.base_hash"]
    )


def test_no_paths_of_a_models_files(job_of: Jobs) -> None:
    """Whatever part comes from a file of its own."""
    files = ("text_encoder", "text_encoder_2", "vae")
    job, home = job_of(), "/home/jane.doe"
    given = {name: f"{home}/{name}.safetensors" for name in files}
    job = job.but(model=job.model.but(files=given, tokenizers=f"{home}/tokenizers"))
    model = without_paths(job, open_base(ModelConfig(device="cpu")))["model"]
    assert model["files"] == {name: f"{name}.safetensors" for name in files}
    assert model["tokenizers"] == "tokenizers"
