"""Which checkpoint of a run to use: measured on held-out pictures and on drawn ones, and told with reasons."""
