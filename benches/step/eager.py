"""The iteration of main.rs in eager PyTorch with diffusers' UNet, with the same arguments and the same output.

    python eager.py --config DIR --size 128x128 --trains lora --micro-batch 4 --dtype f32 --device cpu

Written as a careful user of PyTorch would: the teacher shares the student's base weights where LoRA is trained, the
discriminator's backbone runs once over all points, Adam is fused, and bf16 weights have FP32 masters.
"""

import argparse
import json
import resource
import time
from pathlib import Path

import torch
from diffusers import DDPMScheduler, UNet2DConditionModel
from torch.nn.functional import softplus

parser = argparse.ArgumentParser()
parser.add_argument("--config", type=Path, required=True)
parser.add_argument("--size", default="128x128")
parser.add_argument("--trains", choices=["lora", "full"], default="lora")
parser.add_argument("--micro-batch", type=int, default=4)
parser.add_argument("--dtype", choices=["f32", "bf16"], default="f32")
parser.add_argument("--recompute", action="store_true")
parser.add_argument("--device", default="cpu")
parser.add_argument("--threads", type=int, default=1)
parser.add_argument("--repeat", type=int, default=5)
parser.add_argument("--warmup", type=int, default=2)
arguments = parser.parse_args()

KIND = dict(f32=torch.float32, bf16=torch.bfloat16)[arguments.dtype]
DEVICE = arguments.device
CUDA = DEVICE.startswith("cuda")
CONFIG = json.loads((arguments.config / "config.json").read_text())
TEACHER_STEPS, STUDENT_STEPS, TOKENS = 4, 2, 77
TARGETS = (
    "to_q to_k to_v to_out.0 proj_in proj_out ff.net.0.proj ff.net.2 conv1 conv2 conv_shortcut "
    "downsamplers.0.conv upsamplers.0.conv time_emb_proj"
).split()


class Lora(torch.nn.Module):
    """A layer with a low-rank branch, as peft's."""

    def __init__(self, base, rank=64, alpha=8):
        super().__init__()
        self.base, self.scale = base, alpha / rank
        place = dict(device=DEVICE, dtype=KIND)
        if isinstance(base, torch.nn.Conv2d):
            shape = (base.kernel_size, base.stride, base.padding)
            self.down = torch.nn.Conv2d(base.in_channels, rank, *shape, bias=False, **place)
            self.up = torch.nn.Conv2d(rank, base.out_channels, 1, bias=False, **place)
        else:
            self.down = torch.nn.Linear(base.in_features, rank, bias=False, **place)
            self.up = torch.nn.Linear(rank, base.out_features, bias=False, **place)

    def forward(self, x, *_):
        return self.base(x) + self.up(self.down(x)) * self.scale


def add_lora(net):
    for path, layer in list(net.named_modules()):
        if any(path.endswith("." + target) for target in TARGETS):
            parent, _, name = path.rpartition(".")
            setattr(net.get_submodule(parent), name, Lora(layer))


def unet():
    torch.set_default_dtype(KIND)
    with torch.device(DEVICE):
        net = UNet2DConditionModel.from_config(CONFIG)
    torch.set_default_dtype(torch.float32)
    return net


class Discriminator(torch.nn.Module):
    """The encoder and the mid block of a UNet, and a head down to one value; head and features in FP32."""

    def __init__(self, side):
        super().__init__()
        self.backbone = unet()
        self.backbone.up_blocks = torch.nn.ModuleList()
        self.backbone.conv_norm_out = None
        self.backbone.conv_out = torch.nn.Identity()
        width = CONFIG["block_out_channels"][-1]
        for _ in CONFIG["block_out_channels"][1:]:
            side = (side + 1) // 2
        layers, inputs = [], 2 * width
        while side > 1:
            padding = 0 if side == 4 else 1
            side = (side + 2 * padding - 4) // 2 + 1
            layers += [torch.nn.Conv2d(inputs, width, 4, 2, padding), torch.nn.GroupNorm(32, width), torch.nn.SiLU()]
            inputs = width
        self.head = torch.nn.Sequential(*layers, torch.nn.Conv2d(inputs, 1, 1)).to(DEVICE)

    def forward(self, points, to, x_t, t, condition):
        count = len(points) + 1
        features = predict(
            self.backbone, torch.cat([*points, x_t]), torch.cat([to] * len(points) + [t]),
            tuple(torch.cat([part] * count) for part in condition),
        ).chunk(count)
        return [self.head(torch.cat([point, features[-1]], 1)).flatten() for point in features[:-1]]


def predict(net, x, t, condition):
    context, pooled, ids = condition
    added = dict(text_embeds=pooled.to(KIND), time_ids=ids)
    indices = (t - 1).clamp(min=0)
    out = net(x.to(KIND), indices, context.to(KIND), added_cond_kwargs=added, return_dict=False)[0]
    return out.float()


