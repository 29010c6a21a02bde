"""Compares this implementation with recordings of the official program, and writes the golden files of the tests.

    cd tests && python -m golden.record_golden --parity DIR

DIR holds what the official program computed on small random weights: `alignment.safetensors` and, for a ViT and a
ResNet as visual tower, `episodes_{vit,rn50}.safetensors`, `official_{vit,rn50}.pyth` and `openai_clip_{vit,rn50}.pt`.
They are too large for this repository, and running the tests does not need them. Nothing is written when a number
deviates by more than its tolerance.

What the golden files hold:

- `alignment.safetensors`: the official program's own inputs, values and gradients, as recorded.
- `official_head_{vit,rn50}.safetensors`: one recorded 1-shot and one 3-shot episode from frame features on. Class
  texts, the 1-shot support features, and the logits of all inference modes and poolings are the official program's
  numbers. No other features of it were recorded: the remaining frame features, and the query states and prototypes
  after the temporal transformer, are this implementation's, with the official weights, of the run that reproduced
  those logits.
- `formula_model_{vit,rn50}.safetensors`: outputs and a short training run of tiny models whose weights come from a
  formula; for the ResNet with the statistics that its batch norms have in the end. These are this implementation's
  numbers, *not* the official program's, recorded in the run in which it reproduced all official ones: they keep the
  whole chain from pixels to trained parameters as it was then.
"""

import argparse
import contextlib
import sys
from pathlib import Path

import torch
from golden.formula_model import (
    IMAGE_SIZE,
    RESNET_IMAGE_SIZE,
    formula_tensor,
    tiny_clip_config,
    tiny_episode,
    tiny_model,
    tiny_resnet_clip_config,
)
from safetensors.torch import load_file, save_file
from torch import nn

from configuration_clipfsar import CLIPFSARConfig
from modeling_clipfsar import CLIPFSARModel, otam_distance

GOLDEN_DIR = Path(__file__).resolve().parent
ALIGNMENT_SHAPES = ("square", "tall", "wide", "long")
SUPPORT_POOLINGS = ("before", "after")
# The official program's modes: inference mode, further configuration, and what it recorded instead of logits.
OFFICIAL_MODES = {
    "default": ("few_shot", {}, None),
    "single_direction": ("few_shot", {"otam_bidirectional": False}, None),
    "zero_shot": ("zero_shot", {}, "softmax"),
    "ensemble": ("ensemble", {"ensemble_text_weight": 0.9}, "product"),
    "ensemble_05": ("ensemble", {"ensemble_text_weight": 0.5}, "product"),
}
# As many as were recorded of the official program.
NUM_TRAINING_EPISODES = {"vit": 12, "rn50": 4}
# The two visual towers, by the names of the recordings.
CLIP_CONFIGS = {"vit": tiny_clip_config, "rn50": tiny_resnet_clip_config}
IMAGE_SIZES = {"vit": IMAGE_SIZE, "rn50": RESNET_IMAGE_SIZE}

# Largest absolute deviations allowed: float32 round-off of numbers of their size (costs up to 20; gradients of the
# first episode at most 6e-3).
TOLERANCES = {
    "alignment values": 1e-5,
    "alignment gradients": 2e-6,
    "class texts": 1e-5,
    "frame features": 1e-5,
    "training losses": 1e-5,
    "training first logits": 1e-5,
    "training first gradients": 1e-7,
    "training final scale": 1e-5,
    "training final to_q": 1e-5,
    "training final batch_statistics": 1e-5,
    # Adam divides a gradient by its own size: where it is nearly zero, round-off decides the direction of the step
    # (1e-3 long), and the deviation is that of a quotient of two tiny numbers.
    "training final conv1": 5e-5,
} | {f"logits {mode}": 1e-5 for mode in (*OFFICIAL_MODES, "depth2")}
# The gradient of the ResNet's first convolution is a hundred times that of the ViT's (0.8).
RESNET_TOLERANCES = TOLERANCES | {"training first gradients": 2e-5}


