"""The paper: tensors in, tensors out. No module here imports a model, a tokenizer or a data set."""
