"""Print where the model is, built if need be; given a directory, build it there."""

import sys
from pathlib import Path

from recital.cache import build, model_path

if len(sys.argv) > 1:
    build(Path(sys.argv[1]))
else:
    print(model_path())
