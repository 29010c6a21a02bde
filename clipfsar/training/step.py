"""One training step: its random seed, and the values that the log gets."""

import math

import torch
from accelerate import Accelerator


class StepValues:
    """Values of the forwards since the last line of the log. They stay on the device until they are needed.

    Args:
        earlier: Values of the forwards of the run before it was resumed, over all processes.
    """

    def __init__(self, earlier: list[dict[str, float]] | None = None):
        self._earlier = earlier or []
        self._new: list[dict[str, torch.Tensor]] = []

    def append(self, values: dict[str, torch.Tensor]) -> None:
        """Adds the values of a forward."""
        self._new.append(values)

    def rows(self, accelerator: Accelerator, episode: int) -> list[dict[str, float]]:
        """The values of each forward, over all processes. All of them must call it.

        Args:
            episode: How many are done, for the message.

        Raises:
            FloatingPointError: When a loss is NaN or infinite. A checkpoint would be worthless.
        """
        if self._new:
            names = list(self._new[0])
            stacked = torch.stack([torch.stack([values[name] for name in names]) for values in self._new])
            self._earlier += [dict(zip(names, row, strict=True)) for row in accelerator.gather(stacked).tolist()]
            self._new = []
        for values in self._earlier:
            if not math.isfinite(values["loss"]):
                raise FloatingPointError(
                    f"The loss is {values['loss']} at episode {episode}. The last checkpoint is older: "
                    "--resume with --mixed_precision bf16 or no instead of fp16, or begin anew in another "
                    "--output_dir with a lower --learning_rate or --max_grad_norm 1."
                )
        return self._earlier

    def pop_means(self, accelerator: Accelerator, episode: int) -> dict[str, float]:
        """The mean of each value since the last line of the log. The next line begins anew. Raises like `rows`."""
        rows = self.rows(accelerator, episode)
        self._earlier = []
        means = torch.tensor([list(values.values()) for values in rows], dtype=torch.float32).mean(0)
        return dict(zip(rows[0], means.tolist(), strict=True))


def recorded_values(loss: torch.Tensor, outputs, labels: torch.Tensor) -> dict[str, torch.Tensor]:
    """Losses and accuracy of a forward pass, still on the device. Labels of -1 are padding and do not count."""
    losses = {"loss": loss, "few_shot_loss": outputs.few_shot_loss, "video_text_loss": outputs.video_text_loss}
    values = {name: value.detach().float() for name, value in losses.items() if value is not None}
    # Sums instead of a selection, whose size a GPU would have to report.
    return values | {"accuracy": (outputs.logits.argmax(-1) == labels).sum() / (labels >= 0).sum()}


def mix_seeds(seed: int, episode: int) -> int:
    """A seed for PyTorch from two numbers; neighbouring numbers give seeds that are far apart."""
    return (seed * 0x9E3779B97F4A7C15 + episode * 0xBF58476D1CE4E5B9 + 1) % 2**63


__all__ = ["StepValues", "mix_seeds", "recorded_values"]
