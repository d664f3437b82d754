"""The methods, one file each: server half, client half, hyper-parameters."""
