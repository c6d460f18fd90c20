"""Guesses the experts of a later layer. Decides nothing, reads nothing."""
