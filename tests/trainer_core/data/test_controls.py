"""Masks and control images stay on what they belong to, in every form of a picture: told by pictures of positions."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor

from trainer_core.config import DatasetConfig, JobConfig
from trainer_core.data.buckets import bucket_size
from trainer_core.data.prepare import Latents, check_controls
from trainer_core.data.scan import Sample
from trainer_core.data.variants import CROPS, Variant, box_of, variants_of
from trainer_core.errors import ConfigError, DatasetError
from trainer_core.families.conditioning import MAIN
from trainer_core.families.registry import family_spec

CELL = 8


def gradient(width: int, height: int) -> Image.Image:
    """A picture that says where a pixel is: red is how far right, green how far down, 0 to 255; blue is nothing."""
    across = np.broadcast_to((np.arange(width) + 0.5) / width, (height, width))
    down = np.broadcast_to(((np.arange(height) + 0.5) / height)[:, None], (height, width))
    return Image.fromarray((np.stack([across, down, 0 * down], 2) * 255).round().astype(np.uint8))


def positions(latents: Tensor) -> Tensor:
    """Where in the whole picture each cell of a gradient's latents comes from: (2, H, W), across and down, 0 to 1."""
    return (latents[:2] + 1) / 2


def channel(image: Image.Image, name: str) -> Image.Image:
    return image.getchannel(name)


@pytest.fixture
def folders(tmp_path: Path) -> Callable[..., dict[str, Path]]:
    """Folders of one picture each, `a.png`, made anew."""

    def make(**images: Image.Image) -> dict[str, Path]:
        made = {}
        for name, image in images.items():
            made[name] = tmp_path / name
            shutil.rmtree(made[name], ignore_errors=True)
            made[name].mkdir()
            image.save(made[name] / "a.png")
        return made

    return make


def config_of(folders: dict[str, Path], **settings: Any) -> dict[str, Any]:
    controls = [str(folder) for name, folder in folders.items() if name.startswith("control")]
    masks = {"mask_folder": str(folders["masks"])} if "masks" in folders else {}
    return {"folder": str(folders["images"]), "control_folders": controls, **masks, **settings}


