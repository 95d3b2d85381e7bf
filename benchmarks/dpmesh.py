"""DPMesh's speed, memory and rounding on this machine, as ratios measured in one run.

    python benchmarks/dpmesh.py                 # float32 and bfloat16, ours against plain modules
    python benchmarks/dpmesh.py --small         # width 64 instead of 320: seconds instead of minutes
    python benchmarks/dpmesh.py --device cuda   # bfloat16 and float16, compiled, batches 1, 16 and 64
    python benchmarks/dpmesh.py --loading 3dpw-pc_best_ckpt.pth.tar     # how much faster converted files load
    python benchmarks/dpmesh.py --rounding [--ckpt FILE]                # what half precision does to joints, in mm

Work begins with decoded crops, uint8 in the host's memory, and ends with numbers there. Weights are random where no
file is given (the work is the same). Ratios are of CPU time on a CPU, since machines are shared, of wall time on a GPU;
both are printed. "plain" is what one gets from the parts as they come: LoRA apart, the UNet's output layers, every
attention map kept, weights in PyTorch's order. The rate is compared with a matrix multiplication in the same run
(4096 x 4096, on the CPU 2048 x 2048).
"""

from __future__ import annotations

import argparse
import copy
import json
import resource
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from stages.files.checkpoints import read_checkpoint
from stages.geometry.rotations import axis_angle_to_matrix
from stages.models.dpmesh.cpu_inference import prepare
from stages.models.dpmesh.diffusion import KeepMaps
from stages.models.dpmesh.network import Config, DPMesh
from stages.models.dpmesh.weights import add_lora, load, meta
from stages.smpl.body import load_body

warnings.simplefilter("ignore")
DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


class Seconds(NamedTuple):
    """Of one run. `spent` is what ratios are made of: CPU time on a CPU, wall time on a GPU."""

    wall: float
    cpu: float
    spent: float


def measure(work: Callable[[], Any], device: str, repeats: int) -> Seconds:
    """The fastest of `repeats` runs after one to warm up."""
    found = []
    for _ in range(repeats + 1):
        wait(device)
        start = time.perf_counter(), time.process_time()
        work()
        wait(device)
        wall, cpu = time.perf_counter() - start[0], time.process_time() - start[1]
        found.append(Seconds(wall, cpu, cpu if device == "cpu" else wall))
    return min(found[1:], key=lambda s: s.spent)


def wait(device: str) -> None:
    if device != "cpu":
        torch.cuda.synchronize()


def matmul_rate(device: str, dtype: torch.dtype) -> float:
    """FLOP/s of a square matrix multiplication."""
    side = 4096 if device != "cpu" else 2048
    a = torch.randn(side, side, device=device, dtype=dtype)
    return 2 * side**3 / measure(lambda: a @ a, device, 5).spent


def build(config: Config, device: str, dtype: torch.dtype) -> DPMesh:
    """The network with random weights of a trained one's size, the same ones each time; regressor in float32."""
    with meta():
        model = DPMesh(config)
    model.to_empty(device=device)
    torch.manual_seed(0)
    for name, parameter in model.named_parameters():
        fan_in = parameter[0].numel() if parameter.ndim > 1 else 0
        norm = name.endswith("weight")  # vectors are scales of norms, or biases
        nn.init.normal_(parameter, std=fan_in**-0.5) if fan_in else nn.init.constant_(parameter, float(norm))
    return in_type(model, dtype)


def in_type(model: DPMesh, dtype: torch.dtype) -> DPMesh:
    """As files in half precision are run: regressor and pose head stay in float32."""
    for name, part in model.named_children():
        if name not in ("regressor", "pose_head"):
            part.to(dtype)
    return model.eval()


