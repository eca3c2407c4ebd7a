"""An autoregressive model's service that computes nothing: to compare with, where there is none."""
