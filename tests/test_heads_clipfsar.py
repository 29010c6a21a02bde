"""Heads: against plain computations, with unequal shots, in the model and wherever a model compares videos."""

import itertools
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from golden.formula_model import formula_tensor, tiny_config, tiny_episode, tiny_model
from tiny_data import random_clip, tiny_model_and_processor

import heads_clipfsar
from clipfsar.evaluation.episodes import predict_episodes
from clipfsar.evaluation.exact_accuracy import exact_accuracy_of_videos
from clipfsar.evaluation.split_features import SplitFeatures
from clipfsar.inference.export import QueryClassifier, export, input_shapes
from configuration_clipfsar import CLIPFSARConfig
from episodes_clipfsar import EpisodeSampler
from heads_clipfsar import HEADS, TRX, Chamfer, Head, class_means, group_by_class, register_head
from left_out_clipfsar import leave_one_out
from modeling_clipfsar import CLIPFSARModel
from support_set_clipfsar import SupportSet

NAMES = ("chamfer", "trx", "hyrsm")
SIZES = {"trx_size": 12, "chamfer_tuple_size": 2}


def head_model(alignment, **settings):
    return tiny_model(alignment=alignment, **SIZES | settings)


def features(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(params=NAMES)
def model(request):
    return head_model(request.param)


# --- plain computations -----------------------------------------------------------------------------------------------


def test_chamfer_is_the_mean_of_best_tuples_of_both_sides():
    config = SimpleNamespace(chamfer_tuple_size=2, cosine_epsilon=0.0)
    query, shots = features(1, 1, 4, 6), features(1, 1, 2, 5, 6, seed=1)
    cosine = F.cosine_similarity(query[0, 0, None, :, None], shots[0, 0, :, None], dim=-1)  # (K, L, M)
    pairs = {
        (k, r, c): (cosine[k, r[0], c[0]] + cosine[k, r[1], c[1]]) / 2
        for k in range(2)
        for r in itertools.combinations(range(4), 2)
        for c in itertools.combinations(range(5), 2)
    }
    rows, columns = {r for _, r, _ in pairs}, {(k, c) for k, _, c in pairs}
    of_query = sum(max(value for key, value in pairs.items() if key[1] == r) for r in rows) / len(rows)
    of_shots = sum(max(v for key, v in pairs.items() if (key[0], key[2]) == c) for c in columns) / len(columns)
    distance = Chamfer(config).compare(query, shots)
    torch.testing.assert_close(distance[0, 0, 0], 1 - (of_query + of_shots) / 2)


def plain_trx(head, query, shots):
    """Distance of one query (T, D) to one class (K, T, D): every tuple is made, as the paper says."""
    distances = []
    for c, key_map, value_map, norm in zip(
        head.cardinalities, head.key_maps, head.value_maps, head.key_norms, strict=True
    ):
        code = heads_clipfsar._sine_code(*query.shape, query)

        def tuples(video, code=code, c=c):
            return torch.stack([(video + 0.1 * code)[list(t)].flatten() for t in itertools.combinations(range(4), c)])

        own = tuples(query)
        support = torch.cat([tuples(video) for video in shots])
        attention = (norm(key_map(own)) @ norm(key_map(support)).T / len(norm.weight) ** 0.5).softmax(-1)
        distances.append(((value_map(own) - attention @ value_map(support)) ** 2).sum() / len(own))
    return torch.stack(distances).mean()


def test_trx_is_attention_between_all_tuples_of_all_shots():
    head = head_model("trx").comparison_head
    query, support = features(1, 2, 4, 16), features(1, 3, 4, 16, seed=1)
    labels = torch.tensor([[1, 0, 1]])
    expected = [[plain_trx(head, one, support[0, labels[0] == n]) for n in range(2)] for one in query[0]]
    expected = torch.stack([torch.stack(row) for row in expected])
    torch.testing.assert_close(head(query, support, labels)[0], expected, rtol=1e-5, atol=1e-5)


def test_frames_near_in_time_should_look_alike_and_far_ones_differ():
    head = head_model("hyrsm", temporal_coherence_window=1).comparison_head
    same = torch.ones(1, 3, 16)
    assert head.temporal_coherence_loss(same).item() == pytest.approx(2 / 9 * (1 - np.exp(-1 / 4)))
    differing = torch.eye(3, 16)[None]
    assert head.temporal_coherence_loss(differing).item() == pytest.approx(4 / 9 * 1 / 2)


# --- labels and shots -------------------------------------------------------------------------------------------------


def test_shots_are_grouped_by_class_and_padded():
    support = torch.arange(5.0).view(1, 5, 1, 1)
    shots, present = group_by_class(support, torch.tensor([[1, 0, -1, 1, 1]]), 2)
    assert present.tolist() == [[[True, False, False], [True, True, True]]]
    assert shots[0, 0, 0].item() == 1
    assert shots[0, 1].flatten().tolist() == [0, 3, 4]
    assert class_means(shots, present).flatten().tolist() == pytest.approx([1.0, 7 / 3])
    assert group_by_class(support, torch.tensor([[0, 1, 2, 3, 4]]), 5)[1] is None


def test_unequal_shots_and_padding_count_as_the_same_videos_alone(model):
    support, query = features(2, 6, 4, 16), features(2, 2, 4, 16, seed=1)
    labels = torch.tensor([[0, 1, 1, -1, 2, 1], [2, 0, -1, 1, -1, 1]])
    distances = model.get_distances(query, support, labels)
    assert distances.shape == (2, 2, 3)
    for episode in range(2):
        kept = labels[episode] >= 0
        alone = model.get_distances(query[episode], support[episode, kept], labels[episode, kept])
        torch.testing.assert_close(distances[episode], alone, rtol=1e-5, atol=1e-5)


def test_the_order_of_shots_does_not_matter_but_that_of_frames_does(model):
    support, query, labels = features(1, 4, 4, 16), features(1, 2, 4, 16, seed=1), torch.tensor([[0, 1, 0, 1]])
    distances = model.get_distances(query, support, labels)
    order = [2, 3, 0, 1]
    torch.testing.assert_close(model.get_distances(query, support[:, order], labels[:, order]), distances)
    assert not torch.allclose(model.get_distances(query.flip(2), support, labels), distances, atol=1e-3)


def test_shots_are_not_averaged(model):
    if model.config.alignment == "hyrsm":
        pytest.skip("HyRSM averages shots after its attention over frames")
    support, query = features(1, 2, 4, 16), features(1, 1, 4, 16, seed=1)
    together = model.get_distances(query, support, torch.tensor([[0, 0]]))
    of_mean = model.get_distances(query, support.mean(1, keepdim=True), torch.tensor([[0]]))
    assert not torch.allclose(together, of_mean, atol=1e-3)


def test_distances_in_chunks_are_those_of_one_call(model, monkeypatch):
    support, query, labels = features(3, 4, 4, 16), features(3, 5, 4, 16, seed=1), torch.tensor([[0, 1, 0, 1]] * 3)
    whole = model.get_distances(query.requires_grad_(), support, labels).detach()
    for numbers in (1, 500):
        monkeypatch.setitem(heads_clipfsar._NUMBERS_PER_CHUNK, "cpu", numbers)
        with torch.no_grad():
            torch.testing.assert_close(model.get_distances(query, support, labels), whole, rtol=1e-5, atol=1e-5)


def test_labels_work_for_every_alignment():
    support, query, labels = features(4, 4, 16), features(2, 4, 16, seed=1), torch.tensor([0, 1, 1, -1])
    for alignment in ("otam", "bi_mhm", "mean"):
        model = head_model(alignment)
        prototypes = torch.stack([support[0], support[1:3].mean(0)])
        expected = model.get_distances(query, prototypes)
        torch.testing.assert_close(model.get_distances(query, support, labels), expected)


# --- in the model -----------------------------------------------------------------------------------------------------


def test_only_the_chosen_head_has_weights():
    names = {alignment: set(head_model(alignment).state_dict()) for alignment in ("otam", *NAMES)}
    assert names["chamfer"] == names["otam"]
    for alignment in ("trx", "hyrsm"):
        added = names[alignment] - names["otam"]
        assert added
        assert all(name.startswith("comparison_head.") for name in added)


def test_forward_modulates_each_shot_and_compares_with_it(model):
    episode = tiny_episode(n_shot=2)
    output = model(**episode)
    assert output.prototypes.shape == (1, 3, 4, 16)
    given = output.support_embeds, episode["support_labels"], output.class_embeds
    states = model.get_support_states(*given)
    expected = -model.get_distances(model.get_query_states(output.query_embeds), states, episode["support_labels"])
    torch.testing.assert_close(output.logits, expected)
    torch.testing.assert_close(model.get_prototypes(*given), output.prototypes)


def test_a_head_trains(model):
    model.train()
    output = model(**tiny_episode(n_shot=2))
    output.loss.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.comparison_head.parameters())
    assert any(p.grad.abs().sum() > 0 for p in model.temporal_transformer.parameters())


