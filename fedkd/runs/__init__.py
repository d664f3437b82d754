"""A run, its folder, its checkpoints, and grids of runs."""
