"""The contract of a method: its server half, its client half, the round that they share."""
