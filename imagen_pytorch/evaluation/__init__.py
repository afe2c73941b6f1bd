"""Looking at results: grids with captions, loss curves, and how well pictures fit their captions."""