EVERY_FORM = {"flip_x": True, "flip_y": True, "crop": "random"}
EDGES = st.integers(24, 260)


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(width=EDGES, height=EDGES, resolution=st.integers(32, 200), scale=st.sampled_from((0.5, 1.0, 1.5)))
def test_mask_and_controls_show_what_the_target_shows(
    width: int, height: int, resolution: int, scale: float, prepared: Any, folders: Any
) -> None:
    """In every form: target, control and mask read the same positions, wherever the form has moved them.

    The mask's brightness is how far right a pixel is, so its weights must be the target's positions, scaled to mean 1.
    The control image and the mask may be of another resolution than the target.
    """
    size = bucket_size(width, height, resolution, 16)
    whole = gradient(width, height)
    other = gradient(round(width * scale), round(height * scale))
    if abs((other.width / other.height) / (width / height) - 1) > 0.015:
        other = whole  # a short edge, rounded: no longer the same shape
    where = folders(images=whole, control1=other, control2=whole, masks=channel(other, "R"))
    data, _ = prepared(config_of(where, resolutions=(resolution,), mask_minimum=0, **EVERY_FORM))
    (sample,) = data.samples[0]
    assert sample.size == size
    seen = []
    for variant in variants_of(data.datasets[0]):
        latents: Latents = data.latents(sample, variant)
        where_from = positions(latents.mean[MAIN])
        torch.testing.assert_close(where_from, cell_centres(sample, variant), rtol=0, atol=0.02)
        assert latents.mean[MAIN].shape == (3, size[1] // CELL, size[0] // CELL)
        for control in latents.controls:
            torch.testing.assert_close(positions(control), where_from, rtol=0, atol=0.02)
        torch.testing.assert_close(latents.mask, where_from[:1] / where_from[0].mean(), rtol=0.04, atol=0.04)
        assert_direction(where_from, variant)
        seen.append(where_from)
    assert len(seen) == 4 * CROPS


def cell_centres(sample: Sample, variant: Variant) -> Tensor:
    """Where the latents' cells have their middles in the whole picture (2, H, W), 0 to 1, by the box that is shown."""
    width, height = sample.item.width, sample.item.height
    content = hashlib.sha256(sample.item.path.read_bytes()).hexdigest()
    left, top, right, bottom = box_of(width, height, sample.size, variant, content)
    columns, rows = sample.size[0] // CELL, sample.size[1] // CELL
    across = (left + (torch.arange(columns) + 0.5) * (right - left) / columns) / width
    down = (top + (torch.arange(rows) + 0.5) * (bottom - top) / rows) / height
    across, down = (across.flip(0) if variant.flip_x else across), (down.flip(0) if variant.flip_y else down)
    return torch.stack([across.expand(rows, columns), down[:, None].expand(rows, columns)])


def assert_direction(where_from: Tensor, variant: Variant) -> None:
    """Left to right in the latents is left to right in the picture, unless mirrored; and so from top to bottom."""
    across, down = where_from[0].mean(0), where_from[1].mean(1)
    if len(across) > 1:
        assert bool(across[0] < across[-1]) is not variant.flip_x
    if len(down) > 1:
        assert bool(down[0] < down[-1]) is not variant.flip_y


def test_an_uneven_mask_alone_stays_on_its_quarter(prepared: Any, folders: Any) -> None:
    """The top left quarter is trained on: mirrored it is the top right one, upside down the bottom left one."""
    mask = Image.new("L", (64, 64))
    mask.paste(255, (0, 0, 32, 32))
    where = folders(images=gradient(64, 64), masks=mask)
    data, _ = prepared(config_of(where, mask_minimum=0, flip_x=True, flip_y=True))
    quarter = torch.zeros(1, 8, 8)
    quarter[:, :4, :4] = 4  # a quarter of the cells with weight 4: mean 1
    (sample,) = data.samples[0]
    for variant in variants_of(data.datasets[0]):
        axes = [axis for axis, flip in ((2, variant.flip_x), (1, variant.flip_y)) if flip]
        torch.testing.assert_close(data.latents(sample, variant).mask, quarter.flip(axes))


def test_masks_inverted_with_a_minimum(prepared: Any, folders: Any) -> None:
    mask = Image.new("L", (64, 64))
    mask.paste(255, (0, 0, 32, 64))
    where = folders(images=gradient(64, 64), masks=mask)
    data, _ = prepared(config_of(where, mask_minimum=0.2, invert_mask=True))
    weights = data.latents(data.samples[0][0], Variant()).mask
    # the white half weighs 0.2, the black one 1; their mean is 0.6
    torch.testing.assert_close(weights[:, :, :4], torch.full((1, 8, 4), 0.2 / 0.6))
    torch.testing.assert_close(weights[:, :, 4:], torch.full((1, 8, 4), 1 / 0.6))


def test_transparency_as_a_mask(prepared: Any, folders: Any) -> None:
    image = gradient(64, 64).convert("RGBA")
    image.putalpha(channel(gradient(64, 64), "G"))
    data, _ = prepared(config_of(folders(images=image), alpha_mask=True, mask_minimum=0, **EVERY_FORM))
    (sample,) = data.samples[0]
    for variant in variants_of(data.datasets[0]):
        latents = data.latents(sample, variant)
        down = torch.arange(0.5, 8) / 8
        expected = (down.flip(0) if variant.flip_y else down)[None, :, None] * 2  # 64 pixels are not cropped: mean 1/2
        torch.testing.assert_close(latents.mask, expected.expand(1, 8, 8), rtol=0, atol=0.02)


def test_a_file_is_one_mask_by_its_brightness_and_another_by_its_opacity(prepared: Any, folders: Any) -> None:
    """The cache must not take one for the other."""
    image = Image.merge("LA", (channel(gradient(64, 64), "R"), channel(gradient(64, 64), "G"))).convert("RGBA")
    where = folders(images=image, masks=image)
    plain, settings = {"folder": str(where["images"]), "mask_minimum": 0}, {"mask_folder": str(where["masks"])}
    seen = [prepared({**plain, **how})[0] for how in (settings, {"alpha_mask": True}, settings)]
    brightness, opacity, again = (data.latents(data.samples[0][0], Variant()).mask for data in seen)
    assert not torch.equal(brightness, opacity)
    assert torch.equal(brightness, again)


def test_an_opaque_picture_is_trained_on_everywhere(prepared: Any, folders: Any) -> None:
    data, _ = prepared(config_of(folders(images=gradient(64, 64)), alpha_mask=True))
    torch.testing.assert_close(data.latents(data.samples[0][0], Variant()).mask, torch.ones(1, 8, 8))


@pytest.mark.parametrize("mode", ["1", "L", "RGB", "RGBA", "P", "I;16"])
def test_masks_of_any_mode(mode: str, prepared: Any, folders: Any) -> None:
    """White on black, or white on nothing."""
    mask = Image.new("RGBA", (64, 64), (255, 255, 255, 0) if mode == "RGBA" else "black")
    mask.paste((255, 255, 255, 255), (0, 0, 16, 64))
    converted = mask if mode == "RGBA" else mask.convert("L")
    if mode == "I;16":
        converted = Image.fromarray(np.asarray(converted).astype(np.uint16) * 257)
    elif mode != "RGBA":
        converted = converted.convert(mode)
    data, _ = prepared(config_of(folders(images=gradient(64, 64), masks=converted), mask_minimum=0))
    weights = data.latents(data.samples[0][0], Variant()).mask
    torch.testing.assert_close(weights[0, 0], torch.tensor([4.0, 4, 0, 0, 0, 0, 0, 0]), rtol=1e-4, atol=1e-4)


def test_without_masks_there_is_none(prepared: Any, folders: Any) -> None:
    data, _ = prepared(config_of(folders(images=gradient(64, 64))))
    latents = data.latents(data.samples[0][0], Variant())
    assert (latents.mask, latents.controls) == (None, ())


def test_a_mask_of_another_shape_is_refused(prepared: Any, folders: Any) -> None:
    """Stretched over the picture it would train on the wrong places, and nobody would see it."""
    where = folders(images=gradient(64, 64), masks=Image.new("L", (64, 48), 255))
    with pytest.raises(DatasetError, match=r"(?s)masks.*a\.png.*64x48.*64x64"):
        prepared(config_of(where))


@pytest.mark.parametrize(("colour", "invert"), [("black", False), ("white", True)])
def test_a_mask_that_leaves_nothing_is_told_before_training(
    colour: str, invert: bool, prepared: Any, folders: Any
) -> None:
    where = folders(images=gradient(64, 64), masks=Image.new("L", (64, 64), colour))
    with pytest.raises(DatasetError, match=r"nothing to train on.*mask_minimum"):
        prepared(config_of(where, mask_minimum=0, invert_mask=invert))
    prepared(config_of(where, mask_minimum=0.1, invert_mask=invert))


def test_a_control_of_another_aspect_is_not_distorted(prepared: Any, folders: Any) -> None:
    """A reference picture, not an aligned one: its own centre fills the bucket, and it turns with the target."""
    where = folders(images=gradient(64, 64), control1=gradient(128, 64))
    data, _ = prepared(config_of(where, **EVERY_FORM))
    (sample,) = data.samples[0]
    for variant in variants_of(data.datasets[0]):
        (control,) = data.latents(sample, variant).controls
        across, down = positions(control)[0].mean(0), positions(control)[1].mean(1)
        assert (across.max() - across.min()).item() == pytest.approx(0.5 * 7 / 8, abs=0.02), "the middle half"
        assert (down.max() - down.min()).item() == pytest.approx(7 / 8, abs=0.02)
        assert_direction(positions(control), variant)


def test_controls_come_in_the_order_of_their_folders(prepared: Any, folders: Any) -> None:
    colours = {"control1": "red", "control2": "lime", "control3": "blue"}
    where = folders(
        images=gradient(64, 64), **{name: Image.new("RGB", (64, 64), colour) for name, colour in colours.items()}
    )
    data, _ = prepared(config_of(where))
    means = [control.mean((1, 2)).tolist() for control in data.latents(data.samples[0][0], Variant()).controls]
    assert means == [[1, -1, -1], [-1, 1, -1], [-1, -1, 1]]


def test_controls_of_their_own_size(prepared: Any, folders: Any) -> None:
    """Bases that scale them are given all pixels: of what the target shows, or of a whole picture of another aspect."""
    where = folders(images=gradient(128, 128), control1=gradient(512, 512), control2=gradient(256, 128))
    config = config_of(where, **EVERY_FORM)
    data, base = prepared(config, own_controls=True)
    (sample,) = data.samples[0]
    for variant in variants_of(data.datasets[0]):
        latents = data.latents(sample, variant)
        aligned, reference = map(positions, latents.controls)
        torch.testing.assert_close(aligned, positions(latents.mean[MAIN]), rtol=0, atol=0.02)
        for axis in (0, 1):
            seen = reference[axis].mean(1 if axis else 0)
            assert (seen.max() - seen.min()).item() == pytest.approx(7 / 8, abs=0.02), "all of it"
        assert_direction(reference, variant)
    assert len(base.controls) == 4 * CROPS
    assert {size for size, *_ in base.controls} == {(64, 64)}
    assert {second for *_, second in base.controls} == {(256, 128)}
    boxes = [
        box_of(128, 128, (64, 64), Variant(crop=k), hashlib.sha256(sample.item.path.read_bytes()).hexdigest())
        for k in range(1, CROPS + 1)
    ]
    edges = {(round(4 * (right - left)), round(4 * (bottom - top))) for left, top, right, bottom in boxes}
    assert {first for _, first, _ in base.controls} == edges
    assert base.batches == [(8, 3, 64, 64)] * 2, "targets alone"
    again, base = prepared(config, own_controls=True)
    assert (base.loads, base.controls, base.batches) == (0, [], [])
    kept = again.latents(again.samples[0][0], Variant(crop=1)).controls
    for one, other in zip(kept, data.latents(sample, Variant(crop=1)).controls, strict=True):
        assert torch.equal(one, other)


def test_a_very_large_control_is_scaled_down(prepared: Any, folders: Any) -> None:
    """To 4 megapixels: models scale it to one, and texts of many samples are encoded at a time."""
    where = folders(images=gradient(64, 64), control1=Image.new("RGB", (4096, 2048), "red"))
    _, base = prepared(config_of(where), own_controls=True)
    assert base.controls == [((64, 64), (2896, 1448))]


def test_transparency_of_a_control_lies_over_the_background(prepared: Any, folders: Any) -> None:
    where = folders(images=gradient(64, 64), control1=Image.new("RGBA", (64, 64), (9, 9, 9, 0)))
    data, _ = prepared(config_of(where, background="#ff0000"))
    (control,) = data.latents(data.samples[0][0], Variant()).controls
    assert control.mean((1, 2)).tolist() == [1, -1, -1]


# --- which family takes them -----------------------------------------------------------------------------------------


def job_with(count: int) -> JobConfig:
    controls = [str(k) for k in range(count)]
    datasets = (DatasetConfig(folder="plain"), DatasetConfig(folder="x", control_folders=controls))
    return JobConfig(name="x", datasets=datasets)


def test_a_family_that_only_draws_refuses_control_images() -> None:
    check_controls(job_with(0), family_spec("flux1"))
    with pytest.raises(ConfigError, match=r"datasets\.1\.control_folders.*FLUX\.1 takes no control"):
        check_controls(job_with(1), family_spec("flux1"))


def test_a_family_without_first_frames_refuses_them() -> None:
    job = JobConfig(name="x", datasets=(DatasetConfig(folder="plain", first_frame=True),))
    with pytest.raises(ConfigError, match=r"datasets\.0\.first_frame: FLUX\.1.* cannot go on"):
        check_controls(job, family_spec("flux1"))
    check_controls(job, replace(family_spec("flux1"), first_frame_chosen=True))


def test_an_edit_family_takes_as_many_as_it_says() -> None:
    spec = family_spec("flux1_kontext")
    for count in range(spec.max_controls + 1):
        check_controls(job_with(count), spec)
    with pytest.raises(ConfigError, match="at most 1"):
        check_controls(job_with(2), type(spec)(**{**vars(spec), "max_controls": 1}))


def test_samples_of_several_sizes_have_controls_and_masks_of_each(prepared: Any, folders: Any) -> None:
    where = folders(images=gradient(128, 96), control1=gradient(128, 96), masks=channel(gradient(128, 96), "R"))
    data, _ = prepared(config_of(where, resolutions=(32, 64, 96)))
    samples: list[Sample] = data.samples[0]
    assert len({sample.size for sample in samples}) == 3
    for sample in samples:
        latents = data.latents(sample, Variant())
        shape = (sample.size[1] // CELL, sample.size[0] // CELL)
        assert latents.mean[MAIN].shape[1:] == latents.controls[0].shape[1:] == latents.mask.shape[1:] == shape
