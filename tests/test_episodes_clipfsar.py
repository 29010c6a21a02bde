"""Episodes: a pure function of (seed, epoch, index), disjoint, complete, and model inputs of them."""

import itertools

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from accelerate.data_loader import BatchSamplerShard
from accelerate.state import AcceleratorState
from accelerate.utils import send_to_device
from datasets import ClassLabel, Dataset, Features, Value, Video
from tiny_data import COLOURS, video_splits, write_video_folder
from torch.utils.data import BatchSampler, DataLoader, SequentialSampler

from episodes_clipfsar import EpisodeCollator, EpisodeDataset, EpisodeSampler, read_labels
from modeling_clipfsar import CLIPFSARModel

LABELS = [class_id for class_id in range(6) for _ in range(7 + class_id)]  # 6 classes of 7 to 12 videos


def labelled_dataset(labels, names=None, **columns) -> Dataset:
    """A data set whose videos are names only: enough where nothing is decoded."""
    feature = ClassLabel(names=names) if names else None
    dataset = Dataset.from_dict(
        {"video": [f"{row}.mp4" for row in range(len(labels))], "label": list(labels), **columns}
    )
    return dataset.cast_column("label", feature) if feature else dataset


@pytest.fixture(scope="module")
def dataset():
    return labelled_dataset([f"class {label}" for label in LABELS])


@pytest.fixture(scope="module")
def video_folder(tmp_path_factory):
    return write_video_folder(tmp_path_factory.mktemp("videos"))


@pytest.fixture(scope="module")
def splits(video_folder):
    return video_splits(video_folder)


@pytest.fixture(scope="module")
def model(tiny_clip):
    torch.manual_seed(0)
    return CLIPFSARModel.from_pretrained(tiny_clip, for_training=True, num_frames=4).eval()


def same_rows(first, second) -> bool:
    names = ("class_ids", "support_rows", "query_rows")
    return all(np.array_equal(getattr(first, name), getattr(second, name)) for name in names)


# --- which videos -----------------------------------------------------------------------------------------------------


def test_episodes_stay_what_they_were():
    sampler = EpisodeSampler(LABELS, n_way=3, n_shot=1, n_query=2, seed=5)
    rows = sampler.sample(index=7, epoch=2)
    assert rows.class_ids.tolist() == [4, 3, 0]
    assert rows.support_rows.tolist() == [[43], [32], [6]]
    assert rows.query_rows.tolist() == [[39, 42], [31, 26], [2, 4]]


def test_an_episode_is_the_same_whatever_was_drawn_before():
    sampler = EpisodeSampler(LABELS, n_way=3, n_query=2, seed=1)
    in_order = [sampler.sample(index) for index in range(20)]
    backwards = [sampler.sample(index) for index in reversed(range(20))][::-1]
    fresh = [EpisodeSampler(LABELS, n_way=3, n_query=2, seed=1).sample(index) for index in range(20)]
    assert all(same_rows(*pair) for pair in zip(in_order, backwards, strict=True))
    assert all(same_rows(*pair) for pair in zip(in_order, fresh, strict=True))


def test_the_global_random_state_neither_matters_nor_changes():
    sampler = EpisodeSampler(LABELS)
    expected = sampler.sample(3)
    np.random.seed(1)  # noqa: NPY002
    torch.manual_seed(1)
    before = np.random.get_state()[1].copy(), torch.get_rng_state()  # noqa: NPY002
    assert same_rows(sampler.sample(3), expected)
    assert np.array_equal(np.random.get_state()[1], before[0])  # noqa: NPY002
    assert torch.equal(torch.get_rng_state(), before[1])


def test_episodes_of_another_seed_epoch_or_index_differ():
    # 20 videos in each of 20 classes: two equal episodes would be a miracle
    labels = np.repeat(np.arange(20), 20)
    rows = [
        EpisodeSampler(labels, seed=seed).sample(index, epoch)
        for seed, epoch, index in itertools.product(range(4), range(4), range(4))
    ]
    assert not any(same_rows(*pair) for pair in itertools.combinations(rows, 2))


