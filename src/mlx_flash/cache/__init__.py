"""Decides which experts are resident. Bookkeeping only: no reads, no arrays."""
