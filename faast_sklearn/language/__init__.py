"""Frozen language models that learn: prompts, generation, choices and scores."""
