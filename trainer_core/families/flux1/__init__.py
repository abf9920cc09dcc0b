"""FLUX.1 and FLUX.1 Kontext."""
