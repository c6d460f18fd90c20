"""Arithmetic on sizes: from a model and a memory limit to a plan. Runs nothing."""
