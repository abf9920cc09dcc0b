"""Builds the embedded base from nothing: `python -m benchmarks.make_base [--out DIR] [--steps N] [STAGE …]`.

Stages, each seeded and each reading what the earlier ones wrote: `tokenizer`, `vae`, `judge`, `denoiser`.
The result is a diffusers folder (FluxPipeline's layout) in fp16 plus `judge.safetensors`. The README in
trainer_core/embedded says how the shipped weights came to be. On two CPU cores the whole takes about an hour and a
half; a GPU is used if there is one.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import trainer_core.embedded

from .denoiser import build_denoiser
from .judge import build_judge
from .tokenizer import build_tokenizer
from .vae import build_vae


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    stages = {"tokenizer": build_tokenizer, "vae": build_vae, "judge": build_judge, "denoiser": build_denoiser}
    parser.add_argument("stages", nargs="*", choices=[*stages, []], help="which stages to run; all when none is named")
    parser.add_argument("--out", type=Path, default=Path(trainer_core.embedded.__file__).parent / "base")
    parser.add_argument("--steps", type=int, help="steps of the one stage named")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    for name in arguments.stages or stages:
        stages[name](arguments.out, **({"steps": arguments.steps} if arguments.steps else {}))


if __name__ == "__main__":
    main()
