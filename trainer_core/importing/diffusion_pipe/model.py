"""diffusion-pipe's base model and adapter."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from .. import models, shared
from ..models import DTYPES, OURS, UNETS
from ..rules import (
    Outcome,
    Table,
    View,
    drop,
    each,
    listed,
    number,
    one_of,
    section,
    shown,
    switch,
    to,
    whole,
    with_,
    word,
)

_EDITING = {"flux1": "flux1_kontext"}
"""Family → the one of the same kind that edits, which only its files' names tell."""
_SOURCES = ("model.diffusion_model", "model.transformer_path", "model.single_file_path", "model.checkpoint_path")
_FOLDERS = ("model.diffusers_path", "model.ckpt_path")


def family_of(view: View) -> str | None:
    """Our family of the job's base; None if it is another's."""
    kind = OURS.get(str(view["model.type"]))
    named = " ".join(str(view[key] or "") for key in (*_SOURCES, *_FOLDERS)).lower()
    return _EDITING.get(kind, kind) if kind and "kontext" in named else kind


def _family(value: Any, view: View) -> Outcome:
    found = family_of(view)
    if found is None:
        return models.family(value, view)
    fields: dict[str, Any] = {"model.family": found}
    usual = view.read("optimizer.lr", number, 0.0)
    rates = [view.read(f"model.text_encoder_{k}_lr", number, usual) for k in (1, 2)]
    if found in UNETS and (on := [rate for rate in rates if rate]):
        # the text encoders are always trained there
        fields |= {"adapter.text_encoders": True, "train.text_encoder_lr": on[0]}
        other = "" if len({*rates}) == 1 else "; there is one rate for all text encoders, the first"
        say = f"{shown(value)} is family {found} here, with its text encoders{other}"
        return Outcome("converted", say, fields)
    return Outcome("taken", f"{shown(value)} is family {found} here", fields)


def _file(value: Any, view: View) -> Outcome:
    """The denoiser's file, or the checkpoint: the first that is named."""
    first = next((view[key] for key in _SOURCES if view[key]), None)
    if first is None:
        return Outcome("unused", "is empty")
    if value != first:
        return Outcome("dropped", f"model.source is {shown(first)}")
    if view["model.diffusers_path"] and family_of(view):
        say = "is the source: name text encoders and VAE in model.files, they are not taken from model.diffusers_path"
        return Outcome("converted", say, {"model.source": word(value)})
    return models.path("model.source")(value, view)


def _folder(value: Any, view: View) -> Outcome:
    """A folder with all parts."""
    if file := next((view[key] for key in _SOURCES if view[key]), None):
        return Outcome("dropped", f"model.source is {shown(file)}; parts that it lacks are named in model.files")
    if family_of(view) is None:
        say = f"{shown(value)} is a folder: name the diffusion model's file, as ComfyUI loads it"
        return Outcome("converted", say, {"model.source": word(value)})
    return models.path("model.source")(value, view)


def _encoders(value: Any, _: View) -> Outcome:
    """Text encoders as a list of sections with `path` or `paths`."""
    paths: list[str] = []
    for one in listed(value):
        given = section(one)
        paths += [word(path) for path in listed(given.get("paths", given.get("path", [])))]
    names = ("text_encoder", "text_encoder_2", "text_encoder_3", "text_encoder_4")
    fields = dict(zip((f"model.files.{name}" for name in names), paths, strict=False))
    if not fields:
        return Outcome("unused", "is empty")
    return Outcome("converted", "ComfyUI finds the type of a text encoder by the model", fields)


def _adapters(value: Any, _: View) -> Outcome:
    files = [section(one).get("path") if isinstance(one, dict) else one for one in listed(value)]
    if len(files) != 1:
        return Outcome("dropped" if files else "unused", "one training adapter is all that can be on")
    say = "is on while training, off while drawing, and no part of the LoRA"
    return Outcome("converted", say, {"model.files.training_adapter": word(files[0])})


def _held(value: Any, view: View) -> Outcome:
    """Precision of the frozen denoiser, when it is less than the base's."""
    if word(value).lower() in DTYPES:
        return one_of("model.dtype", DTYPES)(value, view)
    return models.quantization("model.quantization")(value, view)


def _dtype(value: Any, view: View) -> Outcome:
    held = view["model.transformer_dtype"] or view["model.diffusion_model_dtype"]
    if isinstance(held, str) and held.lower() in DTYPES:
        return Outcome("unused", "the denoiser has a precision of its own")
    return one_of("model.dtype", DTYPES)(value, view)


def _rank(value: Any, view: View) -> Outcome:
    made = models.rank(value, view)
    targets = {} if family_of(view) in UNETS else {"adapter.targets": "all"}
    return replace(made, fields={**made.fields, **targets})


_RATES = "there is one learning rate beside that of text encoders"
_HAS_NONE = "has no counterpart"

TABLE: Table = {
    "model.type": _family,
    **each(_file, " ".join(_SOURCES)),
    **each(_folder, " ".join(_FOLDERS)),
    **models.files({"model.vae_path": "vae", "model.vae": "vae", "model.clip_path": "text_encoder_2"}),
    **models.files({"model.text_encoder_path": "text_encoder", "model.llm_path": "text_encoder"}),
    **models.files({"model.t5_path": "text_encoder", "model.text_encoder": "text_encoder"}),
    **models.files({"model.byt5_path": "text_encoder_2", "model.llama3_path": "text_encoder_4"}),
    "model.text_encoders": _encoders,
    "model.audio_vae": drop("an audio VAE comes over a link, in ComfyUI's graph"),
    "model.merge_adapters": _adapters,
    "model.dtype": _dtype,
    **each(_held, "model.transformer_dtype model.diffusion_model_dtype"),
    "model.text_encoder_fp8": to("model.text_encoder_quantization", lambda on: "float8" if switch(on) else "none"),
    **each(
        to("model.text_encoder_quantization", lambda on: "nf4" if switch(on) else "none"),
        "model.text_encoder_nf4 model.llama3_4bit",
    ),
    **each(with_("model.type"), "model.text_encoder_1_lr model.text_encoder_2_lr"),
    **each(drop(_RATES), "model.llm_adapter_lr model.self_attn_lr model.cross_attn_lr model.mlp_lr model.mod_lr"),
    "model.llm_adapter_path": drop(_HAS_NONE),
    **each(drop(shared.FROM_BASE), "model.v_pred model.max_sequence_length model.max_llama3_sequence_length"),
    **each(drop(shared.GUIDANCE, 1), "model.guidance model.bypass_guidance_embedding"),
    "model.cfg": drop("regularization.contrastive_guidance is what comes near"),
    "adapter.type": one_of("adapter.type", {"lora": "lora", "lokr": "lokr"}),
    "adapter.rank": _rank,
    "adapter.dropout": to("adapter.dropout", number),
    "adapter.rank_dropout": drop(shared.ONE_DROPOUT),
    "adapter.decompose_factor": to("adapter.factor", whole),
    "adapter.dtype": drop(shared.FLOAT32, "float32"),
    "adapter.init_from_existing": models.path("adapter.warm_start"),
    "adapter.fuse_adapters": drop(shared.MERGED),
    "adapter.exclude_modules": drop("which layers are adapted says adapter.targets"),
}
"""By path."""
