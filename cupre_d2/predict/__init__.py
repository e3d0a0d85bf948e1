"""From a trained model to cells in images that nobody has annotated."""
