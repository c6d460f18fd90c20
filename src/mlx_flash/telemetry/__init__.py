"""Counters of what happened, and readings of the machine's memory."""
