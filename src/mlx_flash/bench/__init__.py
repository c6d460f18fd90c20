"""Measures the kernels and the model on this machine."""
