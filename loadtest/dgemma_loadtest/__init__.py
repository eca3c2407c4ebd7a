"""Load tests from outside: what a service that streams text does for many users at once."""

__version__ = "0.1.0"
