"""The tables of docs/methods: runs what each of them measures, and writes it into its page.

    python benchmarks/method_tables.py --list         # all tables: the runs that are there, and minutes for the rest
    python benchmarks/method_tables.py --list NAME    # also the commands of its runs
    python benchmarks/method_tables.py NAME ...       # runs what is missing; a second call continues the first
    python benchmarks/method_tables.py --write        # runs nothing, and writes what has been run

The sets are read from $FEDKD_DATA or data/. Those of `fedlgd-glyphs` are drawn by `python benchmarks/glyphs.py FOLDER`.
"""

from __future__ import annotations

from tables import BASE, Arm, Column, Table, at, final, logged, main, mean, megabytes, of_node

GLOBAL, PERSONAL, GLOBAL_TEST = "global/accuracy", "personal/accuracy", "personal_global_test/accuracy"
PROBE, NEAREST = "probe/accuracy", "knn/accuracy"
AFTER_FIT, AFTER_DISTILLATION = "personal_after_fit/accuracy", "personal_after_distillation/accuracy"
ANGLE, FEATURE_ANGLE = "drift/projection_angle", "drift/feature_angle"


def strategy(text: str) -> tuple[str, ...]:
    """Return the override that replaces the whole strategy."""
    return (f"strategy={{{text}}}",)


# FedAvg and FedMD

FEDAVG = Table(
    "fedavg-mnist",
    "fedavg.md",
    "accuracy in percent after the last round; traffic of the whole run, both ways",
    "fedavg/mnist-100.toml",
    (
        Arm("FedAvg"),
        Arm("FedProx, mu = 0.01", strategy('name="fedprox", mu=0.01'), base="FedAvg"),
        Arm("FedAvg, two local epochs", ("train.epochs=2",), base="FedAvg"),
        Arm(
            "`central`, 2 epochs of the pooled images (FedAvg's nodes train on 20 x 10 of 100 shares: the same number)",
            (*strategy('name="central"'), "rounds=2"),
        ),
    ),
    (
        Column("global test", final, GLOBAL),
        Column("minus FedAvg", final, GLOBAL, minus=BASE),
        Column("nodes' own test images", final, PERSONAL),
        Column("MB", megabytes, scale=1.0),
    ),
    minutes=15,  # a guess from similar runs; not timed
)

FEDMD_COLUMNS = (
    Column("`personal_global_test`", final, GLOBAL_TEST),
    Column("`personal` (after the revisit)", final, PERSONAL),
    Column("after the digest", final, AFTER_DISTILLATION),
)
FEDMD = Table(
    "fedmd-mnist",
    "fedmd.md",
    "accuracy in percent after the last round, means over nodes",
    "fedmd/mnist-12.toml",
    (
        Arm("FedMD, `kl`", ('strategy.digest="kl"',)),
        Arm("FedMD, `mae`"),
        Arm(
            "`local`, 12 epochs per round (more steps than FedMD in all)",
            (*strategy('name="local"'), "train.epochs=12"),
        ),
        Arm(
            "`local`, 4 epochs per round (more private steps than FedMD)",
            (*strategy('name="local"'), "train.epochs=4"),
        ),
    ),
    FEDMD_COLUMNS,
    minutes=20,
)
FEDMD_WITHOUT_PRETRAINING = Table(
    "fedmd-no-pretraining",
    "fedmd.md",
    "the same without pre-training, 500 public images per round, two local epochs",
    "fedmd/mnist-12.toml",
    (
        Arm("FedMD, `kl`", ("strategy.private_epochs=0", "strategy.subset_size=500", 'strategy.digest="kl"')),
        Arm("FedMD, `mae`", ("strategy.private_epochs=0", "strategy.subset_size=500")),
        Arm("`local`, the same private steps", strategy('name="local"')),
        Arm("`local`, 4 epochs per round", (*strategy('name="local"'), "train.epochs=4")),
    ),
    FEDMD_COLUMNS,
    minutes=15,
    overrides=("train.epochs=2",),
)

# KnFu