@pytest.mark.parametrize(("n_way", "n_shot", "n_query"), [(2, 1, 1), (2, 1, 5), (5, 3, 4), (6, 5, 2), (6, 1, 6)])
def test_support_and_query_are_disjoint_videos_of_the_right_classes(n_way, n_shot, n_query):
    labels = np.array(LABELS)
    sampler = EpisodeSampler(LABELS, n_way, n_shot, n_query, seed=2)
    for index in range(200):
        rows = sampler.sample(index)
        assert rows.support_rows.shape == (n_way, n_shot)
        assert rows.query_rows.shape == (n_way, n_query)
        used = np.concatenate([rows.support_rows.flatten(), rows.query_rows.flatten()])
        assert len(set(used.tolist())) == len(used)
        assert len(set(rows.class_ids.tolist())) == n_way
        assert (labels[rows.support_rows] == rows.class_ids[:, None]).all()
        assert (labels[rows.query_rows] == rows.class_ids[:, None]).all()


def test_every_class_and_video_is_drawn_about_equally_often():
    sampler = EpisodeSampler(np.repeat(np.arange(8), 10), n_way=4, n_shot=2, n_query=3, seed=0)
    rows = [sampler.sample(index) for index in range(2000)]
    for drawn, size in (
        (np.concatenate([row.class_ids for row in rows]), 8),
        (np.concatenate([row.support_rows.flatten() for row in rows]), 80),
        (np.concatenate([row.query_rows.flatten() for row in rows]), 80),
        (np.stack([row.class_ids for row in rows])[:, 0], 8),  # no class prefers a place in the episode
    ):
        counts = np.bincount(drawn, minlength=size)
        expected = len(drawn) / size
        # A sum of squared deviations this large has a probability below 1e-6 (drawing without replacement lowers it).
        assert ((counts - expected) ** 2 / expected).sum() < size + 5 * (2 * size) ** 0.5 + 15


def test_negative_labels_leave_videos_out():
    labels = np.array([0, -1, 1, 0, 1, -1, 0, 1, -100])
    for given in (labels, labels.tolist()):
        sampler = EpisodeSampler(given, n_way=2, n_shot=1, n_query=2)
        assert sampler.class_ids.tolist() == [0, 1]
        drawn = {
            int(row)
            for index in range(50)
            for rows in (sampler.sample(index),)
            for row in (*rows.support_rows.flatten(), *rows.query_rows.flatten())
        }
        assert drawn == {0, 2, 3, 4, 6, 7}


def test_class_ids_need_not_be_consecutive():
    sampler = EpisodeSampler([7, 7, 40, 40, 3, 3], n_way=3, n_query=1)
    assert sorted(sampler.sample(0).class_ids.tolist()) == [3, 7, 40]


def test_too_few_classes_are_named_with_the_numbers():
    with pytest.raises(ValueError, match=r"There are 6 classes, but n_way=7 are needed: lower n_way or add classes"):
        EpisodeSampler(LABELS, n_way=7)


def test_too_few_videos_are_named_with_class_and_numbers():
    labels = ["run"] * 6 + ["dive"] * 3
    message = r"Class 'dive' has 3 videos, but n_shot \+ n_query = 6 are needed: lower one of them or drop the class"
    with pytest.raises(ValueError, match=message):
        EpisodeDataset(labelled_dataset(labels), n_way=2, n_shot=1, n_query=5)
    with pytest.raises(ValueError, match="Class '1' has 3 videos"):
        EpisodeSampler([0] * 6 + [1] * 3, n_way=2)
    assert len(EpisodeDataset(labelled_dataset(labels), n_way=2, n_shot=1, n_query=2)) == 1000


@pytest.mark.parametrize("n_way", [1, 0, -1])
def test_fewer_than_two_classes_are_no_question(dataset, n_way):
    with pytest.raises(ValueError, match=f"n_way={n_way} must be at least 2: among fewer classes"):
        EpisodeDataset(dataset, n_way=n_way)


