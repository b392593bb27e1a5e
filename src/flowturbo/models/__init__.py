"""Networks, their checkpoints, and the bundled models."""
