"""What of a model is where, and what is kept or computed again: all that decides how much memory a run takes."""
