"""Plots as SVG that stands in a page: text stays text, colours are the page's, no script."""
