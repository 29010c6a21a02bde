"""What a model knows of the folder or repository it came from, and what lets `pipeline` open the folder it saves."""

import os

_HUB_OPTIONS = ("revision", "token", "cache_dir", "local_files_only", "subfolder")

_VIDEO_WITHOUT_CLASSES = (
    "CLIPFSARModel.forward takes episodes, not pixel_values of a video alone: it has no classes of its own. "
    'Use pipeline("few-shot-video-classification", model=..., trust_remote_code=True), which takes example clips of '
    'your classes, in place of pipeline("video-classification"); or give query_pixel_values and the support.'
)


class HubFolder:
    """The part of `CLIPFSARModel` that loads from and saves to folders and repositories."""

    # Options of the Hub that the model was loaded with: what lies beside it is loaded with the same.
    hub_options: dict = {}

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, *model_args, **kwargs):
        options = {name: kwargs[name] for name in _HUB_OPTIONS if kwargs.get(name) is not None}
        loaded = super().from_pretrained(pretrained_model_name_or_path, *model_args, **kwargs)
        (loaded[0] if isinstance(loaded, tuple) else loaded).hub_options = options
        return loaded

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


def check_is_episode(names) -> None:
    """Raises `TypeError`, with what to use instead, for the input that `pipeline("video-classification")` gives."""
    if "pixel_values" in names:
        raise TypeError(_VIDEO_WITHOUT_CLASSES)


__all__ = ["HubFolder", "check_is_episode"]
