"""The files that classifiers come in."""

import json
from pathlib import Path

from safetensors.torch import save_file

from utils import UserError, replacing, save_torch


def is_safetensors(path):
    return Path(path).suffix == ".safetensors"


def round_to_file(frozen, path):
    """Round a classifier's weights in place to what a file of this name will hold: float16 for safetensors."""
    if is_safetensors(path):
        frozen.model.load_state_dict({name: value.half() if value.is_floating_point() else value
                                      for name, value in frozen.model.state_dict().items()})


def save_classifier(path, frozen):
    """Write a FrozenClassifier with all that load_classifier needs, atomically: <name>.safetensors in float16,
    any other name by torch.save as it is. Raises UserError when the disk refuses."""
    weights = {name: value.detach().cpu().contiguous() for name, value in frozen.model.state_dict().items()}
    said = {"arch": frozen.arch, "num_classes": frozen.num_classes, "channels": frozen.channels,
            "resolution": frozen.resolution, "mean": frozen.mean.flatten().tolist(),
            "std": frozen.std.flatten().tolist(), "classes": list(frozen.classes), "card": frozen.card}
    if not is_safetensors(path):
        save_torch(path, {**said, "state_dict": weights})
        return
    weights = {name: value.half() if value.is_floating_point() else value for name, value in weights.items()}
    try:
        with replacing(path) as temporary:
            save_file(weights, temporary, metadata={"classifier": json.dumps(said)})
    except OSError as error:
        raise UserError(f"{path} could not be written ({error}); make room on the disk and run the command "
                        "again.") from error
