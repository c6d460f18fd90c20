"""Measures what the product does, through the interfaces that users have."""
