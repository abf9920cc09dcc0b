"""The same weights give the same outputs, bit for bit, from a diffusers folder and from single files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
import transformers
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from trainer_core.errors import BaseModelError
from trainer_core.families.flux1.single_file import FLUX1
from trainer_core.families.sources.layout import Layout
from trainer_core.families.sources.source import Source, open_source
from trainer_core.families.stable_diffusion.layouts import SD1, SDXL

from .checkpoints import spec_of, write_checkpoint, write_parts
from .small_models import SCHEDULER, small_flux, small_sd, small_sdxl

CPU = torch.device("cpu")
KINDS = {
    "unet": "UNet2DConditionModel",
    "transformer": "FluxTransformer2DModel",
    "vae": "AutoencoderKL",
    "text_encoder": "CLIPTextModel",
}
SECOND = {"sdxl": "CLIPTextModelWithProjection", "flux1": "T5EncoderModel"}


LAYOUTS: dict[str, tuple[Layout, Callable[[Path], Path]]] = {
    "sd1": (SD1, small_sd),
    "sdxl": (SDXL, small_sdxl),
    "flux1": (FLUX1, small_flux),
}
PARTS = [(name, part) for name, (layout, _) in LAYOUTS.items() for part in layout.parts]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("models")
    return {name: make(root / name) for name, (_, make) in LAYOUTS.items()}


@pytest.fixture(scope="module")
def checkpoints(folders: dict[str, Path]) -> dict[str, Path]:
    return {
        name: write_checkpoint(folder, LAYOUTS[name][0], folder.parent / f"{name}.safetensors")
        for name, folder in folders.items()
    }


@pytest.fixture(scope="module")
def separate(folders: dict[str, Path]) -> dict[str, dict[str, Path]]:
    return {
        name: write_parts(folder, LAYOUTS[name][0], folder.parent / "parts" / name) for name, folder in folders.items()
    }


def kind(layout: str, part: str) -> Any:
    name = SECOND[layout] if part == "text_encoder_2" else KINDS[part]
    return getattr(diffusers, name, None) or getattr(transformers, name)


def loaded(source: Source, layout: str, part: str, dtype: torch.dtype = torch.float32) -> nn.Module:
    return source.load(part, kind(layout, part), dtype, CPU)


def opened(layout: str, path: Path, files: dict[str, Path] | None = None) -> Source:
    given = {part: str(file) for part, file in (files or {}).items()}
    return open_source(str(path), spec_of(LAYOUTS[layout][0]), LAYOUTS[layout][0], given)


def output(layout: str, part: str, model: Any) -> list[Tensor]:
    """What a part makes of fixed inputs."""
    with torch.no_grad():
        if part.startswith("text_encoder"):
            found = model(torch.arange(24).view(2, 12) * 7 % 300, output_hidden_states=True)
            return [value for value in found.to_tuple() if isinstance(value, Tensor)] + list(found.hidden_states)
        if part == "vae":
            pixels = drawn(1, 3, 32, 32)
            mean = model.encode(pixels).latent_dist.mean
            return [mean, model.decode(mean).sample]
        if part == "transformer":
            ids = torch.zeros(6, 3)
            return [
                model(
                    hidden_states=drawn(1, 6, 64),
                    encoder_hidden_states=drawn(1, 5, 32),
                    pooled_projections=drawn(1, 64),
                    timestep=torch.tensor([0.5]),
                    guidance=torch.tensor([3.5]),
                    img_ids=ids,
                    txt_ids=torch.zeros(5, 3),
                ).sample
            ]
        added = {"text_embeds": drawn(2, 64), "time_ids": drawn(2, 6)} if layout == "sdxl" else None
        text = drawn(2, 7, model.config.cross_attention_dim)
        return [model(drawn(2, 4, 8, 8), torch.tensor([3, 900]), text, added_cond_kwargs=added).sample]


def drawn(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))


def assert_equal(layout: str, part: str, one: nn.Module, other: nn.Module) -> None:
    first, second = output(layout, part, one), output(layout, part, other)
    assert len(first) == len(second) > 0
    for a, b in zip(first, second, strict=True):
        assert torch.isfinite(a).all()
        assert torch.equal(a, b)


@pytest.mark.parametrize(("layout", "part"), PARTS)
def test_a_checkpoint_gives_the_folders_outputs(
    layout: str, part: str, folders: dict[str, Path], checkpoints: dict[str, Path]
) -> None:
    folder, file = opened(layout, folders[layout]), opened(layout, checkpoints[layout])
    ours, theirs = loaded(file, layout, part), loaded(folder, layout, part)
    assert_equal(layout, part, theirs, ours)
    assert not ours.training
    assert not any(parameter.requires_grad for parameter in ours.parameters())
    ours_weights, theirs_weights = ours.state_dict(), theirs.state_dict()
    assert ours_weights.keys() == theirs_weights.keys()
    assert all(torch.equal(ours_weights[name], tensor) for name, tensor in theirs_weights.items())
    assert all(tensor.is_contiguous() for tensor in ours_weights.values())


@pytest.mark.parametrize(("layout", "part"), PARTS)
def test_separate_files_give_the_folders_outputs(
    layout: str, part: str, folders: dict[str, Path], separate: dict[str, dict[str, Path]]
) -> None:
    files = dict(separate[layout])
    denoiser = files.pop("transformer" if layout == "flux1" else "unet")
    file = opened(layout, denoiser, files)
    assert_equal(layout, part, loaded(opened(layout, folders[layout]), layout, part), loaded(file, layout, part))
    assert file.file(part) == (denoiser if part in ("unet", "transformer") else files[part])


@pytest.mark.parametrize(
    ("layout", "part"), [("sd1", "unet"), ("sdxl", "unet"), ("flux1", "transformer"), ("sd1", "vae")]
)
def test_single_files_in_diffusers_names(layout: str, part: str, folders: dict[str, Path], tmp_path: Path) -> None:
    named = next((folders[layout] / part).glob("*.safetensors"))
    files = {"text_encoder", "text_encoder_2", "vae"} & set(LAYOUTS[layout][0].parts)
    given = write_parts(folders[layout], LAYOUTS[layout][0], tmp_path)
    denoiser = "transformer" if layout == "flux1" else "unet"
    given[part] = named
    file = opened(layout, given[denoiser], {name: given[name] for name in files})
    assert_equal(layout, part, loaded(opened(layout, folders[layout]), layout, part), loaded(file, layout, part))


def test_a_vae_in_the_names_that_published_sd_has(folders: dict[str, Path], tmp_path: Path) -> None:
    """diffusers changed its names of attention layers in 2023; `query` and so on are the older ones."""
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    weights = load_file(folders["sd1"] / "vae" / "diffusion_pytorch_model.safetensors")
    renamed = {}
    for name, tensor in weights.items():
        for new, before in old.items():
            name = name.replace(f"attentions.0.{new}.", f"attentions.0.{before}.")
        renamed[name] = tensor
    assert renamed.keys() != weights.keys()
    save_file(renamed, tmp_path / "vae.safetensors")
    files = write_parts(folders["sd1"], SD1, tmp_path / "parts")
    file = opened("sd1", files["unet"], {"text_encoder": files["text_encoder"], "vae": tmp_path / "vae.safetensors"})
    assert_equal("sd1", "vae", loaded(opened("sd1", folders["sd1"]), "sd1", "vae"), loaded(file, "sd1", "vae"))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize(("layout", "part"), PARTS)
def test_precision_is_that_of_the_libraries(
    layout: str, part: str, dtype: torch.dtype, folders: dict[str, Path], checkpoints: dict[str, Path]
) -> None:
    """transformers keeps some of T5 in fp32 when it loads the rest in fp16."""
    precise = {"torch_dtype" if hasattr(diffusers, kind(layout, part).__name__) else "dtype": dtype}
    theirs = kind(layout, part).from_pretrained(folders[layout] / part, **precise).state_dict()
    for path in (folders[layout], checkpoints[layout]):
        ours = loaded(opened(layout, path), layout, part, dtype).state_dict()
        assert ours.keys() == theirs.keys()
        for name, tensor in theirs.items():
            assert ours[name].dtype == tensor.dtype, name
            assert torch.equal(ours[name], tensor), name


def test_tied_weights_stay_one(checkpoints: dict[str, Path]) -> None:
    t5 = loaded(opened("flux1", checkpoints["flux1"]), "flux1", "text_encoder_2")
    assert t5.get_submodule("shared").weight is t5.get_submodule("encoder.embed_tokens").weight


def test_a_part_of_a_folder_is_replaced_by_a_file(folders: dict[str, Path], tmp_path: Path) -> None:
    files = write_parts(folders["sd1"], SD1, tmp_path)
    changed = {name: tensor * 2 for name, tensor in load_file(files["vae"]).items()}
    save_file(changed, files["vae"])
    plain = opened("sd1", folders["sd1"])
    replaced = opened("sd1", folders["sd1"], {"vae": files["vae"]})
    name = "decoder.conv_in.weight"
    assert torch.equal(
        loaded(replaced, "sd1", "vae").state_dict()[name], 2 * loaded(plain, "sd1", "vae").state_dict()[name]
    )
    assert_equal("sd1", "unet", loaded(plain, "sd1", "unet"), loaded(replaced, "sd1", "unet"))


def test_fingerprints_follow_a_parts_content(
    folders: dict[str, Path], checkpoints: dict[str, Path], tmp_path: Path
) -> None:
    def changed(weights: dict[str, Tensor]) -> dict[str, Tensor]:
        return {name: tensor + 1 if name.startswith("model.") else tensor for name, tensor in weights.items()}

    def changed_inside(weights: dict[str, Tensor]) -> dict[str, Tensor]:
        """One number of one weight, more than 4 KB from both of its ends."""
        name, tensor = max(weights.items(), key=lambda item: item[1].numel() * item[0].startswith("model."))
        other = tensor.clone()
        other.view(-1)[tensor.numel() // 2] += 1
        assert tensor.nbytes > 3 * 4096
        return {**weights, name: other}

    before = opened("sd1", checkpoints["sd1"])
    inside = opened("sd1", write_checkpoint(folders["sd1"], SD1, tmp_path / "inside.safetensors", changed_inside))
    assert before.fingerprint("unet") != inside.fingerprint("unet")
    copy = opened("sd1", write_checkpoint(folders["sd1"], SD1, tmp_path / "copy.safetensors"))
    after = opened("sd1", write_checkpoint(folders["sd1"], SD1, tmp_path / "after.safetensors", changed))
    assert before.fingerprint("vae", "unet") == copy.fingerprint("vae", "unet")
    assert before.fingerprint("vae", "text_encoder") == after.fingerprint("vae", "text_encoder")
    assert before.fingerprint("unet") != after.fingerprint("unet")
    assert before.name == "sd1.safetensors"


# --- the schedule ----------------------------------------------------------------------------------------------------


def marked(folder: Path, path: Path, keys: tuple[str, ...] = (), **metadata: str) -> dict[str, Any]:
    """The scheduler's configuration of a checkpoint with marker tensors and metadata."""

    def with_keys(weights: dict[str, Tensor]) -> dict[str, Tensor]:
        return {**weights, **{key: torch.tensor([]) for key in keys}}

    file = write_checkpoint(folder, SDXL, path, with_keys, {key.replace("_", ".", 1): v for key, v in metadata.items()})
    return opened("sdxl", file).config("scheduler")


