"""Print where the model of a shape is, built if need be; given a directory, build it there."""

import sys
from pathlib import Path

from recital.cache import build, model_path

match sys.argv[1:]:
    case [shape, directory]:
        build(shape, Path(directory))
    case shape:
        print(model_path(*shape))
