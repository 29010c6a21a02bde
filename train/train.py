"""Trains CLIP-FSAR by episodes: `accelerate launch train/train.py --dataset DATA --output_dir runs/mine`.

The same program as `clipfsar train`, whose --help explains every option.
"""

from clipfsar.training.trainer import run

if __name__ == "__main__":
    run()