@pytest.mark.parametrize(
    ("keys", "metadata", "prediction", "zero"),
    [
        ((), {}, "epsilon", False),
        (("v_pred",), {}, "v_prediction", False),
        (("v_pred", "ztsnr"), {}, "v_prediction", True),
        ((), {"modelspec_prediction_type": "v"}, "v_prediction", False),
        ((), {"modelspec_prediction_type": "epsilon"}, "epsilon", False),
    ],
)
def test_the_schedule_that_a_checkpoint_marks(
    keys: tuple[str, ...],
    metadata: dict[str, str],
    prediction: str,
    zero: bool,
    folders: dict[str, Path],
    tmp_path: Path,
) -> None:
    found = marked(folders["sdxl"], tmp_path / "marked.safetensors", keys, **metadata)
    assert (found["prediction_type"], found["rescale_betas_zero_snr"]) == (prediction, zero)
    assert {key: found[key] for key in SCHEDULER if key != "prediction_type"} == {
        key: value for key, value in SCHEDULER.items() if key != "prediction_type"
    }


def test_an_unknown_schedule_is_refused(folders: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(BaseModelError, match=r"edm\.safetensors: .*EDM"):
        marked(folders["sdxl"], tmp_path / "edm.safetensors", ("edm_mean", "edm_std"))


def test_schnell_has_no_shift(folders: dict[str, Path], tmp_path: Path) -> None:
    def without_guidance(weights: dict[str, Tensor]) -> dict[str, Tensor]:
        return {name: tensor for name, tensor in weights.items() if ".guidance_in." not in name}

    dev = opened("flux1", write_checkpoint(folders["flux1"], FLUX1, tmp_path / "dev.safetensors"))
    schnell = opened(
        "flux1", write_checkpoint(folders["flux1"], FLUX1, tmp_path / "schnell.safetensors", without_guidance)
    )
    assert (dev.config("scheduler")["use_dynamic_shifting"], dev.config("scheduler")["shift"]) == (True, 3.0)
    assert (schnell.config("scheduler")["use_dynamic_shifting"], schnell.config("scheduler")["shift"]) == (False, 1.0)
    assert not schnell.config("transformer")["guidance_embeds"]
    loaded(schnell, "flux1", "transformer")


def test_a_checkpoint_without_some_of_its_weights(folders: dict[str, Path], tmp_path: Path) -> None:
    gone = "first_stage_model.decoder.mid.block_1.conv1.weight"

    def without(weights: dict[str, Tensor]) -> dict[str, Tensor]:
        return {name: tensor for name, tensor in weights.items() if name != gone}

    file = write_checkpoint(folders["sd1"], SD1, tmp_path / "holes.safetensors", without)
    with safe_open(file, "pt") as written:
        assert gone not in written.keys()  # noqa: SIM118
    with pytest.raises(BaseModelError, match=r"holes\.safetensors: is incomplete: .*block_1\.conv1\.weight"):
        loaded(opened("sd1", file), "sd1", "vae")
