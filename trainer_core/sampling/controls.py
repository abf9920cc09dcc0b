"""Control images of previews: which ones each prompt gets, and what the denoiser is given of them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ..config import DatasetConfig, JobConfig, SampleConfig
from ..errors import ConfigError
from ..reading import is_file

if TYPE_CHECKING:
    from PIL import Image
    from torch import Tensor

    from ..data.scan import Item
    from ..families.base import Base, FamilySpec
    from .sampler import SamplerSettings


@dataclass(frozen=True)
class PromptControls:
    """The control images that one prompt is drawn with."""

    files: tuple[Path, ...] = ()
    background: str = "white"
    """Colour behind what is transparent."""

    @property
    def names(self) -> str:
        """What to call them: a preview is shared, and its maker's folders are nobody's business."""
        return ", ".join(f"{file.parent.name}/{file.name}" for file in self.files)

    def pictures(self) -> tuple[Image.Image, ...]:
        """The images.

        Raises:
            DatasetError: if one cannot be read.
        """
        from ..data.images import load_image

        return tuple(load_image(file, self.background) for file in self.files)


def check_controls_of(sample: SampleConfig, spec: FamilySpec) -> None:
    """Whether the family takes the control images that a job's previews name, and whether they are there.

    Raises:
        ConfigError: if not.
    """
    check_count(sample.controls, spec, "sample.controls")
    for file in (Path(file).expanduser() for files in sample.controls for file in files):
        if not is_file(file):
            raise ConfigError(f"sample.controls: {file}: there is no such file")


def check_count(controls: Sequence[Sequence[object]], spec: FamilySpec, where: str) -> None:
    """Whether the family takes as many control images for a picture.

    Raises:
        ConfigError: naming `where` they were given.
    """
    most = max(map(len, controls), default=0)
    if most > spec.max_controls:
        taken = f"at most {spec.max_controls}" if spec.max_controls else "no"
        raise ConfigError(f"{where}: {most} for one picture, but {spec.title} takes {taken} control images")


def of_settings(sample: SampleConfig, count: int) -> list[PromptControls]:
    """The control images that settings name for each of so many prompts; none where they name none.

    Raises:
        ConfigError: if they are for another number of prompts.
    """
    given = [PromptControls(tuple(Path(file).expanduser() for file in files)) for files in sample.controls]
    if len(given) <= 1:
        return (given or [PromptControls()]) * count
    if len(given) != count:
        raise ConfigError(f"sample.controls: {len(given)} for {count} prompts; give one for all, or one for each")
    return given


def of_items(items: Iterable[Item], dataset: DatasetConfig, count: int) -> list[PromptControls]:
    """Those of a data set's first images, one image's for each of so many prompts, from the start again if too few."""
    first: dict[str, PromptControls] = {}
    for item in items:
        if item.controls:
            first.setdefault(item.key, PromptControls(item.controls, dataset.background))
        if len(first) == count:
            break
    found = list(first.values())
    return [found[k % len(found)] if found else PromptControls() for k in range(count)]


def controlled_set(job: JobConfig) -> int | None:
    """The number of the first training set with control images, if there is one."""
    sets = enumerate(job.datasets)
    return next((k for k, one in sets if one.role == "train" and one.control_folders), None)


def of_job(job: JobConfig, spec: FamilySpec, count: int) -> list[PromptControls]:
    """What a job's previews are drawn with, from its settings or else its data, for each of so many prompts.

    Raises:
        ConfigError: if the settings are for another number of prompts.
        DatasetError: if its data is not there any more.
    """
    from ..data.scan import scan

    number = controlled_set(job)
    if job.sample.controls or number is None or not spec.max_controls:
        return of_settings(job.sample, count)
    return of_items(scan(job.datasets[number]), job.datasets[number], count)


def pixels_of(base: Base, pictures: Sequence[Sequence[Image.Image]], settings: SamplerSettings) -> list[list[Tensor]]:
    """Control images of each prompt as (3, H, W) in [-1, 1].

    As in training they have a size of their own where `spec.own_controls`; else that of the picture that is drawn, and
    show their centre where their aspect is another.
    """
    from ..data.images import at_own_size, to_bucket

    if base.spec.own_controls:
        return [[at_own_size(image) for image in group] for group in pictures]
    return [[to_bucket(image, (settings.width, settings.height)) for image in group] for group in pictures]


def encoded(base: Base, pixels: Sequence[Sequence[Tensor]], settings: SamplerSettings) -> list[tuple[Tensor, ...]]:
    """What the denoiser is given of each prompt's control images; loads the VAE, if there are any, and frees it."""
    if not any(pixels):
        return [() for _ in pixels]
    base.load_vae()
    try:
        return [base.encode_controls(group, (settings.width, settings.height)) for group in pixels]
    finally:
        base.free_vae()
