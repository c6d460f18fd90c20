"""Counters of what happened, and readings of the machine: memory, cores, disk temperature."""
