"""What pictures of checkpoints say of them, by an embedding: leak, likeness and variety."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from . import measures

if TYPE_CHECKING:
    from PIL import Image
    from torch import Tensor

    from .embedding import Embedding
    from .prompts import Picture

    Images = Mapping[Picture, Image.Image]


class Comparison:
    """Of any number of checkpoints, with the same training pictures and the base's own pictures."""

    def __init__(self, embedding: Embedding, training: Sequence[Image.Image], by_base: Images) -> None:
        """`training` may be empty: then likeness is not defined."""
        self._embedding = embedding
        self._training = embedding.embed(training) if training else None
        self._triggered, self._plain = self._embedded(by_base)
        spreads = [measures.spread(one) for one in (self._training, self._plain, self._triggered) if one is not None]
        usual = next((one for one in spreads if one), 1.0)  # for where there is no better one
        self._likeness_unit = (None if self._training is None else measures.spacing(self._training)) or usual
        self._leak_unit = (None if self._plain is None else measures.spread(self._plain)) or usual
        self._variety_unit = ((None if self._triggered is None else measures.spread(self._triggered)) or usual) / 2

    def of(self, images: Images) -> dict[str, float | None]:
        """The measures of a checkpoint that drew these."""
        triggered, plain = self._embedded(images)
        leak = None
        if plain is not None and self._plain is not None:
            leak = measures.leak(plain, self._plain, self._leak_unit)
        likeness = variety = None
        if triggered is not None:
            variety = measures.variety(triggered, self._variety_unit)
            if self._training is not None:
                likeness = measures.likeness(triggered, self._training, self._likeness_unit)
        return {"leak": leak, "likeness": likeness, "variety": variety}

    def _embedded(self, images: Images) -> tuple[Tensor | None, Tensor | None]:
        """Of the pictures with the trigger, and of those without."""
        groups = [[image for one, image in images.items() if one.triggered == kind] for kind in (True, False)]
        first, second = (self._embedding.embed(group) if group else None for group in groups)
        return first, second
