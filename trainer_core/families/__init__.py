"""Model families: what turns files into a frozen denoiser and knows its conventions. See `base.py` for the contract."""
