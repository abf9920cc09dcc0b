"""The recipes that `features.py` compares: each is the default recipe with one thing changed."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Recipe:
    """Changes to the plain recipe, by section."""

    name: str
    why: str
    train: dict[str, Any] = field(default_factory=dict)
    regularization: dict[str, Any] = field(default_factory=dict)
    dataset: dict[str, Any] = field(default_factory=dict)
    adapter: dict[str, Any] = field(default_factory=dict)
    plain_set: str | None = None
    """Role of a further data set of 24 pictures of shapes that the base knows: `regularization`."""
    plain_target: str = "images"


SHAPES = "circle, square, triangle, cross, ring, star"
"""Class words: what the invented word is an example of, in the embedded base's world."""
_DOP = {"output_preservation": True, "output_preservation_class": SHAPES}
_DOP_2 = {**_DOP, "output_preservation_weight": 2.0}
_BPP = {"blank_preservation": True}

RECIPES = (
    Recipe("plain", "the recipe without any of it; it leaks"),
    Recipe("dop", "Differential Output Preservation with six class words", regularization=_DOP),
    Recipe("dop_weight_2", "the demo's recipe: the same, counting twice", regularization=_DOP_2),
    Recipe(
        "dop_one_word",
        "the same with one class word",
        regularization={"output_preservation": True, "output_preservation_class": "circle"},
    ),
    Recipe("bpp", "Blank Prompt Preservation", regularization=_BPP),
    Recipe("dop_bpp", "both", regularization={**_DOP, **_BPP}),
    Recipe("dop_every_2", "DOP in every second step", regularization={**_DOP, "preservation_every": 2}),
    Recipe("differential_guidance", "differential guidance 3", regularization={"differential_guidance": True}),
    Recipe("dop_differential_guidance", "the same against DOP", regularization={**_DOP, "differential_guidance": True}),
    Recipe("contrastive", "contrastive guidance 3", regularization={"contrastive_guidance": True}),
    Recipe("regularization_images", "half the batches are pictures of known shapes", plain_set="regularization"),
    Recipe(
        "regularization_prior",
        "the same, towards the base's own prediction",
        plain_set="regularization",
        plain_target="base",
    ),
    Recipe("ema", "moving average, decay 0.98", train={"ema_decay": 0.98}),
    Recipe("linear", "timestep type linear", train={"timestep_type": "linear"}),
    Recipe("sigmoid", "timestep type sigmoid", train={"timestep_type": "sigmoid"}),
    Recipe("weighted", "timestep type weighted", train={"timestep_type": "weighted"}),
    Recipe("one_step", "timestep type one_step", train={"timestep_type": "one_step"}),
    Recipe("high_noise", "linear, bias high_noise", train={"timestep_type": "linear", "timestep_bias": "high_noise"}),
    Recipe("low_noise", "linear, bias low_noise", train={"timestep_type": "linear", "timestep_bias": "low_noise"}),
    Recipe("mae", "absolute loss", train={"loss_type": "mae"}),
    Recipe("huber", "Huber loss, delta 0.1", train={"loss_type": "huber", "huber_delta": 0.1}),
    Recipe("min_snr", "min-SNR 5", train={"min_snr_gamma": 5.0}),
    Recipe("stages", "two noise stages, switching every step", train={"stage_boundaries": [0.7]}),
    Recipe("caption_dropout", "a fifth of captions dropped to the trigger", dataset={"caption_dropout": 0.2}),
    Recipe(
        "caption_dropout_blank",
        "a fifth of captions dropped to nothing",
        dataset={"caption_dropout": 0.2, "dropped_caption": "blank"},
    ),
    Recipe("no_flip", "without mirroring", dataset={"flip_x": False}),
    Recipe("random_crop", "random crops", dataset={"crop": "random"}),
    Recipe("strength", "adapter strength 1.5 in training", dataset={"adapter_strength": 1.5}),
    Recipe("lion", "Lion, a fifth of the rate", train={"optimizer": "lion", "learning_rate": 2e-4}),
    Recipe("prodigy", "Prodigy", train={"optimizer": "prodigy", "learning_rate": 1.0}),
    Recipe("adafactor", "Adafactor", train={"optimizer": "adafactor"}),
    Recipe("cosine", "cosine with 20 steps of warm-up", train={"lr_scheduler": "cosine", "warmup_steps": 20}),
)
