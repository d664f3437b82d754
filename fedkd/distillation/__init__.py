"""Dataset distillation, and generators.

* `distillers`: DM, IDM, DC, DSA, FGM: methods that make virtual images.
* `stacked_matching`: all classes of many clients in one step of DM or IDM.
* `virtual_images`: virtual images, the real images that they match, and the initial virtual images.
* `virtual_kinds`: virtual rows, series and arrays: what models get of them, what may change, class statistics.
* `matching`: matching losses: embeddings and gradients.
* `siamese`: differentiable Siamese augmentation; `siamese_kinds`: of rows and series.
* `dc_augmentation`: how DC's code changes virtual images of MNIST when it judges them.
* `generators`: FedFTG's image generator, FedGen's feature generator; `sample_generators`: of rows, series and texts.
"""
