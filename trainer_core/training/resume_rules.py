"""What may be different when a run goes on, and what is refused: the one list.

A run that was stopped ends as if it had never been only if its next updates compute what they would have computed. So
every setting that an update depends on must be the checkpoint's. What no update depends on may change, and is listed
here with the reason; a setting that is not listed must agree.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..config import JobConfig, Section, resolved, validated
from ..content import sha256_once
from ..errors import ConfigError, ResumeRefused
from .environment import FIRST_LAYERS, LAYERS, environment

if TYPE_CHECKING:
    from ..data.prepare import PreparedData
    from ..families.base import Base

_STEP = "optimizer step"
DATA = "data"
"""Stands for the contents of the data sets, which are no setting."""

_SAME_NUMBERS = "how memory is used changes no number"
_IN_THE_DIGEST = "the captions themselves are compared"
MAY_CHANGE: Mapping[str, str] = {
    "name": "names files",
    "trigger": "stands in for `[trigger]` in previews; training takes each data set's own",
    "model.source": "a place; the weights found there are compared",
    "model.files": "places; the weights found there are compared",
    "model.tokenizers": "a place; the files found there are compared",
    "model.device": "any device goes on; another one than before is told",
    "adapter.warm_start": "is read before the first update only",
    "datasets.folder": "a place; the files found there are compared",
    "datasets.mask_folder": "a place; the files found there are compared",
    "datasets.control_folders": "places; the files found there are compared",
    "datasets.caption_extension": _IN_THE_DIGEST,
    "datasets.caption_column": _IN_THE_DIGEST,
    "datasets.caption_per_line": _IN_THE_DIGEST,
    "datasets.default_caption": _IN_THE_DIGEST,
    "train.steps": "a run may be made longer or shorter; a learning rate that falls until the end is told",
    "train.gradient_checkpointing": "computes the same numbers, some of them twice",
    "train.skip_limit": "says when to give up, not what to train",
    "train.log_every": "is about metrics.jsonl only",
    "validation.every": "measuring does not train",
    "validation.draws": "measuring does not train",
    "save": "is about the files only; a checkpoint's state is fp32 always",
    "sample": "previews draw from generators of their own",
    "memory.plan": _SAME_NUMBERS,
    "memory.limit_gb": _SAME_NUMBERS,
    "memory.checkpoint_every": _SAME_NUMBERS,
    "memory.keep_attention": _SAME_NUMBERS,
    "memory.offload_inputs": _SAME_NUMBERS,
    "memory.layer_offloading": _SAME_NUMBERS,
    "cache": "holds what would be computed again",
}
"""Settings, or whole sections, that no later update depends on, each with the reason."""

MAY_BE_ACCEPTED: Mapping[str, str] = {
    "train.learning_rate": "a rate that proves too high or too low is worth correcting",
    DATA: "pictures are added, removed and captioned better while a LoRA grows",
}
"""What changes the updates to come, and may do so by explicit wish: the reason for wishing it."""

_PLACES = {"datasets.folder", "datasets.mask_folder", "datasets.control_folders", "model.recovery_adapter"}
"""Folders and files whose contents are compared. Another one may be named, but not one where there was none."""


def facts(job: JobConfig, data: PreparedData, base: Base, known: Mapping[str, str], ranks: int = 1) -> dict[str, str]:
    """What a checkpoint says of itself, and resuming compares: the job, digests of data and base, who computes.

    Args:
        known: the `digests`, which take a while.
        ranks: processes that train it, each its part of a micro-batch.
    """
    from .optimizers import is_fused

    return {
        "config": settings_text(job),
        **known,
        "environment": json.dumps(
            environment(base.device, job.train.optimizer)
            | ({_STEP: "fused"} if is_fused(job.train, base.device) else {})
        ),
        "products": json.dumps(dict(base.products), sort_keys=True),
        "encoded_by": data.encoded_by(),
        **({"ranks": str(ranks)} if ranks > 1 else {}),
    }


def settings_text(job: JobConfig) -> str:
    """All settings of a job as a checkpoint holds them; places do not depend on the working folder."""
    return json.dumps(resolved(job, Path.cwd()).model_dump(mode="json"))


def digests(data: PreparedData, base: Base) -> dict[str, str]:
    """What the data and the base are, wherever they lie: dataset_digest, base_hash, encoders_hash, recovery_hash,
    base_settings.
    """
    recovery = base.config.recovery_adapter
    return {
        "dataset_digest": data.digest(),
        "base_hash": base.denoiser_fingerprint(),
        "encoders_hash": base.encoders_fingerprint(),
        "recovery_hash": sha256_once(Path(recovery)) if recovery else "",
        "base_settings": json.dumps(base.settings(), sort_keys=True),
    }


def sampled_hashes(base: Base) -> dict[str, str]:
    """What `digests` was of the base in checkpoints that knew large weights by samples, for `check_resume`."""
    twin = base.as_sampled()
    return {"base_hash_sampled": twin.denoiser_fingerprint(), "encoders_hash_sampled": twin.encoders_fingerprint()}


def check_resume(now: Mapping[str, str], saved: Mapping[str, str], accept: Collection[str] = ()) -> list[str]:
    """Whether a run may go on from a checkpoint.

    Args:
        now: the `facts` of the job that would go on; with its `sampled_hashes`, it also goes on from checkpoints
            that have those.
        saved: the checkpoint's metadata: the facts of then, and its `step`.
        accept: entries of `MAY_BE_ACCEPTED` that may differ by the user's wish.

    Returns:
        What the user should know, such as accepted changes and another version of torch; the updates to come, or their
        last bits, are then not those of a run that was never stopped.

    Raises:
        ResumeRefused: naming everything that differs and must not, with both values.
    """
    unknown = sorted(set(accept) - MAY_BE_ACCEPTED.keys())
    if unknown:
        raise ResumeRefused(
            f"{', '.join(unknown)}: cannot be accepted when a run goes on, only {' and '.join(MAY_BE_ACCEPTED)} can. "
            "Start a new run for it"
        )
    if "config" not in saved:
        return ["the checkpoint is of an older version and does not say what it was made with: nothing was compared"]
    step, job, job_then = int(saved["step"]), validated(JobConfig, json.loads(now["config"])), _config_of(saved)
    changed = _changed_settings(job_then, job)
    if not _same_hash("base_hash", saved, now):
        changed["model.source"] = _other_weights(job_then.model.source, job.model.source)
    elif not _same_hash("encoders_hash", saved, now):
        changed["model.source"] = "its text encoders, tokenizers or VAE are not those of before"
    elif other := _other_base_settings(saved, now, job):
        changed["model.source"] = other
    if saved.get("recovery_hash", "") != now.get("recovery_hash", "") and "model.recovery_adapter" not in changed:
        changed["model.recovery_adapter"] = "its weights are not those of before"
    if saved["dataset_digest"] != now["dataset_digest"] and not any("datasets" in field for field in changed):
        changed[DATA] = _other_data(job_then, job)
    refused = {field: what for field, what in changed.items() if field not in accept}
    processes = [one.get("ranks", "1") for one in (saved, now)]
    if len({*processes}) > 1:
        refused["train.batch_size"] = "it was trained by {} processes, and now {} would each train a batch".format(
            *processes
        )
    if job.train.steps < step:
        refused["train.steps"] = f"is {job.train.steps}, but the run has made {step} updates already"
    if refused:
        raise ResumeRefused(_refusal(step, refused), refused)
    return [
        *(f"{field}: {what} from step {step + 1} on" for field, what in changed.items()),
        *_new_length(job_then, job, step),
        *_compiled_anew(job_then, job, step),
        *_new_environment(saved, now, step),
        *_other_products(saved, now, step),
        *_encoded_elsewhere(saved, now, step),
    ]


def _changed_settings(then: JobConfig, now: JobConfig) -> dict[str, str]:
    """What must agree and does not: by the setting's place, such as `datasets[1].trigger`, both its values."""
    old, new, changed = dict(_settings(then)), dict(_settings(now)), {}
    if len(then.datasets) != len(now.datasets):
        changed["datasets"] = f"were {len(then.datasets)}, are {len(now.datasets)}"
    for field in old:
        if field in new and not _agree(_plain(field), old[field], new[field]):
            changed[field] = f"was {_shown(old[field])}, is {_shown(new[field])}"
    return changed


