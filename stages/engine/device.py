"""`--device`: a name into a torch device string, or one clear line why not."""

from __future__ import annotations

from stages.errors import MachineError, UsageError


def resolve_device(device: str) -> str:
    """auto, cpu, cuda, cuda:N or mps -> a device of this machine in torch's spelling.

    Raises UsageError (spelling) or MachineError (absent).
    """
    import torch

    name, _, number = device.partition(":")
    if name not in ("auto", "cpu", "cuda", "mps") or (number and not (name == "cuda" and number.isdigit())):
        raise UsageError(f"--device {device}: no such device", "one of auto, cpu, cuda, cuda:N, mps")
    cuda = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if name == "auto":
        return "cuda" if cuda else "mps" if torch.backends.mps.is_available() else "cpu"
    if name == "cuda" and int(number or 0) >= cuda:
        raise MachineError(f"--device {device}: torch sees {cuda} CUDA devices", "--device cpu works everywhere")
    if name == "mps" and not torch.backends.mps.is_available():
        raise MachineError("--device mps: torch sees no Apple GPU", "--device cpu works everywhere")
    return device
