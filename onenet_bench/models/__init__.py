"""Networks: from a NetSpec to a torch module, and to a file and back."""

from onenet_bench.models.checkpoint import load_checkpoint, save_checkpoint
from onenet_bench.models.imagenet import (
    imagenet_facts,
    imagenet_weights,
    load_imagenet_file,
    load_imagenet_state_dict,
    read_imagenet_file,
)
from onenet_bench.models.reference import load_reference_state_dict
from onenet_bench.models.unet import UNet, build

__all__ = [
    "UNet", "build", "imagenet_facts", "imagenet_weights", "load_checkpoint", "load_imagenet_file",
    "load_imagenet_state_dict", "load_reference_state_dict", "read_imagenet_file", "save_checkpoint",
]  # fmt: skip
