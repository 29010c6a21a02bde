"""Explains a classification: which query frames matched which example frames, and what the class names contributed.

Letters in shapes: N classes, L query frames, M prototype frames, D feature size.
"""

import os
import textwrap
from dataclasses import dataclass
from typing import Any

import torch

try:
    from .choices_clipfsar import UNKNOWN_LABEL
except ImportError:
    if __package__:
        raise
    from choices_clipfsar import UNKNOWN_LABEL

try:
    from .paths_clipfsar import check_picture_name, naming_errors, wrapped
except ImportError:
    if __package__:
        raise
    from paths_clipfsar import check_picture_name, naming_errors, wrapped

# Only `plot` imports matplotlib: the numbers do not need it.


@dataclass
class Explanation:
    """Why a query video got its class probabilities.

    Args:
        class_names: N names, in the order of everything below.
        inference_mode: The mode that `probabilities` come from.
        probabilities: (N,).
        clip_probabilities: (N,), from the distances alone, as the ensemble uses them.
        text_probabilities: (N,), from the class names alone.
        distances: (N,), to the prototypes.
        frame_distances: (N, L, M), 1 - cosine of query frames and prototype frames.
        alignment: (N, L, M), how much each pair of frames counts in the distance: its derivative by the pair's frame
            distance. For OTAM it is the soft alignment path (the sum of both directions, if there are two); zero means
            that the pair is not matched. For `"trx"` it is the attention of the pair's tuples. None if single frames
            do not count (`alignment="mean"`). With a head, M are the frames of the clip in `support_clips`, and
            `frame_distances` are those to the mean of the class's clips.
        text_share: The class names' part in the log odds of the best class against the second, 0 to 1: `|text| /
            (|text| + |clips|)`. It is 0 in `"few_shot"`, although names modulate prototypes, and 1 in `"zero_shot"`.
        text_agrees: Whether the class names also prefer the best class to the second.
        unknown_score: Score of "none of these", if requested.
        query_frames: (L, H, W, 3), uint8, as the model saw them.
        support_frames: Per class, the frames of the enrolled clip nearest to the query, (M, h, w, 3), uint8, or None.
        support_clips: Per class, that clip's name and the number of clips that the prototype is made of.
    """

    class_names: list[str]
    inference_mode: str
    probabilities: torch.Tensor
    clip_probabilities: torch.Tensor
    text_probabilities: torch.Tensor
    distances: torch.Tensor
    frame_distances: torch.Tensor
    alignment: torch.Tensor | None
    text_share: float
    text_agrees: bool
    unknown_score: float | None = None
    query_frames: torch.Tensor | None = None
    support_frames: list[torch.Tensor | None] | None = None
    support_clips: list[tuple[str, int]] | None = None

    @property
    def label(self) -> str:
        """The most probable class."""
        return self.class_names[int(self.probabilities.argmax())]

    @property
    def is_unknown(self) -> bool:
        """Whether the answer is "none of these"."""
        return self.unknown_score is not None and self.unknown_score >= 0.5

    def path(self, label: str | None = None) -> list[tuple[int, int, float]]:
        """For each query frame that counts: its number, its best matching prototype frame, and that pair's weight.

        The path is that of class `label`, by default the most probable one. Weights are relative to the largest. The
        list is empty if the order of frames does not count.
        """
        if self.alignment is None:
            return []
        weights = self.alignment[self._number(label)]
        weights = weights / weights.max().clamp(min=torch.finfo(weights.dtype).tiny)
        heaviest, columns = weights.max(-1)
        return [(row, int(columns[row]), float(heaviest[row])) for row in range(len(weights)) if heaviest[row] > 0.01]

    def to_dict(self) -> dict[str, Any]:
        """All numbers, ready for JSON; no frames."""
        names = ("probabilities", "clip_probabilities", "text_probabilities", "distances")
        numbers = {name: dict(zip(self.class_names, getattr(self, name).tolist(), strict=True)) for name in names}
        return {
            "label": self.label,
            "inference_mode": self.inference_mode,
            **numbers,
            "text_share": self.text_share,
            "text_agrees": self.text_agrees,
            "unknown_score": self.unknown_score,
            "alignment": None if self.alignment is None else self.alignment[self._number(None)].tolist(),
            "path": self.path(),
        }

    def _number(self, label: str | None) -> int:
        label = self.label if label is None else label
        if label not in self.class_names:
            raise ValueError(f"There is no class {label!r}; explained are {', '.join(map(repr, self.class_names))}.")
        return self.class_names.index(label)

    def plot(
        self,
        path: str | os.PathLike | None = None,
        label: str | None = None,
        title: str | None = None,
        probabilities: bool = True,
    ):
        """Draws the alignment with one class, by default the most probable: query frames at the left, the example's
        frames at the top, their alignment between. `probabilities=False` leaves out class probabilities and heading.

        Returns matplotlib's figure, and writes it to `path` if given.

        Raises:
            ValueError: If `path` does not end as a picture does.
        """
        check_picture_name(path)
        try:
            from matplotlib.figure import Figure
        except ImportError as error:
            raise ImportError("Pictures need matplotlib: `pip install matplotlib`.") from error
        number = self._number(label)
        shown = min(len(self.class_names), 8)
        figure = Figure(figsize=(12.5, 7.2) if probabilities else (5.6, 7), layout="constrained")
        if probabilities:
            grid, bars = figure.subplots(1, 2, width_ratios=(2.2, 1))
            self._draw_alignment(grid, number)
            self._draw_probabilities(bars, number, shown)
            heading = f"{title}: " if title else ""
            heading += self._answer() if label is None else self._with_probability(number)
            heading = "\n".join(wrapped(line, 90) for line in heading.splitlines())
            figure.suptitle(heading, fontsize=15, fontweight="bold", parse_math=False)
        else:
            self._draw_alignment(figure.subplots(), number)
        if path is not None:
            with naming_errors(path):
                figure.savefig(path, dpi=110, bbox_inches=None if probabilities else "tight")
        return figure

    def _answer(self) -> str:
        nearest = self._with_probability(self._number(None))
        if not self.is_unknown:
            return nearest
        return f"{UNKNOWN_LABEL}, score {self.unknown_score:.2f}\nThe nearest class is {nearest}"

    def _with_probability(self, number: int) -> str:
        return f"{self.class_names[number]!r}, probability {float(self.probabilities[number]):.2f}"

    def _draw_alignment(self, axes, number: int):
        """Draws the grid: cell (row, column) covers x from column to column + 1 and y from row to row + 1.

        The path alone would mislead: by OTAM's rules it is near the diagonal even if all frames look the same.
        """
        similarity = 1 - self.frame_distances
        low, high = float(similarity.min()), float(similarity.max())  # over all classes, to compare pictures
        num_rows, num_columns = similarity.shape[1:]
        extent = (0, num_columns, num_rows, 0)
        axes.imshow(
            similarity[number].numpy(), cmap="Blues", vmin=low, vmax=high, extent=extent, interpolation="nearest"
        )
        for x in range(num_columns + 1):
            axes.plot([x, x], [0, num_rows], color="0.85", linewidth=0.8)
        for y in range(num_rows + 1):
            axes.plot([0, num_columns], [y, y], color="0.85", linewidth=0.8)
        width = _draw_frames(axes, self.query_frames, num_rows, vertical=True)
        support_frames = None if self.support_frames is None else self.support_frames[number]
        height = _draw_frames(axes, support_frames, num_columns, vertical=False)
        if self.alignment is not None:
            weights = self.alignment[number] / self.alignment[number].max()
            rows, columns = (weights > 0.2).numpy().nonzero()
            areas = 260 * weights[rows, columns].numpy()  # in points, for cells of about 50 by 50
            axes.scatter(
                columns + 0.5, rows + 0.5, areas, color="white", edgecolors="tab:red", linewidths=1.6, zorder=3
            )
        axes.set(xlim=(-0.2 - width, num_columns), ylim=(num_rows, -0.2 - height), aspect="equal")
        axes.axis("off")
        axes.text(-0.2 - width, num_rows / 2, "query video, first frame on top  ", rotation=90, ha="right", va="center")
        clip, num_clips = ("?", 1) if self.support_clips is None else self.support_clips[number]
        example = (
            f"example clip {clip!r}" if num_clips == 1 else f"{num_clips} example clips; shown: {clip!r}, the nearest"
        )
        heading = "\n".join(wrapped(line, 60) for line in (repr(self.class_names[number]), example))
        axes.text(num_columns / 2, -0.35 - height, heading, ha="center", va="bottom", parse_math=False)
        meaning = "Bluer: the two frames look more alike (scale over all classes).\n"
        if self.alignment is None:
            meaning += "This model compares the mean of the frames and ignores their order."
        else:
            meaning += "Circles: matched frames; larger circles count more."
        axes.text(num_columns / 2, num_rows + 0.15, meaning, ha="center", va="top", fontsize=10, color="0.3")

    def _draw_probabilities(self, axes, number: int, shown: int):
        order = self.probabilities.argsort(descending=True)[:shown].tolist()
        if number not in order:
            order[-1] = number
        scores = [float(self.probabilities[n]) for n in order]
        colours = ["tab:blue" if n == number else "0.75" for n in order]
        axes.barh(range(len(order)), scores, color=colours, height=0.6)
        ends = scores
        if self.inference_mode == "ensemble":
            for values, marker, colour, name in (
                (self.clip_probabilities, "o", "tab:red", "the clips alone"),
                (self.text_probabilities, "D", "tab:green", "the class names alone"),
            ):
                axes.plot([float(values[n]) for n in order], range(len(order)), marker, color=colour, label=name)
                ends = [max(end, float(values[n])) for end, n in zip(ends, order, strict=True)]
            axes.legend(loc="lower right", fontsize=9)
        for position, (score, end) in enumerate(zip(scores, ends, strict=True)):
            axes.text(end + 0.03, position, f"{score:.2f}", va="center", fontsize=10)
        axes.set(xlim=(0, 1.15), xticks=(0, 0.5, 1), yticks=range(len(order)), ylim=(max(len(order), 4) - 0.4, -0.6))
        names = [wrapped(self.class_names[n], 24, 4) for n in order]
        axes.set_yticklabels(names, fontsize=10, parse_math=False)
        axes.set_title("probability", fontsize=11)
        axes.spines[["top", "right"]].set_visible(False)
        text = "\n".join(line for sentence in self._sentences() for line in textwrap.wrap(sentence, 46))
        axes.set_xlabel(text, fontsize=10, loc="right", multialignment="left", labelpad=8)

    def _sentences(self) -> list[str]:
        lines = [
            {
                "few_shot": "Decided by the example clips.",
                "zero_shot": "Decided by the class names alone, without clips.",
                "ensemble": f"Between the top two classes, the class names count {100 * self.text_share:.0f}%"
                f"{'' if self.text_agrees else ' and disagree with the clips'}.",
            }[self.inference_mode]
        ]
        hidden = len(self.class_names) - 8
        if hidden > 0:
            lines.append(f"{hidden} less probable classes are not shown.")
        if self.unknown_score is not None:
            lines.append(f'Score of "none of these": {self.unknown_score:.2f}.')
        return lines


