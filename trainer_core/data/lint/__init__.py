"""What is wrong with a data set, all of it at once and before anything is trained.

`lint` looks at one data set, `lint_job` at all of a job, across which images must not be doubled or leak into
validation. Both return a `LintReport`; they raise for a family that does not exist, and what `progress`
raises to stop them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from ...config import DatasetConfig, JobConfig, ModelConfig
from ...errors import BaseModelError
from ...families.registry import family_spec, spec_of
from ..buckets import DEFAULT_DIVISOR
from ..clips.timing import timing_of
from ..progress import Progress, silent
from .clips import ClipLook
from .duplicates import Alike
from .folders import check_folder
from .moving import check_clips
from .report import Finding, LintReport, Severity, ordered
from .sizes import check_buckets, check_sizes
from .survey import Circumstances, Survey, look_over
from .texts import check_captions
from .tokens import BaseTokenizer, TextTokenizer, find_tokenizers, tokenizers_or_reason
from .trigger import check_trigger

if TYPE_CHECKING:
    from ...families.spec import FamilySpec

__all__ = [
    "BaseTokenizer",
    "Finding",
    "LintReport",
    "Severity",
    "TextTokenizer",
    "find_tokenizers",
    "lint",
    "lint_job",
    "usual_model",
]


def lint(
    dataset: DatasetConfig,
    *,
    model: ModelConfig | None = None,
    job: JobConfig | None = None,
    classes: Sequence[str] = (),
    style: Sequence[str] = (),
    share: float = 0.0,
    tokenizers: Sequence[TextTokenizer] | None = None,
    progress: Progress = silent,
) -> LintReport:
    """Everything that is wrong with one data set.

    Args:
        dataset: the data set; broken folders are what this is for.
        model: the base, whose sizes and frames count and whose tokenizers are asked; None: not known yet, so that clips
            count as pictures do.
        job: what the set is part of; its model, batch size, class words and validation replace the other arguments.
        classes: class words, what the trigger is an example of.
        style: words that name the style, for style LoRAs; captions should not hold them.
        share: share of the images that validation holds out.
        tokenizers: those to ask instead of the base's.
        progress: hears what is being done.

    Raises:
        ConfigError: for an unknown family.
    """
    if job is not None:
        others = [one for one in job.datasets if one.role == "validation" and one.folder != dataset.folder]
        return _report([dataset], others, job.model, _circumstances(job, style), tokenizers, progress)
    spec = None if model is None else _spec(model)
    circumstances = Circumstances(
        divisor=spec.bucket_divisor if spec else DEFAULT_DIVISOR,
        spec=spec,
        classes=tuple(classes),
        trigger=dataset.trigger,
        style=tuple(style),
        share=share,
    )
    tokenizers = tokenizers if model else tokenizers or ()
    return _report([dataset], [], model or ModelConfig(), circumstances, tokenizers, progress)


def lint_job(
    job: JobConfig,
    *,
    style: Sequence[str] = (),
    tokenizers: Sequence[TextTokenizer] | None = None,
    progress: Progress = silent,
) -> LintReport:
    """Everything that is wrong with the data sets of a job, each alone and all together.

    Raises:
        ConfigError: for an unknown family.
    """
    return _report(job.datasets, [], job.model, _circumstances(job, style), tokenizers, progress)


def _circumstances(job: JobConfig, style: Sequence[str]) -> Circumstances:
    """What a job says about its data sets."""
    spec = _spec(job.model)
    return Circumstances(
        divisor=spec.bucket_divisor if spec else DEFAULT_DIVISOR,
        spec=spec,
        batch_size=job.train.batch_size,
        classes=job.regularization.classes,
        preserves_class=job.regularization.output_preservation,
        trigger=job.preview_trigger,
        style=tuple(style),
        share=job.validation.share,
    )


def usual_model(family: str) -> ModelConfig:
    """The base of a family that most people have.

    Raises:
        ConfigError: for an unknown family.
    """
    return ModelConfig(family=family, source=family_spec(family).default_repo)


def _spec(model: ModelConfig) -> FamilySpec | None:
    """The base as data; what keeps its family from being found is told with its tokenizers."""
    try:
        return spec_of(model, download=False)
    except BaseModelError:
        return None


def _report(
    datasets: Sequence[DatasetConfig],
    others: Sequence[DatasetConfig],
    model: ModelConfig,
    circumstances: Circumstances,
    tokenizers: Sequence[TextTokenizer] | None,
    progress: Progress,
) -> LintReport:
    """Surveys data sets and runs all checks; of `others`, only what they share with the data sets is told."""
    findings: list[Finding] = []

    def looked(dataset: DatasetConfig) -> Survey:
        return look_over(dataset, progress, timing_of(dataset, circumstances.spec))

    surveys = [looked(dataset) for dataset in datasets]
    if tokenizers is None and any(one.pictures for one in surveys):
        tokenizers, reason = tokenizers_or_reason(model)
        if reason:
            message = f"captions' lengths in tokens and what the base knows of the trigger are not checked: {reason}"
            findings.append(Finding("note", "tokenizers", (), message))
    where = replace(circumstances, tokenizers=tuple(tokenizers or ()))
    for one in surveys:
        findings += one.findings
        for check in (check_folder, check_sizes, check_clips, check_captions):
            findings += check(one, where)
    findings += check_buckets(surveys, where)
    for trigger in dict.fromkeys(dataset.trigger for dataset in datasets if dataset.trigger):
        findings += check_trigger(trigger, where)
    findings += Alike([*surveys, *(looked(dataset) for dataset in others)], where).check()
    return LintReport(
        findings=ordered(findings),
        images=sum(len(one.pictures) for one in surveys),
        folders=tuple(one.folder for one in surveys),
        clips=sum(isinstance(picture.look, ClipLook) for one in surveys for picture in one.pictures),
    )
