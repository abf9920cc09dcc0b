"""Quantized parts: from every source the same, weight by weight, from the file or from the cache."""

from __future__ import annotations

import json
import weakref
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import FluxTransformer2DModel
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from trainer_core.config import ModelConfig
from trainer_core.data.cache import TensorCache
from trainer_core.families.base import Base
from trainer_core.families.flux1.single_file import FLUX1
from trainer_core.families.registry import open_base
from trainer_core.families.sources.source import open_source
from trainer_core.memory import packing
from trainer_core.memory.formats import encode
from trainer_core.memory.packed_linear import PackedLinear
from trainer_core.memory.packing import Packing

from .checkpoints import spec_of, write_checkpoint, write_parts
from .small_models import SMALL, seeded

CPU = torch.device("cpu")
KEPT = {
    "flux1": {"norm_out.linear", "proj_out", "x_embedder", "time_text_embed.timestep_embedder.linear_1"},
    "sd15": {"time_embedding.linear_1"},
    "sdxl": {"time_embedding.linear_1", "add_embedding.linear_2"},
}
"""Linear layers that are never packed: embedders and the last layer."""
MODULATION = ("norm1.linear", "norm1_context.linear", "norm.linear", "time_emb_proj")
"""Always int8."""


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], dict[str, dict[str, Any]]]:
    root, made = tmp_path_factory.mktemp("models"), {}

    def of(name: str) -> dict[str, dict[str, Any]]:
        if name not in made:
            folder = SMALL[name](root / name)
            layout = type(open_base(ModelConfig(family=name, source=str(folder), device="cpu"))).layout
            assert layout
            file = write_checkpoint(folder, layout, root / f"{name}.safetensors")
            made[name] = {
                "folder": {"family": name, "source": str(folder)},
                "file": {"family": name, "source": str(file), "tokenizers": str(folder)},
            }
        return made[name]

    return of


def opened(model: dict[str, Any], name: str = "none", cache: Path | None = None) -> Base:
    base = open_base(ModelConfig(**model, device="cpu", quantization=name, text_encoder_quantization=name))
    base.packed_cache = TensorCache(cache) if cache else None
    return base


def packed_of(model: nn.Module) -> dict[str, PackedLinear]:
    return {path: module for path, module in model.named_modules() if isinstance(module, PackedLinear)}


def same(one: nn.Module, other: nn.Module) -> bool:
    mine, theirs = one.state_dict(), other.state_dict()
    return mine.keys() == theirs.keys() and all(torch.equal(mine[name], theirs[name]) for name in mine)


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("source", ["folder", "file"])
def test_each_weight_is_that_of_the_full_model_packed(name: str, source: str, sources: Any) -> None:
    model = sources(name)[source]
    full, quantized = opened(model).load_denoiser(), opened(model, "6bit").load_denoiser()
    packed = packed_of(quantized)
    assert packed
    for path, layer in packed.items():
        whole: Any = full.get_submodule(path)
        expected = encode(whole.weight, "int8" if any(end in path for end in MODULATION) else "6bit").tensors()
        found = layer.packed.tensors()
        assert all(torch.equal(found[part], value) for part, value in expected.items())
        assert (layer.bias is None) == (whole.bias is None)
        assert layer.bias is None or torch.equal(layer.bias, whole.bias)
    rest = {path for path, module in quantized.named_modules() if isinstance(module, nn.Linear)}
    assert rest >= KEPT[name]
    left = {key: value for key, value in quantized.state_dict().items() if key.rpartition(".")[0] not in packed}
    assert all(torch.equal(value, full.state_dict()[key]) for key, value in left.items())


@pytest.mark.parametrize("name", SMALL)
def test_text_encoders_are_packed_and_the_vae_is_not(name: str, sources: Any) -> None:
    base = opened(sources(name)["folder"], "int8")
    base.load_text_encoders()
    base.load_vae()
    for encoder in base.text_encoders().values():
        assert len(packed_of(encoder)) == 3 * 6 or name == "flux1"
    whole = opened(sources(name)["folder"])
    whole.load_text_encoders()
    (mine,), (theirs,) = (one.encode_prompts(["a red cube"]) for one in (base, whole))
    for part in mine:
        assert 0 < (mine[part] - theirs[part]).norm() < 0.05 * theirs[part].norm()
    assert base.text_fingerprint() != whole.text_fingerprint()
    assert base.encoders_fingerprint() == whole.encoders_fingerprint()
    vae: Any = base
    assert not packed_of(vae._vae)


