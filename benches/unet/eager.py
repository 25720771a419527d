"""Times a UNet with random weights in PyTorch's diffusers, with the arguments and the output of main.rs.

    python eager.py --config DIR --size 1024x1024 --batch 1 --dtype bf16 --device cuda [--compile]
"""

import argparse
import json
import resource
import time
from pathlib import Path

import torch
from diffusers import UNet2DConditionModel

parser = argparse.ArgumentParser()
parser.add_argument("--config", type=Path, required=True)
parser.add_argument("--size", default="128x128")
parser.add_argument("--batch", type=int, default=1)
parser.add_argument("--dtype", choices=["f32", "bf16", "f16"], default="f32")
parser.add_argument("--device", default="cpu")
parser.add_argument("--threads", type=int, default=1)
parser.add_argument("--repeat", type=int, default=5)
parser.add_argument("--warmup", type=int, default=2)
parser.add_argument("--compile", action="store_true")


@torch.inference_mode()
def main():
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    kind = dict(f32=torch.float32, bf16=torch.bfloat16, f16=torch.float16)[arguments.dtype]
    width, height = map(int, arguments.size.split("x"))
    batch, device = arguments.batch, arguments.device
    config = json.loads((arguments.config / "config.json").read_text())
    normal = lambda *shape: torch.randn(*shape).to(device, kind)

    began = time.perf_counter()
    torch.set_default_dtype(kind)
    with torch.device(device):
        unet = UNet2DConditionModel.from_config(config).eval()
    torch.set_default_dtype(torch.float32)
    load_seconds = time.perf_counter() - began
    pooled = config["projection_class_embeddings_input_dim"] - 6 * config["addition_time_embed_dim"]
    sample = normal(batch, unet.config.in_channels, height // 8, width // 8)
    t = torch.full((batch,), 500.0, device=device)
    context = normal(batch, 77, config["cross_attention_dim"])
    added = dict(text_embeds=normal(batch, pooled), time_ids=torch.full((batch, 6), 1024.0, device=device))
    if arguments.compile:
        unet = torch.compile(unet)

    cuda = device.startswith("cuda")
    synchronize = torch.cuda.synchronize if cuda else lambda: None
    seconds = []
    for i in range(arguments.warmup + arguments.repeat):
        synchronize()
        began = time.perf_counter()
        out = unet(sample, t, encoder_hidden_states=context, added_cond_kwargs=added, return_dict=False)[0]
        synchronize()
        del out
        if i >= arguments.warmup:
            seconds.append(time.perf_counter() - began)
    peak = torch.cuda.max_memory_allocated() if cuda else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10
    print(
        json.dumps(
            dict(
                program="diffusers, compiled" if arguments.compile else "diffusers, eager",
                config=str(arguments.config), size=arguments.size, batch=batch,
                dtype=arguments.dtype, device=device, threads=arguments.threads, load_seconds=load_seconds,
                seconds=seconds, peak_bytes=peak,
            )
        ),
        flush=True,
    )


main()
