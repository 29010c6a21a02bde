"""One training step: its random seed, and the values that the log gets."""

import torch


def recorded_values(loss: torch.Tensor, outputs, labels: torch.Tensor) -> dict[str, torch.Tensor]:
    """Losses and accuracy of a forward pass, still on the device. Labels of -1 are padding and do not count."""
    losses = {"loss": loss, "few_shot_loss": outputs.few_shot_loss, "video_text_loss": outputs.video_text_loss}
    values = {name: value.detach().float() for name, value in losses.items() if value is not None}
    # Sums instead of a selection, whose size a GPU would have to report.
    return values | {"accuracy": (outputs.logits.argmax(-1) == labels).sum() / (labels >= 0).sum()}


def mix_seeds(seed: int, episode: int) -> int:
    """A seed for PyTorch from two numbers; neighbouring numbers give seeds that are far apart."""
    return (seed * 0x9E3779B97F4A7C15 + episode * 0xBF58476D1CE4E5B9 + 1) % 2**63


__all__ = ["mix_seeds", "recorded_values"]
