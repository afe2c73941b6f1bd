"""A page in the browser: what it shows, who may ask it, and the calls of a model that it waits for."""
