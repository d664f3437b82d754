"""Architectures.

* `build`: makes a model from its name, and tries it on images of the run's shape.
* `zoo`: the model zoo: mlp, cnn, lenet5, convnet, resnets.
* `adapter`: makes torchvision's models usable.
"""
