"""`family: auto`: which family a source is of, for every kind of source, and jobs that leave it to that."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import huggingface_hub
import pytest
import torch
from safetensors.torch import load_file, save_file

from trainer_core.config import JobConfig, ModelConfig, validated
from trainer_core.errors import BaseModelError, ConfigError
from trainer_core.families import registry
from trainer_core.families.base import Base
from trainer_core.families.registry import family_spec, open_base, spec_of, with_family
from trainer_core.families.sources.source import EMBEDDED
from trainer_core.job import TrainingJob
from trainer_core.resuming import ASK, beginning

from .checkpoints import write_checkpoint, write_parts
from .small_models import SMALL

LAYOUTS = {name: registry._family(name).layout for name in SMALL}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("bases")
    return {name: make(root / name) for name, make in SMALL.items()}


def run_that_goes_on(root: Path, job: JobConfig) -> Path | None:
    run = beginning(root, job, ASK).run
    return run.path if run else None


def found(source: object) -> str:
    return with_family(ModelConfig(source=str(source))).family


def test_the_embedded_base_is_a_small_flux() -> None:
    assert ModelConfig().family == "auto"
    assert found("embedded") == "flux1"
    assert open_base(ModelConfig(device="cpu")).config.family == "flux1"


@pytest.mark.parametrize("family", SMALL)
def test_folders_checkpoints_and_bare_denoisers(family: str, folders: dict[str, Path], tmp_path: Path) -> None:
    layout = LAYOUTS[family]
    assert layout
    files = write_parts(folders[family], layout, tmp_path / "parts")
    denoiser = files[family_spec(family).denoiser_part]
    checkpoint = write_checkpoint(folders[family], layout, tmp_path / "model.safetensors")
    assert [found(source) for source in (folders[family], checkpoint, denoiser)] == [family] * 3


def test_kontext_is_told_by_its_name_alone(folders: dict[str, Path], tmp_path: Path) -> None:
    """Its weights have the names and shapes of FLUX.1's."""
    layout = LAYOUTS["flux1"]
    assert layout
    folder = tmp_path / "edits"
    shutil.copytree(folders["flux1"], folder)
    (folder / "model_index.json").write_text(json.dumps({"_class_name": "FluxKontextPipeline"}))
    named = write_checkpoint(folder, layout, tmp_path / "flux1-dev-Kontext_fp8.safetensors")
    told = write_checkpoint(
        folder, layout, tmp_path / "mine.safetensors", metadata={"modelspec.architecture": "flux-1-kontext"}
    )
    assert [found(source) for source in (folder, named, told)] == ["flux1_kontext"] * 3


def test_a_named_family_is_taken_at_its_word(folders: dict[str, Path]) -> None:
    assert spec_of(ModelConfig(family="sdxl", source=str(folders["sd15"]))).name == "sdxl"
    with pytest.raises(ConfigError, match="did you mean `sdxl`"):
        spec_of(ModelConfig(family="sdxll"))


# repositories


