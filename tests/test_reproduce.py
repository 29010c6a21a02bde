"""`clipfsar reproduce`: its settings, plan and report, and whole reproductions that are killed on the way."""

import functools
import json
import os
import re
import shutil
import signal
from dataclasses import fields, replace
from pathlib import Path

import datasets
import pytest
import yaml
from tiny_data import (
    COLOURS,
    SETTINGS,
    run_in_children,
    save_tiny_clip,
    tiny_model_and_processor,
    write_video,
    write_video_folder,
)

from clipfsar.cli import main as clipfsar
from clipfsar.data import prepare as prepare_module
from clipfsar.data.older_reader import REPORT
from clipfsar.data.splits import load_video_splits
from clipfsar.data.video_split import VideoSplit
from clipfsar.reproduction import program
from clipfsar.reproduction.arguments import ReproduceArguments, overridden, parse_arguments
from clipfsar.reproduction.plan import Cost, count_videos, measure, plan
from clipfsar.reproduction.report import markdown, read_published, report_data, write_eval_results
from clipfsar.training.arguments import EpisodicTrainingArguments
from clipfsar.training.trainer import EpisodicTrainer
from demo.synthetic import TINY_CLIP


def settings(*options: str):
    return parse_arguments(["hmdb51", "--video_root", "videos", *options])


# --- settings ---------------------------------------------------------------------------------------------------------


def test_a_benchmark_brings_the_official_settings_and_the_papers_shots():
    args = settings()
    assert (args.benchmark, args.learning_rate, args.episodes, args.n_shot) == ("hmdb51", 1e-5, 5000, [1, 3, 5])
    assert (args.output_dir, args.data) == ("reproductions/hmdb51", "reproductions/hmdb51/data")
    assert overridden(args) == {}


def test_options_that_override_the_benchmark_are_known_to_the_report():
    args = settings("--episodes", "2000", "--model", "me/rn50")
    assert overridden(args) == {"episodes": (5000, 2000), "model": ("openai/clip-vit-base-patch16", "me/rn50")}


def test_every_setting_that_can_change_the_numbers_is_among_the_differences():
    listed = []
    for item in fields(ReproduceArguments):
        args = settings()
        setattr(args, item.name, "another" if item.name != "benchmark" else "ucf101")
        listed += [item.name] if item.name in overridden(args) else []
    assert listed == [
        *("model", "allow_shared_classes", "n_way", "train_n_shot", "train_n_query", "n_shot", "n_query", "episodes"),
        *("episodes_per_update", "num_frames", "frame_sampling", "sampling_rate", "preprocessing"),
        *("query_augmentation", "prompt_template", "class_texts", "alignment", "support_pooling"),
        *("prototype_modulation", "temporal_num_layers", "video_text_loss_weight", "freeze_vision", "feature_draws"),
        *("train_last_layers", "lora_rank", "lora_alpha", "lora_targets", "freeze_batch_norm", "learning_rate"),
        *("warmup_learning_rate", "warmup_episodes", "decay_episodes", "weight_decay", "optimizer", "max_grad_norm"),
        *("mixed_precision", "eval_every", "eval_episodes", "test_episodes", "inference_modes", "frame_size"),
    ]


def test_the_differences_name_no_folder_of_this_machine(tmp_path):
    (tmp_path / "texts.json").touch()
    args = settings("--class_texts", str(tmp_path / "texts.json"), "--model", str(tmp_path))
    model = ("openai/clip-vit-base-patch16", tmp_path.name)
    assert overridden(args) == {"model": model, "class_texts": (None, "texts.json")}


def test_every_seed_and_each_selection_is_a_run_that_resumes():
    runs = settings("--seeds", "0", "1", "--mimic_selection").runs()
    assert [(run.seed, run.select_on, Path(run.output_dir).name, run.resume) for run in runs] == [
        (0, "validation", "seed_0", True),
        (1, "validation", "seed_1", True),
        (0, "test", "seed_0_selected_on_test", True),
        (1, "test", "seed_1_selected_on_test", True),
    ]
    assert {run.dataset for run in runs} == {"reproductions/hmdb51/data"}