def deviation(ours: torch.Tensor, expected: torch.Tensor) -> float:
    """Largest absolute difference; infinite for NaN, which compares as not larger than anything."""
    if ours.shape != expected.shape:
        raise ValueError(f"Shapes {tuple(ours.shape)} and {tuple(expected.shape)} differ.")
    largest = (ours.detach() - expected).abs().max().item()
    return largest if largest == largest else float("inf")


@contextlib.contextmanager
def changed_config(config: CLIPFSARConfig, **fields):
    """The configuration with other values for a while."""
    before = {name: getattr(config, name) for name in fields}
    for name, value in fields.items():
        setattr(config, name, value)
    try:
        yield
    finally:
        for name, value in before.items():
            setattr(config, name, value)


def as_official_recording(output_logits: torch.Tensor, recorded_as: str | None) -> torch.Tensor:
    """Logits of ours as the official program would have recorded them.

    Its zero-shot recordings are probabilities, and its ensemble's are p_text^beta * p_visual^(1 - beta), not
    normalised: ours are the logarithm of the same.
    """
    if recorded_as == "softmax":
        return output_logits.softmax(-1)
    return output_logits.exp() if recorded_as == "product" else output_logits


def alignment_results(frame_distances: torch.Tensor) -> dict[str, torch.Tensor]:
    """OTAM as the official recordings have it, under their names."""
    frame_distances = frame_distances.clone().requires_grad_()
    both = otam_distance(frame_distances)
    (gradient,) = torch.autograd.grad(both.sum(), frame_distances)
    return {
        "otam_one_direction": otam_distance(frame_distances, bidirectional=False).detach(),
        "otam_both_directions": both.detach(),
        "grad_of_sum_both": gradient,
    }


def compare_alignment(recorded: dict[str, torch.Tensor]) -> dict[str, float]:
    """Deviations of OTAM's values and gradients from the official ones; `recorded` as in `alignment.safetensors`."""
    deviations = {"alignment values": 0.0, "alignment gradients": 0.0}
    for shape in ALIGNMENT_SHAPES:
        for name, ours in alignment_results(recorded[f"{shape}.frame_distances"]).items():
            group = "alignment gradients" if name.startswith("grad") else "alignment values"
            deviations[group] = max(deviations[group], deviation(ours, recorded[f"{shape}.{name}"]))
    return deviations


def class_rows(support_class_ids: torch.Tensor, support_labels: torch.Tensor) -> torch.Tensor:
    """(N,), the row of the token list that is the text of each episode class: the one its support videos carry."""
    n_way = int(support_labels.max()) + 1
    return torch.stack([support_class_ids[support_labels == label][0] for label in range(n_way)])


def official_episode(recorded: dict[str, torch.Tensor], episode: str) -> dict[str, torch.Tensor]:
    """Model inputs, B = 1, of a recorded episode with its tokens."""
    labels = recorded[f"{episode}.support_labels"]
    rows = class_rows(recorded[f"{episode}.support_class_ids"], labels)
    return {
        "support_pixel_values": recorded[f"{episode}.support_pixel_values"].float().unsqueeze(0),
        "support_labels": labels.unsqueeze(0),
        "query_pixel_values": recorded[f"{episode}.query_pixel_values"].float().unsqueeze(0),
        "class_input_ids": recorded["test_token_ids"][rows].unsqueeze(0),
    }


