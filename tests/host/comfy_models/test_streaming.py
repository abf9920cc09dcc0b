"""ComfyUI's models with streamed blocks: bit for bit as those that are on the device, and the MODEL as it was."""

from __future__ import annotations

import math
from typing import Any

import pytest

from ...trainer_core.memory.adversary import Adversary
from ..pack import module
from .zoo import MODELS

pytestmark = pytest.mark.host

STEPS = 5
CASES = {"flux1": [(0.5, 2), (1.0, 1)], "sdxl": [(1.0, 2)], "wan21_t2v": [(0.1, 1), (1.0, 3)]}
"""By model: shares of its blocks that are streamed, and slots. With three slots no memory can be page-locked."""


class Training:
    """A model of the zoo with a LoRA, and some of its blocks streamed."""

    def __init__(self, name: str, share: float, ring: int) -> None:
        import torch

        from .hosted import opened, states
        from .zoo.encoders import clip, vae

        config, zoo = module("trainer_core.config"), MODELS[name]
        self.model, self.noisy = zoo.make(), zoo.streams()[0]
        self.before = states(self.model)
        self.base = opened(self.model, clip=clip(zoo), vae=vae(zoo))
        self.denoiser = self.base.load_denoiser_on_host()
        targets = self.base.spec.targets["all"]
        self.adapter = module("trainer_core.adapters.adapter").Adapter(
            self.denoiser, config.AdapterConfig(rank=2), targets, 0
        )
        source = torch.Generator().manual_seed(1)
        for parameter in self.adapter.parameters():
            parameter.data += torch.randn(parameter.shape, generator=source) * 0.05
        blocks = module("trainer_core.memory.blocks").blocks_of(self.denoiser)
        self.count = math.ceil(share * len(blocks))
        self.copier = Adversary(ring, pins=ring != 3)
        self.streamed = module("trainer_core.memory.streaming").Streamed(
            self.denoiser, blocks, self.count, self.copier, ring
        )
        self.base.bring(self.denoiser, "cpu")
        trained = self.base._of(self.denoiser)
        whole = sum(one.nbytes for name, one in self.model.model.state_dict().items())
        lora = sum(one.nbytes for one in self.adapter.parameters())
        streamed = sum(one.nbytes for weights in self.streamed._weights for one in weights._tensors)
        assert trained.patcher.model_size() == whole + lora - streamed  # ComfyUI makes room for the rest
        self.base.recompute_blocks(self.denoiser, module("trainer_core.memory.settings").MemorySettings())
        self.optimizer = torch.optim.AdamW(self.adapter.parameters(), lr=1e-2)
        (self.text,) = self.base.encode_prompts(["a red cube"])

    def predict(self, t: float) -> Any:
        import torch

        conditioning = module("trainer_core.families.conditioning").Conditioning("", self.text)
        return self.base.predict(
            self.denoiser, {"main": self.noisy}, torch.tensor([t]), self.base.collate([conditioning])
        )["main"]

    def outcome(self) -> list[Any]:
        """Losses of the steps, and the trained weights. Between the steps passes fail, and others have no gradients."""
        import torch

        losses = []
        for number in range(STEPS):
            with torch.no_grad(), self.adapter.disabled():
                target = self.predict(0.3 + 0.1 * number)
            if self.count and number % 2:
                with pytest.raises(MemoryError), self.base.training_pass():
                    self._fails(target, number)
            self.optimizer.zero_grad()
            with self.base.training_pass():
                loss = (self.predict(0.3 + 0.1 * number) - 0.5 * target).square().mean()
                loss.backward()
            self.optimizer.step()
            losses.append(loss.detach())
        return [*losses, *(one.detach() for one in self.adapter.parameters())]

    def _fails(self, target: Any, number: int) -> None:
        """In the forward pass, or in the backward pass."""
        if number == 1:
            hook = list(self.adapter.layers.values())[-2].register_forward_hook(_fail)
            try:
                self.predict(0.5)
            finally:
                hook.remove()
        else:
            parameter = self.adapter.parameters()[len(self.adapter.parameters()) // 2]
            hook = parameter.register_hook(_fail)
            try:
                (self.predict(0.5) - target).square().mean().backward()
            finally:
                hook.remove()

    def close(self) -> None:
        self.streamed.close()
        self.base.close()


def _fail(*_: object) -> None:
    raise MemoryError


@pytest.mark.parametrize("name", CASES)
def test_losses_and_weights_are_those_of_the_whole_model(name: str) -> None:
    import torch

    from .hosted import states

    training = Training(name, 0.0, 1)
    whole = training.outcome()
    training.close()
    for case in CASES[name]:
        training = Training(name, *case)
        found = training.outcome()
        assert training.copier.copies
        assert all(torch.equal(one, other) for one, other in zip(found, whole, strict=True))
        training.close()
        after = states(training.model)
        assert training.before.keys() == after.keys()
        for key, (place, value) in training.before.items():
            assert after[key][0] == place
            assert torch.equal(after[key][1].view(torch.uint8), value.view(torch.uint8))
