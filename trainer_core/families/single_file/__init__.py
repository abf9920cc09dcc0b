"""Models in single safetensors files, as ComfyUI's users have them: read, recognised, and given diffusers' names."""
