"""The number formats: what tensors a quantised linear or expert has, a format a file."""
