"""Where tokenizers come from, in which order, and what is said when there is none."""

from __future__ import annotations

import inspect
import json
from pathlib import Path
from typing import Any

import pytest

from trainer_core.config import ModelConfig
from trainer_core.data.lint import find_tokenizers
from trainer_core.errors import BaseModelError
from trainer_core.families.flux1.single_file import FLUX1
from trainer_core.families.registry import open_base
from trainer_core.families.sources import tokenizers
from trainer_core.families.sources.source import Source, open_source
from trainer_core.families.sources.tokenizers import load_tokenizer, register_tokenizers, tokenizer_folder
from trainer_core.families.stable_diffusion.layouts import SD1

from .checkpoints import spec_of, write_checkpoint
from .small_models import clip_tokenizer, small_flux, small_sd


@pytest.fixture(autouse=True)
def cache(monkeypatch: pytest.MonkeyPatch) -> dict[str, Path]:
    """What Hugging Face's cache holds: nothing, until a test puts a folder in. Whatever would be downloaded fails."""
    import huggingface_hub
    from huggingface_hub.errors import LocalEntryNotFoundError

    held: dict[str, Path] = {}

    def snapshot(repo: str, *, local_files_only: bool, **_: Any) -> str:
        assert local_files_only, "a download that nobody asked for"
        if repo not in held:
            raise LocalEntryNotFoundError("not in the cache")
        return str(held[repo])

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)
    monkeypatch.setattr(tokenizers, "_host", {})
    return held


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("tokenizers")
    for name in ("named/tokenizer", "named_by_kind/clip", "host", "cached"):
        clip_tokenizer(root / name)
    folder = small_sd(root / "sd")
    return {
        "named": root / "named",
        "kind": root / "named_by_kind",
        "host": root / "host",
        "cached": root / "cached",
        "folder": folder,
        "file": write_checkpoint(folder, SD1, root / "sd.safetensors"),
    }


def test_the_order(made: dict[str, Path], cache: dict[str, Path]) -> None:
    own = made["folder"] / "tokenizer"
    assert tokenizer_folder("tokenizer", "clip", made["named"], own) == made["named"] / "tokenizer"
    assert tokenizer_folder("tokenizer", "clip", made["kind"], own) == made["kind"] / "clip"
    assert tokenizer_folder("tokenizer", "clip", made["cached"], None) == made["cached"]
    register_tokenizers("clip", made["host"])
    cache["openai/clip-vit-large-patch14"] = made["cached"]
    assert tokenizer_folder("tokenizer", "clip", None, own) == own
    assert tokenizer_folder("tokenizer", "clip", None, None) == made["host"]
    register_tokenizers("clip", made["host"] / "moved elsewhere")
    assert tokenizer_folder("tokenizer", "clip", None, None) == made["cached"]


def test_a_clip_folder_is_no_t5(made: dict[str, Path]) -> None:
    with pytest.raises(BaseModelError, match="T5"):
        tokenizer_folder("tokenizer_2", "t5", made["cached"], None)


@pytest.mark.parametrize(("kind", "repo"), [("clip", "openai/clip-vit-large-patch14"), ("t5", "google/t5-v1_1-xxl")])
def test_none_is_named_with_the_place_to_get_it(kind: str, repo: str) -> None:
    with pytest.raises(BaseModelError) as caught:
        tokenizer_folder("tokenizer", kind, None, None)
    for words in ("tokenizer", "ComfyUI", f"hf download {repo}", "model.tokenizers"):
        assert words in str(caught.value)


def test_the_command_that_is_named_makes_it_found(made: dict[str, Path], cache: dict[str, Path]) -> None:
    cache["openai/clip-vit-large-patch14"] = made["cached"]
    source = open_source(str(made["file"]), spec_of(SD1), SD1)
    ids = source.tokenizer("tokenizer")("a b").input_ids
    assert ids == open_source(str(made["folder"]), spec_of(SD1), SD1).tokenizer("tokenizer")("a b").input_ids
    assert source.tokenizer("tokenizer").model_max_length == 77