def _other_weights(was: str, new: str) -> str:
    return (
        f"the weights in {_shown(new)} have changed"
        if was == new
        else f"was {_shown(was)}, is {_shown(new)}, with other weights"
    )


def _same_hash(name: str, saved: Mapping[str, str], now: Mapping[str, str]) -> bool:
    known = [now.get(name), *(now[key] for key in (f"{name}_sampled",) if key in now)]
    return saved.get(name) in known


def _other_base_settings(saved: Mapping[str, str], now: Mapping[str, str], job: JobConfig) -> str:
    """What a base's configurations say otherwise than at the checkpoint; empty if nothing, or if it is not known."""
    if "base_settings" not in saved or "base_settings" not in now:
        return ""
    was, new = json.loads(saved["base_settings"]), json.loads(now["base_settings"])
    told = []
    for file in new:
        for name in sorted({*was.get(file, {}), *new[file]}):
            # a version says nothing of the noise, and a job that names its timestep type does not ask the base
            if name == "_diffusers_version" or (name == "timestep_type" and job.train.timestep_type != "auto"):
                continue
            old, found = (values.get(name) for values in (was.get(file, {}), new[file]))
            if old != found:
                told.append(f"{name} was {_shown(old)}, is {_shown(found)} ({file})")
    return "; ".join(told)


