"""What Load Dataset says of a data set, in a few lines."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from ..trainer_core.api import DatasetSummary, LintReport

_FILLED = 0.8
"""Share of a resolution's area that its buckets have at least, if pictures are large enough."""
_SHOWN_SIZES, _SHOWN_WARNINGS = 8, 3
_SHOWN_FINDINGS, _SHOWN_OF_A_CHECK = 12, 3
_MARKS = {"error": "✖", "warning": "⚠", "note": "•"}


def summary_text(summary: DatasetSummary, resolutions: Sequence[int]) -> str:
    """What is in a data set that is trained on at some resolutions."""
    sizes = [f"{size}: {count}" for size, count in summary.buckets.items()]
    images, minutes = summary.count - summary.clips, divmod(round(summary.seconds), 60)
    clips = f"{summary.clips} clips ({minutes[0]}:{minutes[1]:02})" if summary.clips else ""
    what = " and ".join([*([f"{images} images"] if images or not clips else []), *([clips] if clips else [])])
    lines = [f"{what}; {', '.join(sizes[:_SHOWN_SIZES])}{' …' if len(sizes) > _SHOWN_SIZES else ''}"]
    if summary.repeats:
        lines.append("repeats: " + ", ".join(f"{name} ×{count}" for name, count in summary.repeats.items()))
    if summary.masks:
        lines.append(f"masks: {summary.masks}")
    if summary.controls:
        lines.append(f"control images: {summary.controls} each")
    lines += [f"⚠ {warning}" for warning in [*_too_large(summary, resolutions), *summary.warnings][:_SHOWN_WARNINGS]]
    return "\n".join(lines)


def _too_large(summary: DatasetSummary, resolutions: Sequence[int]) -> Iterator[str]:
    """Resolutions that no picture reaches: a bucket has about the area of a resolution's square, or of its picture."""
    sides = [[int(side) for side in size.split("x")[:2]] for size in summary.buckets]
    width, height = max(sides, key=lambda one: one[0] * one[1])
    above = [str(one) for one in resolutions if width * height < _FILLED * one**2]
    if above:
        yield (
            f"resolutions: {', '.join(above)} is above the pictures' size: none is enlarged, the largest is trained at "
            f"{width}x{height}"
        )


def findings_text(report: LintReport) -> str:
    """What the checks found, the worst first."""
    rows = report.rows(per_check=_SHOWN_OF_A_CHECK, names=1)
    lines = [f"{_MARKS[severity]} {f'{files}: ' if files else ''}{message}" for severity, _, files, message in rows]
    if len(lines) > _SHOWN_FINDINGS:
        lines = [*lines[:_SHOWN_FINDINGS], "… and more: `lora-foundry lint` shows all"]
    return "\n".join([f"checked {report.summary()}", *lines])
