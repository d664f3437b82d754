"""The methods, a file for each: its server half, its client half, its hyper-parameters."""
