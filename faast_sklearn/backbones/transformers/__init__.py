"""Models of the transformers library: vision, text and language models."""
