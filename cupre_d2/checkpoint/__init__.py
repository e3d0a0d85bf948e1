"""Loading and saving weights."""
