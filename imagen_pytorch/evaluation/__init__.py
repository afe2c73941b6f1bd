"""Looking at results: grids with captions, loss curves, distances to real images, and how well images fit captions."""
