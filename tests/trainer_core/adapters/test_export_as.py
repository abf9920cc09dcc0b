"""Exported files load whole in diffusers, PEFT and in our reader of others' files, and do the same.

The reference is each tool's own loading: a pipeline's `load_lora_weights`, `PeftModel.from_pretrained`.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import diffusers
import peft
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import CLIPTextModel

from trainer_core.adapters.export_as import export_as
from trainer_core.adapters.parsing import for_roots, parse
from trainer_core.config import AdapterConfig, ModelConfig
from trainer_core.errors import AdapterError, FoundryError, SaveError
from trainer_core.safetensors_file import read_header, serialize

from ..families.small_models import SMALL
from .export_cases import CONFIGS, METADATA, Case, case_of, outputs
from .small_sdxl import dense

PIPELINES = {
    "flux1": diffusers.FluxPipeline,
    "flux1_kontext": diffusers.FluxKontextPipeline,
    "sd15": diffusers.StableDiffusionPipeline,
    "sdxl": diffusers.StableDiffusionXLPipeline,
}
NOTHING_FOR_CLIP = "No LoRA keys associated to"
"""What diffusers says of every LoRA for the denoiser alone, of each text encoder."""


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    made: dict[str, Path] = {}

    def of(family: str) -> Path:
        name = family.removesuffix("_kontext")
        if name not in made:
            made[name] = SMALL[name](tmp_path_factory.mktemp("models") / name)
        return made[name]

    return of


@pytest.fixture(scope="module")
def case(sources: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Case]:
    made: dict[tuple[str, str], Case] = {}

    def of(family: str, kind: str) -> Case:
        if (family, kind) not in made:
            config = CONFIGS[kind]
            if family.startswith("sd"):
                config = config.but(
                    conv_rank=2 if kind != "lokr, whole" else 999, text_encoders=kind != "dora, denoiser"
                )
            made[family, kind] = case_of(family, config, sources(family), tmp_path_factory.mktemp("loras"))
        return made[family, kind]

    return of


@pytest.fixture
def complaints() -> Iterator[list[str]]:
    """What diffusers, transformers and PEFT warn of."""
    heard: list[str] = []

    class Listener(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            heard.append(record.getMessage())

    listener = Listener(logging.WARNING)
    loggers = [logging.getLogger(name) for name in ("diffusers", "transformers", "peft")]
    for logger in loggers:
        logger.addHandler(listener)
    yield heard
    for logger in loggers:
        logger.removeHandler(listener)


def pipeline_of(case: Case) -> Any:
    """A real pipeline of the plain models; of the parts that a LoRA does not touch only those that it must have."""
    kind = PIPELINES[case.base.spec.name]
    models = case.models()
    parts: dict[str, Any] = dict.fromkeys(kind._get_signature_keys(kind)[0])
    parts |= {root or case.base.spec.denoiser_part: model for root, model in models.items()}
    if "text_encoder" in parts and parts["text_encoder"] is None:
        parts["text_encoder"] = case.base.source.load("text_encoder", CLIPTextModel, torch.float32, torch.device("cpu"))
    parts["scheduler"] = diffusers.DDIMScheduler()
    extra = {"requires_safety_checker": False} if "safety_checker" in parts else {}
    return kind(**parts, **extra)


def models_of(pipeline: Any, case: Case) -> dict[str, nn.Module]:
    return {root: getattr(pipeline, root or case.base.spec.denoiser_part) for root in case.adapter.roots}


def assert_same(found: Mapping[str, Tensor], case: Case) -> None:
    plain = outputs(case.base, case.models())
    assert found.keys() == case.expected.keys()
    for root, expected in case.expected.items():
        torch.testing.assert_close(found[root], expected, rtol=2e-4, atol=2e-5)
        assert not torch.allclose(expected, plain[root], rtol=1e-2, atol=1e-3), "the LoRA does something"


def adapted_layers(model: nn.Module) -> set[str]:
    from peft.tuners.tuners_utils import BaseTunerLayer

    return {
        re.sub(r"^(base_model\.model\.)", "", path)
        for path, module in model.named_modules()
        if isinstance(module, BaseTunerLayer)
    }


@pytest.mark.parametrize("kind", ["lora", "dora, denoiser"])
@pytest.mark.parametrize("family", PIPELINES)
def test_diffusers_loads_it_whole(
    family: str, kind: str, case: Callable[..., Case], tmp_path: Path, complaints: list[str]
) -> None:
    made = case(family, kind)
    path = made.export("diffusers", tmp_path)
    assert path.name == "tiny_diffusers.safetensors"
    pipeline = pipeline_of(made)
    complaints.clear()  # those of the small models themselves
    pipeline.load_lora_weights(str(path.parent), weight_name=path.name)
    heard = [one for one in complaints if made.adapter.config.text_encoders or NOTHING_FOR_CLIP not in one]
    assert not heard
    assert_same(outputs(made.base, models_of(pipeline, made)), made)
    layers = sum(len(adapted_layers(model)) for model in models_of(pipeline, made).values())
    assert layers == len(made.adapter.layers)
    own = read_header(path)["__metadata__"]
    assert METADATA.items() <= own.items()


@pytest.mark.parametrize("kind", CONFIGS)
@pytest.mark.parametrize("family", ["flux1", "sd15", "sdxl"])
@pytest.mark.filterwarnings("error:Found missing adapter keys")
def test_peft_loads_it_whole(
    family: str, kind: str, case: Callable[..., Case], tmp_path: Path, complaints: list[str]
) -> None:
    made = case(family, kind)
    folder = made.export("peft", tmp_path)
    plain = made.models()
    complaints.clear()  # those of the small models themselves
    models = {root: peft.PeftModel.from_pretrained(model, folder / root).eval() for root, model in plain.items()}
    assert not complaints
    assert_same(outputs(made.base, models), made)
    assert sum(len(adapted_layers(model)) for model in models.values()) == len(made.adapter.layers)
    for root, model in models.items():
        stored = load_file(folder / root / "adapter_model.safetensors")
        loaded = peft.get_peft_model_state_dict(model)
        named = json.loads((folder / root / "adapter_config.json").read_text())["base_model_name_or_path"]
        assert named is None, "a folder's name is no repository that PEFT could ask for"
        assert stored.keys() == loaded.keys(), "PEFT has all of it and nothing else"
        for name, value in stored.items():
            assert torch.equal(value, loaded[name]), name
        assert METADATA.items() <= read_header(folder / root / "adapter_model.safetensors")["__metadata__"].items()


KOHYA = {
    # as in files of sd-scripts; with one residual block a level, SDXL's second begins at input_blocks.3
    "flux1": ("lora_unet_double_blocks_0_img_attn_qkv", "lora_unet_single_blocks_1_linear1"),
    "sd15": (
        "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q",
        "lora_te_text_model_encoder_layers_0_mlp_fc1",
    ),
    "sdxl": (
        "lora_unet_input_blocks_3_1_transformer_blocks_0_attn1_to_q",
        "lora_unet_middle_block_0_in_layers_2",
        "lora_te1_text_model_encoder_layers_0_mlp_fc1",
        "lora_te2_text_model_encoder_layers_2_self_attn_q_proj",
    ),
}


@pytest.mark.parametrize("family", KOHYA)
def test_kohyas_names(family: str, case: Callable[..., Case], tmp_path: Path) -> None:
    tensors = load_file(case(family, "lora").export("kohya", tmp_path))
    for name in KOHYA[family]:
        assert {f"{name}.lora_down.weight", f"{name}.lora_up.weight", f"{name}.alpha"} <= tensors.keys()
    assert {key.split(".", 1)[1] for key in tensors} == {"lora_down.weight", "lora_up.weight", "alpha"}


FORMS = [
    (family, kind, form)
    for family in ("flux1", "sd15", "sdxl")
    for kind in CONFIGS
    for form in ("diffusers", "peft", "kohya")
    if (kind == "dora, denoiser") == (form == "diffusers" and kind not in ("lora",))
    and not (form == "kohya" and family == "flux1" and kind != "lora")
]


@pytest.mark.parametrize(("family", "kind", "form"), FORMS)
def test_our_reader_reads_it_back(family: str, kind: str, form: str, case: Callable[..., Case], tmp_path: Path) -> None:
    made = case(family, kind)
    path = made.export(form, tmp_path)
    if form == "peft":
        tensors: dict[str, Tensor] = {}
        for file in path.rglob("*.safetensors"):
            root = "" if file.parent == path else f"{file.parent.name}."
            tensors |= {
                root + key.removeprefix("base_model.model.") if root else key: value
                for key, value in load_file(file).items()
            }
        scales = {root: json.loads((path / root / "adapter_config.json").read_text()) for root in made.adapter.roots}
    else:
        tensors, scales = load_file(path), {}
    back = for_roots(parse(tensors), made.models(), made.base)
    assert back.keys() == made.adapter.layers.keys()
    for name, change in made.adapter.deltas().items():
        scale = 1.0
        if scales:  # PEFT has it in the configuration and not in the file
            root = next((root for root in made.adapter.roots if root and name.startswith(f"{root}.")), "")
            scale = peft_scale(scales[root], name.removeprefix(f"{root}.") if root else name)
        torch.testing.assert_close(dense(back[name]) * scale, dense(change), rtol=1e-5, atol=1e-6)


def peft_scale(config: dict[str, Any], path: str) -> float:
    rank = config["rank_pattern"].get(f"^{path}", config["r"])
    return config["alpha_pattern"].get(f"^{path}", config.get("lora_alpha", config.get("alpha"))) / rank


# --- precision, refusals, places -------------------------------------------------------------------------------------


@pytest.mark.parametrize(("alpha", "dtype"), [(4.0, torch.bfloat16), (3.0, torch.float32)])
def test_the_files_precision_is_kept_where_it_is_exact(
    alpha: float, dtype: torch.dtype, sources: Callable[[str], Path], tmp_path: Path
) -> None:
    """alpha / rank of 2 is a shift of the exponent; 1.5 makes more digits than bfloat16 has."""
    made = case_of("flux1", AdapterConfig(rank=2, alpha=alpha), sources("flux1"), tmp_path, torch.bfloat16)
    (tmp_path / "out").mkdir()
    tensors = load_file(made.export("diffusers", tmp_path / "out"))
    assert {value.dtype for value in tensors.values()} == {dtype}
    for name, change in made.adapter.deltas().items():
        delta = (
            tensors[f"transformer.{name}.lora_B.weight"].double()
            @ tensors[f"transformer.{name}.lora_A.weight"].double()
        )
        expected = change.scale * change.up.double() @ change.down.double()  # type: ignore[union-attr]
        assert torch.equal(delta, expected), name


@pytest.mark.parametrize(
    ("family", "kind", "form", "message"),
    [
        ("flux1", "lokr", "diffusers", "LoKr, which diffusers' load_lora_weights does not read.*--to peft"),
        ("sdxl", "loha", "diffusers", "LoHa, which diffusers"),
        ("sdxl", "dora", "diffusers", "text_encoder.*DoRA.*magnitudes"),
        ("flux1", "dora", "kohya", "DoRA; sd-scripts has this layer as a part of"),
        ("flux1", "lokr", "kohya", "LoKr; sd-scripts"),
        ("flux1", "loha", "kohya", "LoHa; sd-scripts"),
    ],
)
def test_what_cannot_be_expressed_is_refused(
    family: str, kind: str, form: str, message: str, case: Callable[..., Case], tmp_path: Path
) -> None:
    with pytest.raises(AdapterError, match=message):
        case(family, kind).export(form, tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_lokr_that_peft_cuts_otherwise_is_refused(case: Callable[..., Case], tmp_path: Path) -> None:
    """One layer's w1 turned into another shape: no decompose_factor gives both."""
    made = case("flux1", "lokr, whole")
    tensors = load_file(made.file)
    name = next(key for key in tensors if key.endswith("lokr_w1"))
    w2 = name.replace("w1", "w2")
    tensors[name], tensors[w2] = tensors[w2].contiguous(), tensors[name].contiguous()
    odd = tmp_path / "odd.safetensors"
    odd.write_bytes(serialize(tensors, {}))
    with pytest.raises(AdapterError, match="decompose_factor"):
        export_as("peft", odd, made.model, "odd", tmp_path)


