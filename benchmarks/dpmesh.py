"""DPMesh's speed on this machine, as ratios measured in one run.

    python benchmarks/dpmesh.py                          # CPU, float32, batch 4: ours against the plain modules
    python benchmarks/dpmesh.py --small                  # width 64 instead of 320: seconds instead of minutes
    python benchmarks/dpmesh.py --device cuda --dtypes bfloat16 --batches 1,16,64 --compile
    python benchmarks/dpmesh.py --ckpt 3dpw-pc_best_ckpt.pth.tar    # how much faster converted files load

Weights are random (the work is the same). Times are CPU time on a CPU, since machines are shared, and wall time on a
GPU. "plain" is what one gets from the parts as they come: LoRA apart, the UNet's output layers, every attention map
kept, weights in PyTorch's order. The rate is compared with a matrix multiplication in the same run
(4096 x 4096, on the CPU 2048 x 2048).
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from stages.models.dpmesh.diffusion import KeepMaps
from stages.models.dpmesh.fast import prepare
from stages.models.dpmesh.network import Config, DPMesh
from stages.models.dpmesh.weights import add_lora, meta

warnings.simplefilter("ignore")
DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


def measure(work: Callable[[], Any], device: str, repeats: int) -> float:
    """Seconds of the fastest of `repeats` runs after one to warm up: CPU time on a CPU, wall time on a GPU."""
    clock = time.perf_counter if device != "cpu" else time.process_time
    best = float("inf")
    for i in range(repeats + 1):
        if device != "cpu":
            torch.cuda.synchronize()
        start = clock()
        work()
        if device != "cpu":
            torch.cuda.synchronize()
        if i:
            best = min(best, clock() - start)
    return best


def matmul_rate(device: str, dtype: torch.dtype) -> float:
    """FLOP/s of a square matrix multiplication."""
    side = 4096 if device != "cpu" else 2048
    a = torch.randn(side, side, device=device, dtype=dtype)
    return 2 * side**3 / measure(lambda: a @ a, device, 3)


def build(config: Config, device: str) -> DPMesh:
    """The network with random weights of a trained one's size."""
    with meta():
        model = DPMesh(config)
    model.to_empty(device=device)
    for name, parameter in model.named_parameters():
        fan_in = parameter[0].numel() if parameter.ndim > 1 else 0
        nn.init.normal_(parameter, std=fan_in**-0.5) if fan_in else nn.init.constant_(parameter, float("norm" in name))
    return model.eval()


class Inputs:
    """What each part is given, for a batch."""

    def __init__(self, model: DPMesh, n: int, device: str, dtype: torch.dtype) -> None:
        w = model.config.width
        make = lambda *size: torch.randn(n, *size, device=device, dtype=dtype)  # noqa: E731
        self.image, self.latent = torch.rand(n, 3, 256, 256, device=device, dtype=dtype), make(4, 32, 32)
        self.joints = torch.rand(n, 30, 2, device=device) * 32
        self.mask = torch.ones(n, 30, device=device, dtype=torch.bool)
        self.context, self.heatmaps = make(30, 768), make(30, 32, 32)
        self.maps = make(w, 32, 32), make(2 * w + 30, 16, 16), make(4 * w + 30, 8, 8), make(4 * w, 4, 4)
        self.features = make(2048, 8, 8).relu()
        levels = [(w, 32)] * 3 + [(w, 16)] + [(2 * w, 16)] * 2 + [(2 * w, 8)] + [(4 * w, 8)] * 2 + [(4 * w, 4)] * 4
        self.control = [make(c, s, s) for c, s in levels]

    def parts(self, model: DPMesh) -> dict[str, Callable[[], Any]]:
        return {
            "VAE": lambda: model.latent(self.image),
            "ControlNet": lambda: model.control(self.latent, self.context, self.heatmaps),
            "UNet": lambda: model.maps(self.latent, self.context, self.control),
            "merge": lambda: model.merge(*self.maps),
            "regressor": lambda: model.regress(self.features),
        }

    def whole(self, model: DPMesh) -> Callable[[], Any]:
        return lambda: model(self.image, self.joints, self.mask)


def flops(config: Config) -> dict[str, float]:
    """FLOP per image of each part (2 per multiply-add), LoRA folded, counted on modules without memory."""
    with meta():
        model = DPMesh(config).eval()
        inputs = Inputs(model, 1, "meta", torch.float32)
        counted = {}
        for name, work in inputs.parts(model).items():
            with FlopCounterMode(display=False) as counter, torch.no_grad():
                work()
            counted[name] = float(counter.get_total_flops())
    return counted


class KeepEveryMap(KeepMaps):
    """The plain way: every layer's map of every head is computed and kept."""

    def __init__(self, kept: list[Tensor]) -> None:
        self.kept = kept

    def __call__(self, attn: Any, hidden_states: Tensor, encoder_hidden_states: Any = None, attention_mask: Any = None,
                 temb: Any = None, maps: Any = None) -> Tensor:  # fmt: skip
        context = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        q, k, v = (
            x.unflatten(-1, (attn.heads, -1)).transpose(1, 2)
            for x in (attn.to_q(hidden_states), attn.to_k(context), attn.to_v(context))
        )
        weights = (q @ k.transpose(-1, -2) * attn.scale).softmax(-1)
        self.kept.append(weights)
        if maps is not None and encoder_hidden_states is not None:
            maps.append(weights.mean(1))
        return attn.to_out[1](attn.to_out[0]((weights @ v).transpose(1, 2).flatten(2)))


