"""The engine that a machine needs, built, verified and put where a service finds it."""
