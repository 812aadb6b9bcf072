"""Build the model if need be, and print where it is."""

from recital.cache import model_path

print(model_path())