BARS = DDPMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear").alphas_cumprod.double()
BARS = torch.cat([torch.ones(1, dtype=torch.float64), BARS]).to(DEVICE)


def roots(t):
    shape = lambda v: v.float().view(-1, 1, 1, 1)
    return shape(BARS[t].sqrt()), shape((1 - BARS[t]).sqrt())


def move(x, u, t, to):
    (a, s), (b, r) = roots(t), roots(to)
    return b * (x - s * u) / a + r * u


class Optimizer:
    """Fused Adam on FP32 masters."""

    def __init__(self, parameters):
        self.parameters = [p for p in parameters if p.requires_grad]
        self.masters = self.parameters if KIND == torch.float32 else [p.detach().float() for p in self.parameters]
        self.adam = torch.optim.Adam(self.masters, lr=1e-6, betas=(0.0, 0.99), fused=True)

    def train(self, on):
        for parameter in self.parameters:
            parameter.requires_grad_(on)

    @torch.no_grad()
    def step(self):
        for parameter, master in zip(self.parameters, self.masters):
            if master is not parameter:
                master.grad, parameter.grad = parameter.grad.float(), None
        norm = torch.nn.utils.get_total_norm([master.grad for master in self.masters])
        if norm.isfinite().item():
            self.adam.step()
        if self.masters is not self.parameters:
            torch._foreach_copy_(self.parameters, self.masters)
        self.adam.zero_grad(set_to_none=True)


def main():
    torch.set_num_threads(arguments.threads)
    width, height = map(int, arguments.size.split("x"))
    batch = arguments.micro_batch
    began = time.perf_counter()
    student = unet()
    teacher = unet()
    if arguments.trains == "lora":
        teacher.load_state_dict(student.state_dict(), assign=True)
        student.requires_grad_(False)
        add_lora(student)
    teacher.requires_grad_(False)
    critic = Discriminator(height // 8)
    if arguments.recompute:
        student.enable_gradient_checkpointing()
        critic.backbone.enable_gradient_checkpointing()
    of_student, of_critic = Optimizer(student.parameters()), Optimizer(critic.parameters())
    load_seconds = time.perf_counter() - began

    normal = lambda *shape: torch.randn(*shape, device=DEVICE)
    pooled = CONFIG["projection_class_embeddings_input_dim"] - 6 * CONFIG["addition_time_embed_dim"]
    latents, noise = (normal(batch, CONFIG["in_channels"], height // 8, width // 8) for _ in range(2))
    condition = (
        normal(batch, TOKENS, CONFIG["cross_attention_dim"]), normal(batch, pooled),
        torch.full((batch, 6), 1024.0, device=DEVICE),
    )

    def points():
        t = 1000 - 500 * torch.randint(0, 2, (batch,), device=DEVICE)
        a, s = roots(t)
        x_t = torch.where((t == 1000).view(-1, 1, 1, 1), noise, a * latents + s * noise)
        return x_t, t, t - 1000 // STUDENT_STEPS

    def iteration():
        x_t, t, to = points()
        of_critic.train(True)
        with torch.no_grad():
            real, here = x_t, t
            for _ in range(TEACHER_STEPS // STUDENT_STEPS):
                there = here - 1000 // TEACHER_STEPS
                real = move(real, predict(teacher, real, here, condition), here, there)
                here = there
            fake = move(x_t, predict(student, x_t, t, condition), t, to)
        real, fake = critic([real, fake], to, x_t, t, condition)
        (softplus(-real).mean() + softplus(fake).mean()).backward()
        of_critic.step()

        of_critic.train(False)
        point = move(x_t, predict(student, x_t, t, condition), t, to)
        (fake,) = critic([point], to, x_t, t, condition)
        softplus(-fake).mean().backward()
        of_student.step()

    synchronize = torch.cuda.synchronize if CUDA else lambda: None
    if CUDA:
        torch.cuda.reset_peak_memory_stats()
    seconds = []
    for at in range(arguments.warmup + arguments.repeat):
        synchronize()
        began = time.perf_counter()
        iteration()
        synchronize()
        if at >= arguments.warmup:
            seconds.append(time.perf_counter() - began)
    # On the CPU PyTorch does not count what tensors hold.
    held = dict(peak_bytes=torch.cuda.max_memory_allocated()) if CUDA else {}
    print(
        json.dumps(
            dict(
                program="PyTorch, eager", config=str(arguments.config), size=arguments.size, trains=arguments.trains,
                micro_batch=batch, dtype=arguments.dtype, recompute=arguments.recompute, device=DEVICE,
                threads=arguments.threads, load_seconds=load_seconds, seconds=seconds, **held,
                resident_bytes=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10,
                versions=dict(torch=torch.__version__),
            )
        ),
        flush=True,
    )


main()
