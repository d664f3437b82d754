"""Dataset distillation, and generators.

* `distillers`: DM, IDM, DC, DSA, FGM: methods that make virtual images.
* `virtual_images`: virtual images, real ones to match, and how virtual ones start.
* `matching`: matching losses: embeddings and gradients.
* `siamese`: differentiable Siamese augmentation.
* `generators`: FedFTG's image generator, FedGen's feature generator.
"""
