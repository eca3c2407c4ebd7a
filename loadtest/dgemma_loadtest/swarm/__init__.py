"""Locust in front of the generator: users, shapes, web UI and workers are Locust's, times are not.

Nothing is measured in Locust's processes: with gevent in between, tails come out up to twice too
long. Each process that has users has a generator's process beside it.
"""
