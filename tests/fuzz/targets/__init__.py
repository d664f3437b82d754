"""The targets, one in each file; `fuzz/frame.py` says what a target is."""
