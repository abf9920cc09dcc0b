"""`export`: a LoRA for other tools than ComfyUI."""

from __future__ import annotations

import argparse

from ..api import export_lora_as, find_lora
from . import OK, base_options
from .terminal import print_json, quiet_libraries, say


def export(args: argparse.Namespace) -> int:
    """Writes a LoRA as diffusers, PEFT or sd-scripts read it."""
    lora = find_lora(args.lora, args.runs, args.step, base_options(args))
    quiet_libraries()
    path = export_lora_as(args.to, lora.path, lora.model, lora.name, args.out)
    if args.json:
        print_json({"path": str(path), "to": args.to, "lora": str(lora.path)})
    else:
        say(path)
    return OK