def test_the_frame_store_is_for_the_model_unless_a_size_is_given():
    assert "--model=openai/clip-vit-base-patch16" in settings().prepare_command()
    command = settings("--frame_size", "336").prepare_command()
    assert "--frame_size=336" in command
    assert not [part for part in command if part.startswith("--model")]
    assert settings("--frame_store", "none").prepare_command()[-1] == "--skip_reading=True"


@pytest.mark.parametrize(
    ("command_line", "message"),
    [
        ([], "Name a benchmark: clipfsar reproduce ssv2_full|ssv2_small|kinetics100|ucf101|hmdb51 --video_root"),
        (["epic_kitchens"], "The paper has no results on epic_kitchens to reproduce, only on ssv2_full, "),
        (["hmdb51"], "--video_root is missing: give the folder of the benchmark's videos, or a prepared data set"),
        (["hmdb"], "invalid choice: 'hmdb'"),
        (["hmdb51", "--video_root", "v", "--push_to_hub", "me/x"], "--push_to_hub plays no part here"),
    ],
)
def test_what_is_missing_or_wrong_is_said(command_line, message, capsys):
    assert clipfsar(["reproduce", *command_line]) == 2
    assert message in capsys.readouterr().err


# --- the plan ---------------------------------------------------------------------------------------------------------

COST = Cost(0.1, 0.02, 3 * 2**30, 10**9, 5 * 10**8, "a device")


def test_the_plan_multiplies_the_measured_cost():
    lines = "\n".join(plan(settings("--seeds", "0", "1"), COST))
    assert "prepare   6,766 videos" in lines
    # 5000 episodes of 5 x (1 + 5) videos; 17 validations of 1,194 videos; 1,292 test videos
    assert "seed 1, selected on validation: train 5,000 episodes 4.2 h, 17 validations 6.8 min, test 0.4 min" in lines
    assert "in all    8.6 h" in lines
    assert "7 GB frame store (jpeg), 6.0 GB per run" in lines
    assert "100 ms to train on a video of 8 frames, 20 ms to encode one" in lines


def test_the_plan_counts_the_listed_videos_that_exist_without_reading_them(tmp_path):
    (tmp_path / "videos" / "run").mkdir(parents=True)
    (tmp_path / "videos" / "run" / "a.mp4").touch()  # empty, and converted from .avi
    for name, classes in (("train", ("run", "dive")), ("val", ("swim",)), ("test", ("jump",))):
        lines = [f"{name}{n}//{folder}/{clip}.avi" for n, folder in enumerate(classes) for clip in "ab"]
        (tmp_path / f"{name}_few_shot.txt").write_text("\n".join(lines))
    args = parse_arguments(["hmdb51", "--video_root", str(tmp_path / "videos"), "--official_splits", str(tmp_path)])
    assert count_videos(args) == [
        f"1 of 8 listed files found below {tmp_path / 'videos'}; they are not read.",
        "Classes without a file: 3 ('dive', 'swim', 'jump')",
    ]


def test_the_cost_is_measured_with_the_model_itself(tmp_path):
    folder = save_tiny_clip(tmp_path / "clip")
    cost = measure(settings("--model", str(folder), "--num_frames", "2"))
    assert 0 < cost.encode_seconds < 10
    assert 0 < cost.train_seconds < 10
    assert 0 < cost.trained_bytes < cost.weight_bytes


# --- the report -------------------------------------------------------------------------------------------------------


def run_record(seed: int, accuracy: float, selected_on: str = "validation") -> dict:
    result = {"inference_mode": "few_shot", "n_way": 5, "n_shot": 1, "n_query": 1, "n_episodes": 10_000}
    machine = {"device": "a device", "cpu_count": 8, "torch": "2.13.0", "clipfsar": "0.2.0"}
    return {
        "folder": f"seed_{seed}",
        "seed": seed,
        "selected_on": selected_on,
        "best": {"accuracy": 60.0, "interval": 0.5, "episode": 300, "n_episodes": 1000},
        "results": [result | {"accuracy": accuracy, "interval": 0.2}],
        "seconds": 7200.0,
        "num_processes": 1,
        "machine": machine,
        "date": "2026-01-02",
    }


