"""The embedded base: a tiny FLUX-architecture model, the world it draws, and the judge of what a picture shows."""
