"""Engines: what runs a pass. Everything above this seam is the same for every engine."""
