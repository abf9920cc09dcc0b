"""diffusion-pipe: jobs and data sets."""
