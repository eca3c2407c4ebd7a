"""What the service counts, and how Triton comes to export it. Knows nothing of the front's HTTP."""
