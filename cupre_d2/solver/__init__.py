"""Optimizers and regularisers."""
