"""Trains CLIP-FSAR by episodes: `accelerate launch train/train.py --dataset DATA --output_dir runs/mine`.

The same program as `clipfsar train`, whose --help explains every option.
"""

import sys

from clipfsar.training.arguments import parse_arguments
from clipfsar.training.program import main

if __name__ == "__main__":
    try:
        main(parse_arguments())
    except (ValueError, OSError, FloatingPointError) as error:
        sys.exit(f"error: {error}")