class Hub:
    """Hugging Face with one repository, and the cache before it."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.fetched = folder, [""]
        self.fetched.clear()

    def __call__(
        self,
        repo: str,
        allow_patterns: Sequence[str],
        ignore_patterns: Sequence[str] = (),
        local_files_only: bool = False,
    ) -> str:
        if local_files_only and not self.fetched:
            raise huggingface_hub.errors.LocalEntryNotFoundError("not here")
        if not local_files_only:
            self.fetched += allow_patterns
        return str(self.folder)


def test_of_a_repository_only_what_describes_it_is_read(
    folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    hub = Hub(folders["sdxl"])
    monkeypatch.setattr(huggingface_hub, "snapshot_download", hub)
    model = ModelConfig(source="somebody/a-finetune")
    with pytest.raises(BaseModelError, match=r"somebody/a-finetune is not on this machine"):
        spec_of(model, download=False)
    assert spec_of(model).name == "sdxl"
    assert sorted(set(hub.fetched)) == ["model_index.json", "transformer/config.json", "unet/config.json"]
    count = len(hub.fetched)
    assert spec_of(model, download=False).name == "sdxl"
    assert len(hub.fetched) == count, "what lies in the cache is not asked for again"


@pytest.mark.parametrize("family", ["flux1", "flux1_kontext", "sd15", "sdxl"])
def test_known_repositories_are_not_looked_up(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub, "snapshot_download", None)
    assert found(family_spec(family).default_repo) == family


# what is of no family, and providers


class Provider:
    """Offers a family for all that lies in files."""

    def names(self) -> Sequence[str]:
        return ["hosted"]

    def family(self, name: str) -> type[Base] | None:
        return None

    def claims(self, model: ModelConfig) -> str | None:
        return "hosted" if model.source.endswith(("safetensors", "gguf")) else None


@pytest.fixture
def wan(tmp_path: Path) -> Path:
    path = tmp_path / "wan.safetensors"
    save_file({"blocks.0.self_attn.norm_k.weight": torch.zeros(2), "patch_embedding.weight": torch.zeros(2)}, path)
    return path


def test_what_fits_no_family_is_told_with_all_that_there_are(wan: Path, tmp_path: Path) -> None:
    with pytest.raises(BaseModelError, match=r"seems to be a Wan diffusion model.*flux1, flux1_kontext, sd15, sdxl"):
        found(wan)
    folder = tmp_path / "other"
    folder.mkdir()
    with pytest.raises(BaseModelError, match=r"no model_index.json"):
        found(folder)
    (folder / "model_index.json").write_text(json.dumps({"_class_name": "WanPipeline"}))
    with pytest.raises(BaseModelError, match=r"seems to be a WanPipeline"):
        found(folder)
    with pytest.raises(BaseModelError, match="there is no such file"):
        found(tmp_path / "nowhere.safetensors")


def test_providers_are_asked_after_the_families_here(
    wan: Path, folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(registry, "_PROVIDERS", [Provider()])
    quantized = tmp_path / "q.gguf"
    quantized.write_bytes(b"GGUF")
    assert [found(path) for path in (wan, quantized)] == ["hosted", "hosted"]
    layout = LAYOUTS["sd15"]
    assert layout
    assert found(write_checkpoint(folders["sd15"], layout, tmp_path / "model.safetensors")) == "sd15"


def test_the_spec_may_be_that_of_the_opened_model(wan: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A family of models that differ, as those that a host has loaded."""

    class Hosted(Base):  # type: ignore[misc]
        @classmethod
        def spec_of(cls, model: ModelConfig):  # type: ignore[no-untyped-def]
            return (model.family, model.source)

    monkeypatch.setattr(Provider, "family", lambda _self, name: Hosted if name == "hosted" else None)
    monkeypatch.setattr(registry, "_PROVIDERS", [Provider()])
    assert spec_of(ModelConfig(source=str(wan))) == ("hosted", str(wan))


# jobs


def test_the_runs_job_names_the_family(job_of: Callable[..., JobConfig], tmp_path: Path) -> None:
    run = TrainingJob.new(tmp_path, job_of()).run
    assert run.job().model.family == "flux1"


def test_jobs_with_and_without_a_family_train_to_the_same(
    job_of: Callable[..., JobConfig], train: Callable[..., TrainingJob], tmp_path: Path
) -> None:
    named, unnamed = (
        load_file(train(job, root=tmp_path / str(k)).run.latest().lora)  # type: ignore[union-attr]
        for k, job in enumerate((job_of(model={"family": "flux1"}), job_of()))
    )
    assert named.keys() == unnamed.keys()
    assert all(torch.equal(named[key], unnamed[key]) for key in named)


def test_an_earlier_run_goes_on(
    job_of: Callable[..., JobConfig], train: Callable[..., TrainingJob], tmp_path: Path
) -> None:
    """Its job.yaml names the family, as all did when there was no `auto`; the job of today leaves it out."""
    earlier = train(job_of(model={"family": "flux1"}), root=tmp_path).run
    longer = job_of(train={"steps": 4})
    assert run_that_goes_on(tmp_path, longer) == earlier.path
    assert TrainingJob(earlier, longer).run_here(lambda _: None) == "finished"
    assert earlier.job() == validated(JobConfig, longer.but(model=longer.model.but(family="flux1")).model_dump())


def test_a_run_whose_job_was_edited_to_name_none_goes_on(
    job_of: Callable[..., JobConfig], train: Callable[..., TrainingJob], tmp_path: Path
) -> None:
    run = train(job_of(), root=tmp_path).run
    file = run.path / "job.yaml"
    text = file.read_text(encoding="utf-8")
    assert "family: flux1" in text
    file.write_text(text.replace("family: flux1", "source: embedded", 1).replace("  source: embedded\n", "", 1))
    assert run.job().model.family == "auto"
    assert run_that_goes_on(tmp_path, job_of(train={"steps": 4})) == run.path
    assert TrainingJob(run).run_here(lambda _: None) == "finished"


def test_the_embedded_base_lies_where_it_did() -> None:
    assert found(EMBEDDED) == "flux1"
