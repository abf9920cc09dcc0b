"""What sd-scripts and musubi-tuner have alike: arguments in a TOML file, networks, and files that arguments name."""
