"""Where a model's parts come from, and how they are read: folders, repositories and single files."""
