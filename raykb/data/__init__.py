"""Images as arrays: data sets by name, splits, and the views drawn from them."""
