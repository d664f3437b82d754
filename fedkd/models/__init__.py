"""Architectures.

* `build`: from a name to a model that was tried on the run's images.
* `zoo`: the model zoo: mlp, cnn, lenet5, convnet, resnets.
* `adapter`: torchvision's models.
"""
