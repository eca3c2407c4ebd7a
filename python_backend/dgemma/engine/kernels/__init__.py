"""Kernels in the Triton language, each beside the plain torch that says what it computes.

A module here imports `triton`, which CPU builds of torch do not bring: only what runs or compiles
kernels imports one.
"""
