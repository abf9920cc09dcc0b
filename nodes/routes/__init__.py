"""What ComfyUI's server answers for our page, below /lora_foundry: thin over `trainer_core/api.py`."""