class Inputs:
    """What each part is given, for a batch; `crops` and what belongs to them lie on the host."""

    def __init__(self, model: DPMesh, n: int, device: str, dtype: torch.dtype) -> None:
        w, generator = model.config.width, torch.Generator().manual_seed(n)
        self.device, self.dtype = device, dtype

        def make(*size: int) -> Tensor:
            return torch.randn(n, *size, generator=generator).to(device, dtype)

        self.crops = torch.randint(0, 256, (n, 256, 256, 3), dtype=torch.uint8, generator=generator)
        self.joints = torch.rand(n, 30, 2, generator=generator) * 32
        self.mask = torch.rand(n, 30, generator=generator) > 0.3
        if device == "meta":
            self.crops, self.joints, self.mask = (x.to(device) for x in (self.crops, self.joints, self.mask))
        self.image, self.latent = self.picture(), make(4, 32, 32)
        self.context, self.heatmaps = make(30, 768), make(30, 32, 32)
        self.maps = make(w, 32, 32), make(2 * w + 30, 16, 16), make(4 * w + 30, 8, 8), make(4 * w, 4, 4)
        self.features = make(2048, 8, 8).relu()
        levels = [(w, 32)] * 3 + [(w, 16)] + [(2 * w, 16)] * 2 + [(2 * w, 8)] + [(4 * w, 8)] * 2 + [(4 * w, 4)] * 4
        self.control = [make(c, s, s) for c, s in levels]

    def picture(self) -> Tensor:
        """Crops on the device, (n, 3, 256, 256) in [0, 1]."""
        return (self.crops.to(self.device).permute(0, 3, 1, 2).float() / 255).to(self.dtype).contiguous()

    def conditions(self) -> tuple[Tensor, Tensor]:
        return self.joints.to(self.device), self.mask.to(self.device)

    def parts(self, model: DPMesh) -> dict[str, Callable[[], Any]]:
        return {
            "VAE": lambda: model.latent(self.image),
            "ControlNet": lambda: model.control(self.latent, self.context, self.heatmaps),
            "UNet": lambda: model.maps(self.latent, self.context, self.control),
            "merge": lambda: model.merge(*self.maps),
            "regressor": lambda: model.regress(self.features),
        }

    def whole(self, model: Any) -> Callable[[], dict[str, Tensor]]:
        """From decoded crops to bodies' numbers, host to host."""
        return lambda: on_host(model(self.picture(), *self.conditions()))

    def from_latents(self, model: DPMesh) -> Callable[[], dict[str, Tensor]]:
        """The same with the crops' latents at hand: another checkpoint, or other keypoints on the same crops."""
        return lambda: on_host(model.regress(model.features(self.latent, *self.conditions())["merged"]))


def on_host(out: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: out[name].cpu() for name in ("global_orient", "body_pose", "betas", "camera")}


def joints_of(out: dict[str, Tensor]) -> Tensor:
    """(n, 24, 3) m of the embedded body, relative to the pelvis."""
    pose = torch.cat([out["global_orient"][:, None], out["body_pose"]], 1).float()
    zero = torch.zeros(len(pose), 3)
    xyz = load_body("embedded").joints(axis_angle_to_matrix(pose), out["betas"].float(), zero)
    return xyz - xyz[:, :1]


