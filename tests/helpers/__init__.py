"""What several tests need; a test imports from here and never from another test."""
