"""Measuring engines: the passes they are measured with, clocks, and reports made to be shared."""
