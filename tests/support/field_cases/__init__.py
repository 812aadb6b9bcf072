"""Small inputs cut from public configs, a folder each, with what lies beside the config."""

from pathlib import Path

PLACE = Path(__file__).parent