@pytest.mark.parametrize("name", ["n_shot", "n_query", "n_episodes"])
def test_counts_below_one_are_refused(dataset, name):
    with pytest.raises(ValueError, match=f"{name}=0 must be at least 1"):
        EpisodeDataset(dataset, **{name: 0})


def test_a_negative_seed_is_refused(dataset):
    with pytest.raises(ValueError, match="seed=-1 must be 0 or greater"):
        EpisodeDataset(dataset, seed=-1)


# --- the data set -----------------------------------------------------------------------------------------------------


def test_labels_and_base_labels_agree_with_names_and_rows(dataset):
    episodes = EpisodeDataset(dataset, n_way=4, n_shot=2, n_query=3, n_episodes=50, seed=3)
    assert episodes.class_names == [f"class {label}" for label in range(6)]
    name_of_video = dict(zip(dataset["video"], dataset["label"], strict=True))
    for episode in (episodes[index] for index in range(50)):
        assert episode["class_names"] == [episodes.class_names[label] for label in episode["class_base_labels"]]
        for role, labels, base_labels, size in (
            ("support_videos", "support_labels", "support_base_labels", 8),
            ("query_videos", "labels", "query_base_labels", 12),
        ):
            assert len(episode[role]) == len(episode[labels]) == len(episode[base_labels]) == size
            names = [name_of_video[video] for video in episode[role]]
            assert names == [episode["class_names"][label] for label in episode[labels]]
            assert names == [episodes.class_names[label] for label in episode[base_labels]]
        assert not set(episode["support_videos"]) & set(episode["query_videos"])


def test_episodes_of_the_dataset_are_those_of_the_sampler(dataset):
    episodes = EpisodeDataset(dataset, n_way=3, n_shot=1, n_query=2, seed=9)
    episodes.set_epoch(4)
    rows = EpisodeSampler(LABELS, 3, 1, 2, seed=9).sample(11, epoch=4)
    videos = dataset["video"]
    assert episodes[11]["support_videos"] == [videos[row] for row in rows.support_rows.flatten()]
    assert episodes[11]["query_videos"] == [videos[row] for row in rows.query_rows.flatten()]


def test_frame_seeds_differ_between_episodes_epochs_and_seeds(dataset):
    episodes = EpisodeDataset(dataset, n_query=2, n_episodes=300)
    seeds = {episodes[index]["seed"] for index in range(300)}
    episodes.set_epoch(1)
    seeds |= {episodes[index]["seed"] for index in range(300)}
    others = EpisodeDataset(dataset, n_query=2, n_episodes=300, seed=1)
    seeds |= {others[index]["seed"] for index in range(300)}
    assert len(seeds) == 900


def test_the_number_of_episodes_is_the_length_and_changes_none(dataset):
    short, long = (EpisodeDataset(dataset, n_query=2, n_episodes=n) for n in (3, 100))
    assert (len(short), len(long)) == (3, 100)
    assert [short[index] for index in range(3)] == [long[index] for index in range(3)]
    assert len(list(short)) == 3
    with pytest.raises(IndexError, match="Episode 3 of 3"):
        short[3]


@pytest.mark.parametrize(("num_workers", "context"), [(1, "fork"), (2, "fork"), (1, "spawn")])
def test_workers_and_their_number_do_not_change_episodes(dataset, num_workers, context):
    episodes = EpisodeDataset(dataset, n_way=3, n_query=2, n_episodes=7, seed=1)
    expected = [episodes[index] for index in range(7)]
    loader = DataLoader(
        episodes, batch_size=2, collate_fn=list, num_workers=num_workers, multiprocessing_context=context
    )
    assert list(itertools.chain(*loader)) == expected