def off(out: dict[str, Tensor], exact: dict[str, Tensor]) -> dict[str, float]:
    """How far joints move, in mm."""
    error = 1000 * (joints_of(out) - joints_of(exact)).norm(dim=-1)
    found = {"mean": error.mean(), "median": error.median(), "most": error.max()}
    return {f"joints {name} mm": round(float(value), 3) for name, value in found.items()}


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
        found = model(inputs.picture(), *inputs.conditions())
        out(found["map32"])
        on_host(found)

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
    counted, device = flops(config), args.device
    total = sum(counted.values())
    batches = [int(b) for b in args.batches.split(",")]
    result: dict[str, Any] = {
        "device": torch.cuda.get_device_name() if device != "cpu" else "CPU",
        "threads": torch.get_num_threads(),
        "compiled": args.compile,
        "GFLOP per image": {name: round(f / 1e9, 2) for name, f in counted.items()} | {"all": round(total / 1e9, 2)},
    }
    say(f"GFLOP per image: {result['GFLOP per image']}")
    exact: dict[str, Tensor] = {}
    for name in ["float32"] * ("float32" not in args.dtypes) + args.dtypes.split(","):
        dtype = DTYPES[name]
        model = build(config, device, dtype)
        with torch.no_grad():
            if name not in args.dtypes:  # only to see what rounding does
                exact = Inputs(model, max(batches), device, dtype).whole(model)()
                continue
            rate = matmul_rate(device, dtype)
            found: dict[str, Any] = {"matmul GFLOP/s": round(rate / 1e9, 1)}
            say(f"{name}: matrix multiplication {rate / 1e9:.1f} GFLOP/s")
            before = {}
            if not args.no_plain:
                add_lora(model)
                in_type(model, dtype)
                for n in batches:
                    before[n] = measure(plain(model, Inputs(model, n, device, dtype)), device, args.repeats)
                    say(f"{name}, batch {n}: plain {before[n].spent / n * 1e3:.1f} ms/image")
                unplain(model)
            prepare(model)
            run = torch.compile(model) if args.compile else model
            for n in batches:
                inputs = Inputs(model, n, device, dtype)
                found[f"batch {n}"] = row = one_batch(model, run, inputs, counted, rate, before.get(n), args)
                say(f"{name}, batch {n}: {row}")
            rows = [found[f"batch {n}"] for n in batches]
            found["share, mean of batches"] = {
                part: round(sum(row["share"][part] for row in rows) / len(rows), 3) for part in counted
            }
            out = Inputs(model, max(batches), device, dtype).whole(model)()
            exact = exact or out
            if name != "float32":
                found["against float32, random weights"] = off(out, exact)
                say(f"{name} against float32: {found['against float32, random weights']}")
            result[name] = found
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    result["peak GiB"] = round(torch.cuda.max_memory_allocated() / 2**30 if device != "cpu" else peak, 2)
    result["targets"] = targets(result, batches)
    return result


def one_batch(
    model: DPMesh, run: Any, inputs: Inputs, counted: dict[str, float], rate: float, before: Seconds | None,
    args: argparse.Namespace,
) -> dict[str, Any]:  # fmt: skip
    n, device, total = len(inputs.crops), args.device, sum(counted.values())
    seconds = measure(inputs.whole(run), device, args.repeats)
    row: dict[str, Any] = {
        "ms/image": round(seconds.spent / n * 1e3, 2),
        "wall ms/image": round(seconds.wall / n * 1e3, 2),
        "images/s": round(n / seconds.spent, 3),
        "of matmul rate": round(total * n / seconds.spent / rate, 3),
    }
    if before:
        row |= {"plain ms/image": round(before.spent / n * 1e3, 2)}
        row |= {"ratio to plain": round(seconds.spent / before.spent, 3)}
    times = {part: measure(work, device, args.repeats).spent for part, work in inputs.parts(model).items()}
    row["share"] = {part: round(t / sum(times.values()), 3) for part, t in times.items()}
    row["part of matmul rate"] = {part: round(counted[part] * n / t / rate, 2) for part, t in times.items()}
    kept = measure(inputs.from_latents(model), device, args.repeats).spent
    if not args.compile:
        row["times faster from cached latents"] = round(seconds.spent / kept, 2)
    return row


def targets(result: dict[str, Any], batches: list[int]) -> dict[str, str]:
    """What was asked of this program, and what this run says to it."""
    found = {"CPU, batch 4, float32: at most 0.9 of plain": "unmeasured in this run"}
    ratio = result.get("float32", {}).get("batch 4", {}).get("ratio to plain")
    if result["device"] == "CPU" and ratio:
        found = dict.fromkeys(found, f"{ratio}: {'met' if ratio <= 0.9 else 'missed'}")
    gpu = "H200, bfloat16, compiled, batch 64: at least 0.5 of the matmul rate"
    found[gpu] = "unmeasured: no such GPU here"
    share = result.get("bfloat16", {}).get("batch 64", {}).get("of matmul rate")
    if "H200" in result["device"] and share and result["compiled"]:
        found[gpu] = f"{share}: {'met' if share >= 0.5 else 'missed'}"
    error = result.get("bfloat16", {}).get("against float32, random weights", {}).get("joints mean mm")
    if error is not None:
        found["bfloat16: joints less than 1 mm from float32"] = f"{error}: {'met' if error < 1 else 'missed'} (random weights)"  # fmt: skip  # noqa: E501
    return found


