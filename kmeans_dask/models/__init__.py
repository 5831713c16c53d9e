"""Fitted models: stored, compared, applied to new images, and exported."""
