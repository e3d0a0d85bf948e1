"""The table of the deep-clustering paper (003): segmentation before and after an encoder is retrained on clusters."""
