"""The comparison of finished runs.

* `compare`: means over seeds, paired differences, fairness, cost to a target.
* `tables`: comparisons in Markdown, LaTeX and CSV.
* `charts`: SVG charts of a page.
* `report`: the report page.
* `watch`: the report of a run during the run.
"""
