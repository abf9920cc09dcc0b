"""Text encoders and VAEs that several families share: their names in files, and how they are run."""
