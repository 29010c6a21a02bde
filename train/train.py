"""Trains CLIP-FSAR on episodes: `accelerate launch train/train.py --dataset DATA --output_dir runs/mine`.

This is the program `clipfsar train`; `clipfsar train --help` explains every option.
"""

import sys

from clipfsar.cli import main

if __name__ == "__main__":
    sys.exit(main(["train", *sys.argv[1:]]))
