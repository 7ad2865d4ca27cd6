"""Use trained networks: predictions, features, and the pictures of both."""