KNFU_COLUMNS = (
    Column("after distillation", final, AFTER_DISTILLATION),
    Column("after local training", final, AFTER_FIT),
    Column("weight on itself", logged, "self_weight", scale=1.0),
)
KT_PFL = 'name="ktpfl", distil_epochs=3, distil_batch_size=32'
COMET = 'name="comet", clusters=3, distil_epochs=3, distil_batch_size=32'
FEDMD_HERE = 'name="fedmd", public_epochs=0, private_epochs=0, distil_epochs=3, distil_batch_size=32'
KNFU = Table(
    "knfu-groups",
    "knfu.md",
    "accuracy in percent on the nodes' own test images in the last round, means over nodes",
    "knfu/mnist-groups.toml",
    (
        Arm("KnFu, β = 3", ("strategy.beta=3.0",)),
        Arm("COMET, 3 clusters of clients", strategy(f'{COMET}, cluster_by="client"')),
        Arm("COMET, 3 clusters per image", strategy(COMET)),
        Arm("KnFu, β = 10"),
        Arm("KT-pFL, T = 1, `batchmean`", strategy(f'{KT_PFL}, temperature=1.0, reduction="batchmean"')),
        Arm("mean: KnFu with β = 0", ("strategy.beta=0.0",)),
        Arm("local, 32 epochs per round", (*strategy('name="local"'), "train.epochs=32")),
        Arm("local, 8 epochs per round", strategy('name="local"')),
        Arm("FedMD, `mae`", strategy(FEDMD_HERE)),
        Arm("KT-pFL, as the authors' code", strategy(KT_PFL)),
        Arm("FedMD, `kl`", strategy(f'{FEDMD_HERE}, digest="kl"')),
    ),
    KNFU_COLUMNS,
    minutes=30,
    seeds="0..4",
)
KNFU_SETTINGS = (  # groups, alpha, images, rounds, local epochs, fine-tuning epochs
    (3, 0.3, 40, 6, 10, 3),
    (3, 0.3, 20, 6, 10, 3),
    (3, 0.1, 60, 8, 4, 2),
    (3, 0.1, 25, 5, 8, 3),
    (12, 0.3, 40, 5, 8, 3),
    (12, 0.1, 200, 5, 8, 3),
)
KNFU_ARMS = (
    ("`local`", strategy('name="local"')),
    ("mean", ("strategy.beta=0.0",)),
    ("KnFu, β = 10", ()),
    ("KnFu, β = 3", ("strategy.beta=3.0",)),
)
KNFU_ELSEWHERE = Table(
    "knfu-elsewhere",
    "knfu.md",
    "as above, in other settings: groups, α, images per node; rounds, local and fine-tuning epochs. `Mean` is β = 0",
    "knfu/mnist-groups.toml",
    tuple(
        Arm(
            f"{groups} groups, α = {alpha}, {images} images; {rounds}, {local}, {tuning}: {label}",
            (
                f"data.partition.groups={groups}",
                f"data.partition.alpha={alpha}",
                f"data.partition.size={images}",
                f"rounds={rounds}",
                f"train.epochs={local}",
                *overrides,
                *(() if label == "`local`" else (f"strategy.distil_epochs={tuning}",)),
            ),
        )
        for groups, alpha, images, rounds, local, tuning in KNFU_SETTINGS
        for label, overrides in KNFU_ARMS
    ),
    KNFU_COLUMNS,
    minutes=40,
)

# FedFTG

