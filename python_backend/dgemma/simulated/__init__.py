"""A device that nobody has, in a time that passes as it would there; nothing is computed."""
