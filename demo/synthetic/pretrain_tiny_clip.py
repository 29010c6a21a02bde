"""Pre-train the tiny CLIP of demo/synthetic/tiny_clip/, which replaces a real CLIP where there is no network.

An ordinary `CLIPModel` of 0.7 million parameters (64 x 64 pixels, patches of 16) learns from captioned stills of
synthetic actions (demo/synthetic/render.py) with CLIP's symmetric contrastive loss and learnable temperature. It learns
colours, shapes, numbers, sizes and places. Action words appear in a third of the captions, but a still says little
about an action: few-shot training must learn the directions of motion, as with the real CLIP.

No caption names a combination of colour and shape of the novel (test) classes: "red" and "star" are known words, but
"red star" is new. The held-out numbers printed at the end separate these combinations from the seen ones.

    python -m demo.synthetic.pretrain_tiny_clip --output_dir demo/synthetic/tiny_clip

writes the committed folder. Seeds are fixed and torch's algorithms are deterministic. The same kind of processor, the
same versions of torch and NumPy and the same --num_threads therefore give the same weights: two complete runs, with
torch 2.13.0 and NumPy 2.4.6 on an x86-64 processor, wrote the committed folder bit for bit. On other machines, training
amplifies differences of round-off; compare accuracies there. The runs took 23 and 27 minutes on two busy cores.
"""

import argparse
import json
import math
import os
import time
from collections import Counter
from itertools import pairwise, product
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from tqdm import tqdm
from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPTokenizer

from demo.synthetic.actions import ACTIONS
from demo.synthetic.classes import COLOURS, NOVEL_CLASSES, NUMBER_WORDS, join_class_name, parse_class_name
from demo.synthetic.render import CAPTION_TEMPLATES, PLACES, SIZE_WORDS, render_still
from demo.synthetic.shapes import PLURALS, SHAPES
from parent_process_clipfsar import ending_pool, shielding_children

IMAGE_SIZE = 64
CONTEXT_LENGTH = 32
# Stills are stored a little larger than the model's input, so that training can use random crops.
STORED_SIZE = 68


# ----------------------------------------------------------------------------------------------------------------------
# Tokenizer
# ----------------------------------------------------------------------------------------------------------------------


def _byte_symbols() -> list[str]:
    """The 256 printable symbols for bytes in byte-level BPE (GPT-2's table, which CLIP uses), in CLIP's order."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in printable]
    return [chr(byte) for byte in printable] + [chr(256 + i) for i in range(len(others))]


def learn_merges(words: list[str]) -> list[tuple[str, str]]:
    """Byte-pair merges that make each word one token: the most frequent pair first, ties in alphabetical order."""
    pieces = [[*word[:-1], word[-1] + "</w>"] for word in sorted(set(words))]
    merges = []
    while any(len(word) > 1 for word in pieces):
        pairs = Counter(pair for word in pieces for pair in pairwise(word))
        best = min(pairs, key=lambda pair: (-pairs[pair], pair))
        merges.append(best)
        for word in pieces:
            i = 0
            while i < len(word) - 1:
                if (word[i], word[i + 1]) == best:
                    word[i : i + 2] = ["".join(best)]
                i += 1
    return merges


def build_tokenizer() -> CLIPTokenizer:
    """CLIP's tokenizer with a small vocabulary: all bytes (so that any text works), and our words as single tokens."""
    words = [*COLOURS, *SHAPES, *PLURALS.values(), *NUMBER_WORDS.values(), *SIZE_WORDS, "and"]
    for text in (*ACTIONS, *PLACES, *CAPTION_TEMPLATES):
        words += text.replace("{}", "").split()
    merges = learn_merges([word for word in words if word])
    symbols = _byte_symbols()
    tokens = [*symbols, *(symbol + "</w>" for symbol in symbols), *("".join(pair) for pair in merges)]
    tokens += ["<|startoftext|>", "<|endoftext|>"]
    vocabulary = {token: i for i, token in enumerate(dict.fromkeys(tokens))}
    return CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=CONTEXT_LENGTH)


# ----------------------------------------------------------------------------------------------------------------------
# Stills
# ----------------------------------------------------------------------------------------------------------------------


def _crop_to(image: np.ndarray, size: int) -> np.ndarray:
    """The image, resized (bicubic) and centre-cropped to `(size, size, 3)` as in `CLIPImageProcessor`."""
    height, width = image.shape[:2]
    scale = size / min(height, width)
    picture = Image.fromarray(image).resize((int(width * scale), int(height * scale)), Image.Resampling.BICUBIC)
    left, top = (picture.width - size) // 2, (picture.height - size) // 2
    return np.asarray(picture.crop((left, top, left + size, top + size)))


