"""What is wrong with a data set, all of it at once and before anything is trained.

`lint` looks at one data set, `lint_job` at all of a job, across which images must not be doubled or leak into
validation. Both return a `LintReport`; they raise for a family that does not exist, and what `progress`
raises to stop them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from ...config import DatasetConfig, JobConfig, ModelConfig
from ...families.registry import family_spec
from ..progress import Progress, silent
from .duplicates import Alike
from .folders import check_folder
from .report import Finding, LintReport, Severity, ordered
from .sizes import check_buckets, check_sizes
from .survey import Circumstances, look_over
from .texts import check_captions
from .tokens import BaseTokenizer, TextTokenizer, find_tokenizers, tokenizers_or_reason
from .trigger import check_trigger

__all__ = [
    "BaseTokenizer",
    "Finding",
    "LintReport",
    "Severity",
    "TextTokenizer",
    "find_tokenizers",
    "lint",
    "lint_job",
]


def lint(
    dataset: DatasetConfig,
    *,
    family: str = "flux1",
    source: str | None = None,
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
        family: the model family, whose bucket divisor counts.
        source: the base whose tokenizers are asked, as in `model.source`; the family's default repository if None.
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
    circumstances = Circumstances(
        divisor=family_spec(family).bucket_divisor,
        classes=tuple(classes),
        trigger=dataset.trigger,
        style=tuple(style),
        share=share,
    )
    return _report([dataset], [], (family, source), circumstances, tokenizers, progress)


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
    return Circumstances(
        divisor=family_spec(job.model.family).bucket_divisor,
        batch_size=job.train.batch_size,
        classes=job.regularization.classes,
        preserves_class=job.regularization.output_preservation,
        trigger=job.preview_trigger,
        style=tuple(style),
        share=job.validation.share,
    )


def _report(
    datasets: Sequence[DatasetConfig],
    others: Sequence[DatasetConfig],
    model: ModelConfig | tuple[str, str | None],
    circumstances: Circumstances,
    tokenizers: Sequence[TextTokenizer] | None,
    progress: Progress,
) -> LintReport:
    """Surveys data sets and runs all checks; of `others`, only what they share with the data sets is told."""
    findings: list[Finding] = []
    surveys = [look_over(dataset, progress) for dataset in datasets]
    if tokenizers is None and any(one.pictures for one in surveys):
        family, source = model if isinstance(model, tuple) else (model.family, model.source)
        named = None if isinstance(model, tuple) or not model.tokenizers else Path(model.tokenizers)
        tokenizers, reason = tokenizers_or_reason(family, source, named)
        if reason:
            message = f"captions' lengths in tokens and what the base knows of the trigger are not checked: {reason}"
            findings.append(Finding("note", "tokenizers", (), message))
    where = replace(circumstances, tokenizers=tuple(tokenizers or ()))
    for one in surveys:
        findings += one.findings
        for check in (check_folder, check_sizes, check_captions):
            findings += check(one, where)
    findings += check_buckets(surveys, where)
    for trigger in dict.fromkeys(dataset.trigger for dataset in datasets if dataset.trigger):
        findings += check_trigger(trigger, where)
    findings += Alike([*surveys, *(look_over(dataset, progress) for dataset in others)], where).check()
    return LintReport(
        findings=ordered(findings),
        images=sum(len(one.pictures) for one in surveys),
        folders=tuple(one.folder for one in surveys),
    )
