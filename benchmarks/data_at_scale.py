"""How the data side fares with 10,000 images: lint, scan, a press of Run, drawing batches; time and peak memory.

    python benchmarks/data_at_scale.py --images 10000 --folder /tmp/data_at_scale [--json figures.json]

The images are made once and kept in the folder: 512 to 1024 pixels an edge, 85 % JPEG and 15 % PNG, with captions. A
known number of copies, broken files and other faults is among them, and lint must find exactly those. Each phase runs
in a process of its own, so that its peak memory (getrusage) is its own; a phase on a tenth of the images beside it
shows how memory grows. "Warm" draws are those of an epoch whose order is known; the first draw of an epoch makes it.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import numpy as np
from PIL import Image

PLANTED = {"copies": 25, "truncated": 8, "without_caption": 12, "long_captions": 7, "doubled_triggers": 9}
"""How many faults of each kind are among the images, whatever their number."""
_TEXTURES = 48
_LIMIT_SECONDS = 60.0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--folder", type=Path, required=True, help="where the images are made, and kept")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--phase", choices=sorted(_PHASES), help="one phase, in this process")
    args = parser.parse_args()
    if args.phase:
        print(json.dumps(_measured(args.phase, args.folder)))
        return 0
    figures: dict[str, Any] = {"cores": os.cpu_count(), "load_before": os.getloadavg()[0]}
    for count in (max(200, args.images // 10), args.images):
        folder = args.folder / str(count)
        make_images(folder, count)
        figures[str(count)] = {phase: _in_own_process(phase, folder) for phase in _PHASES}
        print(json.dumps({count: figures[str(count)]}, indent=2), flush=True)
    whole = figures[str(args.images)]
    figures["within_limit"] = all(whole[phase]["seconds"] < _LIMIT_SECONDS for phase in ("lint", "scan"))
    figures["found_what_was_planted"] = whole["lint"]["found"] == PLANTED
    if args.json:
        args.json.write_text(json.dumps(figures, indent=2), encoding="utf-8")
    print(f"within {_LIMIT_SECONDS:.0f} s: {figures['within_limit']}; "
          f"lint found exactly what was planted: {figures['found_what_was_planted']}")  # fmt: skip
    return 0 if figures["within_limit"] and figures["found_what_was_planted"] else 1


# the images


def make_images(folder: Path, count: int) -> None:
    """Makes the data set unless it is there: every image its own crop, colours and shapes of one of the textures."""
    done = folder / ".done"
    if done.is_file():
        return
    folder.mkdir(parents=True, exist_ok=True)
    textures = [_texture(number) for number in range(_TEXTURES)]
    originals = count - PLANTED["copies"]
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda number: _make(folder, number, textures[number % _TEXTURES]), range(originals)))
    for number in range(PLANTED["copies"]):
        with Image.open(_image(folder, number * 7)) as image:
            smaller = image.convert("RGB").resize((image.width * 3 // 4, image.height * 3 // 4))
        smaller.save(folder / f"copy_{number:05}.jpg", quality=70)
        (folder / f"copy_{number:05}.txt").write_text(_caption(originals + number))
    last = originals - 1
    for number in range(PLANTED["truncated"]):
        path = _image(folder, last - number)
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    last -= PLANTED["truncated"]
    for number in range(PLANTED["without_caption"]):
        _image(folder, last - number).with_suffix(".txt").unlink()
    last -= PLANTED["without_caption"]
    for number in range(PLANTED["long_captions"]):
        _image(folder, last - number).with_suffix(".txt").write_text("zorble " + f"word{number} " * 40)
    last -= PLANTED["long_captions"]
    for number in range(PLANTED["doubled_triggers"]):
        _image(folder, last - number).with_suffix(".txt").write_text(f"zorble and zorble {number}")
    done.write_text("")


def _caption(number: int) -> str:
    """Another one for each number, and short enough for the embedded base's 16 tokens."""
    return f"zorble a red ring {number:05}"


def _image(folder: Path, number: int) -> Path:
    """Three of twenty are PNGs."""
    return folder / f"{number:05}.{'png' if number % 20 in (3, 9, 15) else 'jpg'}"


def _texture(number: int) -> np.ndarray:
    """1536 x 1536 x 3 of smooth noise at several scales, in float32 between 0 and 255."""
    rng = np.random.default_rng(number)
    total = np.zeros((1536, 1536, 3), np.float32)
    for cells, share in ((6, 1.0), (24, 0.6), (96, 0.35), (384, 0.2)):
        noise = Image.fromarray(rng.integers(0, 256, (cells, cells, 3), np.uint8))
        total += share * np.asarray(noise.resize((1536, 1536), Image.Resampling.BICUBIC), np.float32)
    return total / 2.15


