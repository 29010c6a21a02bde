"""What a model knows of the folder or repository it came from, and what lets `pipeline` open the folder it saves."""

import os
from typing import TYPE_CHECKING, Any

from transformers import PretrainedConfig

# Classes here are parts of `CLIPFSARModel`, which is a PreTrainedModel.
if TYPE_CHECKING:
    from transformers import PreTrainedModel as _PartOfModel
else:
    _PartOfModel = object
_HUB_OPTIONS = ("revision", "token", "cache_dir", "local_files_only", "subfolder")
# Settings that the weights of our own layers were trained with; those of the backbone are its whole numbers.
_STRUCTURE = ("temporal_num_layers", "temporal_num_heads", "temporal_intermediate_size")
_OUR_WEIGHTS = ("temporal_transformer.", "video_text_scale")

_VIDEO_WITHOUT_CLASSES = (
    "CLIPFSARModel.forward takes episodes, not pixel_values of a video alone: it has no classes of its own. "
    'Use pipeline("few-shot-video-classification", model=..., trust_remote_code=True), which takes example clips of '
    'your classes, in place of pipeline("video-classification"); or give query_pixel_values and the support.'
)


class HubOptions(dict):
    """Options of the Hub that a model was loaded with. A token stays in this process: it is neither printed, nor
    copied, nor pickled."""

    def __repr__(self):
        return repr(self._without_token())

    def __reduce__(self):
        return dict, (self._without_token(),)

    def _without_token(self) -> dict:
        return {name: value for name, value in self.items() if name != "token"}


class HubFolder(_PartOfModel):
    """The part of `CLIPFSARModel` that loads from and saves to folders and repositories."""

    # Options of the Hub that the model was loaded with: what lies beside it is loaded with the same.
    hub_options: dict = {}

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, *model_args, **kwargs):
        options = HubOptions({name: kwargs[name] for name in _HUB_OPTIONS if kwargs.get(name) is not None})
        wants_info = kwargs.pop("output_loading_info", False)
        is_checked = pretrained_model_name_or_path is not None and not kwargs.get("ignore_mismatched_sizes", False)
        refusal = cls._why_not(pretrained_model_name_or_path, options, kwargs) if is_checked else None
        try:
            model, info = super().from_pretrained(
                pretrained_model_name_or_path, *model_args, output_loading_info=True, **kwargs
            )
        except RuntimeError as error:  # of shapes that do not fit
            if refusal:
                raise ValueError(refusal) from error
            raise
        if refusal and _has_trained_layers(model, info):
            raise ValueError(refusal)
        # Who asks for the report of transformers reads there which weights are missing.
        if is_checked and not wants_info and _has_trained_layers(model, info):
            _check_all_loaded(pretrained_model_name_or_path, info)
        model.hub_options = options
        return (model, info) if wants_info else model

    @classmethod
    def _why_not(cls, name, options: dict, asked: dict[str, Any]) -> str | None:
        """Why the weights of a folder do not go with the keyword arguments, should layers of ours be among them.

        Raises `ValueError` where the backbone is another one: its weights are there in any case.
        """
        if not {*_STRUCTURE, "clip_config", "config"} & set(asked):
            return None
        saved, _ = cls.config_class.get_config_dict(name, for_training=True, **options)
        if not isinstance(saved.get("clip_config"), dict):
            return None  # none of a configuration of ours: transformers says so
        is_plain = saved.get("_is_plain_checkpoint", False)
        trained = cls.config_class.from_dict(saved)
        wanted = asked.get("config")
        if isinstance(wanted, (str, os.PathLike)):
            wanted = cls.config_class.from_pretrained(wanted, for_training=True)
        if not isinstance(wanted, PretrainedConfig):
            changes = {key: asked[key] for key in (*_STRUCTURE, "clip_config") if key in asked}
            wanted = cls.config_class.from_dict(saved, **changes)
        trained, wanted = (_structure(config, is_plain) for config in (trained, wanted))
        different = [key for key, value in wanted.items() if trained.get(key, value) != value]
        if not different:
            return None
        key = max(different, key=lambda key: key not in _STRUCTURE)  # of the backbone first
        message = (
            f"{key}={wanted[key]!r} is not what the weights in {str(name)!r} were trained with, {trained[key]!r}: "
            "leave it out. To load them into another model all the same, with random weights where they do not fit, "
            "say ignore_mismatched_sizes=True."
        )
        if key not in _STRUCTURE:
            raise ValueError(message)
        return message

    def save_pretrained(self, save_directory: str | os.PathLike, **kwargs):
        """As in transformers. With the processor's `save_pretrained`, the folder opens with `pipeline`."""
        # Here and not above: the pipeline needs the model. That it is named here lets its code travel with the model's.
        try:
            from .pipeline_clipfsar import FewShotVideoClassificationPipeline
        except ImportError:
            if __package__:
                raise
            from pipeline_clipfsar import FewShotVideoClassificationPipeline

        self._check_structure()
        self.config.custom_pipelines = FewShotVideoClassificationPipeline.in_config()
        return super().save_pretrained(save_directory, **kwargs)

    def _check_structure(self):
        """A folder whose configuration is not that of its weights would load as another model, in silence."""
        layers = self.temporal_transformer.layers
        built = {"temporal_num_layers": len(layers)}
        if len(layers):
            built["temporal_num_heads"] = layers[0].attention.num_heads
        for name, value in built.items():
            if getattr(self.config, name) != value:
                raise ValueError(
                    f"The configuration says {name}={getattr(self.config, name)!r}, but the model was made with "
                    f"{value}: it cannot be changed afterwards. Set it back, or load the model with {name}=."
                )