def test_the_number_of_processes_does_not_change_episodes(dataset):
    episodes = EpisodeDataset(dataset, n_way=3, n_query=2, n_episodes=12, seed=1)
    expected = [episodes[index] for index in range(12)]
    for num_processes in (1, 2, 3):
        batches = BatchSampler(SequentialSampler(episodes), batch_size=2, drop_last=False)
        shards = [BatchSamplerShard(batches, num_processes, rank) for rank in range(num_processes)]
        steps = zip(*([[episodes[i] for i in batch] for batch in shard] for shard in shards), strict=True)
        assert [episode for step in steps for batch in step for episode in batch] == expected


def test_a_new_epoch_reaches_workers_that_live_on(dataset):
    episodes = EpisodeDataset(dataset, n_way=3, n_query=2, n_episodes=4)
    loader = DataLoader(
        episodes, batch_size=1, collate_fn=list, num_workers=1, persistent_workers=True, multiprocessing_context="fork"
    )
    passes = []
    for epoch in (0, 1, 0):
        episodes.set_epoch(epoch)
        passes.append(list(itertools.chain(*loader)))
        assert passes[-1] == [episodes[index] for index in range(4)]
    assert passes[0] == passes[2] != passes[1]


def test_class_labels_and_strings_give_the_same_episodes():
    names = ["jump", "run", "swim"]
    ids = [2, 0, 1] * 4
    by_number = EpisodeDataset(labelled_dataset(ids, names), n_way=3, n_query=2)
    by_name = EpisodeDataset(labelled_dataset([names[i] for i in ids]), n_way=3, n_query=2)
    assert by_number.class_names == by_name.class_names == names
    assert [by_number[i] for i in range(5)] == [by_name[i] for i in range(5)]


def test_classes_of_the_feature_that_do_not_occur_are_left_out():
    labels, names = read_labels(labelled_dataset([3, 1, 3, 1], ["a", "b", "c", "d"]))
    assert labels.tolist() == [1, 0, 1, 0]
    assert names == ["b", "d"]


@pytest.mark.parametrize("column", ["video", "label"])
def test_a_missing_column_is_named_with_those_there_are(dataset, column):
    renamed = dataset.rename_column(column, "other")
    message = f"There is no column '{column}'; the dataset has {', '.join(renamed.column_names)}"
    with pytest.raises(ValueError, match=message):
        EpisodeDataset(renamed)
    assert len(EpisodeDataset(renamed, n_query=2, **{f"{column}_column": "other"})) == 1000


def test_numbers_without_names_are_refused():
    with pytest.raises(
        ValueError, match=r"Column 'label' holds int values without class names.*use strings or cast_col"
    ):
        EpisodeDataset(labelled_dataset([0, 1] * 6))


@pytest.mark.parametrize("missing", [-1, None])
def test_rows_without_a_class_label_are_left_out(missing):
    # -1 is how datasets on the Hub mark "no label"
    features = Features({"video": Value("string"), "label": ClassLabel(names=["jump", "run"])})
    ids = [missing, 0, 1, 0, 1, missing]
    labels, names = read_labels(Dataset.from_dict({"video": list("abcdef"), "label": ids}, features=features))
    assert labels.tolist() == [-1, 0, 1, 0, 1, -1]
    assert names == ["jump", "run"]


def test_rows_without_a_class_name_are_left_out():
    labels, names = read_labels(labelled_dataset(["run", None, "jump", "run"]))
    assert labels.tolist() == [1, -1, 0, 1]
    assert names == ["jump", "run"]


def test_video_columns_are_not_decoded_when_an_episode_is_read(splits):
    decoding = splits["train"].cast_column("video", Video())
    assert decoding.features["video"].decode
    episode = EpisodeDataset(decoding, n_way=2, n_query=1)[0]
    assert {type(video) for video in episode["support_videos"]} == {dict}
    assert set(episode["support_videos"][0]) == {"path", "bytes"}
    assert decoding.features["video"].decode  # the caller's data set is as it was


# --- model inputs -----------------------------------------------------------------------------------------------------


def episodes_of(splits, **settings):
    return EpisodeDataset(splits["train"], **{"n_way": 3, "n_shot": 1, "n_query": 2, "seed": 4} | settings)


