"""Networks: from a NetSpec to a torch module."""

from onenet_bench.models.reference import load_reference_state_dict
from onenet_bench.models.unet import UNet, build

__all__ = ["UNet", "build", "load_reference_state_dict"]