FTG_BASES = (
    ("FedAvg", 'name="fedavg"'),
    ("FedProx, mu 0.01", 'name="fedprox", mu=0.01'),
    ("FedDyn, alpha 0.01", 'name="feddyn"'),
    ("SCAFFOLD", 'name="scaffold"'),
    ("MOON, mu 0.5, tau 5", 'name="moon", mu=0.5, temperature=5.0'),
    ("FedNova", 'name="fednova"'),
    ("Flower's FedAvgM, momentum 0.5", 'name="flwr.serverapp.strategy:FedAvgM", server_momentum=0.5'),
    ("Flower's FedAdam, eta 0.03", 'name="flwr.serverapp.strategy:FedAdam", eta=0.03'),
)
FTG_PAPER = (
    'strategy.disagreement="kl"',
    "strategy.teacher_gradient=true",
    'strategy.classification="per_sample"',
    'strategy.generator_update="joint"',
    'strategy.labels="independent"',
)
FTG_ARMS = (
    *(
        arm
        for name, base in FTG_BASES
        for arm in (
            Arm(name, strategy(base), GLOBAL),
            Arm(f"FedFTG over {name}", (f"strategy.base={{{base}}}",), GLOBAL, base=name),
        )
    ),
    Arm("weight EMA, decay 0.5", strategy('name="weight_ema", decay=0.5'), GLOBAL, base="FedAvg"),
    Arm("FedGen, alpha = beta = 1", strategy('name="fedgen", alpha=1.0, beta=1.0'), GLOBAL, base="FedAvg"),
    Arm("FedGen, alpha = beta = 10", strategy('name="fedgen"'), GLOBAL, base="FedAvg"),
    *(
        Arm(f"FedFTG{over}, {said}", (*changes, *overrides), GLOBAL, base=base)
        for over, changes, base in (
            ("", (), "FedAvg"),
            (" over FedDyn", ('strategy.base={name="feddyn"}',), "FedDyn, alpha 0.01"),
        )
        for said, overrides in (
            ("generator never trained", ("strategy.generator_lr=1e-30",)),
            ("student never trained: only its batch-norm statistics change", ("strategy.student_lr=1e-30",)),
        )
    ),
    Arm("FedFTG, the paper's options", FTG_PAPER, GLOBAL, base="FedAvg"),
)
FTG_COLUMNS = (
    *(Column(f"round {number}", at(number)) for number in (1, 2, 3)),
    Column("mean over rounds", mean),
    Column("minus its base", mean, minus=BASE),
    Column("aggregated, round 3", final, "aggregated/accuracy"),
)
FTG = tuple(
    Table(
        f"fedftg-mnist-{alpha}",
        "fedftg.md",
        f"α = {alpha}: accuracy in percent on the test images after each round",
        "fedftg/mnist-8px.toml",
        FTG_ARMS,
        FTG_COLUMNS,
        minutes=27,
        seeds="0..4",
        overrides=(f"data.partition.alpha={alpha}",),
    )
    for alpha in (0.1, 0.3)
)
OF_FEDAVG = strategy('name="weight_ema", decay=0.8')
OF_FTG = strategy('name="weight_ema", decay=0.8, base={name="fedftg", base={name="fedavg"}, generator_width=32}')
FTG_CIFAR = Table(
    "fedftg-cifar10",
    "fedftg.md",
    "accuracy in percent on the test images; one run each of `weight_ema` over FedAvg and over FedFTG gives all rows",
    "fedftg/cifar10-small.toml",
    (
        Arm("FedAvg", OF_FEDAVG, "latest/accuracy"),
        Arm("weight EMA over FedAvg, decay 0.8", OF_FEDAVG, GLOBAL, base="FedAvg"),
        Arm("FedFTG, fine-tuned", OF_FTG, "latest/accuracy", base="FedAvg"),
        Arm("FedFTG, aggregated", OF_FTG, "aggregated/accuracy", base="FedAvg"),
        Arm("weight EMA over FedFTG", OF_FTG, GLOBAL, base="FedAvg"),
    ),
    (
        *(Column(f"round {number}", at(number)) for number in (1, 2, 5, 10, 20)),
        Column("mean over rounds", mean),
    ),
    minutes=48,  # from the seconds per round on the page; not timed again
)

# Self-supervised methods

