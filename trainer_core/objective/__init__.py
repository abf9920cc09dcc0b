"""What is minimised: noise schedules, timesteps, losses. Pure functions of their arguments."""
