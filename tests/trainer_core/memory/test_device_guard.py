"""Runs that trace or compile come one after the other in a server's process, each in a thread of its own."""

from __future__ import annotations

import subprocess
import sys

import pytest

PROGRAM = """
import threading
from functools import partial

import torch

from trainer_core.memory.compiled import compile_blocks
from trainer_core.memory.imitation import imitating

torch.compile = partial(torch.compile, backend="aot_eager")


def compiled():
    torch._dynamo.reset()
    block = torch.nn.Linear(2, 2)
    compile_blocks([block], print)
    block(torch.ones(1, 2))


def imitated():
    with imitating():
        torch.ones(2) + 1


for _ in range(3):
    others = [threading.Thread(target=lambda: [bytearray(1 << 16) for _ in range(99)]) for _ in range(8)]
    for thread in [threading.Thread(target={what}), *others]:  # the others take the memory of one that has ended
        thread.start()
        thread.join()
print("done")
"""


@pytest.mark.parametrize("what", ["compiled", "imitated"])
def test_one_thread_after_another(what: str) -> None:
    """Without a GPU, torch that is built for one would crash."""
    ended = subprocess.run(
        [sys.executable, "-c", PROGRAM.replace("{what}", what)], capture_output=True, text=True, timeout=600
    )
    assert (ended.returncode, ended.stdout.split()) == (0, ["done"]), ended.stderr[-2000:]
