"""What a user asks for: pictures."""