DRIFT_BASES = (
    ("FedSimCLR", 'name="simclr", width=32, pooled_steps=400'),
    ("FedBYOL", 'name="byol", width=32, pooled_steps=400'),
    ("FedMoCo, queue 512", 'name="moco", width=32, pooled_steps=400, queue=512'),
    ("FedProtoCL, queue 512", 'name="protocl", width=32, pooled_steps=400, queue=512'),
)
DRIFT_COLUMNS = (
    Column("projection angle, round 1", at(1), ANGLE, scale=1.0),
    Column("round 2", at(2), ANGLE, scale=1.0),
    Column("minus its base, mean", mean, ANGLE, scale=1.0, minus=BASE),
    Column("feature angle, mean", mean, FEATURE_ANGLE, scale=1.0),
    Column("probe at the end", final, PROBE),
    Column("minus its base", final, PROBE, minus=BASE),
    Column("nearest neighbours", final, NEAREST),
)
DRIFT = Table(
    "fedx-drift",
    "fedx.md",
    "angles in degrees between a node's embeddings after local training and the new global model's, on the test images "
    "(smaller is better: `0 of 5` means that the angle falls on each seed); accuracies in percent",
    "fedx/mnist-drift.toml",
    (
        *(
            arm
            for name, base in DRIFT_BASES
            for arm in (
                Arm(name, strategy(base)),
                Arm(f"{name.split(',')[0]} + FedX", (f"strategy.base={{{base}}}",), base=name),
            )
        ),
        Arm(
            "FedSimCLR + FedX without the global terms",
            (
                f"strategy.base={{{DRIFT_BASES[0][1]}}}",
                "strategy.global_contrastive=0.0",
                "strategy.global_relational=0.0",
            ),
            base="FedSimCLR",
        ),
    ),
    DRIFT_COLUMNS,
    minutes=34,
    seeds="0..4",
)
FEDU = Table(
    "fedu-mnist",
    "fedu.md",
    "tiny MNIST, with a common start, two rounds of 50 local epochs ([FedX](fedx.md) has the same table for other "
    "methods): angles in degrees, accuracies in percent",
    "fedx/mnist-drift.toml",
    (
        Arm("FedBYOL", strategy(DRIFT_BASES[1][1])),
        Arm("FedU, threshold 0.4", strategy('name="fedu", width=32, pooled_steps=400'), base="FedBYOL"),
        Arm(
            "FedU, threshold 0: a node always keeps its own predictor",
            strategy('name="fedu", width=32, pooled_steps=400, threshold=0.0'),
            base="FedBYOL",
        ),
    ),
    DRIFT_COLUMNS,
    minutes=7,
)
SEMI = Table(
    "simclr-semi",
    "simclr.md",
    "accuracy in percent on the test images of the whole encoder after fine-tuning on 1 and 10 % of the labels, and of "
    "both probes on frozen features; round 0 is the random encoder",
    "simclr/mnist-semi.toml",
    (
        Arm("FedSimCLR"),
        Arm("FedU", strategy('name="fedu", width=64, semi_epochs=200, probe_epochs=50')),
    ),
    (
        Column("`semi_1`, round 0", at(0), "semi_1/accuracy"),
        Column("`semi_1` at the end", final, "semi_1/accuracy"),
        Column("`semi_10`, round 0", at(0), "semi_10/accuracy"),
        Column("`semi_10` at the end", final, "semi_10/accuracy"),
        Column("probe, round 0", at(0), PROBE),
        Column("probe at the end", final, PROBE),
        Column("nearest neighbours, round 0", at(0), NEAREST),
        Column("nearest neighbours at the end", final, NEAREST),
    ),
    minutes=4,
)
SVHN = Table(
    "simclr-svhn",
    "simclr.md",
    "accuracy in percent on the test images of SVHN, probes on the training images; round 0 is the random encoder",
    "simclr/svhn.toml",
    (
        Arm('`aug = "official"`'),
        Arm('`aug = "simclr"`', ('strategy.aug="simclr"',), base='`aug = "official"`'),
    ),
    (
        Column("probe, round 0", at(0), PROBE),
        Column("probe at the end", final, PROBE),
        Column("minus official", final, PROBE, minus=BASE),
        Column("nearest neighbours, round 0", at(0), NEAREST),
        Column("nearest neighbours at the end", final, NEAREST),
    ),
    minutes=6,
)

# FedLGD and its baselines