def test_hyrsm_adds_its_losses_in_training_only():
    model = head_model("hyrsm", temporal_coherence_weight=0.5, num_base_classes=7, head_dropout=0.0)
    model.config.temporal_coherence_weight = 0.5
    base = {"support_base_labels": torch.tensor([[1, 2, 3]]), "query_base_labels": torch.tensor([[1, 1, 2, 2, -1, 3]])}
    episode = tiny_episode() | base | {"base_class_embeds": formula_tensor((7, 16))}
    assert model(**episode).head_loss is None
    output = model.train()(**episode)
    expected = output.few_shot_loss + 1.5 * output.video_text_loss + output.head_loss
    torch.testing.assert_close(output.loss, expected)
    output.loss.backward()
    assert model.comparison_head.classifier.weight.grad.abs().sum() > 0


def test_a_head_is_saved_and_loaded(model, tmp_path):
    model.save_pretrained(tmp_path)
    loaded = CLIPFSARModel.from_pretrained(tmp_path)
    with torch.no_grad():
        assert torch.equal(loaded(**tiny_episode()).logits, model(**tiny_episode()).logits)


def test_a_head_keeps_float32_weights_in_half_precision(tmp_path):
    head_model("trx").save_pretrained(tmp_path)
    loaded = CLIPFSARModel.from_pretrained(tmp_path, dtype=torch.bfloat16)
    assert {p.dtype for p in loaded.comparison_head.parameters()} == {torch.float32}
    assert loaded(**tiny_episode()).logits.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("alignment", ["trx", "hyrsm"])
