"""Samples to rows of features, each sample once: the second of five rooms."""
