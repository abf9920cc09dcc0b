"""T5's encoder, which every file keeps in transformers' names."""

from __future__ import annotations

from typing import Any

from ..names import Naming, Place, Shapes

_FIRST = "encoder.block.0.layer.0.SelfAttention"


def describe_t5(config: dict[str, Any], shapes: Shapes) -> tuple[dict[str, Any], Naming] | None:
    """Configuration and naming of a T5 encoder from its shapes; None if these are none."""
    embedding = next((n for n in ("shared.weight", "encoder.embed_tokens.weight") if n in shapes), None)
    bias = shapes.get(f"{_FIRST}.relative_attention_bias.weight")
    if embedding is None or bias is None:
        return None
    gated = "encoder.block.0.layer.1.DenseReluDense.wi_0.weight" in shapes
    layers = 0
    while f"encoder.block.{layers}.layer.0.SelfAttention.q.weight" in shapes:
        layers += 1
    made = {
        **config,
        "vocab_size": shapes[embedding][0],
        "d_model": shapes[embedding][1],
        "num_layers": layers,
        "num_heads": bias[1],
        "relative_attention_num_buckets": bias[0],
        "d_kv": shapes[f"{_FIRST}.q.weight"][0] // bias[1],
        "d_ff": shapes["encoder.block.0.layer.1.DenseReluDense.wo.weight"][1],
        "feed_forward_proj": "gated-gelu" if gated else "relu",
    }

    def naming(name: str) -> Place:
        return Place(embedding if name in ("shared.weight", "encoder.embed_tokens.weight") else name)

    return made, naming
