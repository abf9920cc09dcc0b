"""Where a model comes from: what is found, and one clear message for each thing that is not."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from trainer_core.config import ModelConfig
from trainer_core.errors import BaseModelError, ConfigError, FoundryError
from trainer_core.families.registry import family_names, family_spec, open_base, register_family
from trainer_core.families.sources import diffusers_folder
from trainer_core.families.sources import source as sources
from trainer_core.families.sources.source import open_source

SPEC = family_spec("flux1")


def refusal(name: str) -> str:
    with pytest.raises(BaseModelError) as caught:
        open_source(name, SPEC)
    return str(caught.value)


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """No network: the hub says what it says when there is none, and which repositories were asked for is recorded."""
    import huggingface_hub
    from huggingface_hub.errors import LocalEntryNotFoundError
    from huggingface_hub.utils import validate_repo_id

    asked: list[str] = []

    def download(repo_id: str, **_: Any) -> str:
        validate_repo_id(repo_id)
        asked.append(repo_id)
        raise LocalEntryNotFoundError("Cannot find the requested files in the disk cache")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    return asked


def test_embedded() -> None:
    source = open_source("embedded", SPEC)
    assert (source.name, source.folder) == ("embedded", sources.EMBEDDED)
    assert source.profile["timestep_type"] == "shift"
    base = open_base(ModelConfig(device="cpu"))
    assert base.timestep_type == "shift"
    assert (base.sampling.width, base.sampling.height) == (64, 64)
    assert base.schedule.shift_for(16) == 3.0


def test_a_folder_is_called_by_its_own_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "private" / "my base"
    shutil.copytree(sources.EMBEDDED, folder)
    monkeypatch.chdir(folder)
    for name in (str(folder), f"{folder}/", ".", "../my base"):
        assert (open_source(name, SPEC).name, open_source(name, SPEC).folder) == ("my base", folder)


@pytest.mark.parametrize("name", ["no such thing", "C:\\models\\flux", "/nowhere/at/all", "a/b/c", "\0"])
def test_neither_folder_nor_repository(name: str, offline: list[str]) -> None:
    message = refusal(name)
    assert repr(name) in message or name in message
    assert "folder" in message
    assert offline == []


@pytest.mark.parametrize("name", ["../nosuch", "./models", "a--b/c", "-x/y", "x/y.", "~nosuchuser/x", "models/.."])
def test_what_cannot_be_a_repository_is_told_as_a_folder(name: str, offline: list[str]) -> None:
    assert name in refusal(name)
    assert offline == []


def test_a_repository_that_cannot_be_reached(offline: list[str]) -> None:
    message = refusal("somebody/some-model")
    assert "somebody/some-model" in message
    assert "cache" in message
    assert offline == ["somebody/some-model"]


@pytest.mark.parametrize(
    ("error", "words"),
    [("GatedRepoError", "licence"), ("RepositoryNotFoundError", "no such repository"), ("HfHubHTTPError", "download")],
)
def test_what_the_hub_says_is_told_in_words(error: str, words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub
    from huggingface_hub import errors

    kind = getattr(errors, error)

    def download(*_: Any, **__: Any) -> str:
        raise kind.__new__(kind)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    message = refusal("somebody/some-model")
    assert "somebody/some-model" in message
    assert words in message


def test_a_repository_is_downloaded_in_safe_formats_only(monkeypatch: pytest.MonkeyPatch) -> None:
    import fnmatch

    import huggingface_hub

    given: dict[str, Any] = {}

    def download(repo_id: str, **options: Any) -> str:
        given.update(options, repo=repo_id)
        return str(sources.EMBEDDED)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    source = open_source("somebody/some-model", SPEC)
    assert (source.name, source.folder) == ("somebody/some-model", sources.EMBEDDED)

    def wanted(path: str) -> bool:
        return any(fnmatch.fnmatch(path, pattern) for pattern in given["allow_patterns"])

    for path in ("model_index.json", "transformer/config.json", "vae/diffusion_pytorch_model.safetensors"):
        assert wanted(path)
    assert wanted("tokenizer_2/spiece.model")
    for path in ("flux1-dev.safetensors", "transformer/model.bin", "vae/model.ckpt", "run.py", "transformer/x.pt"):
        assert not wanted(path)


def test_a_folder_that_is_no_model(tmp_path: Path) -> None:
    assert "model_index.json" in refusal(str(tmp_path))


@pytest.mark.parametrize("text", ["{", "[]", "\xff"])
def test_a_broken_profile_is_named(text: str, tmp_path: Path) -> None:
    folder = tmp_path / "base"
    shutil.copytree(sources.EMBEDDED, folder)
    (folder / "foundry.json").write_text(text, encoding="latin-1")
    with pytest.raises(BaseModelError, match=r"foundry\.json"):
        open_base(ModelConfig(source=str(folder), device="cpu"))


@pytest.mark.parametrize("text", ["{", "[]", None])
def test_a_broken_configuration_is_named(text: str | None, tmp_path: Path) -> None:
    folder = tmp_path / "base"
    shutil.copytree(sources.EMBEDDED, folder)
    path = folder / "vae" / "config.json"
    path.unlink() if text is None else path.write_text(text)
    with pytest.raises(BaseModelError, match="config"):
        open_base(ModelConfig(source=str(folder), device="cpu"))


def test_fingerprints_follow_content_and_not_place(tmp_path: Path) -> None:
    folder = tmp_path / "base"
    shutil.copytree(sources.EMBEDDED, folder)
    here, there = open_source("embedded", SPEC), open_source(str(folder), SPEC)
    assert here.fingerprint("vae", "transformer") == there.fingerprint("vae", "transformer")
    assert here.fingerprint("vae") != here.fingerprint("transformer")
    before = there.fingerprint("vae")
    (folder / "vae" / "config.json").write_text("{}")
    assert there.fingerprint("vae") != before
    assert there.fingerprint("transformer") == here.fingerprint("transformer")


def test_every_byte_of_a_large_file_counts(tmp_path: Path) -> None:
    """Also the one at 2 MB, which lies between the samples that fingerprints were once made of."""
    (tmp_path / "model_index.json").write_text("{}")
    (tmp_path / "vae").mkdir()
    path = tmp_path / "vae" / "weights.safetensors"
    with path.open("wb") as file:
        file.truncate(65 << 20)
    source = open_source(str(tmp_path), SPEC)
    before = source.fingerprint("vae")
    assert source.fingerprint("vae") == before
    for position in (0, 2 << 20, (65 << 20) - 1):
        with path.open("r+b") as file:
            file.seek(position)
            file.write(b"\1")
        after = source.fingerprint("vae")
        assert after != before
        before = after


def test_looking_for_the_parts_reads_no_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    base = open_base(ModelConfig(source="embedded", device="cpu"))
    monkeypatch.setattr(diffusers_folder, "sha256_of", _unread)
    monkeypatch.setattr(diffusers_folder, "whole_file", _unread)
    base.check_parts()


def _unread(path: Path) -> str:
    raise AssertionError(f"{path} was read whole")


@pytest.mark.parametrize("part", ["transformer", "text_encoder_2", "vae"])
def test_a_part_that_is_cut_off_is_told_before_anything_is_made(part: str, tmp_path: Path) -> None:
    folder = tmp_path / "base"
    shutil.copytree(sources.EMBEDDED, folder)
    (file,) = (folder / part).glob("*.safetensors")
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(BaseModelError, match=part):
        open_base(ModelConfig(source=str(folder), device="cpu")).check_parts()


# --- families --------------------------------------------------------------------------------------------------------


def test_families() -> None:
    assert "flux1" in family_names()
    spec = family_spec("flux1")
    assert (spec.main.channels, spec.main.factor, spec.bucket_divisor, spec.category) == (16, 8, 16, "image")
    with pytest.raises(ConfigError, match="flux1"):
        family_spec("flux")


def test_a_host_may_add_a_family(monkeypatch: pytest.MonkeyPatch) -> None:
    from dataclasses import replace

    from trainer_core.families import registry
    from trainer_core.families.flux1.model import Flux

    monkeypatch.setattr(registry, "_FAMILIES", dict(registry._FAMILIES))

    class Hosted(Flux):
        spec = replace(Flux.spec, name="hosted")

    register_family(Hosted)
    assert "hosted" in family_names()
    assert isinstance(open_base(ModelConfig(family="hosted", device="cpu")), Hosted)


@pytest.mark.parametrize("device", ["toaster", "cuda:99", "cpu:x", ""])
def test_devices_that_are_not_here(device: str) -> None:
    with pytest.raises(FoundryError, match="device"):
        open_base(ModelConfig(device=device))