def _structure(config, is_plain: bool) -> dict[str, Any]:
    """What decides which weights a model has and how they are used together, by the names of the settings.

    Of a plain checkpoint that is the backbone: our own layers are new.
    """
    structure = {} if is_plain else {name: getattr(config, name) for name in _STRUCTURE}
    return structure | dict(_whole_numbers(config.clip_config, "clip_config"))


def _whole_numbers(config, where: str):
    """The sizes of a backbone: its type, and all whole numbers of its towers, alone or in lists."""
    yield f"{where}.model_type", config.model_type
    for name, value in vars(config).items():
        if isinstance(value, PretrainedConfig):
            yield from _whole_numbers(value, f"{where}.{name}")
        parts = value if isinstance(value, (list, tuple)) and value else [value]
        if not name.startswith("_") and all(type(part) is int for part in parts):
            yield f"{where}.{name}", list(value) if isinstance(value, (list, tuple)) else value


def _has_trained_layers(model, info: dict[str, Any]) -> bool:
    """Whether weights of our own layers were in the files; a converted CLIP has none, and they begin anew."""
    ours = {key for key in model.state_dict() if key.startswith(_OUR_WEIGHTS)}
    return not ours <= set(info["missing_keys"]) or any(key.startswith(_OUR_WEIGHTS) for key in info["unexpected_keys"])


def _check_all_loaded(name, info: dict[str, Any]):
    """Raises `ValueError` when weights of our own layers are missing or left over: they would be random, or dropped."""
    for what, keys in (("lack", info["missing_keys"]), ("have, and the model has not,", info["unexpected_keys"])):
        ours = sorted(key for key in keys if key.startswith(_OUR_WEIGHTS))
        if ours:
            more = f" and {len(ours) - 1} more" if len(ours) > 1 else ""
            raise ValueError(
                f"The weights in {str(name)!r} {what} {ours[0]!r}{more}: the file is damaged, or its config.json is "
                "that of another model. Put back both. To load them all the same, with random weights for what is "
                "missing, say ignore_mismatched_sizes=True."
            )


def check_is_episode(names) -> None:
    """Raises `TypeError`, with what to use instead, for the input that `pipeline("video-classification")` gives."""
    if "pixel_values" in names:
        raise TypeError(_VIDEO_WITHOUT_CLASSES)


__all__ = ["HubFolder", "HubOptions", "check_is_episode"]