def _other_data(then: JobConfig, now: JobConfig) -> str:
    was, new = (", ".join(dataset.folder for dataset in job.datasets) for job in (then, now))
    where = f"in {new}" if was == new else f"in {new} (which was {was})"
    return f"images, masks, controls or captions {where} are not the same"


def _new_length(then: JobConfig, now: JobConfig, step: int) -> Iterator[str]:
    was, new = then.train.steps, now.train.steps
    if was != new and now.train.lr_scheduler != "constant":
        yield (
            f"train.steps: was {was}, is {new} from step {step + 1} on, where the learning rate "
            f"({now.train.lr_scheduler}) changes to that of the new length"
        )


def _compiled_anew(then: JobConfig, now: JobConfig, step: int) -> Iterator[str]:
    """Compiled, a block that keeps more for its gradient is other code, which rounds otherwise."""
    uses = [(job.train.gradient_checkpointing, job.memory.but(limit_gb=None)) for job in (then, now)]
    if now.memory.compile and uses[0] != uses[1]:
        yield f"from step {step + 1} on blocks are compiled for another use of memory, so that the last bits may differ"


def _new_environment(saved: Mapping[str, str], now: Mapping[str, str], step: int) -> Iterator[str]:
    untold = {LAYERS: FIRST_LAYERS, _STEP: "operation by operation"}
    was, new = ({**untold, **json.loads(one["environment"])} for one in (saved, now))
    differences = [
        f"{what} was {was[what]}, is {new.get(what, 'not told')}"
        for what in was  # of what an older version did not write down, nothing is known
        if was[what] != new.get(what)
    ]
    if differences:
        told = "; ".join(differences)
        yield f"from step {step + 1} on in another environment, where the last bits may differ: {told}"


def _other_products(saved: Mapping[str, str], now: Mapping[str, str], step: int) -> Iterator[str]:
    """They are chosen anew where the run's `products.json` is gone."""
    if saved.get("products", "{}") != now.get("products", "{}"):
        yield f"from step {step + 1} on other products with the quantized base are computed in 8 bits than before"


def _encoded_elsewhere(saved: Mapping[str, str], now: Mapping[str, str], step: int) -> Iterator[str]:
    """Entries of the cache that were made again; where data were exchanged, that is told already."""
    was, new = saved.get("encoded_by"), now.get("encoded_by")
    if None not in (was, new) and was != new and saved["dataset_digest"] == now["dataset_digest"]:
        yield (
            f"from step {step + 1} on with pictures or captions that were encoded again in another environment than "
            "before (the cache was cleared, or another run had filled it), so that the last bits may differ"
        )


def _refusal(step: int, refused: Mapping[str, str]) -> str:
    accepting = " ".join(f"--accept {field}" for field in MAY_BE_ACCEPTED if field in refused)
    return "\n".join(
        [
            f"the run cannot go on from its checkpoint at step {step}, because what it computes would change:",
            *(f"  {field}: {what}" for field, what in refused.items()),
            "Put that back"
            + (f", go on in spite of it (`{accepting}`)" if accepting else "")
            + ", or start a new run; with adapter.warm_start it begins from this one's LoRA",
        ]
    )


def _config_of(saved: Mapping[str, str]) -> JobConfig:
    """The checkpoint's job; fields that are newer than it have their defaults."""
    try:
        return validated(JobConfig, json.loads(saved["config"]))
    except (ConfigError, ValueError) as error:
        raise ResumeRefused(
            f"the checkpoint's own settings cannot be read, most likely it was made by a newer version. Update LoRA "
            f"Foundry, or start a new run: {error}"
        ) from None


def _settings(section: Section, place: str = "") -> Iterator[tuple[str, Any]]:
    """Every setting of a job with its place, such as `datasets[1].trigger`."""
    for name in type(section).model_fields:
        value = getattr(section, name)
        if isinstance(value, Section):
            yield from _settings(value, f"{place}{name}.")
        elif name == "datasets":
            for number, dataset in enumerate(value):
                yield from _settings(dataset, f"{place}{name}[{number}].")
        else:
            yield f"{place}{name}", value


def _plain(field: str) -> str:
    """`datasets.trigger` of `datasets[1].trigger`: the rules are the same for all of them."""
    return field if "[" not in field else field[: field.index("[")] + field[field.index("]") + 1 :]


def _agree(plain: str, was: Any, new: Any) -> bool:
    """Whether a setting's two values mean the same for the updates to come."""
    if plain in _PLACES:
        return _how_many(was) == _how_many(new)
    return was == new or plain in MAY_CHANGE or plain.partition(".")[0] in MAY_CHANGE


def _how_many(places: str | tuple[str, ...] | None) -> int:
    return len(places) if isinstance(places, tuple) else int(places is not None)


def _shown(value: Any) -> str:
    """As it stands in job.yaml."""
    return json.dumps(value, ensure_ascii=False)
