"""The moving average against its closed form and torch's own, and its way through a file and back."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_avg_fn

from trainer_core.adapters.flat import Flat
from trainer_core.errors import RunError
from trainer_core.safetensors_file import read_tensors, serialize
from trainer_core.training import ema as module


def parameters(seed: int = 0) -> list[nn.Parameter]:
    source = torch.Generator().manual_seed(seed)
    return [nn.Parameter(torch.randn(shape, generator=source)) for shape in ((3, 4), (5,), ())]


def EMA(weights: list[nn.Parameter], decay: float, warmup: bool) -> module.EMA:  # noqa: N802
    """Over parameters that come to lie in one buffer, the last first."""
    return module.EMA(weights, [Flat(weights[::-1])], decay, warmup)


def walk(weights: list[nn.Parameter], ema: module.EMA, numbers: range) -> list[list[Tensor]]:
    """Moves the weights as an optimizer would, averages after each move, and gives where they have been."""
    path = []
    for number in numbers:
        source = torch.Generator().manual_seed(number)
        with torch.no_grad():
            for weight in weights:
                weight.add_(torch.randn(weight.shape, generator=source))
        ema.update()
        path.append([weight.detach().clone() for weight in weights])
    return path


def test_average_without_warmup_is_the_closed_form() -> None:
    """Σ (1 - d) dⁿ⁻ᵏ wₖ + dⁿ w₀, summed in double precision from the other end."""
    weights, decay, n = parameters(), 0.9, 12
    start = [weight.detach().double().clone() for weight in weights]
    ema = EMA(weights, decay, warmup=False)
    path = walk(weights, ema, range(n))
    for index, average in enumerate(ema.averages):
        expected = start[index] * decay**n
        for k in range(1, n + 1):
            expected = expected + (1 - decay) * decay ** (n - k) * path[k - 1][index].double()
        torch.testing.assert_close(average.double(), expected, rtol=1e-5, atol=1e-6)


def test_average_without_warmup_is_torchs() -> None:
    model = nn.Linear(6, 3)
    averaged = AveragedModel(model, avg_fn=get_ema_avg_fn(0.95))
    averaged.update_parameters(model)  # torch's first update takes the model as it is: our start
    ema = EMA(list(model.parameters()), 0.95, warmup=False)
    for number in range(10):
        source = torch.Generator().manual_seed(number)
        with torch.no_grad():
            for weight in model.parameters():
                weight.add_(torch.randn(weight.shape, generator=source))
        ema.update()
        averaged.update_parameters(model)
    for ours, theirs in zip(ema.averages, averaged.module.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs.detach(), rtol=1e-5, atol=1e-6)


def test_warmup_by_hand() -> None:
    """Weights 0, then 1 three times; decays 1/10, 2/11, 3/12: what is left of the 0 is their product."""
    weight = nn.Parameter(torch.zeros(1))
    ema = EMA([weight], 0.99, warmup=True)
    weight.data.fill_(1.0)
    for left in (1 / 10, 1 / 10 * 2 / 11, 1 / 10 * 2 / 11 * 3 / 12):
        ema.update()
        assert float(ema.averages[0]) == pytest.approx(1 - left, abs=1e-6)


def test_warmup_ends_at_the_decay() -> None:
    """(1 + n) / (10 + n) passes 0.5 at n = 8: from then on each update halves the distance."""
    weight = nn.Parameter(torch.zeros(1))
    ema = EMA([weight], 0.5, warmup=True)
    for _ in range(20):
        ema.update()
    weight.data.fill_(1.0)
    seen = []
    for _ in range(3):
        ema.update()
        seen.append(float(ema.averages[0]))
    assert seen == [0.5, 0.75, 0.875]


@pytest.mark.parametrize("fine", [True, False])
def test_the_device_decides_whether_an_update_counts(fine: bool) -> None:
    """With a flag the average is that without one, bit for bit, or it stays."""
    weights, others = parameters(), parameters()
    flagged, plain = EMA(weights, 0.9, warmup=True), EMA(others, 0.9, warmup=True)
    walk(weights, flagged, range(3))
    walk(others, plain, range(3))
    before = flagged.state_dict()
    for one in (*weights, *others):
        one.data.add_(1)
    flagged.update(torch.tensor(fine))
    plain.update()
    expected = plain.state_dict() if fine else {**before, "count": torch.tensor(4)}
    assert all(torch.equal(value, expected[name]) for name, value in flagged.state_dict().items())


@pytest.mark.parametrize("warmup", [False, True])
def test_state_through_a_file_goes_on_bit_for_bit(warmup: bool, tmp_path: Path) -> None:
    straight = parameters()
    whole = EMA(straight, 0.9, warmup)
    walk(straight, whole, range(10))
    weights = parameters()
    first = EMA(weights, 0.9, warmup)
    walk(weights, first, range(5))
    (tmp_path / "ema.safetensors").write_bytes(serialize(first.state_dict(), {}))

    second = EMA(weights, 0.9, warmup)
    second.load_state_dict(read_tensors(tmp_path / "ema.safetensors"))
    walk(weights, second, range(5, 10))
    assert second.count == 10
    assert all(torch.equal(one, other) for one, other in zip(whole.averages, second.averages, strict=True))


def test_state_is_a_copy() -> None:
    weights = parameters()
    ema = EMA(weights, 0.9, warmup=False)
    state = ema.state_dict()
    kept = {name: value.clone() for name, value in state.items()}
    walk(weights, ema, range(2))
    assert all(torch.equal(state[name], value) for name, value in kept.items())
    assert not torch.equal(ema.averages[0], state["0"])


@pytest.mark.parametrize("change", ["empty", "shape", "missing", "more", "count"])
def test_state_of_something_else_is_refused_and_changes_nothing(change: str) -> None:
    ema = EMA(parameters(), 0.9, warmup=False)
    before = ema.state_dict()
    state = EMA(parameters(seed=1), 0.9, warmup=False).state_dict()
    if change == "empty":
        state = {}
    elif change == "shape":
        state["1"] = torch.zeros(6)
    elif change == "missing":
        del state["2"]
    elif change == "more":
        state["3"] = torch.zeros(1)
    else:
        del state["count"]
    with pytest.raises(RunError, match=r"train\.ema_decay.*warm_start"):
        ema.load_state_dict(state)
    assert all(torch.equal(value, before[name]) for name, value in ema.state_dict().items())


def test_applied_puts_the_averages_in_place_and_the_weights_back() -> None:
    weights = parameters()
    ema = EMA(weights, 0.9, warmup=True)
    walk(weights, ema, range(3))
    raw = [weight.detach().clone() for weight in weights]
    addresses = [weight.data_ptr() for weight in weights]
    with ema.applied():
        assert all(torch.equal(weight, average) for weight, average in zip(weights, ema.averages, strict=True))
        assert not torch.equal(weights[0], raw[0])
    assert all(torch.equal(weight, old) for weight, old in zip(weights, raw, strict=True))
    assert [weight.data_ptr() for weight in weights] == addresses
    assert all(weight.requires_grad for weight in weights)


def test_weights_come_back_after_an_error() -> None:
    weights = parameters()
    ema = EMA(weights, 0.9, warmup=True)
    walk(weights, ema, range(3))
    raw = [weight.detach().clone() for weight in weights]
    with pytest.raises(KeyboardInterrupt), ema.applied():
        raise KeyboardInterrupt
    assert all(torch.equal(weight, old) for weight, old in zip(weights, raw, strict=True))
    with ema.applied():  # and it can be done again
        pass


def test_averages_are_not_averaged_with_themselves() -> None:
    ema = EMA(parameters(), 0.9, warmup=True)
    with ema.applied():
        with pytest.raises(RuntimeError, match="in the parameters' place"):
            ema.update()
        with pytest.raises(RuntimeError, match="in the parameters' place"), ema.applied():
            pass
    assert ema.count == 0


def test_restart_forgets_what_was_averaged() -> None:
    weights = parameters()
    ema = EMA(weights, 0.9, warmup=True)
    walk(weights, ema, range(3))
    ema.restart()
    assert ema.count == 0
    assert all(torch.equal(weight, average) for weight, average in zip(weights, ema.averages, strict=True))
