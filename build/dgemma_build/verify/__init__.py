"""Whether an engine is whole, belongs to its machine and weights, and computes what it should."""