@torch.no_grad()
def rounding(args: argparse.Namespace) -> dict[str, Any]:
    """Joints of the embedded body when features are stored in half precision, or the diffusion networks run in it."""
    if args.ckpt:
        exact_model, _ = load(read_checkpoint(args.ckpt))
        weights = "of the file"
    else:
        exact_model = build(Config(width=64, vae_width=32) if args.small else Config(), "cpu", torch.float32)
        weights = "random"
    model = exact_model.to(args.device)
    inputs = Inputs(model, args.rows, args.device, torch.float32)
    found = model(inputs.picture(), *inputs.conditions())
    exact, merged = on_host(found), found["merged"]
    result: dict[str, Any] = {"rows": args.rows, "weights": weights, "width": model.config.width}
    for name in ("float16", "bfloat16"):
        stored = on_host(model.regress(merged.to(DTYPES[name]).float()))
        result[f"features stored in {name}"] = off(stored, exact)
    coarse = copy.deepcopy(model)
    for name, p in coarse.named_parameters():
        if not name.startswith(("regressor.", "pose_head.")):
            p.copy_(p.bfloat16())
    result["weights of a bfloat16 file, arithmetic in float32"] = off(inputs.whole(coarse)(), exact)
    for name in ("float16", "bfloat16"):
        if args.device == "cpu" and name == "float16":
            result["diffusion networks in float16"] = "unmeasured: CPUs emulate float16, and hmr uses float32 there"
            continue
        half = in_type(copy.deepcopy(model), DTYPES[name])
        inputs.dtype = DTYPES[name]
        there = half(inputs.picture(), *inputs.conditions())
        off_by = float((there["merged"].float() - merged).norm() / merged.norm())
        result[f"diffusion networks in {name}"] = {"features relative": round(off_by, 4)} | off(on_host(there), exact)
    return result


LOAD = """
import sys, time, resource
from stages.files.checkpoints import read_checkpoint
from stages.models.dpmesh.weights import load
start = time.perf_counter(), time.process_time()
model, _ = load(read_checkpoint(sys.argv[1]))
loaded = time.perf_counter() - start[0]
sum(float(p.flatten()[:: 1024].float().sum()) for p in model.parameters())  # every page is read
print(loaded, time.perf_counter() - start[0], time.process_time() - start[1])
"""


def loading(checkpoint: Path) -> dict[str, Any]:
    """Seconds to load a published file and its compact forms, each in a process of its own, files in the page cache."""
    from stages.convert import convert
    from stages.params import ConvertParams

    result = {}
    with tempfile.TemporaryDirectory(dir=checkpoint.parent) as folder:
        files = {"published": checkpoint}
        for name, params in {
            "converted": ConvertParams(),
            "converted bfloat16": ConvertParams(dtype="bfloat16"),
            "LoRA kept apart": ConvertParams(fold=False),
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
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtypes", help="float32, float16, bfloat16")
    parser.add_argument("--batches")
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--small", action="store_true")
    parser.add_argument("--no-plain", action="store_true")
    parser.add_argument("--compile", action=argparse.BooleanOptionalAction)
    parser.add_argument("--loading", type=Path, metavar="CKPT")
    parser.add_argument("--rounding", action="store_true")
    parser.add_argument("--ckpt", type=Path)
    parser.add_argument("--rows", type=int, default=8)
    args = parser.parse_args()
    gpu = args.device != "cpu"
    args.dtypes = args.dtypes or ("bfloat16,float16" if gpu else "float32,bfloat16")
    args.batches = args.batches or ("1,16,64" if gpu else "1,4")
    args.compile = gpu if args.compile is None else args.compile
    result = loading(args.loading) if args.loading else rounding(args) if args.rounding else speed(args)
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