def test_a_head_keeps_float32_weights_when_its_model_goes_to_half_precision(alignment, dtype):
    model = head_model(alignment)
    weights = [weight.clone() for weight in model.comparison_head.parameters()]
    expected = model(**tiny_episode()).logits
    answers = model.to(dtype)(**tiny_episode()).logits
    kept = list(model.comparison_head.parameters())
    assert all(torch.equal(one, other) and one.dtype == torch.float32 for one, other in zip(kept, weights, strict=True))
    torch.testing.assert_close(answers.float(), expected, rtol=0.05, atol=0.05)


def test_another_alignment_without_its_head_is_refused():
    model = head_model("otam")
    model.config.alignment = "trx"
    with pytest.raises(ValueError, match="made without the head of alignment='trx': load it with"):
        model(**tiny_episode())


def test_too_few_frames_for_a_tuple_are_refused():
    model = head_model("trx")
    with pytest.raises(ValueError, match="A video of 2 frames has no tuple of 3"):
        model.get_distances(features(1, 1, 2, 16), features(1, 1, 2, 16))


def test_too_few_frames_for_a_tuple_are_refused_without_gradients_too():
    model = head_model("chamfer")
    model.config.chamfer_tuple_size = 3
    with torch.no_grad(), pytest.raises(ValueError, match="A video of 2 frames has no tuple of 3"):
        model.get_distances(features(1, 1, 2, 16), features(1, 1, 2, 16))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"alignment": "chamfer", "chamfer_tuple_size": 3},
            "chamfer_tuple_size=3 needs at least 3 frames, but num_fra",
        ),
        (
            {"alignment": "trx", "trx_cardinalities": [2, 4]},
            r"trx_cardinalities=\[2, 4\] needs at least 4 frames, but n",
        ),
    ],
)
def test_a_model_of_fewer_frames_than_a_tuple_is_not_made(settings, message):
    with pytest.raises(ValueError, match=message):
        tiny_config(num_frames=2, **settings)
    tiny_config(num_frames=4, **settings)
    tiny_config(num_frames=2, **settings | {"alignment": "otam"})
    config = tiny_config(num_frames=4, **settings)
    config.num_frames = 2
    with pytest.raises(ValueError, match=message):
        CLIPFSARModel(config)


