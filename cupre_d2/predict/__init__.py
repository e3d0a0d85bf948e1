"""From a trained model and images to cells: label images, measurements and what other programs open."""
