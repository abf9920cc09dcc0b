"""Control images of previews: which ones each prompt gets, and what the denoiser is given of them.

Where a family goes on from a first frame (`spec.takes_first_frame`), the first of a prompt's images is that.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ..config import DatasetConfig, JobConfig, SampleConfig
from ..errors import ConfigError
from ..families.conditioning import Conditioning
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
        from ..data.clips.decode import first_picture

        return tuple(first_picture(file, self.background) for file in self.files)


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
    if most > spec.max_given:
        taken = f"at most {spec.max_given}" if spec.max_given else "no"
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


def of_items(items: Iterable[Item], dataset: DatasetConfig, count: int, spec: FamilySpec) -> list[PromptControls]:
    """Those of a data set's first images, one image's for each of so many prompts, from the start again if too few."""
    first: dict[str, PromptControls] = {}
    for item in items:
        if files := (*([item.path] if spec.first_frame else []), *item.controls):
            first.setdefault(item.key, PromptControls(files, dataset.background))
        if len(first) == count:
            break
    found = list(first.values())
    return [found[k % len(found)] if found else PromptControls() for k in range(count)]


def controlled_set(job: JobConfig, spec: FamilySpec) -> int | None:
    """The number of the first training set with images that previews are drawn with, if there is one."""
    sets = enumerate(job.datasets) if spec.max_given else ()
    return next((k for k, one in sets if one.role == "train" and (one.control_folders or spec.first_frame)), None)


def of_job(job: JobConfig, spec: FamilySpec, count: int) -> list[PromptControls]:
    """What a job's previews are drawn with, from its settings or else its data, for each of so many prompts.

    Raises:
        ConfigError: if the settings are for another number of prompts.
        DatasetError: if its data is not there any more.
    """
    from ..data.clips.timing import timing_of
    from ..data.scan import scan

    number = controlled_set(job, spec)
    if job.sample.controls or number is None:
        return of_settings(job.sample, count)
    dataset = job.datasets[number]
    return of_items(scan(dataset, timing_of(dataset, spec)), dataset, count, spec)


def pixels_of(base: Base, pictures: Sequence[Sequence[Image.Image]], settings: SamplerSettings) -> list[list[Tensor]]:
    """Control images of each prompt as (3, H, W) in [-1, 1].

    As in training they have a size of their own where `spec.own_controls`; else that of the picture that is drawn, and
    show their centre where their aspect is another.
    """
    from ..data.images import at_own_size, to_bucket

    if base.spec.own_controls:
        return [[at_own_size(image) for image in group] for group in pictures]
    return [[to_bucket(image, (settings.width, settings.height)) for image in group] for group in pictures]


def of_text(pixels: Sequence[Sequence[Tensor]], spec: FamilySpec) -> list[Sequence[Tensor]]:
    """Those that text encoders may look at: control images, and no first frames."""
    return [group[1:] if spec.takes_first_frame else group for group in pixels]


def encoded(base: Base, pixels: Sequence[Sequence[Tensor]], settings: SamplerSettings) -> list[Conditioning]:
    """What each prompt is drawn with beside its text; loads the VAE, if there are images, and frees it.

    Raises:
        ConfigError: if a first frame lacks that the family needs.
    """
    spec = base.spec
    if spec.first_frame and not all(pixels):
        raise ConfigError(f"sample.controls: {spec.title} goes on from an image: name one for each prompt, or for all")
    if not any(pixels):
        return [Conditioning("", frame_rate=spec.frame_rate) for _ in pixels]
    base.load_vae()
    try:
        size = settings.width, settings.height
        return [
            Conditioning(
                "",
                controls=base.encode_controls(controls, size),
                frame_rate=spec.frame_rate,
                first_frame=_first_frame(base, group[0], settings.frames) if spec.takes_first_frame and group else None,
            )
            for group, controls in zip(pixels, of_text(pixels, spec), strict=True)
        ]
    finally:
        base.free_vae()


def _first_frame(base: Base, picture: Tensor, frames: int) -> Tensor:
    """Latents (C, T, h, w) of a video that begins with a picture (3, H, W), on the CPU."""
    clip = picture.new_zeros(1, 3, frames, *picture.shape[1:])
    clip[:, :, 0] = picture
    return base.encode_first_frame(clip)[0]