@pytest.mark.parametrize("source", ["folder", "file"])
def test_the_second_time_they_come_from_the_cache(
    source: str, sources: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = opened(sources("flux1")[source], "6bit", tmp_path).load_denoiser()
    made = []
    monkeypatch.setattr("trainer_core.memory.formats.encode", lambda *given: made.append(given) or encode(*given))
    again = opened(sources("flux1")[source], "6bit", tmp_path).load_denoiser()
    assert not made
    assert same(first, again)
    assert len(packed_of(again)) == TensorCache(tmp_path).usage().entries


def test_damaged_and_foreign_entries_are_made_anew(
    sources: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = opened(sources("flux1")["folder"], "6bit", tmp_path).load_denoiser()
    files = sorted(tmp_path.rglob("*.safetensors"))
    files[0].write_bytes(files[0].read_bytes()[:-1])
    other = TensorCache(tmp_path)
    other.put(files[1].stem, {"codes": torch.zeros(3)})
    files[2].unlink()
    before = {file: file.read_bytes() for file in files[3:]}
    made = []
    monkeypatch.setattr("trainer_core.memory.formats.encode", lambda *given: made.append(given) or encode(*given))
    assert same(first, opened(sources("flux1")["folder"], "6bit", tmp_path).load_denoiser())
    assert len(made) == 3
    assert all(file.read_bytes() == content for file, content in before.items())


def test_what_counts_for_the_cache(sources: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Other weights, another format, another version: each has entries of its own."""
    model = sources("flux1")["folder"]
    made: list[Any] = []
    monkeypatch.setattr("trainer_core.memory.formats.encode", lambda *given: made.append(given) or encode(*given))

    def count(mark: str = "a", name: str = "6bit") -> int:
        made.clear()
        given = Packing(name, mark, TensorCache(tmp_path))
        opened(model).source.load("transformer", FluxTransformer2DModel, torch.float32, CPU, given)
        return len(made)

    assert count() > 0
    assert count() == 0
    assert count(mark="b") > 0
    assert count(name="int8") > 0
    monkeypatch.setattr(packing, "_VERSION", 0)
    assert count() > 0


def test_a_low_rank_part_stays_beside_the_weight(tmp_path: Path) -> None:
    """From the cache too; the weight itself, which may be another's, is not written to."""
    weight = torch.randn(96, 128, generator=torch.Generator().manual_seed(2))
    layer, before = nn.Linear(128, 96, bias=False), weight.clone()
    given = Packing("3bit", "a", TensorCache(tmp_path), low_rank=8)
    made = given.packed("layer", weight, layer, torch.float32)
    assert torch.equal(weight, before)
    error = (made.dequantize() - weight).norm()
    assert error < 0.95 * (encode(weight, "3bit").decode() - weight).norm()
    again = given.cached("layer", layer, torch.float32, CPU)
    assert again is not None
    assert torch.equal(again.dequantize(), made.dequantize())
    assert replace(given, low_rank=0).cached("layer", layer, torch.float32, CPU) is None


# --- files that are quantized already -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def flux(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The parts of a small FLUX.1 as files."""
    folder = tmp_path_factory.mktemp("flux")
    return write_parts(SMALL["flux1"](folder / "model"), FLUX1, folder)


def int8_file(flux: dict[str, Path], folder: Path, convrot: bool) -> tuple[str, dict[str, Tensor]]:
    """A denoiser as ComfyUI's int8 files hold it, and the weights that it stands for, by hand."""
    made: dict[str, Tensor] = {}
    meant: dict[str, Tensor] = {}
    for key, weight in load_file(flux["transformer"]).items():
        if weight.ndim != 2 or "blocks." not in key or not key.endswith("weight"):
            made[key] = meant[key] = weight
            continue
        stem = key.removesuffix("weight")
        given: dict[str, Any] = {"format": "int8_tensorwise"}
        if convrot:
            packed = encode(weight, "int8").tensors()
            codes, scale = packed["codes"], packed["scale"]
            given |= {"convrot": True, "convrot_groupsize": 64 if weight.shape[1] % 256 else 256}
            meant[key] = encode(weight, "int8").decode()
        else:
            scale = weight.abs().max() / 127
            codes = (weight / scale).round().to(torch.int8)
            meant[key] = codes.float() * scale
        made |= {key: codes, f"{stem}weight_scale": scale}
        made[f"{stem}comfy_quant"] = torch.tensor(list(json.dumps(given).encode()), dtype=torch.uint8)
    file = folder / "int8.safetensors"
    save_file(made, file)
    return str(file), meant


def parts_of(flux: dict[str, Path], file: str) -> Any:
    rest = {part: str(path) for part, path in flux.items() if part != "transformer"}
    return open_source(file, spec_of(FLUX1), FLUX1, rest)


def load(source: Any, name: str = "") -> Any:
    given = Packing(name, "") if name else None
    return source.load("transformer", FluxTransformer2DModel, torch.float32, CPU, given)


@pytest.mark.parametrize("convrot", [True, False])
def test_int8_files_of_comfyui(convrot: bool, flux: dict[str, Path], tmp_path: Path) -> None:
    file, meant = int8_file(flux, tmp_path, convrot)
    source = parts_of(flux, file)
    plain = load(source).state_dict()
    stem = "double_blocks.0.img_attn.qkv"
    for expected, name in zip(meant[f"{stem}.weight"].chunk(3), ("to_q", "to_k", "to_v"), strict=True):
        assert torch.allclose(plain[f"transformer_blocks.0.attn.{name}.weight"], expected, atol=1e-6)
    kept = load(source, "int8").transformer_blocks[0].attn.to_k.packed.tensors()
    codes = load_file(file)[f"{stem}.weight"].chunk(3)[1]
    assert torch.equal(kept["codes"], codes) == convrot
    six = load(source, "6bit").transformer_blocks[0].attn.to_k
    assert torch.equal(six.dequantize(), encode(plain["transformer_blocks.0.attn.to_k.weight"], "6bit").decode())


# --- memory -----------------------------------------------------------------------------------------------------------


class Allocated(TorchDispatchMode):
    """The most bytes that tensors held at once which were made while it was on."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.most = 0
        self._known: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        for one in found if isinstance(found, (tuple, list)) else [found]:
            if isinstance(one, Tensor) and one.device == CPU:
                self._count(one.untyped_storage())
        return found

    def _count(self, storage: Any) -> None:
        place = storage.data_ptr()
        if place and place not in self._known:
            self._known.add(place)
            self.now += storage.nbytes()
            self.most = max(self.most, self.now)
            weakref.finalize(storage, self._gone, place, storage.nbytes())

    def _gone(self, place: int, size: int) -> None:
        self._known.discard(place)
        self.now -= size


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A denoiser whose weights take some memory: 250 MB in fp32."""
    folder = tmp_path_factory.mktemp("wide")
    config = {"num_layers": 2, "num_single_layers": 2, "attention_head_dim": 64, "num_attention_heads": 12}
    config |= {"joint_attention_dim": 32, "pooled_projection_dim": 32, "axes_dims_rope": (16, 24, 24)}
    seeded(lambda: FluxTransformer2DModel(**config)).save_pretrained(folder / "transformer")
    (folder / "model_index.json").write_text("{}")
    return folder


@pytest.mark.parametrize("cached", [False, True])
def test_the_whole_model_is_never_in_memory(cached: bool, wide: Path, tmp_path: Path) -> None:
    source = open_source(str(wide), spec_of(FLUX1))
    given = Packing("int8", "a", TensorCache(tmp_path) if cached else None)
    if cached:
        source.load("transformer", FluxTransformer2DModel, torch.float32, CPU, given)
    with Allocated() as allocated:
        model = source.load("transformer", FluxTransformer2DModel, torch.float32, CPU, given)
    size = sum(value.nbytes for value in model.state_dict().values())
    full = (wide / "transformer" / "diffusion_pytorch_model.safetensors").stat().st_size
    largest = max(layer.in_features * layer.out_features * 4 for layer in packed_of(model).values())
    assert size <= allocated.most < size + 1.5 * largest
    assert size < 0.3 * full
