"""A model out of a run: loaded, written in other formats, used on new samples, measured on them.

* `trained`: `TrainedModel`: a module with its classes and the encoding of its samples; it predicts.
* `of_run`: the model of a run folder: of the last or the best round, of the server or a node.
* `new_samples`: samples that a user gives, as the model takes them: files, arrays, rows, texts.
* `formats`: writes a model to a file: safetensors, ONNX, TorchScript, torch.export.
* `loading`: reads such a file.
* `cards`: what a file says of its model: the table in it, and the model card beside it.
* `predicting`: predictions of many files, as CSV.
* `evaluating`: a model's scores on a labelled set.
"""
