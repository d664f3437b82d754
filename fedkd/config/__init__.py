"""Run files: their tables, and how they are read and written with all values.

* `tables`: the common parts of all tables: strict checks, named tables, the types of values.
* `data`: `[data]`: images, partition, public set, real sites.
* `run`: `Config`, a whole run file.
* `distill`: `DistillConfig`, the file of `fedkd distill`.
* `reading`: `read_config`, `--set` overrides, error messages that name the key.
"""

from .data import DataConfig, PartitionConfig, PublicConfig, RealSites, SetsConfig, ValidationConfig
from .distill import DistillConfig, ProbeConfig, SetConfig
from .reading import (
    difference,
    flattened,
    overridden,
    parse_config,
    parse_distill_config,
    read_config,
    read_distill_config,
    read_table,
    to_table,
    with_changes,
)
from .run import (
    Adam,
    AnyOptimizer,
    CheckpointConfig,
    Config,
    EvaluateConfig,
    FaultsConfig,
    ModelConfig,
    ScheduleConfig,
    Sgd,
    StopConfig,
    TorchOptimizer,
    TrainConfig,
    batch_sizes,
)
from .tables import (
    GROUPS,
    KINDS,
    AnyGroup,
    Architecture,
    Count,
    Fraction,
    Group,
    Kind,
    Limits,
    NamedTable,
    NotNegative,
    Positive,
    Probability,
    Whole,
)

__all__ = [
    "GROUPS",
    "KINDS",
    "Adam",
    "AnyGroup",
    "AnyOptimizer",
    "Architecture",
    "CheckpointConfig",
    "Config",
    "Count",
    "DataConfig",
    "DistillConfig",
    "EvaluateConfig",
    "FaultsConfig",
    "Fraction",
    "Group",
    "Kind",
    "Limits",
    "ModelConfig",
    "NamedTable",
    "NotNegative",
    "PartitionConfig",
    "Positive",
    "Probability",
    "ProbeConfig",
    "PublicConfig",
    "RealSites",
    "ScheduleConfig",
    "SetConfig",
    "SetsConfig",
    "Sgd",
    "StopConfig",
    "TorchOptimizer",
    "TrainConfig",
    "ValidationConfig",
    "Whole",
    "batch_sizes",
    "difference",
    "flattened",
    "overridden",
    "parse_config",
    "parse_distill_config",
    "read_config",
    "read_distill_config",
    "read_table",
    "to_table",
    "with_changes",
]
