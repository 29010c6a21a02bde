"""Texts of classes: the processor's prompts for class names, and their tokens.

A class has one prompt, `prompt_template` around its name, or texts of its own (`class_texts`), which are averaged.
"""

import difflib
import json
import warnings
from collections.abc import Sequence

import torch
import torch.nn.functional as F

try:
    from .choices_clipfsar import normalized_class_name
except ImportError:
    if __package__:
        raise
    from choices_clipfsar import normalized_class_name

try:
    from .paths_clipfsar import check_class_texts, check_utf8
except ImportError:
    if __package__:
        raise
    from paths_clipfsar import check_class_texts, check_utf8

FOR_ALL_CLASSES = "*"  # the entry of `class_texts` for classes without one


def class_prompts(processor, class_name: str) -> list[str]:
    """The prompts of a class; underscores in its name are spaces."""
    words = class_name.replace("_", " ")
    own_texts = getattr(processor, "class_texts", None) or {}
    texts = {normalized_class_name(name): value for name, value in own_texts.items()}
    own = texts.get(normalized_class_name(class_name), texts.get(FOR_ALL_CLASSES, processor.prompt_template))
    return [text.replace("{}", words) for text in ([own] if isinstance(own, str) else own)]


def tokenize_prompts(processor, class_names: Sequence[str], n_way: int | None = None) -> tuple[dict, list[int]]:
    """Tokens of all prompts, `{"input_ids": (P, L), "attention_mask": (P, L)}`, and the number of prompts per class.

    Raises `ValueError` if different classes of an episode (`n_way` names each) have the same tokens, and for texts that
    are not UTF-8.
    """
    prompts = [class_prompts(processor, name) for name in class_names]
    for name, own in zip(class_names, prompts, strict=True):
        check_utf8("The class name", name, "rename its folder, or write it in UTF-8")
        for text in own:
            check_utf8(f"The text of class {name!r},", text, "correct class_texts")
    # a tokenizer without a limit has 1e30 here, and warns if it is told to truncate
    has_limit = processor.prompt_length is not None or processor.tokenizer.model_max_length < 1_000_000
    tokens = processor.tokenizer(
        [text for own in prompts for text in own],
        padding=True if processor.prompt_length is None else "max_length",
        truncation=has_limit,
        max_length=processor.prompt_length,
        return_attention_mask=True,
        return_tensors="pt",
    )
    counts = [len(own) for own in prompts]
    of_class = [ids.flatten().tolist() for ids in tokens["input_ids"].split(counts)]
    check_class_texts(class_names, of_class, n_way)
    return {name: tokens[name] for name in ("input_ids", "attention_mask")}, counts


def text_settings(processor) -> tuple:
    """What decides the tokens of class names, for comparing."""
    texts = json.dumps(getattr(processor, "class_texts", None))
    tokenizer = processor.tokenizer
    return processor.prompt_template, texts, processor.prompt_length, tokenizer, tokenizer.model_max_length


def has_several_prompts(processor, class_names: Sequence[str]) -> bool:
    """Whether a class has several prompts."""
    texts = getattr(processor, "class_texts", None)
    return bool(texts) and any(len(class_prompts(processor, name)) > 1 for name in class_names)


def check_single_prompts(processor, class_names: Sequence[str]) -> None:
    """Raises `ValueError` for a class with several prompts: tokens (N, L) hold one for each class."""
    for name in class_names:
        number = len(class_prompts(processor, name))
        if number > 1:
            raise ValueError(
                f"Class {name!r} has {number} texts, but tokens hold one for each class: encode the texts once, "
                "base_class_embeds = encode_class_names(model, processor, class_names) from support_set_clipfsar, and "
                "give their rows as class_embeds, or base_class_embeds with class_base_labels."
            )


def check_class_prompts(processor, class_names: Sequence[str]) -> None:
    """Raises `ValueError` if two classes have the same tokens. Warns of texts for a name that is probably misspelt, and
    if no class has a text."""
    if hasattr(processor, "class_texts"):
        _warn_of_unused_texts(processor, class_names)
        tokenize_prompts(processor, list(class_names))
    else:  # code that an earlier version saved next to a model
        processor.tokenize_classes(list(class_names))


def _warn_of_unused_texts(processor, class_names: Sequence[str]) -> None:
    """Names one by one only if they are very similar: the texts may be for the classes of other splits as well."""
    with_text = {normalized_class_name(name): name for name in processor.class_texts or {} if name != FOR_ALL_CLASSES}
    classes = {normalized_class_name(name): name for name in class_names}
    unused = sorted(with_text.keys() - classes.keys())
    for name in unused:
        for meant in difflib.get_close_matches(name, sorted(classes.keys() - with_text.keys()), n=1, cutoff=0.9):
            warnings.warn(
                f"class_texts has a text for {with_text[name]!r}, but the class is called {classes[meant]!r} and gets "
                "the usual prompt.",
                stacklevel=3,
            )
    if unused and len(unused) == len(with_text):
        warnings.warn(
            f"class_texts has texts for {with_text[unused[0]]!r}"
            f"{f' and {len(unused) - 1} more' if len(unused) > 1 else ''}, but none for a class here, such as "
            f"{class_names[0]!r}: they have no effect.",
            stacklevel=3,
        )


def average_prompts(embeds: torch.Tensor) -> torch.Tensor:
    """Features (P, D) of the prompts of a class as one (D,): the mean direction, as in CLIP's ensembles, and length."""
    if len(embeds) == 1:
        return embeds[0]
    return F.normalize(F.normalize(embeds, dim=-1).mean(0), dim=-1) * embeds.norm(dim=-1).mean()


__all__ = [
    *("FOR_ALL_CLASSES", "average_prompts", "check_class_prompts", "check_single_prompts", "class_prompts"),
    *("has_several_prompts", "text_settings", "tokenize_prompts"),
]
