"""Raw weights and their moving average: which of them files and previews hold, and what the average is."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from PIL import Image
from safetensors.torch import load

from .updates import saved

if TYPE_CHECKING:
    from trainer_core.training.loop import Trainer


def test_files_and_previews_hold_the_weights_asked_for(made: Callable[..., Trainer]) -> None:
    """Raw ones are those of a run without a moving average; averaged ones those that the state holds."""
    prompts = {"prompts": ("a [trigger]",), "steps": 2, "guidance": 1.0}
    plain = {"train": {"learning_rate": 0.05}, "sample": prompts}
    averaging = {"learning_rate": 0.05, "ema_decay": 0.5, "ema_warmup": False}
    trainers = {
        which: made(stirred=False, train=averaging, sample={**prompts, "weights": which}, save={"weights": which})
        for which in ("raw", "ema", "auto")
    }
    expected = {"raw": made(stirred=False, **plain)}
    for trainer in (*trainers.values(), *expected.values()):
        for _ in range(2):
            trainer.update()
            trainer.progress.step += 1
    assert trainers["ema"].experts.active.updater.ema is not None
    names = list(trainers["ema"].experts.active.adapter.state_dict())
    expected["ema"] = made(stirred=False, **plain)
    expected["ema"].experts.active.adapter.load_state_dict(
        dict(zip(names, trainers["ema"].experts.active.updater.ema.averages, strict=True))
    )
    expected["ema"].progress.step = 2
    expected["auto"] = expected["ema"]
    for which, trainer in trainers.items():
        before, stored = trainer.experts.active.adapter.state_dict(), saved(trainer).state.read_bytes()
        trainer.draw_samples()
        expected[which].draw_samples()
        ours, theirs = (Image.open(one.run.sample_folder(2) / "00.png") for one in (trainer, expected[which]))
        assert ours.tobytes() == theirs.tobytes(), which
        assert ours.info["weights"] == trainer.experts.which(which) == ("raw" if which == "raw" else "ema")
        file = saved(trainer).lora.read_bytes()
        one, other = load(file), load(saved(expected[which]).lora.read_bytes())
        assert all(torch.equal(value, other[name]) for name, value in one.items()), which
        header = json.loads(file[8 : 8 + int.from_bytes(file[:8], "little")])
        assert header["__metadata__"]["lora_foundry.weights"] == trainer.experts.which(which)
        assert all(
            torch.equal(value, before[name]) for name, value in trainer.experts.active.adapter.state_dict().items()
        )
        assert stored == saved(trainer).state.read_bytes()
        kept, same = load(stored), load(saved(trainers["raw"]).state.read_bytes())
        assert kept.keys() == same.keys()
        assert all(torch.equal(value, same[name]) for name, value in kept.items())
    raw, averaged = (load(saved(trainers[which]).lora.read_bytes()) for which in ("raw", "ema"))
    assert any(not torch.equal(value, averaged[name]) for name, value in raw.items())


def test_the_moving_average_of_a_run(made: Callable[..., Trainer]) -> None:
    """After two updates from w0 with a decay of 3/4: 9/16 w0 + 3/16 w1 + 1/4 w2."""
    trainer = made(train={"ema_decay": 0.75, "ema_warmup": False})
    ema = trainer.experts.active.updater.ema
    assert ema is not None
    ema.restart()  # from the stirred weights
    steps = [trainer.experts.active.adapter.state_dict()]
    for _ in range(2):
        trainer.update()
        trainer.progress.step += 1
        steps.append(trainer.experts.active.adapter.state_dict())
    for average, *weights in zip(
        trainer.experts.active.updater.ema.averages, *(step.values() for step in steps), strict=True
    ):
        expected = sum(share * weight for share, weight in zip((9 / 16, 3 / 16, 1 / 4), weights, strict=True))
        torch.testing.assert_close(average, expected)
