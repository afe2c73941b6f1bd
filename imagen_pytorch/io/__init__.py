"""Files anywhere: paths and URLs, atomic writing, and the locks of runs."""
