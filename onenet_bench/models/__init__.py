"""Networks: from a NetSpec to a torch module, and to a file and back."""

from onenet_bench.models.checkpoint import load_checkpoint, save_checkpoint
from onenet_bench.models.reference import load_reference_state_dict
from onenet_bench.models.unet import UNet, build

__all__ = ["UNet", "build", "load_checkpoint", "load_reference_state_dict", "save_checkpoint"]
