"""Trains CLIP-FSAR by episodes: `accelerate launch train/train.py --dataset DATA --output_dir runs/mine`.

The same program as `clipfsar train`, whose --help explains every option.
"""

import sys

from clipfsar.cli import main

if __name__ == "__main__":
    sys.exit(main(["train", *sys.argv[1:]]))