PUBLISHED = {"source": "A paper, 2020", "table": "Table 9", "accuracy": {"few_shot": {"1": 12.3}}}


def test_our_numbers_stand_beside_published_ones_that_are_marked(tmp_path):
    args = settings("--output_dir", str(tmp_path), "--episodes", "2000")
    data = report_data(args, [run_record(0, 70.0), run_record(1, 72.0), run_record(0, 75.0, "test")], PUBLISHED)
    text = markdown(data)
    assert "| way | shot | mode | seed 0 | seed 1 | mean over seeds ± deviation | published (Table 9) |" in text
    assert "| 5 | 1 | few_shot | 70.0 ± 0.2 | 72.0 ± 0.2 | 71.0 ± 1.4 | 12.3 |" in text
    assert "Published figures are not ours: Table 9 of A paper, 2020." in text
    assert "Seed 1: the model of episode 300, the best of all validations on the validation split (60.0 ± 0.5)" in text
    assert "- `--episodes`: 2000 instead of 5000." in text
    assert re.search(r"## Selected on test\n\n\*\*WARNING: the model was selected on the TEST split", text)
    assert "Seed 0, selected on test: 2.0 h in the last start, 1 process(es) on a device" in text


def test_without_published_figures_the_report_has_none(tmp_path):
    text = markdown(report_data(settings("--output_dir", str(tmp_path)), [run_record(0, 70.0)], None))
    assert "| way | shot | mode | seed 0 |\n" in text
    assert "Published figures: not given" in text


@pytest.mark.parametrize("name", ["source", "table", "accuracy"])
def test_published_figures_without_their_place_are_refused(name, tmp_path):
    (tmp_path / "published.json").write_text(json.dumps({key: PUBLISHED[key] for key in PUBLISHED if key != name}))
    with pytest.raises(ValueError, match=f"published.json has no '{name}': say the source and the table"):
        read_published(str(tmp_path / "published.json"))


def test_results_for_the_hub_are_values_of_a_data_set(tmp_path):
    write_eval_results(tmp_path, "me/hmdb51-few-shot", run_record(0, 70.0))
    (entry,) = yaml.safe_load((tmp_path / ".eval_results" / "hmdb51-few-shot.yaml").read_text())
    assert entry["dataset"] == {"id": "me/hmdb51-few-shot", "task_id": "5-way_1-shot_few_shot"}
    assert (entry["value"], entry["date"]) == (70.0, "2026-01-02")
    assert entry["notes"] == "10000 episodes, 95% interval ± 0.2, seed 0, selected on validation"


def test_a_run_that_was_finished_with_other_settings_is_not_reported_as_if_it_had_these(tmp_path):
    def run(**changes):
        return replace(EpisodicTrainingArguments(output_dir=str(tmp_path), dataset="data", episodes=16), **changes)

    assert not program._is_finished(run())
    (tmp_path / program.FINISHED).write_text(json.dumps({"settings": program._settings(run())}))
    assert program._is_finished(run(num_workers=3))
    assert not program._is_finished(run(dataset="moved/data"))  # compared by its content, and tested
    for changes in ({"test_episodes": 7}, {"n_shot": [1, 3]}, {"inference_modes": ["zero_shot"]}):
        assert not program._is_finished(run(**changes))  # tested again
    assert not program._is_finished(run(episodes=32))  # trained longer
    for changes in ({"learning_rate": 1e-3}, {"n_shot": [3]}, {"seed": 1}):
        with pytest.raises(ValueError, match=f"was started with --{next(iter(changes))} "):
            program._is_finished(run(**changes))
    with pytest.raises(ValueError, match=r"trained with no --mixed_precision \(now --mixed_precision fp16\): "):
        program._is_finished(run(mixed_precision="fp16"))
    (tmp_path / program.FINISHED).write_text("{}")
    assert not program._is_finished(run())


