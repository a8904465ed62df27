"""Which precision a run trains in: float32 or bfloat16, decided once and kept when it resumes."""

import torch

from raymed.config import Config


def dtype_of(config: Config) -> torch.dtype:
    """The type that ``training.precision`` names, once it is no longer ``auto``."""
    return torch.bfloat16 if config.training.precision == "bfloat16" else torch.float32


def name_of(dtype: torch.dtype) -> str:
    """A type as ``training.precision`` names it."""
    return str(dtype).removeprefix("torch.")


def computes_bfloat16(device: torch.device) -> bool:
    """Whether a device has bfloat16 instructions, rather than emulating them."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    capabilities = torch.cpu.get_capabilities()
    # x86 with AVX-512 or AMX, and ARM.
    return any(capabilities.get(name) for name in ("avx512_bf16", "amx_bf16", "bf16"))


def resolve_precision(config: Config, device: torch.device) -> Config:
    """The configuration with ``training.precision: auto`` replaced by the best for a device.

    On a CPU bfloat16 pays off only where the convolutions are large.
    """
    if config.training.precision != "auto":
        return config
    large = device.type == "cuda" or config.model.encoder != "small"
    chosen = "bfloat16" if large and computes_bfloat16(device) else "float32"
    return config.override({"training.precision": chosen})
