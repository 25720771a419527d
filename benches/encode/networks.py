"""The same as networks.rs with diffusers and transformers, eager: NETWORK DTYPE SIDE RUNS [THREADS]."""

import json
import sys
import tempfile
import time
from pathlib import Path

import torch
from diffusers import AutoencoderKL
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

network, dtype, side, runs, *threads = sys.argv[1:]
dtype, side, runs = dict(f32=torch.float32, bf16=torch.bfloat16)[dtype], int(side), int(runs)
if threads:
    torch.set_num_threads(int(threads[0]))
fixtures = Path(__file__).parents[2] / "tests/fixtures"


def peak():
    line = next(line for line in open("/proc/self/status") if line.startswith("VmHWM:"))
    return int(line.split()[1]) / 2**20


def load(kind, config):
    with tempfile.TemporaryDirectory() as scratch:
        (kind(CLIPTextConfig(**config)) if "Text" in kind.__name__ else kind(**config)).to(dtype).save_pretrained(scratch)
        open("/proc/self/clear_refs", "w").write("5")
        start = time.perf_counter()
        keyword = "dtype" if "Text" in kind.__name__ else "torch_dtype"
        model = kind.from_pretrained(scratch, **{keyword: dtype}).eval()
        print(f"loaded {sum(p.numel() for p in model.parameters())} parameters in {time.perf_counter() - start:.2f} s")
    return model


with torch.no_grad():
    ids = torch.full((1, 77), 7)
    if network.startswith("vae"):
        vae = load(AutoencoderKL, json.loads((fixtures / "vae/sdxl.config.json").read_text()))
        images, latents = torch.ones(1, 3, side, side, dtype=dtype), torch.ones(1, 4, side // 8, side // 8, dtype=dtype)
        forward = (lambda: vae.encode(images).latent_dist.mean) if network == "vae-encode" else (lambda: vae.decode(latents).sample)
    else:
        kind = CLIPTextModel if network == "text_encoder" else CLIPTextModelWithProjection
        model = load(kind, json.loads((fixtures / f"text/sdxl_{network}.config.json").read_text()))
        forward = lambda: model(ids)[0]
    seconds = []
    for _ in range(runs):
        start = time.perf_counter()
        forward()
        seconds.append(time.perf_counter() - start)
seconds.sort()
print(f"{torch.get_num_threads()} threads: best {seconds[0]:.3f} s, median {seconds[len(seconds) // 2]:.3f} s, "
      f"peak memory {peak():.2f} GiB")
