"""What the service is worth on which platform: one table of figures, each with its provenance."""
