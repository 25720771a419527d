"""Times a network with random weights in PyTorch's diffusers and transformers, with the arguments and the output of main.rs.

    python eager.py --network unet --config FILE --size 1024x1024 --batch 1 --dtype bf16 --device cuda [--compile inductor]
"""

import argparse
import json
import tempfile
import time
from pathlib import Path

import torch

parser = argparse.ArgumentParser()
parser.add_argument("--network", default="unet")
parser.add_argument("--config", type=Path, required=True)
parser.add_argument("--size", default="128x128")
parser.add_argument("--batch", type=int, action="append")
parser.add_argument("--dtype", choices=["f32", "bf16", "f16"], default="f32")
parser.add_argument("--device", default="cpu")
parser.add_argument("--threads", type=int, default=1)
parser.add_argument("--repeat", type=int, default=5)
parser.add_argument("--warmup", type=int, default=2)
parser.add_argument("--from-disk", action="store_true")
parser.add_argument("--compile", metavar="BACKEND", help="torch.compile with this backend, inductor on a GPU")
TOKENS = 77


def peak_resident_bytes():
    line = next(line for line in open("/proc/self/status") if line.startswith("VmHWM:"))
    return int(line.split()[1]) << 10


def make(network, config):
    """The class and a constructor of one network."""
    if network == "unet":
        from diffusers import UNet2DConditionModel

        return UNet2DConditionModel, lambda: UNet2DConditionModel.from_config(config)
    if network.startswith("vae"):
        from diffusers import AutoencoderKL

        return AutoencoderKL, lambda: AutoencoderKL.from_config(config)
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    kind = CLIPTextModelWithProjection if network == "text_encoder_2" else CLIPTextModel
    return kind, lambda: kind(CLIPTextConfig(**config))


def load(arguments, config, kind):
    """The network in its dtype on its device, and the seconds that its weights took to load where they were on a disk."""
    cls, construct = make(arguments.network, config)
    if not arguments.from_disk:
        began = time.perf_counter()
        torch.set_default_dtype(kind)
        with torch.device(arguments.device):
            net = construct().eval()
        torch.set_default_dtype(torch.float32)
        return net, time.perf_counter() - began
    with tempfile.TemporaryDirectory() as scratch:
        torch.set_default_dtype(kind)
        construct().save_pretrained(scratch)
        torch.set_default_dtype(torch.float32)
        Path("/proc/self/clear_refs").write_text("5")
        began = time.perf_counter()
        keyword = "torch_dtype" if arguments.network in ("unet", "vae-encode", "vae-decode") else "dtype"
        net = cls.from_pretrained(scratch, **{keyword: kind}).eval().to(arguments.device)
        return net, time.perf_counter() - began


def forward_of(arguments, net, config, kind, batch):
    width, height = map(int, arguments.size.split("x"))
    device = arguments.device
    normal = lambda *shape: torch.randn(*shape).to(device, kind)
    if arguments.network == "unet":
        pooled = config["projection_class_embeddings_input_dim"] - 6 * config["addition_time_embed_dim"]
        sample = normal(batch, config.get("in_channels", 4), height // 8, width // 8)
        t = torch.full((batch,), 500.0, device=device)
        context = normal(batch, TOKENS, config["cross_attention_dim"])
        added = dict(text_embeds=normal(batch, pooled), time_ids=torch.full((batch, 6), 1024.0, device=device))
        return lambda: net(sample, t, encoder_hidden_states=context, added_cond_kwargs=added, return_dict=False)[0]
    if arguments.network == "vae-encode":
        images = normal(batch, 3, height, width)
        return lambda: net.encode(images, return_dict=False)[0].mean
    if arguments.network == "vae-decode":
        latents = normal(batch, config["latent_channels"], height // 8, width // 8)
        return lambda: net.decode(latents, return_dict=False)[0]
    ids = torch.randint(0, 1000, (batch, TOKENS), device=device)
    return lambda: net(ids)[0]


@torch.inference_mode()
def main():
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    kind = dict(f32=torch.float32, bf16=torch.bfloat16, f16=torch.float16)[arguments.dtype]
    config = json.loads(arguments.config.read_text())
    net, load_seconds = load(arguments, config, kind)
    if arguments.compile:
        compiled = lambda module: torch.compile(module, backend=arguments.compile)
        if arguments.network.startswith("vae"):
            net.encoder, net.decoder = compiled(net.encoder), compiled(net.decoder)
        else:
            net = compiled(net)
    cuda = arguments.device.startswith("cuda")
    synchronize = torch.cuda.synchronize if cuda else lambda: None
    for batch in arguments.batch or [1]:
        forward = forward_of(arguments, net, config, kind, batch)
        seconds = []
        for i in range(arguments.warmup + arguments.repeat):
            synchronize()
            began = time.perf_counter()
            out = forward()
            synchronize()
            del out
            if i >= arguments.warmup:
                seconds.append(time.perf_counter() - began)
        print(
            json.dumps(
                dict(
                    program="PyTorch, compiled" if arguments.compile else "PyTorch, eager",
                    network=arguments.network, config=str(arguments.config), size=arguments.size, batch=batch,
                    dtype=arguments.dtype, device=arguments.device, threads=arguments.threads,
                    load_seconds=load_seconds, seconds=seconds,
                    peak_bytes=torch.cuda.max_memory_allocated() if cuda else peak_resident_bytes(),
                )
            ),
            flush=True,
        )


main()
