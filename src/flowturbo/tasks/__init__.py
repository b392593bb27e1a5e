"""Tasks: generating and editing images."""
