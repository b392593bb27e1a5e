"""Where the conventions of other libraries are turned into ours, and nowhere else."""
