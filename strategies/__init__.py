"""The methods, one file for each: its server half, its client half, its hyper-parameters."""