# --- where videos are compared ----------------------------------------------------------------------------------------

CLIPS = {
    "run": [random_clip(1), random_clip(2), random_clip(3)],
    "dive": [random_clip(4)],
    "jump": [random_clip(5)] * 2,
}


@pytest.fixture(params=NAMES)
def parts(request):
    return tiny_model_and_processor(alignment=request.param, **SIZES)


def test_enrolled_classes_give_the_logits_of_forward(parts):
    model, processor = parts
    support_set = SupportSet.from_videos(model, processor, CLIPS)
    query = random_clip(9)
    episode = processor(support_videos=CLIPS, query_videos=[query])
    with torch.no_grad():
        expected = model(**episode).logits[0]
        embeds = model.get_video_features(processor.process_videos([query]))
        logits = support_set.classify(model, embeds)
    torch.testing.assert_close(logits, expected, rtol=1e-5, atol=1e-5)


def test_each_enrolled_clip_is_modulated_once(parts):
    model, processor = parts
    support_set = SupportSet.from_videos(model, processor, CLIPS)
    shapes = []
    hook = model.temporal_transformer.register_forward_hook(lambda _, inputs, output: shapes.append(output.shape[:2]))
    snapshot = support_set.snapshot(model)
    hook.remove()
    assert shapes == [(1, sum(map(len, CLIPS.values())))]
    encoded = [one.support_embeds[None] for one in snapshot.enrolled.values()]
    for label, embeds in enumerate(encoded):
        texts = snapshot.class_embeds[None, label, None]
        with torch.no_grad():
            alone = model.get_prototypes(embeds, torch.zeros(embeds.shape[:2], dtype=torch.long), texts)
        torch.testing.assert_close(snapshot.prototypes[label], alone[0, 0], rtol=0, atol=1e-6)


def test_a_left_out_clip_is_compared_with_the_others_of_its_class(parts):
    model, processor = parts
    support_set = SupportSet.from_videos(model, processor, CLIPS)
    left_out = leave_one_out(model, support_set.classes, range(sum(support_set.num_clips.values()))).distances
    without = SupportSet.from_videos(model, processor, CLIPS | {"run": CLIPS["run"][1:]})
    with torch.no_grad():
        embeds = model.get_video_features(processor.process_videos(CLIPS["run"][:1]))
    expected = without.compare(model, embeds)[0][0, 0].cpu()
    torch.testing.assert_close(left_out[0, 0], expected, rtol=1e-5, atol=1e-5)
    assert left_out[3, 1] == torch.inf
    assert 0 <= support_set.score_unknown(model, embeds)[0] <= 1


def test_an_explanation_tells_which_frames_met(parts):
    model, processor = parts
    support_set = SupportSet.from_videos(model, processor, CLIPS)
    with torch.no_grad():
        embeds = model.get_video_features(processor.process_videos([random_clip(9)]))[0]
    explanation = support_set.explain(model, embeds)
    assert explanation.alignment.shape == (3, 4, 4)
    assert (explanation.alignment >= 0).all()
    assert explanation.path()
    if model.config.alignment == "trx":  # attention: each query tuple gives its weight once
        torch.testing.assert_close(explanation.alignment[1].sum(), torch.tensor(1.0))