def _make(folder: Path, number: int, texture: np.ndarray) -> None:
    rng = np.random.default_rng(1_000_003 + number)
    width, height = (int(edge) for edge in rng.integers(512, 1025, 2))
    top, left = int(rng.integers(0, 1536 - height)), int(rng.integers(0, 1536 - width))
    pixels = texture[top : top + height, left : left + width] @ rng.uniform(-0.2, 0.9, (3, 3)).astype(np.float32)
    for _ in range(6):  # rectangles: what tells two crops of one texture apart
        y, x = int(rng.integers(0, height - 64)), int(rng.integers(0, width - 64))
        h, w = (int(edge) for edge in rng.integers(48, 320, 2))
        pixels[y : y + h, x : x + w] = 0.4 * pixels[y : y + h, x : x + w] + 0.6 * rng.integers(0, 256, 3)
    image = Image.fromarray(pixels.clip(0, 255).astype(np.uint8))
    path = _image(folder, number)
    if path.suffix == ".png":
        image.save(path, compress_level=3)
    else:
        image.save(path, quality=int(rng.integers(80, 96)))
    path.with_suffix(".txt").write_text(_caption(number))


# the phases, each in a process of its own


def _lint(folder: Path) -> dict[str, Any]:
    from trainer_core.config import ModelConfig
    from trainer_core.data.lint import lint

    report = lint(_dataset(folder), model=ModelConfig())
    return {
        "images": report.images,
        "found": {
            "copies": len(report.of("near-duplicates")),
            "truncated": sum(len(finding.files) for finding in report.of("unreadable-image")),
            "without_caption": sum(len(finding.files) for finding in report.of("missing-caption")),
            "long_captions": sum(len(finding.files) for finding in report.of("long-caption")),
            "doubled_triggers": sum(len(finding.files) for finding in report.of("doubled-trigger")),
        },
        "checks": report.as_dict()["checks"],
    }


def _scan(folder: Path) -> dict[str, Any]:
    from trainer_core.data.scan import scan

    return {"images": len(scan(_dataset(folder, default_caption="zorble")))}


def _press(folder: Path) -> dict[str, Any]:
    """All looks at the data that a press of Run in ComfyUI takes, twice, on 500 images: what they read, and seconds."""
    from trainer_core.config import JobConfig, validated
    from trainer_core.data.cache import TensorCache
    from trainer_core.data.folder import data_files
    from trainer_core.data.lint import lint_job
    from trainer_core.data.prepare import PreparedData
    from trainer_core.data.summary import digest, summarize

    figures: dict[str, Any] = {}
    base = _stand_in()  # imports what takes long
    with tempfile.TemporaryDirectory() as work:
        small = Path(work) / "set"
        small.mkdir()
        for path in sorted(folder.glob("0*.jpg"))[:500]:
            shutil.copy2(path, small)
            (small / path.name).with_suffix(".txt").write_text(f"zorble {path.stem}")
        for path in small.iterdir():  # what was written within the last seconds is read again
            os.utime(path, (1e9, 1e9))
        settings = {"folder": str(small), "resolutions": [512], "trigger": "zorble"}
        job = validated(JobConfig, {"name": "x", "datasets": [settings], "validation": {"share": 0.1}})
        (dataset,) = job.datasets
        looks: dict[str, Callable[[], object]] = {
            "fingerprint": lambda: digest(dataset),
            "links": lambda: list(data_files(dataset)),
            "check": lambda: lint_job(job, tokenizers=()),
            "summary": lambda: summarize(dataset),
            "captions": lambda: summarize(dataset),
            "job": lambda: summarize(dataset),
            "session": lambda: PreparedData(job, base, TensorCache(Path(work) / "cache")).digest(),
        }
        read = Counter[str]()
        sha256 = hashlib.sha256

        def hear(event: str, args: tuple[Any, ...]) -> None:
            if event in {"open", "os.scandir"} and str(args[0]).startswith(str(small)):
                of_picture = str(args[0]).endswith(".jpg")
                read["walks" if event == "os.scandir" else "image opens" if of_picture else "caption opens"] += 1

        class Counting:
            """A digest that counts the bytes which go in."""

            def __init__(self, data: bytes = b"") -> None:
                self._digest = sha256(data)

            def update(self, data: bytes) -> None:
                read["bytes hashed"] += len(data) if len(data) > 10_000 else 0  # files, not keys
                self._digest.update(data)

            def hexdigest(self) -> str:
                return self._digest.hexdigest()

            def digest(self) -> bytes:
                return self._digest.digest()

        sys.addaudithook(hear)
        for press in ("first", "second"):
            read.clear()
            seconds = {}
            with patch.object(hashlib, "sha256", Counting):
                for name, look in looks.items():
                    began = time.perf_counter()
                    look()
                    seconds[name] = round(time.perf_counter() - began, 3)
            figures[press] = {**read, "seconds of each": seconds, "seconds in all": round(sum(seconds.values()), 3)}
    return figures


