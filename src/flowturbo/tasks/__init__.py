"""What users ask for: generating images."""
