"""Joins cache, store and kernels inside an mlx-lm model: the only package that edits one."""
