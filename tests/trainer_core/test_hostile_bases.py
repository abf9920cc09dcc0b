"""Hostile bases and LoRA files: nothing is unpickled, no code of theirs runs, and they lead nowhere else."""

from __future__ import annotations

import json
import os
import pickle
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from trainer_core.cli import main
from trainer_core.config import ModelConfig
from trainer_core.data.lint.tokens import find_tokenizers
from trainer_core.errors import BaseModelError
from trainer_core.families.registry import open_base
from trainer_core.families.sources.source import EMBEDDED, is_repository_id

WEIGHTS = {
    "text_encoder": ("model.safetensors", "pytorch_model.bin", "load_text_encoders"),
    "text_encoder_2": ("model.safetensors", "pytorch_model.bin", "load_text_encoders"),
    "vae": ("diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.bin", "load_vae"),
    "transformer": ("diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.bin", "load_denoiser"),
}
pytestmark = pytest.mark.filterwarnings("ignore")


class Bomb:
    """Writes a file when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.mark,)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return shutil.copytree(EMBEDDED, tmp_path / "base")


@pytest.fixture
def mark(tmp_path: Path) -> Path:
    """The file that is there once anything was unpickled."""
    bomb = pickle.dumps(Bomb(tmp_path / "a"))
    pickle.loads(bomb)
    assert (tmp_path / "a").exists(), "the bomb works"
    return tmp_path / "unpickled"


def load(folder: Path, method: str) -> None:
    getattr(open_base(ModelConfig(source=str(folder), device="cpu")), method)()


def load_all(folder: Path) -> None:
    base = open_base(ModelConfig(source=str(folder), device="cpu"))
    assert base.schedule
    base.load_text_encoders()
    base.load_vae()
    base.load_denoiser()


def edit(path: Path, **changes: Any) -> None:
    data = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    path.write_text(json.dumps({**data, **changes}), encoding="utf-8")


def lay_bombs(part: Path, mark: Path) -> None:
    """Pickles under every name that a library might take for weights, a tokenizer or settings."""
    for name in ("pytorch_model.bin", "diffusion_pytorch_model.bin", "model.pt", "training_args.bin", "optimizer.pt"):
        torch.save(Bomb(mark), part / name)
    for name in ("spiece.model", "tokenizer.model", "vocab.pkl", "data.pickle", "scheduler.pkl"):
        (part / name).write_bytes(pickle.dumps(Bomb(mark)))


def test_pickles_beside_the_weights_are_never_opened(folder: Path, mark: Path) -> None:
    for part in (*WEIGHTS, "tokenizer", "tokenizer_2", "scheduler"):
        lay_bombs(folder / part, mark)
    base = open_base(ModelConfig(source=str(folder), device="cpu"))
    base.load_text_encoders()
    base.load_vae()
    base.load_denoiser()
    assert base.schedule.shift > 0
    assert len(find_tokenizers(ModelConfig(family="flux1", source=str(folder)))) == 2
    assert base.text_fingerprint()
    assert not mark.exists()


@pytest.mark.parametrize("part", WEIGHTS)
def test_pickles_instead_of_the_weights_are_not_opened_either(
    part: str, folder: Path, mark: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """transformers would take a pytorch_model.bin where there is no safetensors file."""
    safe, unsafe, method = WEIGHTS[part]
    monkeypatch.setattr(torch, "load", lambda *_, **__: pytest.fail("torch.load was called"))
    torch.save(load_file(folder / part / safe), folder / part / unsafe)
    (folder / part / safe).unlink()
    with pytest.raises(BaseModelError, match=part):
        load(folder, method)


@pytest.mark.parametrize("part", WEIGHTS)
@pytest.mark.parametrize("name", ["weights.bin", "../other/weights.safetensors", "/tmp/x.safetensors", 7])
def test_an_index_that_names_other_files_is_refused(
    part: str, name: Any, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    safe, _, method = WEIGHTS[part]
    monkeypatch.setattr(torch, "load", lambda *_, **__: pytest.fail("torch.load was called"))
    weights = load_file(folder / part / safe)
    torch.save(weights, folder / part / "weights.bin")
    (folder / part / safe).unlink()
    edit(folder / part / f"{safe}.index.json", metadata={"total_size": 1}, weight_map=dict.fromkeys(weights, name))
    with pytest.raises(BaseModelError, match=r"index\.json.*no \.safetensors"):
        load(folder, method)


@pytest.mark.parametrize("part", ["text_encoder", "text_encoder_2", "vae", "transformer", "tokenizer", "tokenizer_2"])
@pytest.mark.parametrize(
    "setting",
    [
        {"auto_map": {"AutoTokenizer": ["evil.Evil", None], "AutoConfig": "evil.Evil", "AutoModel": "evil.Evil"}},
        {"attn_implementation": "somebody/kernel"},
        {"_attn_implementation": {"": "somebody/kernel"}},
        {"inner": [{"auto_map": {"AutoModel": "somebody/repo--evil.Evil"}}]},
        {"quantization_config": {"quant_method": "gguf"}},
        {"transformers_weights": "../x.safetensors"},
        {"num_hidden_layers": 10**9, "num_layers": 10**9},
    ],
)
def test_settings_that_lead_elsewhere_are_refused(
    part: str, setting: dict[str, Any], folder: Path, tmp_path: Path
) -> None:
    (folder / part / "evil.py").write_text(
        f"open({str(tmp_path / 'ran')!r}, 'w')\nclass Evil: pass\n", encoding="utf-8"
    )
    edit(folder / part / ("tokenizer_config.json" if "tokenizer" in part else "config.json"), **setting)
    method = WEIGHTS[part][2] if part in WEIGHTS else "load_text_encoders"
    with pytest.raises(BaseModelError, match=part):
        load(folder, method)
    assert not (tmp_path / "ran").exists()


def test_a_tokenizer_of_another_kind_is_refused(folder: Path) -> None:
    for kind in ("BertJapaneseTokenizer", "Evil", 7, ["CLIPTokenizer"]):
        edit(folder / "tokenizer" / "tokenizer_config.json", tokenizer_class=kind)
        with pytest.raises(BaseModelError, match="tokenizer_class"):
            load(folder, "load_text_encoders")
        with pytest.raises(BaseModelError, match="tokenizer_class"):
            find_tokenizers(ModelConfig(family="flux1", source=str(folder)))


@pytest.mark.parametrize("part", WEIGHTS)
def test_an_adapter_beside_the_weights_leads_to_no_other_base(part: str, folder: Path) -> None:
    """With PEFT installed, transformers loads the base that the adapter names, from wherever that is."""
    edit(folder / part / "adapter_config.json", base_model_name_or_path="somebody/else", peft_type="LORA")
    with pytest.raises(BaseModelError, match=r"adapter_config\.json"):
        load(folder, WEIGHTS[part][2])


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes here")
@pytest.mark.parametrize("name", ["config.json", "extra.json", "more.safetensors"])
def test_pipes_in_a_base_are_not_waited_for(name: str, folder: Path) -> None:
    (folder / "vae" / name).unlink(missing_ok=True)
    os.mkfifo(folder / "vae" / name)
    with pytest.raises(BaseModelError, match="vae"):
        load(folder, "load_vae")
    with pytest.raises(BaseModelError, match="vae"):
        open_base(ModelConfig(source=str(folder), device="cpu")).pixel_fingerprint()


@pytest.mark.parametrize(
    ("file", "changes"),
    [
        ("vae/config.json", {"scaling_factor": "big"}),
        ("vae/config.json", {"shift_factor": [1]}),
        ("vae/config.json", {"block_out_channels": "x"}),
        ("vae/config.json", {"latent_channels": -1}),
        ("vae/config.json", {"down_block_types": ["Evil"]}),
        ("scheduler/scheduler_config.json", {"shift": "x"}),
        ("scheduler/scheduler_config.json", {"shift": 0}),
        ("scheduler/scheduler_config.json", {"use_dynamic_shifting": True, "base_image_seq_len": 4096}),
        ("scheduler/scheduler_config.json", {"use_dynamic_shifting": True, "max_shift": 1e9}),
        ("transformer/config.json", {"num_attention_heads": "x"}),
        ("transformer/config.json", {"in_channels": 10**6}),
        ("text_encoder/config.json", {"hidden_size": "x"}),
        ("text_encoder/config.json", {"hidden_act": "evil"}),
        ("text_encoder_2/config.json", {"d_model": 0}),
        ("text_encoder_2/config.json", {"dtype": "evil"}),
        ("tokenizer/tokenizer.json", {"model": {"type": "Evil"}}),
        ("tokenizer_2/tokenizer.json", {"model": 7}),
        ("foundry.json", {"sampling": {"width": 10**6}}),
        ("foundry.json", {"sampling": {"width": "64"}, "timestep_type": "evil"}),
        ("foundry.json", {"sampling": {"evil": 1}}),
        ("foundry.json", {"sampling": [64]}),
        ("foundry.json", {"sampling": {"steps": None}}),
        ("foundry.json", {"timestep_type": ["shift"]}),
    ],
)
def test_nonsense_in_settings_is_told_in_one_message(file: str, changes: dict[str, Any], folder: Path) -> None:
    edit(folder / file, **changes)
    with pytest.raises(BaseModelError):
        load_all(folder)


@pytest.mark.parametrize("text", ["[" * 100_000, '{"a": NaN}', "\xff", "[]"])
def test_json_that_is_no_configuration_is_told(text: str, folder: Path) -> None:
    for file in ("vae/config.json", "foundry.json"):
        kept = (folder / file).read_bytes()
        (folder / file).write_bytes(text.encode("latin-1"))
        with pytest.raises(BaseModelError, match=r"config\.json|foundry\.json"):
            open_base(ModelConfig(source=str(folder), device="cpu"))
        (folder / file).write_bytes(kept)


@pytest.mark.parametrize(
    "name", ["a/..", "../a", "a/../b", "//server/share", "/a/b", "a\\b/c", "a/b/c", "~a/b", "a/", ".a/b"]
)
def test_what_could_be_a_path_is_no_repository(name: str) -> None:
    assert not is_repository_id(name)


@pytest.mark.parametrize("source", ["//server/share", "/etc", "../../x", "\\\\server\\share", "base"])
def test_a_lora_file_does_not_say_which_folder_is_opened(
    source: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """On Windows, merely opening `//server/share` sends the user's credentials to that server."""
    opened: list[str] = []
    monkeypatch.setattr("trainer_core.families.base.open_source", lambda name, *_: opened.append(name))
    (tmp_path / "base").mkdir()
    monkeypatch.chdir(tmp_path)
    told = json.dumps({"name": "x", "datasets": [{"folder": "y"}], "model": {"source": source}})
    layer = {"a.lora_A.weight": torch.zeros(2, 2), "a.lora_B.weight": torch.zeros(2, 2)}
    save_file(layer, "evil.safetensors", {"lora_foundry.config": told})
    assert main(["sample", "evil.safetensors", "--prompt", "x"]) == 1
    assert "--base" in capsys.readouterr().err
    assert opened == []


@pytest.mark.parametrize("told", ["[" * 100_000, "NaN", "[]", "7", '{"name": "x"}', "not json"])
def test_nonsense_in_a_lora_files_settings_is_told(
    told: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    layer = {"a.lora_A.weight": torch.zeros(2, 2), "a.lora_B.weight": torch.zeros(2, 2)}
    save_file(layer, tmp_path / "evil.safetensors", {"lora_foundry.config": told})
    assert main(["sample", str(tmp_path / "evil.safetensors"), "--prompt", "x"]) == 1
    assert "unexpected error" not in capsys.readouterr().err
