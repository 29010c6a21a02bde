"""Compares our heads with recordings of the official program's TRX, HyRSM and HyRSM++.

    cd tests && python -m golden.official_heads --parity DIR

DIR holds `heads.safetensors`, what the official heads computed on small random features in evaluation mode:
`NAME/weights/...` by official names, and `NAME/Kshot/...` of one episode. The command writes two of them,
`IN_GOLDEN_FILE`, to `official_heads.safetensors`, if every number of all of them agrees. All sizes are read from the
recording. It does not hold the number of attention heads of HyRSM: the number that gives the recorded logits is taken,
and gradients and losses must agree with the same.
"""

import argparse
import re
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from transformers import CLIPConfig

from clipfsar.checkpoints.official_heads import head_settings, head_weights
from configuration_clipfsar import CLIPFSARConfig
from heads_clipfsar import group_by_class
from modeling_clipfsar import CLIPFSARModel

GOLDEN_FILE = Path(__file__).resolve().parent / "official_heads.safetensors"
IN_GOLDEN_FILE = ("trx", "hyrsm_plusplus_5shot")
TOLERANCE = 5e-6  # relative to the largest recorded number, or absolute where that is below 1
COHERENCE = {"temporal_coherence_window": 2, "temporal_coherence_balance": 4}  # as recorded


def plain_model(hidden_size: int, **settings) -> CLIPFSARModel:
    """A model that compares frame features as they are: without temporal transformer and texts."""
    tower = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 1}
    clip_config = CLIPConfig(
        text_config=tower | {"vocab_size": 10},
        vision_config=tower | {"image_size": 16, "patch_size": 8},
        projection_dim=hidden_size,
    )
    plain = {"temporal_num_layers": 0, "temporal_num_heads": 1, "prototype_modulation": False}
    return CLIPFSARModel(CLIPFSARConfig(clip_config=clip_config, **plain | settings)).eval()


def names_of(recorded: dict[str, torch.Tensor]) -> list[str]:
    return sorted({key.split("/")[0] for key in recorded})


def _part(recorded: dict[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    return {key.removeprefix(prefix): value for key, value in recorded.items() if key.startswith(prefix)}


def recorded_model(recorded: dict[str, torch.Tensor], name: str, num_heads: int = 1) -> CLIPFSARModel:
    alignment = name.split("_")[0]
    hidden_size = next(value for key, value in recorded.items() if re.match(f"{name}/.*/query$", key)).shape[-1]
    weights = head_weights(alignment, _part(recorded, f"{name}/weights/"))
    settings = head_settings(alignment, weights, hidden_size) | COHERENCE
    settings["temporal_coherence_weight"] = 1.0 if "plusplus" in name else 0.0
    model = plain_model(hidden_size, alignment=alignment, temporal_num_heads=num_heads, **settings)
    model.comparison_head.load_state_dict(weights)
    return model


def results(model: CLIPFSARModel, episode: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Everything that may be recorded of an episode, under its name there."""
    support, query = (episode[name].unsqueeze(0).requires_grad_() for name in ("support", "query"))
    labels = episode["support_labels"].unsqueeze(0)
    logits = -model.get_distances(model.get_query_states(query), model.get_support_states(support, labels), labels)
    gradients = torch.autograd.grad((logits**2).sum(), (support, query))
    found = {"logits": logits[0].detach()}
    for name, gradient in zip(("support", "query"), gradients, strict=True):
        found[f"{name}_grad_of_squared_logits"] = gradient[0]
    head, n_way = model.comparison_head, int(labels.max()) + 1
    if model.config.alignment == "hyrsm":
        with torch.no_grad():
            frames = torch.cat([head.encode(support), head.encode(query)], dim=1)
            found["class_logits"] = head.classify_frames(frames).flatten(0, 2)
            shots, present = group_by_class(head.encode(support), labels, n_way)
            of_query, prototypes = head._relate(head.encode(query), shots, present)
            coherence = [head.temporal_coherence_loss(one) for one in (of_query, prototypes)]
            found["loss_temporal_regular"] = sum(coherence)
    return found


def deviations(recorded: dict[str, torch.Tensor], name: str) -> dict[str, float]:
    """Largest deviation of every recorded result of a head, by its name there, in units of its tolerance's scale."""
    episodes = sorted({key.split("/")[1] for key in recorded if re.match(rf"{name}/\d+shot/", key)})
    best: dict[str, float] = {}
    hidden_size = recorded[f"{name}/{episodes[0]}/query"].shape[-1]
    num_heads = [number for number in range(1, hidden_size + 1) if hidden_size % number == 0]
    for number in num_heads if name.startswith("hyrsm") else [1]:
        model, found = recorded_model(recorded, name, number), {}
        for shot in episodes:
            episode = _part(recorded, f"{name}/{shot}/")
            ours = results(model, episode)
            for key in episode.keys() - {"support", "query", "support_labels"}:
                scale = max(1.0, float(episode[key].abs().max()))
                found[f"{shot}/{key}"] = float((ours[key] - episode[key]).abs().max()) / scale
        if not best or max(found.values()) < max(best.values()):
            best = found
    return best


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parity", required=True, metavar="DIR", help="Folder with the official recordings.")
    recorded = load_file(Path(parser.parse_args().parity) / "heads.safetensors")
    torch.set_num_threads(1)
    largest = {name: deviations(recorded, name) for name in names_of(recorded)}
    for name, found in largest.items():
        for key, value in found.items():
            print(f"{name:<24}{key:<42}{value:>10.1e}")
    if not all(value <= TOLERANCE for found in largest.values() for value in found.values()):
        sys.exit(f"Nothing was written: a number deviates by more than {TOLERANCE:g}.")
    save_file({key: value for key, value in recorded.items() if key.split("/")[0] in IN_GOLDEN_FILE}, GOLDEN_FILE)


if __name__ == "__main__":
    main()