def novel_combinations() -> set[tuple[str, str]]:
    """The combinations of colour and shape in the novel classes: ("red", "star"), ..."""
    return {parse_class_name(name)[1:3] for name in NOVEL_CLASSES}


def seen_combinations() -> list[tuple[str, str]]:
    """All other combinations of colour and shape; captions name them."""
    return [pair for pair in product(COLOURS, SHAPES) if pair not in novel_combinations()]


def _render_example(job: tuple[int, int]) -> tuple[np.ndarray, str]:
    """Training still `index`, `(STORED_SIZE, STORED_SIZE, 3)`, uint8, and its caption.

    The subject's colour and shape cycle through the seen combinations; its action is random.
    """
    seed, index = job
    rng = np.random.default_rng([seed, index])
    combinations = seen_combinations()
    hidden_nouns = [f"{colour} {shape}" for colour, shape in novel_combinations()]
    while True:
        class_name = join_class_name(*combinations[index % len(combinations)], rng.choice(list(ACTIONS)))
        image, caption = render_still(class_name, seed, index)
        if not any(noun in caption for noun in hidden_nouns):  # it could be a distractor's
            return _crop_to(image, STORED_SIZE), caption


def render_examples(num_stills: int, seed: int, num_workers: int) -> tuple[torch.Tensor, list[str]]:
    """Stills `(num_stills, 3, STORED_SIZE, STORED_SIZE)`, uint8, and their captions; a pure function of `seed`."""
    jobs = [(seed, index) for index in range(num_stills)]
    images, captions = torch.empty(num_stills, 3, STORED_SIZE, STORED_SIZE, dtype=torch.uint8), []
    # Spawned, not forked: this process has torch's threads, which break in a forked process.
    with ending_pool(num_workers, get_context("spawn")) as pool:
        with shielding_children():
            results = pool.map(_render_example, jobs, chunksize=64)
        for index, (image, caption) in enumerate(tqdm(results, total=num_stills, desc="rendering", unit="still")):
            images[index] = torch.from_numpy(image).permute(2, 0, 1)
            captions.append(caption)
    return images, captions


# ----------------------------------------------------------------------------------------------------------------------
# Training
# ----------------------------------------------------------------------------------------------------------------------


