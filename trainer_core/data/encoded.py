"""What the VAE makes of pictures and clips: encoded in batches, once, and kept in the cache."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import ImageColor

from ..config import DatasetConfig
from ..errors import BaseModelError, DatasetError
from ..families.conditioning import MAIN
from .cache import RecentEntries, key_of
from .clips.excerpt import excerpt_of
from .clips.timing import timing_of
from .masks import loss_weights, without_first
from .progress import Progress, told
from .scan import Sample
from .variants import Variant, box_of
from .views import View, batches_of, loaded

if TYPE_CHECKING:
    from torch import Tensor

    from ..families.base import Base
    from ..families.conditioning import Streams, TimeIds

_FIRST_FRAME = "first_frame"
"""Its name in a cache entry."""
_TRANSFORM_VERSION = 2
"""Raise when the same file, box and size would give other pixels or another mask."""


@dataclass(frozen=True)
class Latents:
    """What one variant of a sample is to the denoiser."""

    mean: Streams
    """Mean of the normalised latents, main (C, …, H, W), fp32."""
    std: Streams
    """Their standard deviation, of the same shapes, fp32."""
    time_ids: TimeIds
    mask: Tensor | None = None
    """Weights of the main stream's loss (1, …, H, W), fp32, of mean 1; None where the data set has no masks."""
    controls: tuple[Tensor, ...] = ()
    """Means of the control images' normalised latents (C, H, W), fp32, cropped and flipped as the picture."""
    frame_rate: float | None = None
    """Frames per second, of video families."""
    first_frame: Tensor | None = None
    """Latents of which only the first frame is known, where the family takes them."""
    silent: bool = False
    """Whether its sound is none that is learned: a still's, or that of a clip without any."""


