"""What a LoRA file says of itself: for other tools (`modelspec.*`, `ss_*`), and enough to train it again.

No dates, no absolute paths, no user names: the same training gives the same bytes, and a shared file tells nothing
about the machine that made it.
"""

from __future__ import annotations

import json
from pathlib import PurePath
from typing import TYPE_CHECKING, Any

from .. import __version__
from ..config import JobConfig

if TYPE_CHECKING:
    from ..families.base import Base


_PREDICTIONS = {"epsilon": "epsilon", "v_prediction": "v"}
"""Of a schedule → modelspec's; for flow matching it has no word, and kohya writes none."""


def lora_metadata(
    job: JobConfig,
    base: Base,
    *,
    step: int,
    loss: float | None,
    weights: str,
    images: list[int],
    dataset_digest: str,
    base_hash: str,
    deterministic: str,
) -> dict[str, str]:
    """Metadata of a LoRA after `step` updates.

    Args:
        step: updates made.
        loss: mean over the last steps.
        weights: raw or ema, which of them the file holds.
        images: number of images in each data set.
        dataset_digest: of all files and captions.
        base_hash: of the denoiser's weights.
        deterministic: whether the same training gives the same bits again, and if not, why.
    """
    rank = job.adapter.rank
    triggers = sorted({dataset.trigger for dataset in job.datasets if dataset.trigger})
    values: dict[str, Any] = {
        "format": "pt",
        "modelspec.sai_model_spec": "1.0.1",
        "modelspec.title": job.name,
        "modelspec.architecture": f"{base.spec.architecture or base.spec.name}/lora",
        "modelspec.implementation": "lora-foundry",
        "modelspec.prediction_type": _PREDICTIONS.get(base.schedule.prediction, ""),
        "modelspec.trigger_phrase": ", ".join(triggers),
        "modelspec.resolution": "x".join(str(max(job.datasets[0].resolutions)) for _ in range(2)),
        "ss_output_name": job.name,
        "ss_base_model_version": base.spec.base_model_version or base.spec.name,
        "ss_sd_model_name": base.source.name,
        **_network(job),
        "ss_network_dim": rank,
        "ss_network_alpha": job.adapter.scale * rank,
        "ss_learning_rate": job.train.learning_rate,
        "ss_lr_scheduler": job.train.lr_scheduler,
        "ss_optimizer": job.train.optimizer,
        "ss_batch_size_per_device": job.train.batch_size,
        "ss_gradient_accumulation_steps": job.train.gradient_accumulation,
        "ss_max_train_steps": job.train.steps,
        "ss_steps": step,
        "ss_seed": job.train.seed,
        **_images(job, images),
        "lora_foundry.version": __version__,
        "lora_foundry.config": json.dumps(without_paths(job, base), sort_keys=True),
        "lora_foundry.weights": weights,
        "lora_foundry.base_hash": base_hash,
        "lora_foundry.base_precision": base.precision,
        "lora_foundry.deterministic": deterministic,
        "lora_foundry.dataset_digest": dataset_digest,
    }
    if loss is not None:
        values["lora_foundry.final_loss"] = f"{loss:.6g}"
    return {key: str(value) for key, value in values.items() if value != ""}


def _network(job: JobConfig) -> dict[str, Any]:
    """The kind of adapter in kohya's words: its own module, or LyCORIS'."""
    adapter = job.adapter
    kinds: dict[str, dict[str, Any]] = {
        "lora": {},
        "dora": {"algo": "lora", "dora_wd": True},
        "lokr": {"algo": "lokr", "factor": adapter.factor},
        "loha": {"algo": "loha"},
    }
    arguments = kinds[adapter.type]
    module = "lycoris.kohya" if arguments else "networks.lora"
    if adapter.conv_rank is not None:
        arguments |= {"conv_dim": adapter.conv_rank, "conv_alpha": adapter.conv_scale * adapter.conv_rank}
    given = {key: str(value) for key, value in arguments.items()}
    return {"ss_network_module": module, "ss_network_args": json.dumps(given) if given else ""}


def _images(job: JobConfig, images: list[int]) -> dict[str, Any]:
    """How many images were trained on, how many kept the model from drifting, and how many have which trigger.

    A folder goes by its own name alone; what folders of the same name hold is added up.
    """
    counts = {"train": 0, "regularization": 0, "validation": 0}
    frequency: dict[str, dict[str, int]] = {}
    for dataset, count in zip(job.datasets, images, strict=True):
        counts[dataset.role] += count
        if dataset.trigger:
            of_folder = frequency.setdefault(PurePath(dataset.folder).name, {})
            of_folder[dataset.trigger] = of_folder.get(dataset.trigger, 0) + count
    return {
        "ss_num_train_images": counts["train"],
        "ss_num_reg_images": counts["regularization"],
        "ss_tag_frequency": json.dumps(frequency),
    }


def without_paths(job: JobConfig, base: Base) -> dict[str, Any]:
    """The job with folders and files by their names alone."""
    data: dict[str, Any] = job.model_dump(mode="json")
    data["model"]["source"] = base.source.name
    model = data["model"]
    model["files"] = {part: PurePath(file).name for part, file in model["files"].items()}
    recovery = model["recovery_adapter"]
    model["recovery_adapter"] = PurePath(recovery).name if recovery else None
    model["tokenizers"] = PurePath(model["tokenizers"]).name if model["tokenizers"] else None
    for dataset in data["datasets"]:
        dataset["folder"] = PurePath(dataset["folder"]).name
        dataset["mask_folder"] = PurePath(dataset["mask_folder"]).name if dataset["mask_folder"] else None
        dataset["control_folders"] = [PurePath(folder).name for folder in dataset["control_folders"]]
    data["sample"]["controls"] = [[PurePath(file).name for file in files] for files in data["sample"]["controls"]]
    if data["adapter"]["warm_start"]:
        data["adapter"]["warm_start"] = PurePath(data["adapter"]["warm_start"]).name
    return data
