"""Print where a model is, built if need be: `python -m recital [shape [directory to build it in]]`."""

import sys
from pathlib import Path

from recital.cache import build, model_path

match sys.argv[1:]:
    case [shape, directory]:
        build(shape, Path(directory))
    case shape:
        print(model_path(*shape))