class EncodedPictures:
    """Latents of pictures and control images, and masks."""

    def __init__(
        self,
        base: Base,
        entries: RecentEntries,
        datasets: tuple[DatasetConfig, ...],
        digests: Mapping[Path, str],
        made_by: str = "",
        only_by: str = "",
    ) -> None:
        """`digests` are those of all files that samples name; `made_by` and `only_by` as in `EncodedTexts`."""
        self._base, self._entries, self._datasets, self._digests = base, entries, datasets, digests
        self._made_by, self._only_by = made_by, only_by
        self.keys: set[str] = set()
        """The cache's keys for all that was encoded, masks among them."""
        self._timings = [timing_of(dataset, base.spec) for dataset in datasets]
        self._backgrounds = [ImageColor.getrgb(dataset.background)[:3] for dataset in datasets]

    def encode(self, drawn: list[tuple[Sample, Variant]], progress: Progress) -> None:
        """Encodes variants of samples with their masks and control images; loads the VAE only if some are missing.

        Raises:
            DatasetError: for a file that is no good or has changed since it was scanned, a mask of another shape than
                its image, and a mask that leaves nothing to train on.
            BaseModelError: if the VAE cannot be loaded, or its precision is too low for it.
            SaveError: if the cache cannot be written.
        """
        self._mark = self._base.pixel_fingerprint() + self._only_by
        missing: dict[str, View] = {}
        going_on: set[str] = set()
        controls: dict[str, tuple[View, ...]] = {}
        for sample, variant in told(drawn, progress):
            self._encode_mask(sample, variant)
            target, *others = self._pictures(sample, variant)
            found = {self._target_key(sample, target): target} | {self._key(view): view for view in others}
            if self._goes_on(sample):
                going_on.add(self._target_key(sample, target))
            together = self._together(sample, variant)
            missing |= {key: view for key, view in found.items() if self._entries.get(key) is None}
            controls |= {key: views for key, views in together.items() if self._entries.get(key) is None}
            self.keys |= {*found, *together}
        if not missing and not controls:
            return
        count = len(missing) + len(controls)
        progress("loading the VAE", 0, count)
        self._base.load_vae()
        done = 0
        with closing(loaded(batches_of(missing), self._base.spec.sample_rate)) as batches:
            for keys, pixels, sound in batches:
                progress("encoding images", done, count)
                mean, std = self._base.encode_pixels(pixels, *([] if sound is None else [sound]))
                first = self._base.encode_first_frame(pixels) if going_on.intersection(keys) else None
                for k, key in enumerate(keys):
                    also = {_FIRST_FRAME: first[k]} if first is not None and key in going_on else {}
                    own, spread = ({name: one[name][k] for name in one} for one in (mean, std))
                    self._keep(missing[key], key, own, spread, also)
                done += len(keys)
        for number, (key, views) in enumerate(controls.items()):
            progress("encoding images", done + number, count)
            made = self._base.encode_controls([view.pixels() for view in views], views[0].size)
            self._check(views[0], *made)
            self._entries.put(key, {str(k): value.clone() for k, value in enumerate(made)}, self._made_by)
        self._base.free_vae()
        progress("encoding images", count, count)

    def of(self, sample: Sample, variant: Variant) -> Latents:
        """The latents of a variant of a sample that was encoded.

        Raises:
            CacheMiss: if a cache entry is gone or damaged.
        """
        view, *views = self._pictures(sample, variant)
        target = self._entries.entry(self._target_key(sample, view))
        others = [self._entries.entry(self._key(view)) for view in views]
        names = [stream.name for stream in self._base.spec.streams]
        mean, std = ({name: target[_stored(name, what)] for name in names} for what in ("mean", "spread"))
        controls = [one["mean"] for one in others]
        for entry in map(self._entries.entry, self._together(sample, variant)):
            controls += [entry[str(k)] for k in range(len(entry))]
        spec, timing = self._base.spec, self._timings[sample.dataset]
        mask = self._mask(sample, variant)
        if mask is not None and mask.dim() < mean[MAIN].dim():
            mask = mask[:, None]  # latents of some models for pictures have an axis of time too
        return Latents(
            mean,
            std,
            self._view(sample, variant, sample.item.path).time_ids,
            mask,
            tuple(controls),
            float(timing.rate) if timing and timing.rate else None,
            target.get(_FIRST_FRAME),
            bool(spec.sample_rate) and not spec.learns_silence and not (sample.item.clip and sample.item.clip.sound),
        )

    def seen(self, sample: Sample, variant: Variant) -> tuple[View, ...]:
        """A sample's control images as its picture is cropped and flipped; of clips their first frames."""
        own = self._base.spec.own_controls
        return tuple(replace(view.still, own_size=own) for view in self._controls(sample, variant))

    def _controls(self, sample: Sample, variant: Variant) -> list[View]:
        return [self._view(sample, variant, path) for path in sample.item.controls]

    def _keep(self, view: View, key: str, mean: Streams, std: Streams, also: Streams) -> None:
        self._check(view, *mean.values(), *std.values(), *also.values())
        parts = {(name, what): one[name] for what, one in (("mean", mean), ("spread", std)) for name in one}
        entry = {_stored(*part): value.clone() for part, value in parts.items()}
        self._entries.put(key, entry | {name: value.clone() for name, value in also.items()}, self._made_by)

    def _check(self, view: View, *latents: Tensor) -> None:
        if not all(value.isfinite().all() for value in latents):
            precision = self._base.vae_dtype
            raise BaseModelError(
                f"{view.path}: its latents are not finite in {precision}. Set model.vae_dtype to float32"
            )

    def _encode_mask(self, sample: Sample, variant: Variant) -> None:
        """Masks need no encoder; one that leaves nothing to train on is told now and not when it is drawn."""
        view = self._mask_view(sample, variant)
        if view is None:
            return
        key = self._mask_key(sample, view)
        self.keys.add(key)
        if self._entries.get(key) is None:
            main = self._base.spec.main
            mask = view.mask(main.factor, self._datasets[sample.dataset].alpha_mask, main.time_factor)
            self._entries.put(key, {"mask": mask}, self._made_by)
        self._mask(sample, variant)

    def _mask(self, sample: Sample, variant: Variant) -> Tensor | None:
        view, dataset = self._mask_view(sample, variant), self._datasets[sample.dataset]
        kept = self._base.spec.first_frame_kept and self._goes_on(sample)
        if view is None:
            return without_first(self._even(sample)) if kept else None
        entry = self._entries.entry(self._mask_key(sample, view))
        try:
            weights = loss_weights(entry["mask"], dataset.invert_mask, dataset.mask_minimum)
            if view.excerpt is not None and weights.shape[1] == 1:
                weights = weights.expand(-1, self._latent_frames(sample), -1, -1)
            return without_first(weights) if kept else weights
        except ValueError as error:
            raise DatasetError(
                f"{view.path}: {error} in the part of {sample.item.key} that is shown. Correct the mask, remove the "
                "image, or set mask_minimum above 0"
            ) from None

    def _even(self, sample: Sample) -> Tensor:
        """Weights (1, T, h, w) that leave all as it is."""
        import torch

        _, *shape = self._base.latent_shapes(*sample.size, sample.frames)[MAIN]
        return torch.ones(1, *shape)

    def _latent_frames(self, sample: Sample) -> int:
        return (sample.frames - 1) // self._base.spec.main.time_factor + 1

    def _goes_on(self, sample: Sample) -> bool:
        """Whether the first frame is given."""
        spec = self._base.spec
        chosen = spec.first_frame_chosen and self._datasets[sample.dataset].first_frame and sample.frames > 1
        return spec.first_frame or chosen

    def _pictures(self, sample: Sample, variant: Variant) -> list[View]:
        """The target, and those control images that are encoded as it is."""
        target = self._view(sample, variant, sample.item.path)
        return [target] if self._base.spec.own_controls else [target, *self._controls(sample, variant)]

    def _together(self, sample: Sample, variant: Variant) -> dict[str, tuple[View, ...]]:
        """The control images that the base encodes together, by the cache's key; empty if there are none."""
        views = self.seen(sample, variant) if self._base.spec.own_controls else ()
        parts = [part for view in views for part in (*view.parts, *view.background)]
        named = ("controls", _TRANSFORM_VERSION, self._base.spec.name, self._mark)
        return {key_of(*named, *parts): views} if views else {}

    def _mask_view(self, sample: Sample, variant: Variant) -> View | None:
        path = sample.item.path if self._datasets[sample.dataset].alpha_mask else sample.item.mask
        return self._view(sample, variant, path) if path else None

    def _view(self, sample: Sample, variant: Variant, path: Path) -> View:
        item = sample.item
        content = self._digests[item.path]
        box = box_of(item.width, item.height, sample.size, variant, content)
        target, background = (item.width, item.height), self._backgrounds[sample.dataset]
        timing, excerpt = self._timings[sample.dataset], None
        if timing and timing.rate:
            excerpt = excerpt_of(sample, variant.part, path, timing.rate, self._base.spec.sample_rate, content)
        return View(path, self._digests[path], target, box, sample.size, variant, background, excerpt=excerpt)

    def _key(self, view: View, *also: str) -> str:
        name = self._base.spec.name
        return key_of("pixels", _TRANSFORM_VERSION, name, self._mark, *view.parts, *view.background, *also)

    def _target_key(self, sample: Sample, view: View) -> str:
        return self._key(view, *([_FIRST_FRAME] if self._goes_on(sample) else []))

    def _mask_key(self, sample: Sample, view: View) -> str:
        kind = "alpha" if self._datasets[sample.dataset].alpha_mask else "mask"
        main, whose = self._base.spec.main, [self._only_by] if self._only_by else []
        moving = [f"{main.time_factor} frames"] if view.excerpt else []
        return key_of(kind, _TRANSFORM_VERSION, main.factor, *view.parts, *moving, *whose)


def _stored(stream: str, what: str) -> str:
    """The name in a cache entry; the main stream's are from before there were others."""
    return what if stream == MAIN else f"{stream}.{what}"