def finished_run(folder, video_folder, record_in_state=False, **settings):
    """A run whose record says that it was trained and tested on the videos of a folder."""
    run = EpisodicTrainingArguments(output_dir=str(folder / "run"), dataset=str(video_folder), **settings)
    splits = load_video_splits(str(video_folder))
    data = {name: VideoSplit(dataset, name=name).record() for name, dataset in splits.items()}
    (folder / "run" / "state").mkdir(parents=True)
    (folder / "run" / program.FINISHED).write_text(json.dumps({} if record_in_state else {"data": data}))
    (folder / "run" / "state" / "progress.json").write_text(json.dumps({"data": data} if record_in_state else {}))
    return run


@pytest.mark.parametrize("record_in_state", [False, True], ids=["now", "earlier version"])
def test_a_finished_run_is_not_reported_for_data_that_have_replaced_its_own(record_in_state, tmp_path):
    write_video_folder(tmp_path / "videos", videos_per_class=2)
    run = finished_run(tmp_path, tmp_path / "videos", record_in_state)
    program.check_inputs([run])
    (tmp_path / "videos" / "test" / "violet" / "0.mp4").write_bytes(b"another video")
    with pytest.raises(ValueError, match="run was started on other data: test: class 'violet' has other videos"):
        program.check_inputs([run])
    program.check_inputs([replace(run, test_episodes=0)])  # these data had no part in it


def test_a_finished_run_is_not_reported_for_class_texts_that_have_replaced_its_own(tmp_path):
    write_video_folder(tmp_path / "videos", videos_per_class=2)
    (tmp_path / "texts.json").write_text('{"red": "a red thing"}')
    run = finished_run(tmp_path, tmp_path / "videos", class_texts=str(tmp_path / "texts.json"))
    _, processor = tiny_model_and_processor()
    processor.class_texts = {"red": "a red thing"}
    processor.save_pretrained(tmp_path / "run" / "best")
    program.check_inputs([run])
    (tmp_path / "texts.json").write_text('{"red": "something red"}')
    with pytest.raises(ValueError, match="run was trained with other class texts than "):
        program.check_inputs([run])


def test_data_that_were_prepared_with_other_options_are_refused(tmp_path):
    def start(*options):
        command_line = [
            "hmdb51",
            "--video_root",
            str(tmp_path),
            "--output_dir",
            str(tmp_path),
            "--model",
            str(TINY_CLIP),
        ]
        program.Reproduction(parse_arguments([*command_line, *options])).prepare()

    settings = dict.fromkeys(program._OF_THE_DATA) | {"frame_store": "jpeg", "official_splits": "lists"}
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / REPORT).write_text(json.dumps({"settings": settings}))
    start()
    start("--official_splits", "lists")
    with pytest.raises(
        ValueError, match=r"was prepared with --official_splits lists \(now .*other\), --frame_store jpeg"
    ):
        start("--official_splits", "other", "--frame_store", "raw")


# --- whole reproductions ----------------------------------------------------------------------------------------------


def write_benchmark(folder: Path, benchmark: str):
    """Rendered clips and lists in the official layout of HMDB51 or SSv2."""
    lines: dict[str, list[str]] = {split: [] for split in COLOURS}
    labels, names = [], {split: [name.replace("_", " ") for name in colours] for split, colours in COLOURS.items()}
    for split, colours in COLOURS.items():
        for class_id, (name, colour) in enumerate(colours.items()):
            for number in range(3):
                video_id = str(len(labels))
                path = f"videos/{name}/{number}.avi" if benchmark == "hmdb51" else f"{video_id}.mp4"
                (folder / "videos" / path).parent.mkdir(parents=True, exist_ok=True)
                write_video(folder / "videos" / path, colour, seed=100 * class_id + number)
                listed = f"{split}{class_id}//{path}" if benchmark == "hmdb51" else f"{split}{class_id}/{video_id}"
                lines[split].append(listed)
                labels.append({"id": video_id, "template": f"[{name}]"})
    (folder / "lists").mkdir()
    for split, name in (("train", "train"), ("validation", "val"), ("test", "test")):
        (folder / "lists" / f"{name}_few_shot.txt").write_text("\n".join(lines[split]) + "\n")
    (folder / "names.yaml").write_text(
        f"TRAIN: {{CLASS_NAME: {names['train']}}}\nTEST: {{CLASS_NAME: {names['test']}}}\n"
    )
    (folder / "labels.json").write_text(json.dumps(labels))


