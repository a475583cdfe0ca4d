"""What a trained network is worth: one file for each protocol."""
