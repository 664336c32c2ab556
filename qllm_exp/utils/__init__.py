"""Text, files and notebooks: small helpers that the other rooms share."""
