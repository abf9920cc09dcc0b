"""The stages that build the embedded base; `__main__.py` runs them."""
