"""Drawing pictures: previews of a run, and of any LoRA."""