IMAGES = "ipc=10, initial_steps=600, real_batch=64"
VIRTUAL, SUPCON = "FedAvg on virtual images", "SupCon only, on virtual images"
LGD = Table(
    "fedlgd-digits",
    "fedlgd.md",
    "accuracy in percent at the end on each domain's own test images, and its mean over the domains",
    "fedlgd/digits.toml",
    (
        Arm(
            "FedAvg on as many random real images",
            strategy('name="fedavg_virtual", ipc=10, initial_steps=0, initial="real"'),
            PERSONAL,
        ),
        Arm(VIRTUAL, strategy(f'name="fedavg_virtual", {IMAGES}'), PERSONAL),
        Arm(SUPCON, strategy(f'name="fedavg_virtual", {IMAGES}, base={{name="supcon_only"}}'), PERSONAL),
        Arm(
            "VHL on virtual images, 10 noise images per class",
            strategy(f'name="fedavg_virtual", {IMAGES}, base={{name="vhl", noise_per_class=10}}'),
            PERSONAL,
        ),
        Arm("FedLGD, `figure`", (), PERSONAL),
        Arm("FedLGD, `figure`, without the contrast (`lambda_con = 0`)", ("strategy.lambda_con=0.0",), PERSONAL),
        Arm("FedLGD, `code`", ('strategy.selected="code"',), PERSONAL),
    ),
    (
        *(Column(name, of_node(n)) for n, name in enumerate(("MNIST", "SVHN", "USPS", "fonts", "MNIST-M"))),
        Column("mean", final),
        Column("minus virtual", final, minus=VIRTUAL),
        Column("minus SupCon only", final, minus=SUPCON),
    ),
    minutes=300,  # by counting operations; not timed
)
FEW = "ipc=5, initial_steps=100"
GLYPHS = Table(
    "fedlgd-glyphs",
    "fedlgd.md",
    "accuracy in percent at the end, mean over four domains of digits drawn with PIL's font",
    "fedlgd/glyphs.toml",
    (
        Arm(VIRTUAL, strategy(f'name="fedavg_virtual", {FEW}'), PERSONAL),
        Arm(SUPCON, strategy(f'name="fedavg_virtual", {FEW}, base={{name="supcon_only"}}'), PERSONAL),
        Arm("FedLGD, `figure`", (), PERSONAL),
        Arm("FedLGD, `code`", ('strategy.selected="code"',), PERSONAL),
        Arm("`figure` without IDM (`local_steps = 0`)", ("strategy.local_steps=0",), PERSONAL),
        Arm("`figure`, global images stay noise (`global_steps = 0`)", ("strategy.global_steps=0",), PERSONAL),
        Arm("`figure` without the contrast (`lambda_con = 0`)", ("strategy.lambda_con=0.0",), PERSONAL),
        Arm(
            "the same, global images stay noise",
            ("strategy.lambda_con=0.0", "strategy.global_steps=0"),
            PERSONAL,
        ),
    ),
    (
        Column("mean", final),
        Column("minus virtual", final, minus=VIRTUAL),
        Column("minus SupCon only", final, minus=SUPCON),
    ),
    minutes=20,
)

# Strategies of Flower

FLOWER = Table(
    "flower-mnist",
    "flower.md",
    "accuracy in percent after the last round",
    "flower/mnist-robust.toml",
    (
        Arm("fedkd's `fedavg`", strategy('name="fedavg"')),
        *(
            Arm(
                f"{name}{said}",
                strategy(f'name="flwr.serverapp.strategy:{name}"{options}'),
                base="fedkd's `fedavg`",
            )
            for name, options, said in (
                ("FedAvg", "", ""),
                ("Krum", ", num_malicious_nodes=1", ", one malicious node assumed"),
                ("MultiKrum", ", num_malicious_nodes=1, num_nodes_to_select=5", ", 1 assumed, 5 selected"),
                ("Bulyan", ", num_malicious_nodes=1", ", one malicious node assumed"),
                ("FedMedian", "", ""),
                ("FedTrimmedAvg", ", beta=0.2", ", beta 0.2"),
            )
        ),
    ),
    (
        Column("global test", final, GLOBAL),
        Column("minus fedkd's FedAvg", final, GLOBAL, minus=BASE),
        Column("nodes' own test images", final, PERSONAL),
    ),
    minutes=7,
)

TABLES: tuple[Table, ...] = (
    SVHN,
    FLOWER,
    FEDU,
    SEMI,
    DRIFT,
    GLYPHS,
    LGD,
    FEDMD,
    FEDMD_WITHOUT_PRETRAINING,
    KNFU,
    KNFU_ELSEWHERE,
    FEDAVG,
    *FTG,
    FTG_CIFAR,
)


if __name__ == "__main__":
    main(TABLES, __doc__)
