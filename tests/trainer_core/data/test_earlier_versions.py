"""Data sets of pictures are what they were before there were clips: the values are those that commit 1478ec7 gave."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from PIL import Image

from trainer_core.data.batches import BatchOrder
from trainer_core.data.cache import key_of
from trainer_core.data.variants import choose_variant


def test_caches_orders_and_forms_are_those_of_earlier_versions(prepared: Any, tmp_path: Path) -> None:
    for name, colour in (("set", "red"), ("masks", "white"), ("controls", "blue")):
        (tmp_path / name).mkdir()
        Image.new("RGB", (96, 64), colour).save(tmp_path / name / "1.bmp")
        Image.new("RGB", (64, 64), colour).save(tmp_path / name / "2.bmp")
    data, _ = prepared(
        {
            "folder": str(tmp_path / "set"),
            "flip_x": True,
            "crop": "random",
            "mask_folder": str(tmp_path / "masks"),
            "control_folders": (str(tmp_path / "controls"),),
        },
        {"folder": str(tmp_path / "set"), "resolutions": (32, 64), "default_caption": "b"},
    )
    assert len(data._pictures.keys) == 33
    assert key_of(*sorted(data._pictures.keys)) == "7da7a2c0ee8420e503bf9cfa9cca8d287bf4d793f63d381ec52d6fe9cb22ad1f"
    order = BatchOrder(data.samples, data.datasets, 2, 0, 0.0)
    drawn = [sample.key for number in range(12) for sample in order.micro_batch(number)]
    assert key_of(*drawn) == "4f6ac9508c854f1bd553c59e8a714d18d7930037586821188e7d7a6f785304dc"
    assert data.digest() == "5be2dee6581edd06115fc68d34de960985c0a1bdfdb3a0a62e02d4d87dcbb0a8"
    forms = [choose_variant(data.datasets[0], 0, number) for number in range(20)]
    told = ((form.flip_x, form.flip_y, form.crop) for form in forms)
    assert key_of(*told) == "f23ab7933f8112459a925b3592d379fb71d48c97ca16c9f3695a0684996ceac1"