def with_bytes(split: Dataset) -> Dataset:
    videos = [{"path": None, "bytes": open(path, "rb").read()} for path in split["video"]]  # noqa: SIM115
    features = Features({"video": Video(decode=False), "label": split.features["label"]})
    return Dataset.from_dict({"video": videos, "label": split["label"]}, features=features)


def test_paths_video_columns_and_bytes_give_the_same_inputs(splits, processor):
    collator = EpisodeCollator(processor, training=True)
    given = [splits["train"], splits["train"].cast_column("video", Video()), with_bytes(splits["train"])]
    first, *others = (collator([EpisodeDataset(split, n_way=2, n_query=1)[0]]) for split in given)
    for other in others:
        assert all(torch.equal(first[name], other[name]) for name in first)


@pytest.mark.parametrize("batch_size", [1, 3])
def test_inputs_have_the_models_shapes_and_run(splits, processor, model, batch_size):
    episodes = episodes_of(splits)
    batch = EpisodeCollator(processor)([episodes[index] for index in range(batch_size)])
    tokens = batch["class_input_ids"].shape[-1]
    assert {name: tuple(tensor.shape) for name, tensor in batch.items()} == {
        "support_pixel_values": (batch_size, 3, 4, 3, 16, 16),
        "query_pixel_values": (batch_size, 6, 4, 3, 16, 16),
        "support_labels": (batch_size, 3),
        "labels": (batch_size, 6),
        "class_base_labels": (batch_size, 3),
        "support_base_labels": (batch_size, 3),
        "query_base_labels": (batch_size, 6),
        "class_input_ids": (batch_size, 3, tokens),
        "class_attention_mask": (batch_size, 3, tokens),
    }
    output = model(**batch)
    assert output.logits.shape == (batch_size, 6, 3)
    assert output.loss.isfinite()


