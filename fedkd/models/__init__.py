"""Architectures.

* `build`: makes a model from its name, and tries it on samples of the run's form.
* `zoo`: models for images: mlp, cnn, lenet5, convnet, resnets.
* `tables`: models for rows of a table, with embeddings of categories.
* `series`: models for series, whose mask is their last channel.
* `texts`: models for tokens.
* `sources`: models of torchvision, timm and transformers.
* `adapter`: finds the head of any model, and what comes before it.
* `masks`: models with `forward(x, mask)`, or without a mask, for series and tokens.
* `pretrained`: loads weights from a local file.
* `freezing`: trains a part of a model: the head, some modules, or low-rank adapters.
* `projection`: a projection head between features and classifier.
"""