def test_cached_features_give_the_answers_of_forward(parts):
    model, _ = parts
    labels, n_shot = np.repeat(np.arange(3), 4), 2
    embeds, texts = features(12, 4, 16), features(3, 16, seed=1)
    split = SplitFeatures(model, embeds, texts, labels)
    sampler = EpisodeSampler(labels, 3, n_shot, 1)
    answers = predict_episodes(split, sampler, range(5))["few_shot"]
    for index in range(5):
        episode = sampler.sample(index)
        logits = model(
            support_embeds=embeds[episode.support_rows.flatten()][None],
            support_labels=torch.arange(3).repeat_interleave(n_shot)[None],
            query_embeds=embeds[episode.query_rows.flatten()][None],
            class_embeds=texts[episode.class_ids][None],
        ).logits[0]
        confidences, predicted = logits.softmax(-1).max(-1)
        assert answers.predicted_classes[index].tolist() == episode.class_ids[predicted].tolist()
        torch.testing.assert_close(torch.tensor(answers.confidences[index]), confidences, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("alignment", ["chamfer", "trx"])
def test_exact_accuracy_is_what_episodes_estimate(alignment):
    model = head_model(alignment)
    labels = np.repeat(np.arange(3), 5)
    embeds = features(15, 4, 16) + features(3, 1, 16, seed=2)[labels]
    split = SplitFeatures(model, embeds, features(3, 16, seed=1), labels)
    exact = exact_accuracy_of_videos(split, n_way=2)["few_shot"].mean()
    answers = predict_episodes(split, EpisodeSampler(labels, 2, 1, 1), range(2000))["few_shot"]
    interval = 2 * answers.accuracies.std() / 2000**0.5
    assert abs(answers.accuracies.mean() - exact) < 1.5 * interval
    assert 0.5 < exact < 1


def test_exact_accuracy_of_hyrsm_is_refused():
    split = SplitFeatures(head_model("hyrsm"), features(6, 4, 16), features(3, 16), np.repeat(np.arange(3), 2))
    with pytest.raises(ValueError, match="prototypes of alignment='hyrsm' depend on the other videos of an episode"):
        exact_accuracy_of_videos(split, n_way=2)


@pytest.mark.whole_program
def test_an_exported_model_gives_the_logits_of_its_head(tmp_path):
    model, processor = tiny_model_and_processor(alignment="hyrsm")
    shapes = input_shapes(model, processor, "few_shot")
    assert shapes["is_shot"] == ["num_classes", "num_shots"]
    deviations = export(QueryClassifier(model, "few_shot"), shapes, tmp_path, ["torch"])
    assert deviations["torch"][0] <= 1e-4 * max(1, deviations["torch"][1])


@pytest.mark.parametrize("alignment", ["chamfer", "trx"])
def test_a_comparison_becomes_a_graph_for_any_number_of_classes_and_shots(alignment):
    model = head_model(alignment, trx_cardinalities=[2])

    class Comparison(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.head = model.comparison_head

        def forward(self, query, shots, is_shot):
            return self.head.distances(self.head.encode(query)[None], self.head.encode(shots)[None], is_shot[None] > 0)

    def inputs(n_query, n_way, n_shot):
        is_shot = torch.ones(n_way, n_shot)
        is_shot[0, -1] = 0
        return features(n_query, 4, 16), features(n_way, n_shot, 4, 16, seed=1), is_shot

    queries, classes, shots = (torch.export.Dim(name) for name in ("queries", "classes", "shots"))
    dynamic_shapes = {"query": {0: queries}, "shots": {0: classes, 1: shots}, "is_shot": {0: classes, 1: shots}}
    with torch.no_grad():
        graph = torch.export.export(Comparison(), inputs(2, 3, 4), dynamic_shapes=dynamic_shapes).module()
        torch.testing.assert_close(graph(*inputs(3, 5, 2)), Comparison()(*inputs(3, 5, 2)), rtol=1e-5, atol=1e-5)


# --- a head of one's own ----------------------------------------------------------------------------------------------


class LastFrames(Head):
    def compare(self, query, shots, present=None):
        difference = query[:, :, None, -1] - class_means(shots, present)[:, None, :, -1]
        return difference.square().sum(-1)


def test_a_head_of_ones_own_is_chosen_by_its_name(monkeypatch):
    monkeypatch.setattr(heads_clipfsar, "own_alignments", heads_clipfsar.own_alignments)
    register_head("last_frames", LastFrames)
    try:
        model = head_model("last_frames")
        query, support = features(1, 1, 4, 16), features(1, 2, 4, 16, seed=1)
        expected = (query[:, :, -1] - support[:, :, -1]).square().sum(-1)
        torch.testing.assert_close(model.get_distances(query, support)[0], expected)
        assert model(**tiny_episode(n_shot=2)).logits.shape == (1, 6, 3)
    finally:
        HEADS.pop("last_frames")
        heads_clipfsar.own_alignments.remove("last_frames")
    with pytest.raises(ValueError, match="alignment='last_frames' is not one of"):
        CLIPFSARConfig(alignment="last_frames")


def test_a_name_of_the_library_is_not_replaced():
    with pytest.raises(ValueError, match="alignment='trx' is one of otam, bi_mhm"):
        register_head("trx", TRX)
