"""Finished runs, side by side.

* `compare`: means over seeds, paired differences, fairness, cost to a target.
* `tables`: comparisons in Markdown, LaTeX and CSV.
* `charts`: SVG charts of a page.
* `report`: the report page.
* `watch`: the report of a run while it goes on.
"""