@torch.no_grad()
def compare_inference(model: CLIPFSARModel, recorded: dict[str, torch.Tensor]) -> dict[str, float]:
    """Deviations of text and frame features, and of the logits of all modes, poolings and depths."""
    deviations = {f"logits {mode}": 0.0 for mode in OFFICIAL_MODES}
    deviations["class texts"] = max(
        deviation(model.get_class_features(recorded[f"{split}_token_ids"]), recorded[f"{split}_class_embeds"])
        for split in ("train", "test")
    )
    deviations["frame features"] = deviation(
        model.get_video_features(recorded["one_shot.support_pixel_values"].float()),
        recorded["one_shot.support_frame_embeds"],
    )
    for episode in ("one_shot", "three_shot"):
        inputs = official_episode(recorded, episode)
        for pooling in SUPPORT_POOLINGS:
            for mode, (inference_mode, fields, recorded_as) in OFFICIAL_MODES.items():
                with changed_config(model.config, support_pooling=pooling, **fields):
                    logits = model(**inputs, inference_mode=inference_mode).logits[0]
                expected = recorded[f"{episode}.logits.{mode}.pool_{pooling}"]
                mode_deviation = deviation(as_official_recording(logits, recorded_as), expected)
                deviations[f"logits {mode}"] = max(deviations[f"logits {mode}"], mode_deviation)

    deeper = deeper_model(model, recorded)
    logits = deeper(**official_episode(recorded, "one_shot")).logits[0]
    deviations["logits depth2"] = deviation(logits, recorded["one_shot.logits.depth2"])
    return deviations


def deeper_model(model: CLIPFSARModel, recorded: dict[str, torch.Tensor]) -> CLIPFSARModel:
    """The same CLIP with the recorded temporal transformer of two layers."""
    from clipfsar.checkpoints.convert_official import official_place
    from clipfsar.checkpoints.openai_weights import from_places

    config = CLIPFSARConfig.from_dict(model.config.to_dict() | {"temporal_num_layers": 2})
    deeper = CLIPFSARModel(config).eval()
    prefix = "depth2.layers."
    layers = {
        f"head.context2.layers.{key.removeprefix(prefix)}": value
        for key, value in recorded.items()
        if key.startswith(prefix)
    }
    own = {key: value for key, value in deeper.state_dict().items() if key.startswith("temporal_transformer.")}
    weights, _ = from_places(own, layers, official_place, "depth2")
    deeper.load_state_dict(model.state_dict() | weights)
    return deeper


