"""kohya's sd-scripts: arguments and data sets."""
