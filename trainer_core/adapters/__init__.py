"""Adapters: put into a frozen denoiser, trained, written and read in ComfyUI's names."""
