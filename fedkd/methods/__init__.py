"""What several methods share, and only they."""
