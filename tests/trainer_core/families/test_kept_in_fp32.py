"""Which modules stay fp32 at a lower precision, against `from_pretrained` of both libraries."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL
from torch import nn
from transformers import T5Config, T5EncoderModel

from trainer_core.families.sources.diffusers_folder import FolderPart

from .small_models import seeded


class CarefulVae(AutoencoderKL):
    """A model of diffusers that keeps a part in fp32, as Wan's and others do."""

    _keep_in_fp32_modules = ["quant_conv", "norm1"]  # noqa: RUF012 - diffusers takes a tuple for one name


class StrictT5(T5EncoderModel):
    """An encoder of transformers that keeps a part in fp32 even in bf16."""

    _keep_in_fp32_modules_strict = ["wi"]  # noqa: RUF012


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("kind", [CarefulVae, T5EncoderModel, StrictT5])
def test_precision_is_that_of_the_library(kind: type, dtype: torch.dtype, tmp_path: Path) -> None:
    if kind is CarefulVae:
        made: nn.Module = seeded(lambda: CarefulVae(block_out_channels=(32,)))
    else:
        config = T5Config(vocab_size=8, d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2)
        made = seeded(lambda: kind(config))
    folder = tmp_path / "part"
    made.save_pretrained(folder)  # type: ignore[operator]
    name = "torch_dtype" if kind is CarefulVae else "dtype"
    theirs = kind.from_pretrained(folder, **{name: dtype})  # type: ignore[attr-defined]
    ours = FolderPart(folder).load(kind, dtype, torch.device("cpu"))
    assert {n: p.dtype for n, p in ours.named_parameters()} == {n: p.dtype for n, p in theirs.named_parameters()}