def train_as_official(model: CLIPFSARModel, episodes: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """Trains `model` (in place) as the official program does, but without dropout, and returns what is pinned of it.

    Adam with coupled weight decay 1e-3 on everything but batch norms (those named "bn") and the temporal transformer's
    norm, a step every 4 episodes, the loss divided by 4. Names are those of the official recordings.
    """
    model.freeze_text_tower()
    model.train()
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    watched = {
        "conv1": model.clip.vision_model.get_input_embeddings().weight,
        "to_q": model.temporal_transformer.layers[0].attention.q_proj.weight,
        "scale": model.video_text_scale,
    }
    decayed, not_decayed = [], []
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            is_exempt = "bn" in name or (name.startswith("temporal_transformer.") and ".norm." in name)
            (not_decayed if is_exempt else decayed).append(parameter)
    optimizer = torch.optim.Adam(
        [{"params": decayed, "weight_decay": 1e-3}, {"params": not_decayed, "weight_decay": 0.0}], lr=1e-3
    )
    results, losses_few_shot, losses_video_text = {}, [], []
    for number, inputs in enumerate(episodes):
        output = model(**inputs)
        losses_few_shot.append(output.few_shot_loss.detach())
        losses_video_text.append(output.video_text_loss.detach())
        (output.loss / 4).backward()
        if number == 0:
            results["first_logits"] = output.logits.detach()[0]
            results["first_video_text_logits"] = output.video_text_logits.detach()[0]
            results |= {f"first_grad.{name}": parameter.grad.clone() for name, parameter in watched.items()}
        if number % 4 == 3:
            optimizer.step()
            optimizer.zero_grad()
    results["losses_few_shot"] = torch.stack(losses_few_shot)
    results["losses_video_text"] = torch.stack(losses_video_text)
    return results | {f"final_{name}": parameter.detach().clone() for name, parameter in watched.items()}


def training_deviations(ours: dict[str, torch.Tensor], recorded: dict[str, torch.Tensor]) -> dict[str, float]:
    """Deviations of `train_as_official`'s results, by group of tolerance."""
    deviations = {}
    for name, tensor in ours.items():
        if name.startswith("final_"):
            group = f"training final {name.removeprefix('final_')}"
        elif name.startswith("losses_"):
            group = "training losses"
        else:
            group = "training first gradients" if name.startswith("first_grad.") else "training first logits"
        deviations[group] = max(deviations.get(group, 0.0), deviation(tensor, recorded[name]))
    return deviations


def compare_training(model: CLIPFSARModel, recorded: dict[str, torch.Tensor]) -> dict[str, float]:
    """Deviations of a short training run, which changes `model`, from the official one."""
    base_class_embeds = recorded["train_class_embeds"]
    episodes = []
    for number in range(len(recorded["train.losses_few_shot"])):
        prefix = f"train.{number:02d}."
        inputs = {key.removeprefix(prefix): value for key, value in recorded.items() if key.startswith(prefix)}
        rows = class_rows(inputs["support_class_ids"], inputs["support_labels"])
        episodes.append(
            {
                "support_pixel_values": inputs["support_pixel_values"].float().unsqueeze(0),
                "support_labels": inputs["support_labels"].unsqueeze(0),
                "query_pixel_values": inputs["query_pixel_values"].float().unsqueeze(0),
                "labels": inputs["query_labels"].unsqueeze(0),
                "base_class_embeds": base_class_embeds,
                "class_base_labels": rows.unsqueeze(0),
                "support_base_labels": inputs["support_class_ids"].unsqueeze(0),
                "query_base_labels": inputs["query_class_ids"].unsqueeze(0),
            }
        )
    official = {key.removeprefix("train."): value for key, value in recorded.items() if key.startswith("train.")}
    return training_deviations(train_as_official(model, episodes), official)


def compare_with_official(
    parity_dir: str | Path, tower: str
) -> tuple[dict[str, float], CLIPFSARModel, dict[str, torch.Tensor]]:
    """All deviations from the recordings with one of the towers; the model with the official weights; the episodes."""
    # Here, because recorded golden values must be checkable without the programs of train/.
    from clipfsar.checkpoints.convert_official import convert_official_checkpoint

    parity_dir = Path(parity_dir)
    recorded = load_file(parity_dir / f"episodes_{tower}.safetensors")

    def official_model() -> CLIPFSARModel:
        files = (str(parity_dir / name) for name in (f"official_{tower}.pyth", f"openai_clip_{tower}.pt"))
        return convert_official_checkpoint(*files, num_frames=4)[0]

    model = official_model()
    deviations = compare_alignment(load_file(parity_dir / "alignment.safetensors"))
    deviations |= compare_inference(model, recorded)
    deviations |= compare_training(official_model(), recorded)
    return deviations, model, recorded


def tolerances(tower: str) -> dict[str, float]:
    return RESNET_TOLERANCES if tower == "rn50" else TOLERANCES


def too_large(deviations: dict[str, float], tower: str = "vit") -> dict[str, float]:
    return {group: value for group, value in deviations.items() if not value <= tolerances(tower)[group]}


@torch.no_grad()
def official_head(model: CLIPFSARModel, recorded: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The recorded episodes from frame features on, with the official logits; see the top of this file."""
    golden = {"video_text_scale": model.video_text_scale.clone()}
    for episode in ("one_shot", "three_shot"):
        inputs = official_episode(recorded, episode)
        rows = class_rows(recorded[f"{episode}.support_class_ids"], recorded[f"{episode}.support_labels"])
        output = model(**inputs)
        golden |= {
            f"{episode}.support_embeds": output.support_embeds[0],
            f"{episode}.query_embeds": output.query_embeds[0],
            f"{episode}.class_embeds": recorded["test_class_embeds"][rows],
            f"{episode}.support_labels": recorded[f"{episode}.support_labels"],
            f"{episode}.query_states": model.get_query_states(output.query_embeds)[0],
        }
        for pooling in SUPPORT_POOLINGS:
            with changed_config(model.config, support_pooling=pooling):
                golden[f"{episode}.prototypes.pool_{pooling}"] = model(**inputs).prototypes[0]
        golden |= {key: value for key, value in recorded.items() if key.startswith(f"{episode}.logits.")}
    golden["one_shot.support_embeds"] = recorded["one_shot.support_frame_embeds"]
    golden.pop("one_shot.logits.depth2")  # needs the weights of a second layer
    return {key: value.contiguous() for key, value in golden.items()}


def formula_model_outputs(tower: str) -> dict[str, torch.Tensor]:
    """Outputs of the formula-filled model, from pixels and tokens on: all modes, both poolings, two depths."""
    golden = {}
    image_size = IMAGE_SIZES[tower]
    with torch.no_grad():
        for depth in (1, 2):
            model = tiny_model(clip_config=CLIP_CONFIGS[tower](), temporal_num_layers=depth)
            for n_shot, pooling in ((1, "before"), (3, "before"), (3, "after")):
                inputs = tiny_episode(n_shot=n_shot, image_size=image_size)
                for mode, (inference_mode, fields, _) in OFFICIAL_MODES.items():
                    with changed_config(model.config, support_pooling=pooling, **fields):
                        output = model(**inputs, inference_mode=inference_mode)
                    golden[f"depth{depth}.{n_shot}_shot.pool_{pooling}.logits.{mode}"] = output.logits[0]
                golden[f"depth{depth}.{n_shot}_shot.pool_{pooling}.prototypes"] = output.prototypes[0]
        golden["support_embeds"] = output.support_embeds[0]
        golden["class_embeds"] = output.class_embeds[0]
    # Copied, because safetensors does not save tensors that share memory.
    return {key: value.clone() for key, value in golden.items()}


def formula_model_training(tower: str) -> dict[str, torch.Tensor]:
    """The official training run, with the formula-filled model and episodes; three of seven base classes each."""
    image_size = IMAGE_SIZES[tower]
    base_class_embeds = formula_tensor((7, 16), phase=0.25)
    episodes = []
    for number in range(NUM_TRAINING_EPISODES[tower]):
        inputs = tiny_episode(n_query=1, phase=float(number), image_size=image_size)
        rows = (torch.arange(3) * 2 + number).unsqueeze(0) % 7
        del inputs["class_input_ids"]
        episodes.append(
            inputs
            | {
                "base_class_embeds": base_class_embeds,
                "class_base_labels": rows,
                "support_base_labels": rows,
                "query_base_labels": rows,
            }
        )
    model = tiny_model(clip_config=CLIP_CONFIGS[tower]())
    results = train_as_official(model, episodes)
    statistics = [buffer.flatten() for name, buffer in sorted(model.named_buffers()) if ".running_" in name]
    return results | ({"final_batch_statistics": torch.cat(statistics)} if statistics else {})


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parity", required=True, metavar="DIR", help="Folder with the official recordings.")
    parity_dir = Path(parser.parse_args().parity)

    torch.set_num_threads(1)  # as in the tests, so that sums run in the same order
    files, failed = {"alignment": load_file(parity_dir / "alignment.safetensors")}, []
    print(f"{'tower':<6}{'group':<28}{'largest deviation':>20}{'tolerance':>12}")
    for tower in CLIP_CONFIGS:
        deviations, model, recorded = compare_with_official(parity_dir, tower)
        for group, value in deviations.items():
            print(f"{tower:<6}{group:<28}{value:>20.2e}{tolerances(tower)[group]:>12.0e}")
        failed += [f"{tower}: {group}" for group in too_large(deviations, tower)]
        files[f"official_head_{tower}"] = official_head(model, recorded)
        training = {f"train.{key}": value for key, value in formula_model_training(tower).items()}
        files[f"formula_model_{tower}"] = formula_model_outputs(tower) | training
    if failed:
        sys.exit(f"Nothing was written: {', '.join(failed)} deviate(s) by more than the tolerance.")

    for name, tensors in files.items():
        path = GOLDEN_DIR / f"{name}.safetensors"
        save_file(tensors, path)
        print(f"{path.name}: {path.stat().st_size / 1024:.0f} KiB")


if __name__ == "__main__":
    main()
