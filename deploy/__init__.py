"""The Flower App that runs any strategy on real sites: `fedkd_app.py` and its `pyproject.toml`."""
