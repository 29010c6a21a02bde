"""The page of converted weights: origin and licence, required to upload, and a program that runs."""

import json
import os
import re

import pytest
from huggingface_hub import ModelCard
from test_push_to_hub import hub  # noqa: F401 (a fixture)
from tiny_data import COLOURS, tiny_model_and_processor, write_video

from clipfsar.checkpoints.converted_card import RECORD, record_conversion
from clipfsar.checkpoints.model_card import write_model_card
from clipfsar.checkpoints.push_to_hub import push_folder
from clipfsar.cli import main as clipfsar
from clipfsar.training.arguments import parse_arguments
from pipeline_clipfsar import save_with_pipeline

SOURCE = "https://github.com/D-XH/CLIP-MEI"


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "converted"
    save_with_pipeline(*tiny_model_and_processor(), folder)
    record_conversion(folder, "CLIP-MEI", f"{tmp_path}/checkpoint_best.pt", "openai/clip-vit-base-patch16", 4)
    return folder


def test_the_card_says_where_the_weights_come_from_and_no_path_of_the_machine(folder, tmp_path):
    card = ModelCard.load(folder / "README.md")
    text = " ".join(card.text.split())
    assert "Weights: `checkpoint_best.pt`, a checkpoint of CLIP-MEI. Source: not stated." in text
    assert "The licence of the weights is: not stated." in text
    assert card.data.license == "other"
    assert str(tmp_path) not in (folder / "README.md").read_text() + (folder / RECORD).read_text()
    assert "{" not in re.sub(r"```.*?```", "", card.text, flags=re.DOTALL)


@pytest.mark.parametrize(
    ("given", "missing"),
    [({}, "--license and --source"), ({"license": "mit"}, "--source"), ({"source": SOURCE}, "--license")],
)
def test_converted_weights_are_not_uploaded_without_licence_and_source(given, missing, folder, hub):  # noqa: F811
    message = rf"weights of CLIP-MEI, converted from checkpoint_best.pt: say .* from where they are, with {missing}\."
    with pytest.raises(ValueError, match=message):
        push_folder(folder, "actions", **given)
    assert hub.requests == []


def test_licence_and_source_stand_on_the_uploaded_card_and_are_kept(folder, hub):  # noqa: F811
    options = ["--license", "mit", "--source", SOURCE]
    assert clipfsar(["push", "--folder", str(folder), "--repo_id", "actions", *options]) == 0
    card = ModelCard.load(hub.folder / "README.md")
    assert card.data.license == "mit"
    assert f"Source: {SOURCE}." in card.text
    assert "The licence of the weights is: mit." in card.text
    assert 'model="me/actions"' in card.text
    assert "clipfsar evaluate --model me/actions" in card.text
    assert json.loads((folder / RECORD).read_text())["license"] == "mit"
    push_folder(folder, "actions")  # what was said once is known


def test_a_licence_that_the_hub_does_not_know_gets_a_name(folder, hub):  # noqa: F811
    push_folder(folder, "actions", license="Licence of the lab", source="a letter")
    data = ModelCard.load(folder / "README.md").data
    assert (data.license, data.license_name) == ("other", "licence-of-the-lab")


def test_trained_models_take_neither_licence_nor_source(folder, hub):  # noqa: F811
    (folder / RECORD).unlink()
    with pytest.raises(ValueError, match=r"--license and --source are for converted weights; .* is a trained model"):
        push_folder(folder, "actions", license="mit")


def test_results_for_the_hub_go_up_and_other_hidden_files_do_not(folder, hub):  # noqa: F811
    for name in (".eval_results/data.yaml", ".cache/token", ".DS_Store"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text("x")
    push_folder(folder, "actions", license="mit", source=SOURCE)
    uploaded = {path.relative_to(hub.folder).as_posix() for path in hub.folder.rglob("*") if path.is_file()}
    assert {name for name in uploaded if name.startswith(".")} == {".eval_results/data.yaml"}


@pytest.mark.parametrize("kind", ["converted", "trained"])
def test_the_program_on_an_uploaded_card_runs(kind, folder, hub, tmp_path, monkeypatch, capsys):  # noqa: F811
    if kind == "trained":
        (folder / RECORD).unlink()
        write_model_card(folder, parse_arguments(["--dataset", "someone/actions"]), None, [], num_base_classes=3)
    push_folder(folder, "actions", **({"license": "mit", "source": SOURCE} if kind == "converted" else {}))
    (program,) = re.findall(r"```python\n(.*?)```", (hub.folder / "README.md").read_text(), flags=re.DOTALL)
    assert program.count('model="me/actions"') == 1
    colours = [colour for split in COLOURS.values() for colour in split.values()]
    for number, name in enumerate(sorted(set(re.findall(r"\w+\.mp4", program)))):
        write_video(tmp_path / name, colours[number], seed=number)
    os.rename(hub.folder, tmp_path / "uploaded")  # the Hub is a folder here
    monkeypatch.chdir(tmp_path)
    exec(compile(program.replace("me/actions", "./uploaded"), "card", "exec"), {})
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("[{'label': ")
    assert (tmp_path / "my_classes").is_dir()
