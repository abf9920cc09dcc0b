"""Every draw is a function of its place: the same in each process, independent between places, nothing global."""

from __future__ import annotations

import hashlib
import math
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from trainer_core import randomness
from trainer_core.randomness import generator, normal_like, permutation, seed_of, uniform

ROOT = Path(__file__).parents[2]
PLACE = (42, 7, "noise", "0/a.png@64x64")
B2SUM = 0x215099FD5D7801B4
"""`printf 'int:42\\x1fint:7\\x1fstr:noise\\x1fstr:0/a.png@64x64' | b2sum -l 64`"""


def test_seed_is_pinned() -> None:
    """Seeds must never change between versions, or no old run could be resumed or repeated."""
    by_hashlib = hashlib.blake2b(b"int:42\x1fint:7\x1fstr:noise\x1fstr:0/a.png@64x64", digest_size=8).digest()
    assert int.from_bytes(by_hashlib, "big") == B2SUM
    assert seed_of(*PLACE) == B2SUM >> 1
    assert uniform(*PLACE) == pytest.approx(B2SUM / 2**64, rel=1e-12)
    source = torch.Generator().manual_seed(B2SUM >> 1)
    assert torch.equal(normal_like((2, 3), *PLACE), torch.randn(2, 3, generator=source))


def test_draws_are_the_same_in_every_process() -> None:
    code = (
        "from trainer_core.randomness import *\n"
        f"place = {PLACE!r}\n"
        "print(seed_of(*place), uniform(*place), permutation(9, *place), normal_like((2,), *place).tolist())"
    )
    here = f"{seed_of(*PLACE)} {uniform(*PLACE)} {permutation(9, *PLACE)} {normal_like((2,), *PLACE).tolist()}"
    for hash_seed in ("1", "2"):
        done = subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "PYTHONHASHSEED": hash_seed},
            capture_output=True,
            text=True,
            cwd=ROOT,
        )
        assert done.stdout.strip() == here, done.stderr


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ((1, "noise"), ("1", "noise")),
        ((1, 23), (12, 3)),
        (("a", "b"), ("ab",)),
        (("a", ""), ("a",)),
        ((1, 2), (2, 1)),
        ((-1,), (1,)),
    ],
)
def test_places_that_look_alike_have_seeds_of_their_own(one: tuple, other: tuple) -> None:
    assert seed_of(*one) != seed_of(*other)


def test_seeds_of_many_places_do_not_collide_and_fit_a_generator() -> None:
    seeds = {seed_of(seed, step, what) for seed in range(20) for step in range(100) for what in ("noise", "timestep")}
    assert len(seeds) == 4000
    assert min(seeds) >= 0
    assert max(seeds) < 2**63


def test_uniform_is_uniform_and_never_1(monkeypatch: pytest.MonkeyPatch) -> None:
    count = 100_000
    draws = sorted(uniform(3, step, "timestep") for step in range(count))
    # Kolmogorov-Smirnov: 1.63 / sqrt(n) is the 1 % point
    distance = max(abs((k + 0.5) / count - draw) for k, draw in enumerate(draws))
    assert distance < 1.63 / math.sqrt(count)
    monkeypatch.setattr(randomness, "seed_of", lambda *place: 2**63 - 1)
    assert uniform("the largest seed there is") < 1


def test_draws_of_neighbouring_steps_are_independent() -> None:
    draws = torch.tensor([uniform(3, step, "timestep") for step in range(20_000)]).double() - 0.5
    correlation = (draws[1:] * draws[:-1]).mean() * 12
    assert abs(correlation) < 4 / math.sqrt(len(draws))


def test_noise_is_standard_normal_and_differs_between_places() -> None:
    noise = torch.stack([normal_like((16, 8, 8), 42, step, "noise") for step in range(200)])
    assert noise.dtype == torch.float32
    assert noise.mean().abs() < 4 / math.sqrt(noise.numel())
    assert (noise.square().mean() - 1).abs() < 4 * math.sqrt(2 / noise.numel())
    neighbours = (noise[1:] * noise[:-1]).mean()
    assert neighbours.abs() < 4 / math.sqrt(noise[1:].numel())


def test_permutation_is_one_and_every_order_comes() -> None:
    assert sorted(permutation(50, 1)) == list(range(50))
    assert permutation(0, 1) == []
    seen = [tuple(permutation(3, "order", k)) for k in range(6000)]
    for order in set(seen):
        assert seen.count(order) / 6000 == pytest.approx(1 / 6, abs=4 * math.sqrt(1 / 6 * 5 / 6 / 6000))
    assert len(set(seen)) == 6


def test_generators_start_anew_each_time() -> None:
    assert torch.equal(torch.rand(4, generator=generator(1, "x")), torch.rand(4, generator=generator(1, "x")))


def test_nothing_global_is_touched() -> None:
    before = torch.get_rng_state(), random.getstate()
    normal_like((8,), *PLACE), permutation(8, *PLACE), uniform(*PLACE)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert random.getstate() == before[1]
