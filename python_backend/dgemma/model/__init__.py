"""DiffusionGemma's network, defined once as small torch modules; engines are made from it."""
