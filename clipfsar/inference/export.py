"""`clipfsar export`: exports the query path, with frames and classes as inputs and logits as output."""

import contextlib
import copy
import io
import json
import logging
import os
import tempfile
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers.utils import logging as transformers_logging

from backbones_clipfsar import takes_patches
from clipfsar.checked_files import file_for_torch
from clipfsar.inference.arguments import ExportArguments
from clipfsar.inference.load_model import load_model
from clipfsar.json_files import read_json
from fingerprint_clipfsar import model_digest, preprocessing_settings
from modeling_clipfsar import VISION_MODULES, CLIPFSARModel
from paths_clipfsar import naming_errors, replace_file, write_text
from support_set_clipfsar import SupportSet
from support_set_files_clipfsar import TUNED_SETTINGS
from tuning_clipfsar import with_settings

FILES = {"onnx": "query_classifier.onnx", "torch": "query_classifier.pt2"}
DESCRIPTION = "query_classifier.json"
_DESCRIBED = ("inference_mode", "alignment")  # settings with an entry of their own, as in earlier versions
CLASSES = "classes.npz"
TOLERANCE = 1e-4  # relative to the largest logit; absolute if all logits are below 1
CHECKED_SIZES = ((1, 2), (3, 5), (2, 1))  # (queries, classes), all different from those that trace the graph
MEANINGS = {
    "pixel_values": "frames of the query videos after `preprocessing`, RGB",
    "prototypes": f"one sequence of frame features per class, from {CLASSES}",
    "shots": f"encoded clips of each class, from {CLASSES}; classes with fewer clips are padded",
    "is_shot": f"1 for a clip, 0 for padding, from {CLASSES}",
    "class_embeds": f"text feature of each class, from {CLASSES}",
    "logits": "softmax over the classes gives probabilities",
}


