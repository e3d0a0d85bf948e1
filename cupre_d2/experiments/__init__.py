"""Experiments: many pipelines that share stages, run side by side, and the table that comes of them."""
