"""The model card (README.md) of a trained model: description, results with intervals, use."""

from pathlib import Path

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from paths_clipfsar import public_name

SELECTED_ON_TEST = (
    "WARNING: the model was selected on the TEST split, as the official program does. The test accuracy is too high: "
    "do not compare it with models selected on validation classes."
)

TASK = """Few-shot recognition of actions in video. You give the model the class names and a few clips of each class; it
then says to which class a new clip belongs. The model implements "CLIP-guided Prototype Modulating for Few-shot Action
Recognition" (Wang et al., IJCV 2023, [arXiv:2303.02982](https://arxiv.org/abs/2303.02982))."""

USE = """## Use

```bash
pip install "transformers>=5.14,<6" torch datasets pillow "av>=15"
```

```python
from transformers import pipeline

classify = pipeline("few-shot-video-classification", model="{model_id}", trust_remote_code=True)
classify.enroll({{"first class": ["a.mp4", "b.mp4"], "second class": ["c.mp4"]}})  # any number of clips per class
print(classify("query.mp4"))  # [{{"label": ..., "score": ...}}, ...], most probable first
print(classify(["one.mp4", "two.mp4"], inference_mode="ensemble"))  # clips and class names together
print(classify("query.mp4", candidate_labels=["jumping", "running"]))  # class names only
classify.support_set.save_pretrained("my_classes")  # next time: pipeline(..., support_set="my_classes")
```

`trust_remote_code=True` runs the Python files of this repository: read them first. In your own program, `AutoModel` and
`AutoProcessor` load the model and its processor."""

LIMITS = """- The model always chooses one of the enrolled classes, unless you pass `detect_unknown=True`, which adds
  "none of these".
- The model sees {num_frames} frames of a clip. Cut clips to the action: it misses short actions in long clips.
- Class names matter: they modulate the prototypes. CLIP reads English.
- You can compare the scores of the classes for one video. They are not calibrated probabilities.
- CLIP learned from pictures and texts of the web, with their biases about people. Do not use it to identify or judge
  people, nor for surveillance. OpenAI's model card of CLIP declares every deployed use out of scope that was not tested
  for its purpose."""

_TEXT = f"""
# CLIP-FSAR on {{dataset_name}}

{TASK} It was fine-tuned on episodes from `{{base_model}}`.

{USE}

## Results

{{results}}

## Training

{{episodes_done}} episodes ({{n_way}}-way {{train_n_shot}}-shot, {{train_n_query}} queries per class) of
{{num_base_classes}} base classes, seed {{seed}}. All settings are in `training_arguments.json`.{{selection}}

## Limits

- The numbers hold for the data set above and for similar videos.
{LIMITS}

## Licence

The code files are Apache-2.0. The weights are derived from {{base_model_link}} and are under its licence. {{licence}}
"""

MODEL_PLACEHOLDER = "path/or/hub-id"
_OPENAI_LICENCE = (
    "OpenAI's repository of CLIP has the MIT licence. OpenAI never said whether that covers the weights: read CLIP's "
    "model card and decide."
)


def write_model_card(folder: Path, args, best: dict | None, results: list, num_base_classes: int):
    """Writes `README.md` with the metadata that the Hub reads.

    Args:
        folder: The model's folder.
        args: `EpisodicTrainingArguments`.
        best: Validation metrics of the model: accuracy, interval, episode, n_episodes.
        results: `EpisodicAccuracy` of the test; empty without a test.
        num_base_classes: Number of training classes.
    """
    # Names instead of paths of this machine.
    dataset_name = public_name(args.dataset) if args.dataset else "unnamed videos"  # data sets may be Python objects
    base_model = public_name(args.model)
    is_on_hub = not Path(args.model).exists()
    data = ModelCardData(
        library_name="transformers",
        pipeline_tag="video-classification",
        tags=["few-shot-learning", "action-recognition", "clip-fsar", "clip", "video", "custom_code"],
        base_model=base_model if is_on_hub else None,
        # The weights have another licence than the code, and the Hub has no name for the licence of CLIP's weights.
        license="other",
        license_name="licence-of-the-base-model",
        license_link=f"https://huggingface.co/{base_model}" if is_on_hub else None,
        language="en",
        # These two make the Hub's `model-index`.
        model_name="CLIP-FSAR",
        eval_results=_eval_results(results, dataset_name),
    )
    content = _TEXT.format(
        dataset_name=dataset_name,
        base_model=base_model,
        base_model_link=f"[`{base_model}`](https://huggingface.co/{base_model})" if is_on_hub else f"`{base_model}`",
        licence=_OPENAI_LICENCE if base_model.startswith("openai/clip-") else "",
        model_id=args.push_to_hub or MODEL_PLACEHOLDER,
        num_frames=args.num_frames,
        results=_results_text(args, results),
        selection=_selection_text(args, best),
        num_base_classes=num_base_classes,
        episodes_done=best["episode"] if best else args.episodes,
        n_way=args.n_way,
        train_n_shot=args.train_n_shot,
        train_n_query=args.train_n_query,
        seed=args.seed,
    )
    ModelCard(f"---\n{data.to_yaml()}\n---\n{content}").save(folder / "README.md")


def _results_text(args, results: list) -> str:
    if not results:
        return "Test split: not measured."
    table = ["| way | shot | mode | accuracy | 95% interval | episodes |", "|---|---|---|---|---|---|"]
    table += [
        f"| {r.n_way} | {r.n_shot} | {r.inference_mode} | {r.accuracy:.1f}% | ± {r.interval:.1f} | {r.n_episodes} |"
        for r in results
    ]
    text = "Test split, classes that were not trained on"
    if args.allow_shared_classes:
        text = "Test split. **Its classes may have been trained on (`--allow_shared_classes`): not a few-shot result**"
    text += ". The interval is over episodes, for these videos.\n\n" + "\n".join(table)
    return f"**{SELECTED_ON_TEST}**\n\n{text}" if args.select_on == "test" else text


def _selection_text(args, best: dict | None) -> str:
    if not best:
        return ""
    return (
        f" This is the model of episode {best['episode']}, the best on the {args.select_on} classes: "
        f"{best['accuracy']:.1f} ± {best['interval']:.1f}% ({best['n_episodes']} episodes)."
    )


def _eval_results(results: list, dataset_name: str) -> list[EvalResult] | None:
    return [
        EvalResult(
            task_type="video-classification",
            task_name=f"{r.n_way}-way {r.n_shot}-shot, {r.inference_mode}",
            dataset_type=dataset_name,
            dataset_name=dataset_name,
            # The Hub merges results of one data set, split and configuration under the name of the first task.
            dataset_config=f"{r.n_way}-way {r.n_shot}-shot, {r.inference_mode}",
            dataset_split="test",
            metric_type="accuracy",
            metric_name=f"mean of {r.n_episodes} episodes, 95% interval ± {r.interval:.2f}",
            metric_value=round(r.accuracy, 2),
        )
        for r in results
    ] or None


__all__ = ["LIMITS", "MODEL_PLACEHOLDER", "SELECTED_ON_TEST", "TASK", "USE", "write_model_card"]
