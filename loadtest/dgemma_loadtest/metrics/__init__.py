"""Figures from records: pure functions, which know neither files nor clocks."""
