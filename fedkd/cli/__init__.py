"""The command line: run, compare and show federations. Only the commands that need torch import it.

* `common`: the app, arguments that commands share, exit codes.
* `runs`: `fedkd run`, `distill`, `sweep`, `partition`, `describe`.
* `reports`: `fedkd compare`, `report`, `figures`, `watch`.
* `published`: `fedkd reproduce`.
* `models`: `fedkd export`, `predict`, `evaluate`.
* `write`: `fedkd list`, `init`, `new`, `check`.
* `deploy`: `fedkd deploy init`.
* `doctor`: `fedkd doctor`.
* `tables`: the tables that commands print.
"""

# In the order of the help.
# isort: off
from .common import app
from . import runs
from . import reports
from . import published
from . import models
from . import write
from . import deploy
from . import doctor
# isort: on

__all__ = ["app", "deploy", "doctor", "models", "published", "reports", "runs", "write"]
