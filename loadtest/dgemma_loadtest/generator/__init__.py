"""The measuring half: sends requests when they are due and writes down what came when."""