def _draw(folder: Path) -> dict[str, Any]:
    """Draws three epochs in order, then far jumps as after a resume; milliseconds for each micro-batch."""
    from trainer_core.data.batches import BatchOrder
    from trainer_core.data.prepare import samples_of
    from trainer_core.data.variants import choose_variant

    dataset = _dataset(folder, default_caption="zorble", flip_x=True)
    samples = samples_of(dataset, 16)
    order = BatchOrder([samples], [dataset], _BATCH, 42, 0.0)
    began = time.perf_counter()
    order.micro_batch(0)
    first, length, times = time.perf_counter() - began, order.epoch_length(0), []
    for number in range(1, 3 * length):
        began = time.perf_counter()
        for place, sample in enumerate(order.micro_batch(number)):
            choose_variant(dataset, 42, number, place, sample.key)
        times.append(1000 * (time.perf_counter() - began))
    began = time.perf_counter()
    order.micro_batch(1_000_000)
    return {
        "samples": len(samples),
        "batch_size": _BATCH,
        "first_ms": round(1000 * first, 3),
        "mean_ms_epochs_included": round(statistics.fmean(times), 4),
        "median_ms": round(statistics.median(times), 4),
        "p99_ms": round(statistics.quantiles(times, n=100)[98], 4),
        "slowest_ms": round(max(times), 3),
        "jump_to_1e6_ms": round(1000 * (time.perf_counter() - began), 3),
    }


def _warm(folder: Path) -> dict[str, Any]:
    """Draws whole batches, latents and embeddings included, from caches in memory and on the disk.

    200 images at 512 pixels; latents as large as FLUX.1's, embeddings as the embedded base's, made up by a stand-in.
    """
    from trainer_core.config import JobConfig, validated
    from trainer_core.data import prepare
    from trainer_core.data.batches import BatchOrder
    from trainer_core.data.cache import TensorCache
    from trainer_core.data.captions import choose
    from trainer_core.data.variants import choose_variant

    figures: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as work:
        small = Path(work) / "set"
        small.mkdir()
        for path in sorted(folder.glob("*.jpg"))[:200]:
            for file in (path, path.with_suffix(".txt")):
                (small / file.name).symlink_to(file.resolve())
        dataset = {"folder": str(small), "resolutions": [512], "trigger": "zorble", "flip_x": False}
        job = validated(JobConfig, {"name": "x", "datasets": [dataset]})
        for name, limit in (("memory", 1 << 30), ("disk", 0)):
            with patch.object(prepare, "_MEMORY_LIMIT", limit):
                data = prepare.PreparedData(job, _stand_in(), TensorCache(Path(work) / "cache"))
            data.encode_texts([], _silent)
            data.encode_images(_silent)
            order, times = BatchOrder(data.samples, job.datasets, _BATCH, 42, 0.0), []
            for number in range(300):
                began = time.perf_counter()
                for place, sample in enumerate(order.micro_batch(number)):
                    drawn = job.datasets[0], 42, number, place, sample.key
                    variant = choose_variant(*drawn)
                    latents = data.latents(sample, variant)
                    data.conditioning(sample, variant, latents, choose(data.texts_of(sample), *drawn))
                times.append(1000 * (time.perf_counter() - began))
            figures[f"{name}_mean_ms"] = round(statistics.fmean(times), 3)
            figures[f"{name}_median_ms"] = round(statistics.median(times), 3)
    return {"batch_size": _BATCH, **figures}


def _stand_in() -> Any:
    """Encodes nothing, in the right shapes."""
    import torch

    from trainer_core.families.conditioning import MAIN, Streams
    from trainer_core.families.registry import family_spec

    def encode_pixels(pixels: torch.Tensor) -> tuple[Streams, Streams]:
        count, _, height, width = pixels.shape
        shape = (count, 16, height // 8, width // 8)
        return {MAIN: torch.zeros(shape)}, {MAIN: torch.ones(shape)}

    return SimpleNamespace(
        spec=family_spec("flux1"),
        text_fingerprint=str,
        pixel_fingerprint=str,
        load_text_encoders=_silent,
        free_text_encoders=_silent,
        load_vae=_silent,
        free_vae=_silent,
        encode_prompts=lambda texts, _: [{"text": torch.zeros(16, 64), "pooled": torch.zeros(64)} for _ in texts],
        encode_pixels=encode_pixels,
    )


def _silent(*_: object) -> None:
    pass


_PHASES = {"lint": _lint, "scan": _scan, "press": _press, "draw": _draw, "warm": _warm}
_BATCH = 4


def _dataset(folder: Path, **settings: Any) -> Any:
    from trainer_core.config import DatasetConfig

    return DatasetConfig(folder=str(folder), trigger="zorble", resolutions=(512, 768, 1024), **settings)


def _measured(phase: str, folder: Path) -> dict[str, Any]:
    import resource

    began, used = time.perf_counter(), time.process_time()
    found = _PHASES[phase](folder)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return {
        "seconds": round(time.perf_counter() - began, 2),
        "cpu_seconds": round(time.process_time() - used, 2),
        "peak_memory_mb": round(peak / 1e6, 1),
        **found,
    }


def _in_own_process(phase: str, folder: Path) -> dict[str, Any]:
    command = [sys.executable, __file__, "--folder", str(folder), "--phase", phase]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{phase} failed:\n{done.stderr}")
    measured: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return measured


if __name__ == "__main__":
    raise SystemExit(main())
