"""`dgemma-build kernels`: every kernel, compiled for every chip, without one."""
