"""From hidden states to the next canvas: everything after the engine, the same on CPU and CUDA."""