def test_layers_that_end_alike_are_told_apart(case: Callable[..., Case], tmp_path: Path) -> None:
    """FLUX.1's last layer is `proj_out`, and every single block has one too."""
    made = case("flux1", "lora")
    source = torch.Generator().manual_seed(0)
    down, up = torch.randn(2, 128, generator=source), torch.randn(64, 2, generator=source)
    file = tmp_path / "last.safetensors"
    file.write_bytes(
        serialize({"transformer.proj_out.lora_A.weight": down, "transformer.proj_out.lora_B.weight": up}, {})
    )
    folder = export_as("peft", file, made.model, "last", tmp_path)
    model = peft.PeftModel.from_pretrained(made.models()[""], folder)
    assert adapted_layers(model) == {"proj_out"}
    path = export_as("diffusers", file, made.model, "last", tmp_path)
    pipeline = pipeline_of(made)
    pipeline.load_lora_weights(str(path.parent), weight_name=path.name)
    assert adapted_layers(pipeline.transformer) == {"proj_out"}


def test_nothing_is_overwritten(case: Callable[..., Case], tmp_path: Path) -> None:
    made = case("flux1", "lora")
    names = {made.export(form, tmp_path).name for form in ("diffusers", "diffusers", "peft", "peft")}
    assert names == {"tiny_diffusers.safetensors", "tiny_diffusers_2.safetensors", "tiny_peft", "tiny_peft_2"}
    with pytest.raises(SaveError, match="is there already"):
        export_as("diffusers", made.file, made.model, "tiny", tmp_path / "tiny_diffusers.safetensors")
    with pytest.raises(SaveError, match="ending"):
        export_as("diffusers", made.file, made.model, "tiny", tmp_path / "tiny.pt")
    assert export_as("peft", made.file, made.model, "x", tmp_path / "here").name == "here"


def test_a_file_for_another_base_is_refused(
    case: Callable[..., Case], sources: Callable[[str], Path], tmp_path: Path
) -> None:
    other = ModelConfig(family="sd15", source=str(sources("sd15")))
    with pytest.raises(FoundryError, match="another base"):
        export_as("diffusers", case("flux1", "lora").file, other, "tiny", tmp_path)