def _draw_frames(axes, frames: torch.Tensor | None, number: int, vertical: bool) -> float:
    """Draws frames along the grid, one per row or column; returns how far they extend outside it."""
    if frames is None:
        for i in range(number):
            x, y = (-0.3, i + 0.5) if vertical else (i + 0.5, -0.3)
            axes.text(x, y, str(i + 1), ha="center", va="center", color="0.4")
        return 0.4
    height, width = frames.shape[1:3]
    depth = width / height if vertical else height / width
    for i, frame in enumerate(frames[:number]):
        along = (i + 0.03, i + 0.97)
        across = (-0.1 - 0.94 * depth, -0.1)
        x, y = (across, along) if vertical else (along, across)
        axes.imshow(frame.cpu().numpy(), extent=(*x, y[1], y[0]))
    return 0.1 + 0.94 * depth


def _alignment_path(model, frame_distances: torch.Tensor) -> torch.Tensor:
    """Derivative (N, L, M) of the distances by the frame distances."""
    with torch.inference_mode(False), torch.enable_grad():
        variable = frame_distances.clone().requires_grad_()
        (alignment,) = torch.autograd.grad(model.align(variable).sum(), variable)
    return alignment


def explain_classification(
    model,
    query_embeds: torch.Tensor,
    prototypes: torch.Tensor,
    class_embeds: torch.Tensor,
    inference_mode: str,
    shots: tuple[torch.Tensor, torch.Tensor | None, torch.Tensor] | None = None,
) -> dict[str, Any]:
    """Computes the numbers of an `Explanation`.

    Args:
        model: A model in evaluation mode.
        query_embeds: Frame features of one query, (L, D).
        prototypes: (N, M, D).
        class_embeds: (N, D).
        shots: For a model whose head compares with each shot: encoded shots (1, N, K, X, E), which of them are not
            padding (1, N, K) or None, and the shot of each class to show (N,).
    """
    with torch.no_grad():
        queries = query_embeds[None, None]
        query_states = model.get_query_states(queries)
        frame_distances = model.get_frame_distances(query_states, prototypes[None])[0, 0]  # (N, L, M)
        if shots is None:
            distances = model.get_distances(query_states, prototypes[None])
            alignment = _alignment_path(model, frame_distances) if model.aligns_frames else None
        else:
            encoded, present, shown = model.encode_states(query_states), shots[1], shots[2]
            distances = model.compare_encoded(encoded, shots[0], present)
            weights = model.chosen_head.frame_weights(encoded, shots[0], present)  # (1, 1, N, K, L, M)
            alignment = None if weights is None else weights[0, 0, torch.arange(len(shown)), shown]
        text_logits = model.get_text_logits(queries, class_embeds[None])
        logits = model.get_logits(distances, text_logits, inference_mode)[0, 0].float()
        distances, text_logits = distances[0, 0], text_logits[0, 0].float()
    clips, texts = (-distances / model.config.ensemble_temperature).log_softmax(-1), text_logits.log_softmax(-1)
    best, second = logits.topk(2).indices.tolist()
    beta = {"few_shot": 0.0, "zero_shot": 1.0}.get(inference_mode, model.config.ensemble_text_weight)
    text_part, clip_part = (
        weight * float(values[best] - values[second]) for weight, values in ((beta, texts), (1 - beta, clips))
    )
    whole = abs(text_part) + abs(clip_part)
    return {
        "probabilities": logits.softmax(-1).cpu(),
        "clip_probabilities": clips.exp().cpu(),
        "text_probabilities": texts.exp().cpu(),
        "distances": distances.cpu(),
        "frame_distances": frame_distances.cpu(),
        "alignment": None if alignment is None else alignment.cpu(),
        "text_share": abs(text_part) / whole if whole else beta,
        "text_agrees": float(texts[best] - texts[second]) >= 0,
    }


__all__ = ["Explanation", "explain_classification"]