def build_config(tokenizer: CLIPTokenizer) -> CLIPConfig:
    """The configuration. The float32 checkpoint stays below 3 MB, and 8 temporal heads divide the projection size."""
    text_config = {
        "vocab_size": len(tokenizer),
        "hidden_size": 64,
        "intermediate_size": 256,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "max_position_embeddings": CONTEXT_LENGTH,
        "projection_dim": 128,
        # With an id other than the legacy value 2, `CLIPTextModel` pools at the first <|endoftext|>, with any padding.
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    vision_config = {
        "hidden_size": 96,
        "intermediate_size": 384,
        "num_hidden_layers": 4,
        "num_attention_heads": 6,
        "image_size": IMAGE_SIZE,
        "patch_size": 16,
        "projection_dim": 128,
    }
    return CLIPConfig(text_config=text_config, vision_config=vision_config, projection_dim=128)


@torch.no_grad()
def place_positions(model: CLIPModel) -> None:
    """Initialize the position embeddings with sines and cosines of row and column instead of weak noise.

    The usual initial values are 25 times weaker than the patches. With them, a model this small ignores places, and so
    shapes larger than a patch, for hundreds of steps. The embeddings remain ordinary parameters.
    """
    embeddings = model.vision_model.embeddings
    num_patches, width = embeddings.num_patches, embeddings.embed_dim
    side = math.isqrt(num_patches)
    frequencies = math.pi / 2 * (3 * side) ** -(torch.arange(width // 4) / (width // 4))
    rows, columns = torch.arange(num_patches) // side, torch.arange(num_patches) % side
    angles = [axis[:, None] * frequencies for axis in (columns, rows)]
    waves = torch.cat([wave(angle) for angle in angles for wave in (torch.sin, torch.cos)], dim=1)
    embeddings.position_embedding.weight[1:] = 0.5 * (waves - waves.mean(0))  # row 0 belongs to the class token
    torch.nn.init.normal_(embeddings.class_embedding, std=0.5)


def balanced_batches(num_stills: int, stills_per_combination: int, generator: torch.Generator) -> torch.Tensor:
    """One epoch of batches, `(num_batches, batch_size)` indices; each batch has every seen combination equally often.

    Few captions in such a batch mean the same (the contrastive loss would count these as errors). Many share the colour
    but not the shape, which takes longer to learn.
    """
    num_combinations = len(seen_combinations())
    num_rows = num_stills // num_combinations // stills_per_combination * stills_per_combination
    rows = torch.stack([torch.randperm(num_rows, generator=generator) for _ in range(num_combinations)], dim=1)
    return (rows * num_combinations + torch.arange(num_combinations)).view(
        -1, stills_per_combination * num_combinations
    )


def _normalised(pixels: torch.Tensor, image_processor: CLIPImageProcessor) -> torch.Tensor:
    """uint8 pixels `(batch, 3, height, width)` as the model's `pixel_values`."""
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (image_processor.image_mean, image_processor.image_std))
    return (pixels.float() / 255 - mean) / std


def train_clip(
    model: CLIPModel,
    images: torch.Tensor,
    tokens: dict[str, torch.Tensor],
    image_processor: CLIPImageProcessor,
    num_epochs: int,
    stills_per_combination: int,
    learning_rate: float,
    seed: int,
) -> None:
    """Train with CLIP's symmetric contrastive loss for `num_epochs`; AdamW with warm-up and cosine decay to zero.

    `images` and `tokens` are in the order of `render_examples`.
    """
    generator = torch.Generator().manual_seed(seed)
    decayed = [p for p in model.parameters() if p.ndim >= 2]
    others = [p for p in model.parameters() if p.ndim < 2]
    groups = [{"params": decayed, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, learning_rate, betas=(0.9, 0.98), fused=True)
    num_steps = num_epochs * len(balanced_batches(len(images), stills_per_combination, torch.Generator()))
    scheduler = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / 200, 1) * 0.5 * (1 + math.cos(math.pi * step / num_steps))
    )
    model.train()
    progress = tqdm(total=num_steps, desc="training", unit="step", mininterval=1)
    for _ in range(num_epochs):
        for batch in balanced_batches(len(images), stills_per_combination, generator):
            top, left = torch.randint(STORED_SIZE - IMAGE_SIZE + 1, (2,), generator=generator).tolist()
            pixels = images[batch, :, top : top + IMAGE_SIZE, left : left + IMAGE_SIZE]
            outputs = model(
                **{name: tensor[batch] for name, tensor in tokens.items()},
                pixel_values=_normalised(pixels, image_processor),
                return_loss=True,
            )
            optimizer.zero_grad()
            outputs.loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            scheduler.step()
            with torch.no_grad():
                model.logit_scale.clamp_(max=math.log(100))  # as in the CLIP paper, section 2.5
            progress.update()
            if progress.n % 50 == 0:
                progress.set_postfix(loss=f"{outputs.loss.item():.3f}")
    progress.close()
    model.eval()


# ----------------------------------------------------------------------------------------------------------------------
# Held-out numbers
# ----------------------------------------------------------------------------------------------------------------------


@torch.no_grad()
def _features(model: CLIPModel, inputs: dict, kind: str) -> torch.Tensor:
    features = getattr(model, f"get_{kind}_features")(**inputs)
    return torch.nn.functional.normalize(getattr(features, "pooler_output", features), dim=-1)


def measure(model: CLIPModel, tokenizer: CLIPTokenizer, image_processor: CLIPImageProcessor, seed: int) -> dict:
    """Zero-shot and retrieval accuracies in percent on new stills (another seed than training, stock preprocessing).

    Zero-shot chooses among all 64 prompts "a photo of a COLOUR SHAPE". Combinations that captions named and those of
    the novel classes count separately. Retrieval chooses each still's caption among 100 different ones.
    """
    combinations = list(product(COLOURS, SHAPES))
    prompts = [f"a photo of a {colour} {shape}" for colour, shape in combinations]
    texts = _features(model, tokenizer(prompts, padding=True, return_tensors="pt"), "text")
    held_out = [pair in novel_combinations() for pair in combinations]
    single_actions = [name for name, action in ACTIONS.items() if action.num_objects == 1]

    images, labels, retrieval_images, retrieval_captions = [], [], [], {}
    for index in range(50 * len(combinations)):
        rng = np.random.default_rng([seed, index])
        label = index % len(combinations)
        image, caption = render_still(join_class_name(*combinations[label], rng.choice(single_actions)), seed, index)
        images.append(image)
        labels.append(label)
        if len(retrieval_captions) < 100 and caption not in retrieval_captions and not held_out[label]:
            retrieval_captions[caption] = len(retrieval_images)
            retrieval_images.append(index)
    features = _features(model, image_processor(images, return_tensors="pt"), "image")
    correct = (features @ texts.T).argmax(-1) == torch.tensor(labels)
    is_held_out = torch.tensor(held_out)[torch.tensor(labels)]
    captions = _features(model, tokenizer(list(retrieval_captions), padding=True, return_tensors="pt"), "text")
    retrieved = (features[retrieval_images] @ captions.T).argmax(-1)
    return {
        "zero_shot_seen": 100 * correct[~is_held_out].float().mean().item(),
        "zero_shot_held_out": 100 * correct[is_held_out].float().mean().item(),
        "num_seen": int((~is_held_out).sum()),
        "num_held_out": int(is_held_out.sum()),
        "retrieval": 100 * (retrieved == torch.arange(len(captions))).float().mean().item(),
        "num_retrieval": len(captions),
    }


def write_model_card(output_dir: Path, model: CLIPModel, numbers: dict, args: argparse.Namespace) -> None:
    num_parameters = sum(p.numel() for p in model.parameters())
    rows = (
        ("colour and shape, zero-shot, combinations that captions named", "zero_shot_seen", 100 / 64, "num_seen"),
        ("colour and shape, zero-shot, those of the novel classes", "zero_shot_held_out", 100 / 64, "num_held_out"),
        ("a still's caption among 100", "retrieval", 1, "num_retrieval"),
    )
    table = "\n".join(f"| {what} | {numbers[a]:.1f}% | {chance:.1f}% | {numbers[n]} |" for what, a, chance, n in rows)
    (output_dir / "README.md").write_text(
        f"""# Tiny CLIP

A `CLIPModel` of {num_parameters:,} parameters ({IMAGE_SIZE} x {IMAGE_SIZE} pixels, patches of 16) for demonstrations
and tests without a network. It knows rendered shapes in {len(COLOURS)} colours and nothing of the real world.
`python -m demo.synthetic.pretrain_tiny_clip` made it from {args.num_stills:,} captioned stills of synthetic actions
({args.num_epochs} epochs, seed {args.seed}).

Measured on fresh stills (seed {args.seed + 2}, `CLIPImageProcessor`, CPU, float32):

| | accuracy | chance | stills |
|---|---|---|---|
{table}
"""
    )


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description="Pre-train a tiny CLIP on rendered, captioned stills of synthetic actions and save it with its "
        "tokenizer and image processor. The defaults reproduce demo/synthetic/tiny_clip/. That takes 20 to 30 minutes "
        "on two cores.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--output_dir", required=True, help="folder for the checkpoint; its files are overwritten")
    parser.add_argument("--num_stills", type=int, default=60_000, help="captioned training stills")
    parser.add_argument("--num_epochs", type=int, default=12, help="passes over the stills")
    parser.add_argument(
        "--stills_per_combination", type=int, default=2, help="stills of each of the 60 combinations in a step"
    )
    parser.add_argument("--learning_rate", type=float, default=2e-3, help="highest learning rate, after warm-up")
    parser.add_argument("--seed", type=int, default=1000, help="seed of the stills, the weights and the training order")
    parser.add_argument("--num_threads", type=int, default=2, help="torch threads; the exact weights depend on them")
    parser.add_argument("--num_workers", type=int, default=os.cpu_count(), help="processes that render stills")
    args = parser.parse_args(arguments)

    started = time.perf_counter()
    torch.set_num_threads(args.num_threads)
    torch.use_deterministic_algorithms(True)
    torch.manual_seed(args.seed)  # transformers initializes weights with the global generator
    output_dir = Path(args.output_dir)
    output_dir.mkdir(parents=True, exist_ok=True)

    tokenizer = build_tokenizer()
    size = {"height": IMAGE_SIZE, "width": IMAGE_SIZE}
    image_processor = CLIPImageProcessor(size={"shortest_edge": IMAGE_SIZE}, crop_size=size)
    model = CLIPModel(build_config(tokenizer))
    place_positions(model)
    images, captions = render_examples(args.num_stills, args.seed, args.num_workers)
    tokens = tokenizer(captions, padding=True, return_tensors="pt")
    print(f"{len(images)} stills, {len(set(captions))} different captions, {time.perf_counter() - started:.0f} s")
    train_clip(
        model,
        images,
        dict(tokens),
        image_processor,
        args.num_epochs,
        args.stills_per_combination,
        args.learning_rate,
        args.seed,
    )
    # Not seed + 1: stills of that seed were used to choose the recipe.
    numbers = measure(model, tokenizer, image_processor, args.seed + 2)
    model.save_pretrained(output_dir)
    tokenizer.save_pretrained(output_dir)
    image_processor.save_pretrained(output_dir)
    write_model_card(output_dir, model, numbers, args)
    print(json.dumps({name: round(value, 1) for name, value in numbers.items()}, indent=2))
    print(f"{output_dir}: written after {time.perf_counter() - started:.0f} s")


if __name__ == "__main__":
    main()

__all__ = [
    "balanced_batches",
    "build_config",
    "build_tokenizer",
    "learn_merges",
    "measure",
    "novel_combinations",
    "place_positions",
    "render_examples",
    "seen_combinations",
    "train_clip",
]
