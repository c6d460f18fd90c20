"""Where an expert's bytes lie. Reads headers, never weights."""
