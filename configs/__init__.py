"""The run files that come with fedkd: a folder a method."""