class QueryClassifier(nn.Module):
    """The query path of a model: visual tower, temporal transformer, comparison with the classes.

    Letters in shapes: Q queries, N classes, T frames, D feature size. It shares the model's weights. It leaves out the
    text tower, which only encodes class names. Raises `ValueError` for SigLIP 2.
    """

    def __init__(self, model: CLIPFSARModel, inference_mode: str):
        super().__init__()
        if takes_patches(model.config.clip_config):
            raise ValueError(
                "SigLIP 2's visual tower looks at its images one by one, so it cannot become a graph for any number of "
                "queries: export a model on CLIP, MetaCLIP 2 or the first SigLIP."
            )
        self.model = copy.deepcopy(model, {id(parameter): parameter for parameter in model.parameters()}).eval()
        for name, _ in list(self.model.clip.named_children()):
            if not f"{name}.".startswith(VISION_MODULES):
                delattr(self.model.clip, name)
        self.inference_mode = inference_mode

    def forward(
        self,
        pixel_values: torch.Tensor,
        prototypes: torch.Tensor | None = None,
        class_embeds: torch.Tensor | None = None,
        shots: torch.Tensor | None = None,
        is_shot: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Logits (Q, N) of frames (Q, T, C, H, W).

        Args:
            prototypes: (N, T, D), from `model.get_prototypes`; not for `"zero_shot"`.
            class_embeds: (N, D), from `model.get_class_features`; not for `"few_shot"`.
            shots, is_shot: (N, K, X, E) and (N, K), in place of prototypes for a model whose head compares with each
                clip: `Snapshot.shots`.
        """
        model = self.model
        query_embeds = model.get_video_features(pixel_values)
        distances = text_logits = None
        if prototypes is not None:
            distances = model.get_distances(model.get_query_states(query_embeds), prototypes)
        if shots is not None and is_shot is not None:
            encoded = model.encode_states(model.get_query_states(query_embeds)[None])
            distances = model.compare_encoded(encoded, shots[None], is_shot[None] > 0)[0]
        if class_embeds is not None:
            text_logits = self.model.get_text_logits(query_embeds, class_embeds)
        return self.model.get_logits(distances, text_logits, self.inference_mode)


def input_shapes(model: CLIPFSARModel, processor, inference_mode: str) -> dict[str, list]:
    """Shape of each input by its name. A size that is variable is a name instead of a number."""
    num_frames, size = processor.num_frames, model.config.hidden_size
    # The shape of a processed video: the processor's settings name sizes in many ways.
    video = np.zeros((num_frames, 256, 256, 3), dtype=np.uint8)
    shapes = {"pixel_values": ["num_queries", *processor.process_videos([video])[0].shape]}
    if inference_mode != "zero_shot" and model.keeps_shots:
        with torch.no_grad():
            encoded = model.encode_states(torch.zeros(1, num_frames, size, device=model.device))
        shapes["shots"] = ["num_classes", "num_shots", *encoded.shape[1:]]
        shapes["is_shot"] = ["num_classes", "num_shots"]
    elif inference_mode != "zero_shot":
        shapes["prototypes"] = ["num_classes", num_frames, size]
    if inference_mode != "few_shot":
        shapes["class_embeds"] = ["num_classes", size]
    return shapes


def export(
    classifier: QueryClassifier, shapes: dict[str, list], folder: Path, formats: list[str]
) -> dict[str, tuple[float, float]]:
    """Writes the files, loads them again and compares them with the model.

    Returns:
        For each format the largest deviation of a logit on random frames, and the largest logit.

    Raises:
        ValueError: When a file's logits differ from the model's; the file is removed.
    """
    names = {name: {i: one for i, one in enumerate(shape) if isinstance(one, str)} for name, shape in shapes.items()}
    dimensions = {name: torch.export.Dim(name) for name in ("num_queries", "num_classes", "num_shots")}
    dynamic_shapes = {name: {i: dimensions[one] for i, one in sizes.items()} for name, sizes in names.items()}
    # Hides PyTorch's warnings about itself, and one warning per missing operator without torchvision.
    for name in ("torch.onnx", "onnxscript"):
        logging.getLogger(name).setLevel(logging.ERROR)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        graph = torch.export.export(classifier, (), _random_inputs(shapes, 2, 3), dynamic_shapes=dynamic_shapes)
        for part in graph.graph_module.modules():
            for node in part.graph.nodes:
                node.meta.pop("stack_trace", None)  # it holds paths of this machine
        deviations = {}
        for name in formats:
            path = folder / FILES[name]
            if name == "onnx":
                _onnxruntime()  # fails early with the remedy if it is not installed
                with contextlib.redirect_stdout(io.StringIO()):  # earlier onnxscript prints what it rewrites
                    program = torch.onnx.export(
                        graph, dynamo=True, dynamic_shapes=names, output_names=["logits"], verbose=False
                    )
                assert program is not None  # `dynamo` returns it
                with naming_errors(path):
                    program.save(path)
            else:
                with file_for_torch(path) as file:
                    torch.export.save(graph, file)
            deviations[name] = deviation, largest = _largest_deviation(classifier, shapes, path)
            if not deviation <= TOLERANCE * max(1, largest):
                path.unlink()
                raise ValueError(
                    f"{path.name} deviates by {deviation:.2g} from the model's logits of up to {largest:.2g}; "
                    f"the limit is {TOLERANCE:g} of them. It was removed: try other versions of torch and onnxruntime."
                )
    return deviations


def _random_inputs(shapes: dict[str, list], num_queries: int, num_classes: int) -> dict[str, torch.Tensor]:
    sizes = {"num_queries": num_queries, "num_classes": num_classes, "num_shots": 1 + num_queries}
    generator = torch.Generator().manual_seed(num_queries)
    inputs = {
        name: torch.randn(*(sizes.get(size, size) for size in shape), generator=generator)
        for name, shape in shapes.items()
    }
    if "is_shot" in inputs:
        inputs["is_shot"] = torch.ones_like(inputs["is_shot"])
        inputs["is_shot"][0, -1] = 0  # the first class has a shot less
    return inputs


def _onnxruntime():
    try:
        import onnxruntime
        import onnxscript  # noqa: F401, torch.onnx.export needs it
    except ImportError as error:
        raise ImportError(
            f"ONNX files need more packages ({error}): pip install onnx onnxruntime onnxscript, or leave them out "
            "with --formats torch."
        ) from error
    return onnxruntime


def _largest_deviation(classifier: QueryClassifier, shapes: dict[str, list], path: Path) -> tuple[float, float]:
    if path.suffix == ".onnx":
        session = _onnxruntime().InferenceSession(path, providers=["CPUExecutionProvider"])

        def exported(**inputs: torch.Tensor) -> torch.Tensor:
            return torch.from_numpy(session.run(None, {name: value.numpy() for name, value in inputs.items()})[0])
    else:
        exported = torch.export.load(path).module()
    deviations, logits = [], []
    for sizes in CHECKED_SIZES:
        inputs = _random_inputs(shapes, *sizes)
        logits.append(classifier(**inputs).flatten())
        deviations.append(exported(**inputs).flatten() - logits[-1])
    largest, scale = (float(torch.cat(values).abs().max()) for values in (deviations, logits))
    return largest, scale


def write_classes(model: CLIPFSARModel, support_set: SupportSet, folder: Path):
    """Writes `prototypes` (N, T, D), `class_embeds` (N, D) and `class_names` (N) of a support set as numpy's npz.

    For a model whose head compares with each clip, also `shots` (N, K, X, E) and `is_shot` (N, K).
    """
    snapshot = support_set.snapshot(model)
    of_head: dict[str, Any] = {}
    if snapshot.shots is not None:
        shots, present = snapshot.shots
        of_head = {"shots": shots[0].cpu().numpy(), "is_shot": np.ones(shots.shape[1:3], dtype=np.float32)}
        if present is not None:
            of_head["is_shot"] = present[0].float().cpu().numpy()
    with replace_file(folder / CLASSES) as partial, partial.open("wb") as file:
        np.savez(
            file,
            **of_head,
            prototypes=snapshot.prototypes.cpu().numpy(),
            class_embeds=torch.stack([one.class_embeds for one in support_set.classes.values()]).numpy(),
            class_names=np.array(support_set.class_names),
        )


def describe(model: CLIPFSARModel, processor, inference_mode: str, shapes: dict[str, list]) -> dict:
    """Description of the exported files for their users, as plain values for JSON."""
    outputs = {"logits": ["num_queries", "num_classes"]}
    inputs, outputs = (
        {name: {"shape": shape, "dtype": "float32", "meaning": MEANINGS[name]} for name, shape in sides.items()}
        for sides in (shapes, outputs)
    )
    return {
        "inference_mode": inference_mode,
        "alignment": model.config.alignment,
        "settings": {name: getattr(model.config, name) for name in TUNED_SETTINGS if name not in _DESCRIBED},
        "num_frames": processor.num_frames,
        "inputs": inputs,
        "outputs": outputs,
        "preprocessing": preprocessing_settings(processor),
        "weights": model_digest(model),
    }


def _earlier_description(folder: Path) -> dict:
    """The description of an export that is in the folder already; empty without one."""
    path = folder / DESCRIPTION
    return read_json(path, f"delete {folder}, or name another --output_dir") if path.is_file() else {}


def _put_into(folder: Path, new: Path, description: dict, earlier: dict) -> dict:
    """Moves the finished files of an export from `new` into the folder; returns the description to write.

    Files of another model or mode are removed, because they would stay beside the new ones. Those of the same export
    stay, and so do the class names: the other format, or classes.npz, may be exported later.
    """
    is_same = {**earlier, "class_names": None} == {**description, "class_names": None}
    if not is_same:
        (folder / DESCRIPTION).unlink(missing_ok=True)  # it describes the files that are replaced from here on
        for name in [*FILES.values(), CLASSES]:
            if (folder / name).is_file() and not (new / name).is_file():
                (folder / name).unlink()
                print(f"{folder / name} was of another export, and was removed.")
    for path in new.iterdir():
        os.replace(path, folder / path.name)
    return earlier | description if is_same else description


def _check_settings(folder: Path, present: dict, description: dict, settings: Mapping[str, Any]) -> None:
    """Raises `ValueError` if the graph in a folder was exported with other settings than a support set asks for.

    Args:
        settings: Those that `SupportSet.tune` chose; the graph may have any inference mode if it did not choose one.
    """
    before, now = (one | one.get("settings", {}) for one in (present, description))
    compared = {*description["settings"], "alignment"} | ({"inference_mode"} & set(settings))
    for name in sorted(compared & set(before)):  # earlier versions described fewer
        if before[name] != now[name]:
            raise ValueError(
                f"{folder} was exported with {name}={before[name]!r}, but the support set answers with {now[name]!r}: "
                "export it again, without --only_classes."
            )


def main(arguments: ExportArguments):
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    folder = Path(arguments.output_dir)
    model, processor = load_model(arguments.model)
    support_set = None
    if arguments.support_set is not None:
        support_set = SupportSet.from_pretrained(arguments.support_set)
        support_set.check(model, processor)
        model = with_settings(model, support_set.settings)
    inference_mode = arguments.inference_mode or model.config.inference_mode
    shapes = input_shapes(model, processor, inference_mode)
    description = describe(model, processor, inference_mode, shapes)
    if support_set is not None:
        description["class_names"] = support_set.class_names
    if arguments.only_classes:
        if not (folder / DESCRIPTION).is_file():
            raise ValueError(f"{folder} holds no {DESCRIPTION}: export the model first, without --only_classes.")
        present = read_json(folder / DESCRIPTION, "export the model again, without --only_classes")
        if present.get("weights") != description["weights"]:
            raise ValueError(f"{folder} holds another model than {arguments.model}: export it first.")
        _check_settings(folder, present, description, support_set.settings if support_set is not None else {})
        description = present | {"class_names": description["class_names"]}
    else:
        folder.mkdir(parents=True, exist_ok=True)
        earlier = _earlier_description(folder)
        with tempfile.TemporaryDirectory(prefix=".new-", dir=folder) as new:  # an export that fails changes nothing
            deviations = export(QueryClassifier(model, inference_mode), shapes, Path(new), arguments.formats)
            description = _put_into(folder, Path(new), description, earlier)
        for name, (deviation, largest) in deviations.items():
            size = (folder / FILES[name]).stat().st_size / 1e6
            print(f"{folder / FILES[name]}: {size:.1f} MB; logits of up to {largest:.2g} deviate by {deviation:.1g}.")
    if support_set is not None:
        write_classes(model, support_set, folder)
        print(f"{folder / CLASSES}: {len(support_set)} classes.")
    write_text(folder / DESCRIPTION, json.dumps(description, indent=2, ensure_ascii=False) + "\n")


__all__ = ["QueryClassifier", "describe", "export", "input_shapes", "main", "write_classes"]
