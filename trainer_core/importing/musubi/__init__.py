"""musubi-tuner: arguments and data sets."""
