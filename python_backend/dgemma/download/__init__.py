"""How a model comes into the local model store: from a mirror, or from Hugging Face's hub.

Whatever is brought fills a directory of another name first, is verified, and then takes its place.
"""