def plain(model: DPMesh, inputs: Inputs) -> Callable[[], Any]:
    """The same modules as they come, around LoRA that stays apart. Changes `model`; `unplain` takes it back."""
    kept: list[Tensor] = []
    for module in model.unet.modules():
        if hasattr(module, "to_q"):
            module.processor = KeepEveryMap(kept)
    out = nn.Sequential(nn.GroupNorm(32, model.config.width), nn.SiLU(), nn.Conv2d(model.config.width, 4, 3, padding=1))
    out = out.to(inputs.image.device, inputs.image.dtype)

    def work() -> None:
        kept.clear()
        found = model(inputs.image, inputs.joints, inputs.mask)
        out(found["map32"])

    return work


def unplain(model: DPMesh) -> None:
    """LoRA folded in, attention as `stages.models.dpmesh` has it."""
    from peft.tuners.lora import LoraLayer

    for parent in list(model.unet.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, LoraLayer):
                child.merge()  # type: ignore[attr-defined]
                setattr(parent, name, child.get_base_layer())
        if hasattr(parent, "to_q"):
            parent.processor = KeepMaps()


def speed(args: argparse.Namespace) -> dict[str, Any]:
    config = Config(width=64, vae_width=32) if args.small else Config()
    counted = flops(config)
    total = sum(counted.values())
    result: dict[str, Any] = {"device": args.device, "threads": torch.get_num_threads(), "config": config.__dict__}
    result["GFLOP per image"] = {name: round(f / 1e9, 2) for name, f in counted.items()} | {
        "all": round(total / 1e9, 2)
    }
    say(f"GFLOP per image: {result['GFLOP per image']}")
    for name in args.dtypes.split(","):
        dtype = DTYPES[name]
        rate = matmul_rate(args.device, dtype)
        result[name] = {"matmul GFLOP/s": round(rate / 1e9, 1)}
        say(f"{name}: matrix multiplication {rate / 1e9:.1f} GFLOP/s")
        model = build(config, args.device).to(dtype)
        batches = [int(b) for b in args.batches.split(",")]
        with torch.no_grad():
            before = {}
            if not args.no_plain:
                add_lora(model)
                model.to(dtype)
                for n in batches:
                    before[n] = measure(plain(model, Inputs(model, n, args.device, dtype)), args.device, args.repeats)
                    say(f"{name}, batch {n}: plain {before[n] / n * 1e3:.1f} ms/image")
                unplain(model)
            prepare(model)
            for n in batches:
                inputs = Inputs(model, n, args.device, dtype)
                work = inputs.whole(model)
                if args.compile:
                    compiled = torch.compile(model)
                    work = lambda inputs=inputs: compiled(inputs.image, inputs.joints, inputs.mask)  # noqa: E731, B023
                seconds = measure(work, args.device, args.repeats)
                row: dict[str, Any] = {
                    "ms/image": round(seconds / n * 1e3, 2),
                    "images/s": round(n / seconds, 3),
                    "of matmul rate": round(total * n / seconds / rate, 3),
                }
                if n in before:
                    row |= {
                        "plain ms/image": round(before[n] / n * 1e3, 2),
                        "ratio to plain": round(seconds / before[n], 3),
                    }
                if n == batches[-1]:
                    times = {p: measure(w, args.device, args.repeats) for p, w in inputs.parts(model).items()}
                    row["share"] = {p: round(t / sum(times.values()), 3) for p, t in times.items()}
                    row["part of matmul rate"] = {p: round(counted[p] * n / t / rate, 2) for p, t in times.items()}
                    row["speed-up from cached latents"] = round(seconds / (seconds - times["VAE"]), 2)
                result[name][f"batch {n}"] = row
                say(f"{name}, batch {n}: {row}")
    result["peak resident GiB"] = round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 2)
    return result


LOAD = """
import sys, time, resource
from stages.checkpoints import read_checkpoint
from stages.models.dpmesh.weights import load
start = time.perf_counter(), time.process_time()
model, _ = load(read_checkpoint(sys.argv[1]))
loaded = time.perf_counter() - start[0]
sum(float(p.flatten()[:: 1024].float().sum()) for p in model.parameters())  # every page is read
print(loaded, time.perf_counter() - start[0], time.process_time() - start[1])
"""


def loading(checkpoint: Path) -> dict[str, Any]:
    """Seconds to load a published file and its compact forms, each in a process of its own, files in the page cache."""
    from stages.convert import Params, convert

    result = {}
    with tempfile.TemporaryDirectory(dir=checkpoint.parent) as folder:
        files = {"published": checkpoint}
        for name, params in {
            "converted": Params(),
            "converted bfloat16": Params(dtype="bfloat16"),
            "LoRA kept apart": Params(fold=False),
        }.items():
            files[name] = convert(checkpoint, Path(folder) / f"{name.replace(' ', '-')}.safetensors", params)
        for name, file in files.items():
            file.read_bytes() if file.stat().st_size < 1e9 else subprocess.run(
                ["cat", file], stdout=subprocess.DEVNULL, check=True
            )
            command = [sys.executable, "-c", LOAD, str(file)]
            runs = [
                subprocess.run(
                    command, capture_output=True, text=True, check=True, cwd=Path(__file__).parents[1]
                ).stdout
                for _ in range(2)
            ]
            usable, touched, cpu = min(tuple(map(float, run.split())) for run in runs)
            result[name] = {
                "GB": round(file.stat().st_size / 1e9, 2),
                "s": round(usable, 2),
                "s, every page read": round(touched, 2),
                "CPU s": round(cpu, 2),
            }
            say(f"{name}: {result[name]}")
    return result


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtypes", default="float32,bfloat16")
    parser.add_argument("--batches", default="1,4")
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--small", action="store_true")
    parser.add_argument("--no-plain", action="store_true")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--ckpt", type=Path)
    args = parser.parse_args()
    print(json.dumps(loading(args.ckpt) if args.ckpt else speed(args), indent=1))


if __name__ == "__main__":
    main()
