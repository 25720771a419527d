"""The work of encode-latents with PyTorch's libraries, on a world that main.rs has made, with its output.

    python eager.py --world DIR --batch 8 --dtype bf16 --device cuda [--compile inductor]

Worker processes decode, crop, resize (Lanczos) and tokenise; the main process encodes and writes shards of NumPy files.
"""

import argparse
import io
import json
import os
import tarfile
import time
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from PIL import Image
from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

parser = argparse.ArgumentParser()
parser.add_argument("--world", type=Path, required=True)
parser.add_argument("--batch", type=int, default=8)
parser.add_argument("--dtype", choices=["f32", "bf16"], default="bf16")
parser.add_argument("--device", default="cpu")
parser.add_argument("--threads", type=int, default=1)
parser.add_argument("--compile", metavar="BACKEND", help="torch.compile with this backend, inductor on a GPU")


class Shards(torch.utils.data.Dataset):
    """Every sample of the curated shards, by its place in its file."""

    def __init__(self, world, resolution):
        self.resolution = resolution
        model = world / "manifest/model"
        self.tokenizers = [CLIPTokenizer.from_pretrained(model / name) for name in ("tokenizer", "tokenizer_2")]
        self.samples = []
        for path in sorted((world / "run/curated/shards").glob("*.tar")):
            parts = {}
            with tarfile.open(path) as tar:
                for member in tar:
                    key, extension = member.name.split(".", 1)
                    parts.setdefault(key, {})[extension] = (path, member.offset_data, member.size)
            self.samples += [(key, files) for key, files in parts.items()]

    def __len__(self):
        return len(self.samples)

    def __getitem__(self, place):
        key, files = self.samples[place]

        def read(extension):
            path, offset, size = files[extension]
            with open(path, "rb") as file:
                file.seek(offset)
                return file.read(size)

        image = Image.open(io.BytesIO(read("jpg" if "jpg" in files else "png"))).convert("RGB")
        side = min(image.size)
        left, top = (image.width - side) // 2, (image.height - side) // 2
        box = (left, top, left + side, top + side)
        image = image.resize((self.resolution,) * 2, Image.LANCZOS, box=box)
        caption = read("txt").decode()
        ids = [
            tokenizer(caption, padding="max_length", max_length=77, truncation=True, return_tensors="pt").input_ids[0]
            for tokenizer in self.tokenizers
        ]
        return key, torch.from_numpy(np.array(image)).permute(2, 0, 1), *ids


@torch.inference_mode()
def main():
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    kind = dict(f32=torch.float32, bf16=torch.bfloat16)[arguments.dtype]
    device, model = arguments.device, arguments.world / "manifest/model"
    recipe = (arguments.world / "manifest/model.toml").read_text()
    resolution = int(next(line for line in recipe.splitlines() if line.startswith("resolution")).split("=")[1])
    vae = AutoencoderKL.from_pretrained(model / "vae", torch_dtype=kind).to(device).eval()
    if resolution > 512:
        vae.enable_slicing()
    first = CLIPTextModel.from_pretrained(model / "text_encoder", dtype=kind).to(device).eval()
    second = CLIPTextModelWithProjection.from_pretrained(model / "text_encoder_2", dtype=kind).to(device).eval()
    if arguments.compile:
        compiled = lambda module: torch.compile(module, backend=arguments.compile)
        vae.encoder, first, second = compiled(vae.encoder), compiled(first), compiled(second)
    cuda = device.startswith("cuda")
    dataset = Shards(arguments.world, resolution)
    workers = max(1, (os.cpu_count() or 2) - 1)
    batches = lambda: torch.utils.data.DataLoader(
        dataset, batch_size=arguments.batch, num_workers=workers, pin_memory=cuda, prefetch_factor=4
    )

    def encode(batch):
        _, images, ids, ids_2 = batch
        images = images.to(device, non_blocking=True).to(kind) / 127.5 - 1
        latents = vae.encode(images).latent_dist.sample() * vae.config.scaling_factor
        states = first(ids.to(device), output_hidden_states=True).hidden_states[-2]
        out = second(ids_2.to(device), output_hidden_states=True)
        prompt = torch.cat([states, out.hidden_states[-2]], -1)
        return [x.half().cpu().numpy() for x in (latents, prompt, out.text_embeds)]

    if arguments.compile or cuda:
        encode(next(iter(batches())))  # what is compiled or tuned once is not part of the rate
    target = arguments.world / "eager.tar"
    began, count = time.perf_counter(), 0
    with tarfile.open(target, "w") as tar:
        for batch in batches():
            for key, *arrays in zip(batch[0], *encode(batch)):
                for name, array in zip(("latent", "prompt_embeds", "pooled_prompt_embeds"), arrays):
                    data = io.BytesIO()
                    np.save(data, array)
                    member = tarfile.TarInfo(f"{key}.{name}.npy")
                    member.size = data.tell()
                    data.seek(0)
                    tar.addfile(member, data)
                count += 1
    seconds = time.perf_counter() - began
    target.unlink()
    print(
        json.dumps(
            dict(
                program="PyTorch, compiled" if arguments.compile else "PyTorch, eager", network="encode-latents",
                config="full" if resolution > 512 else "small", size=f"{resolution}x{resolution}",
                batch=arguments.batch, dtype=arguments.dtype, device=device, threads=arguments.threads, images=count,
                images_per_second=count / seconds, seconds=[seconds / count],
            )
        ),
        flush=True,
    )


if __name__ == "__main__":
    main()