def reproduce(folder: Path, command_line: list[str], killed_in: str | None):
    """In a child: the command, which dies like by a power cut in the middle of preparing or training."""
    os.chdir(folder)
    datasets.config.HF_DATASETS_CACHE = folder / "cache"
    if killed_in is not None:
        owner = prepare_module.Preparation if killed_in == "_read_videos" else EpisodicTrainer
        method = getattr(owner, killed_in)

        @functools.wraps(method)
        def die_after(self, *arguments):
            method(self, *arguments)
            os.kill(os.getpid(), signal.SIGKILL)

        setattr(owner, killed_in, die_after)
    assert clipfsar(["reproduce", *command_line]) == 0


@pytest.mark.whole_program
@pytest.mark.parametrize("benchmark", ["hmdb51", "ssv2_small"])
def test_a_reproduction_that_is_killed_twice_ends_with_a_report(benchmark, tmp_path):
    write_benchmark(tmp_path, benchmark)
    save_tiny_clip(tmp_path / "clip")
    options = {"video_root": "videos", "official_splits": "lists", "model": "clip"}
    options |= {"seeds": "3", "hub_dataset": "me/data", **SETTINGS, "n_shot": [1, 2]}
    if benchmark == "ssv2_small":
        options |= {"class_names_file": "names.yaml", "validation_class_names": "labels.json"}
    command_line = [benchmark]
    for name, value in options.items():
        command_line += [f"--{name}", *(map(str, value) if isinstance(value, list) else [str(value)])]
    run = functools.partial(
        run_in_children, reproduce, tmp_path, command_line, folder=tmp_path / "output", timeout_seconds=600
    )
    assert run("_read_videos").exit_codes == [-signal.SIGKILL]
    assert run("_save_checkpoint").exit_codes == [-signal.SIGKILL]
    # SSv2 goes on with two processes, HMDB51 with one: the result does not depend on their number.
    outcome = run(None, num_processes=1 if benchmark == "hmdb51" else 2).check()
    assert "Resuming after episode 8 of 16." in outcome.output
    folder = tmp_path / "reproductions" / benchmark
    report = json.loads((folder / "report.json").read_text())
    assert report["videos_per_split"] == {"train": 12, "validation": 9, "test": 9}
    assert report["left_out_videos"] == []
    (record,) = report["runs"]
    assert (record["seed"], record["selected_on"], len(record["results"])) == (3, "validation", 6)
    assert record["best"]["episode"] in (8, 16)
    assert "| 3 | 2 | ensemble |" in (folder / "report.md").read_text()
    assert len(yaml.safe_load((folder / "seed_3/best/.eval_results/data.yaml").read_text())) == 6
    card = (folder / "seed_3/best/README.md").read_text()
    assert f"{record['results'][0]['accuracy']:.1f}%" in card
    before = (folder / "seed_3" / program.FINISHED).read_bytes()
    shutil.rmtree(tmp_path / "videos")  # everything is done: a further start only reports
    (tmp_path / "videos").mkdir()
    run(None).check()
    assert (folder / "seed_3" / program.FINISHED).read_bytes() == before
    assert not {"settings", "data"} & set(json.loads((folder / "report.json").read_text())["runs"][0])
    assert json.loads(before)["data"].keys() == {"train", "validation", "test"}
