"""Finished runs as tables, charts and pages."""
