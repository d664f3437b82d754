"""The comparison of finished runs.

* `compare`: means over seeds, paired differences, fairness, cost to a target.
* `estimates`: means, deviations, intervals and p values over seeds.
* `selection`: which strategies are shown, in which order and under which names.
* `tables`: comparisons in Markdown, LaTeX and CSV.
* `series`: curves over seeds, and values of nodes.
* `figures`: the figures of a comparison for a paper or slides.
* `charts`: SVG charts of a page.
* `evaluations`: parts of the page: traffic, scores, confusion matrices, calibration.
* `report`: the report page.
* `watch`: the report of a run during the run.
"""
