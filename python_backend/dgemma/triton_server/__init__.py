"""Starts, watches and stops a real Triton server on this machine."""