def test_a_batch_of_episodes_is_its_single_episodes_stacked(splits, processor, model):
    episodes = episodes_of(splits)
    collator = EpisodeCollator(processor, training=True)
    items = [episodes[index] for index in range(3)]
    batch, singles = collator(items), [collator([item]) for item in items]
    for name in batch:
        if not name.startswith("class_input") and not name.startswith("class_attention"):  # padded to the longest
            assert torch.equal(batch[name], torch.cat([single[name] for single in singles])), name
    logits = torch.cat([model(**single).logits for single in singles])
    torch.testing.assert_close(model(**batch).logits, logits, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("shots", [(1, 1), (1, 3)])
def test_videos_that_are_only_read_become_the_same_inputs_later(splits, processor, shots):
    processor.query_augmentation = "kinetics"
    episodes = [episodes_of(splits, n_shot=n_shot)[index] for index, n_shot in enumerate(shots)]
    expected = EpisodeCollator(processor, training=True)(episodes)
    collator = EpisodeCollator(processor, training=True, only_read=True)
    (batch,) = DataLoader(episodes, batch_size=2, collate_fn=collator, num_workers=1)  # through another process
    assert {frames.dtype for frames in batch["query_videos"].frames} == {torch.uint8}
    finished = collator.finish(send_to_device(batch, torch.device("cpu"), non_blocking=True))
    assert sorted(finished) == sorted(expected)
    assert all(torch.equal(finished[name], expected[name]) for name in expected)
    assert "support_videos" in batch, "the batch itself is left as it was"
    assert all(torch.equal(collator.finish(expected)[name], expected[name]) for name in expected)


def test_pixel_values_of_episodes_are_not_copied_together(splits, processor):
    made = []

    class Watched(type(processor)):
        def process_videos(self, *args, **kwargs):
            made.append(super().process_videos(*args, **kwargs))
            return made[-1]

    watched = Watched(processor.image_processor, processor.tokenizer, num_frames=4)
    batch = EpisodeCollator(watched)([episodes_of(splits)[index] for index in range(2)])
    for pixel_values, name in zip(made, ("support_pixel_values", "query_pixel_values"), strict=True):
        assert batch[name].data_ptr() == pixel_values.data_ptr()


def test_class_texts_are_those_of_the_classes(splits, processor):
    episode = episodes_of(splits)[0]
    batch = EpisodeCollator(processor)([episode])
    texts = [
        processor.tokenizer.decode(ids[mask.bool()], skip_special_tokens=True).replace(" ", "")
        for ids, mask in zip(batch["class_input_ids"][0], batch["class_attention_mask"][0], strict=True)
    ]
    assert texts == [f"aphotoof{name.replace('_', '')}" for name in episode["class_names"]]
    assert set(episode["class_names"]) <= set(COLOURS["train"])


def test_padding_of_unequal_shots_does_not_change_logits(splits, processor, model):
    one_shot, three_shot = episodes_of(splits)[0], episodes_of(splits, n_shot=3, n_query=3)[1]
    collator = EpisodeCollator(processor)
    batch = collator([one_shot, three_shot])
    assert batch["support_labels"].tolist() == [[0, 1, 2] + [-1] * 6, [0, 0, 0, 1, 1, 1, 2, 2, 2]]
    assert batch["support_base_labels"][0, 3:].tolist() == [-1] * 6
    assert batch["labels"][0, 6:].tolist() == [-1] * 3
    output = model(**batch)
    alone = [model(**collator([episode])) for episode in (one_shot, three_shot)]
    torch.testing.assert_close(output.logits[0, :6], alone[0].logits[0], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(output.logits[1], alone[1].logits[0], rtol=1e-5, atol=1e-5)
    # the loss counts queries, not padding: 6 of the first episode and 9 of the second
    expected = (6 * alone[0].loss + 9 * alone[1].loss) / 15
    torch.testing.assert_close(output.loss, expected, rtol=1e-5, atol=1e-5)


def test_training_draws_by_the_episodes_seed_alone(splits, processor):
    episodes = episodes_of(splits)
    collator = EpisodeCollator(processor, training=True)
    first = collator([episodes[0]])["query_pixel_values"]
    torch.manual_seed(123)
    collator([episodes[1]])
    assert torch.equal(collator([episodes[0]])["query_pixel_values"], first)
    assert torch.equal(collator([episodes[1], episodes[0]])["query_pixel_values"][1:], first)
    assert not torch.equal(collator([episodes[0] | {"seed": 1}])["query_pixel_values"], first)


def test_evaluation_draws_nothing(splits, processor):
    episode = episodes_of(splits)[0]
    collator = EpisodeCollator(processor)
    first, other_seed = (collator([episode | {"seed": seed}]) for seed in (0, 1))
    assert all(torch.equal(first[name], other_seed[name]) for name in first)


def test_episodes_of_different_ways_are_refused(splits, processor):
    episodes = [episodes_of(splits, n_way=n_way)[0] for n_way in (2, 3)]
    with pytest.raises(ValueError, match=r"Episodes of \[2, 3\] classes cannot share a batch: use one n_way"):
        EpisodeCollator(processor)(episodes)


def test_a_loader_prepared_by_accelerate_gives_the_same_batches(splits, processor):
    episodes = episodes_of(splits, n_episodes=4)
    collator = EpisodeCollator(processor, training=True)
    expected = [collator([episodes[0], episodes[1]]), collator([episodes[2], episodes[3]])]
    try:
        loader = Accelerator(cpu=True).prepare(DataLoader(episodes, batch_size=2, collate_fn=collator))
        batches = list(loader)
    finally:
        AcceleratorState._reset_state(True)
    assert len(batches) == 2
    for batch, want in zip(batches, expected, strict=True):
        assert all(torch.equal(batch[name], want[name]) for name in want)


@pytest.mark.parametrize("name", ["training", "only_read"])
def test_options_of_the_collator_are_true_or_false(processor, name):
    with pytest.raises(ValueError, match=f"{name}='no' must be True or False"):
        EpisodeCollator(processor, **{name: "no"})
