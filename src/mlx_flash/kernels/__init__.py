"""Computes on slot buffers. `reference` is made of MLX operations and defines what is correct."""