def test_a_files_tokenizer_counts_in_the_fingerprint(made: dict[str, Path], tmp_path: Path) -> None:
    clip_tokenizer(tmp_path / "tokenizer", pad="!")

    def opened(folder: Path) -> Source:
        return open_source(str(made["file"]), spec_of(SD1), SD1, tokenizers=str(folder))

    assert opened(made["named"]).fingerprint("tokenizer") == opened(made["named"]).fingerprint("tokenizer")
    assert opened(made["named"]).fingerprint("tokenizer") != opened(tmp_path).fingerprint("tokenizer")


def test_a_folder_that_is_not_there(made: dict[str, Path]) -> None:
    with pytest.raises(BaseModelError, match=r"model\.tokenizers .*no such folder"):
        open_source(str(made["file"]), spec_of(SD1), SD1, tokenizers="/no/such/folder")


def test_lint_reads_captions_of_a_single_file(made: dict[str, Path], cache: dict[str, Path]) -> None:
    """A checkpoint brings no tokenizer: the kind's that is on this machine counts."""
    cache["openai/clip-vit-large-patch14"] = made["cached"]
    (found,) = find_tokenizers(ModelConfig(source=str(made["file"])))
    assert (found.name, found.limit) == ("tokenizer", 77)
    assert found.lengths(["ab c"]) == [5]
    cache.clear()
    with pytest.raises(BaseModelError, match="CLIP tokenizer"):
        find_tokenizers(ModelConfig(source=str(made["file"])))


@pytest.mark.parametrize("part", ["tokenizer", "tokenizer_2"])
def test_broken_tokenizers_are_named(part: str, tmp_path: Path) -> None:
    (tmp_path / part).mkdir()
    (tmp_path / part / "tokenizer.json").write_text("{")
    with pytest.raises(BaseModelError, match=part):
        load_tokenizer(
            tokenizer_folder(part, spec_of(FLUX1).tokenizers[part], tmp_path, None), spec_of(FLUX1).tokenizers[part]
        )


@pytest.mark.host
@pytest.mark.parametrize(
    ("kind", "folder", "text", "ids"),
    [
        # as in openai/clip-vit-large-patch14 and google/t5-v1_1-xxl
        ("clip", "comfy/sd1_tokenizer", "a photo of a cat", [49406, 320, 1125, 539, 320, 2368, 49407]),
        ("t5", "comfy/text_encoders/t5_tokenizer", "a photo of a cat", [3, 9, 1202, 13, 3, 9, 1712, 1]),
    ],
)
def test_comfyuis_own_tokenizers(kind: str, folder: str, text: str, ids: list[int], comfyui: Path) -> None:
    register_tokenizers(kind, comfyui / folder)
    tokenizer = load_tokenizer(tokenizer_folder("tokenizer", kind, None, None), kind)
    assert tokenizer(text).input_ids == ids
    assert tokenizer.model_max_length == {"clip": 77, "t5": 512}[kind]
    if kind == "clip":
        assert (tokenizer.pad_token_id, tokenizer.eos_token_id) == (49407, 49407)


def test_t5_reads_as_many_tokens_as_in_flux_pipeline(tmp_path: Path) -> None:
    """A tokenizer that knows no limit of its own, and longer texts than the denoiser is given."""
    from diffusers import FluxPipeline

    expected = inspect.signature(FluxPipeline.__call__).parameters["max_sequence_length"].default
    folder = small_flux(tmp_path / "flux")
    config = folder / "tokenizer_2" / "tokenizer_config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "model_max_length": 10**9}), encoding="utf-8")
    base = open_base(ModelConfig(family="flux1", source=str(folder), device="cpu"))
    base.load_text_encoders()
    (short, long) = base.encode_prompts(["a", "a " * 600])
    assert short["text"].shape == long["text"].shape == (expected, 32)
