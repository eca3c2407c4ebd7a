"""What a service can run: the engines and weights of a model store, and the choice among them.

A model store is any tree of directories that hold a manifest. It holds one model, in any number of
revisions, precisions and targets; nothing is ever written to it in order to read it.
"""
