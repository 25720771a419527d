// What tch lacks, as extern "C" functions over at::Tensor. tch's C_tensor* is at::Tensor*: a tensor that
// comes in is borrowed, a tensor that goes out is allocated here and owned by the caller.
//
// No exception crosses the boundary: a function that can fail returns 0 (or null) after it has stored the
// message that sd_last_error() hands out.

#include <dlfcn.h>
#include <malloc.h>

#include <cstdint>
#include <string>
#include <vector>

#include <ATen/Context.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/_foreach_norm.h>
#include <ATen/ops/_fused_adam.h>
#include <ATen/ops/_fused_adamw.h>
#include <ATen/ops/linalg_vector_norm.h>
#include <ATen/ops/stack.h>
#include <ATen/ops/zeros.h>
#include <c10/core/CachingDeviceAllocator.h>
#include <torch/csrc/autograd/autograd.h>
#include <torch/csrc/autograd/custom_function.h>

namespace {

using at::Tensor;
using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

thread_local std::string last_error;

template <typename F>
auto guarded(F body) -> decltype(body()) {
  try {
    return body();
  } catch (const std::exception& error) {
    last_error = error.what();
  } catch (...) {
    last_error = "an unknown C++ exception";
  }
  return {};
}

std::vector<Tensor> list(Tensor* const* tensors, size_t count) {
  std::vector<Tensor> out;
  out.reserve(count);
  for (size_t i = 0; i < count; ++i) out.push_back(*tensors[i]);
  return out;
}

// The Rust side of a checkpointed segment: `call` runs it, `drop` frees `data`.
struct Segment : torch::CustomClassHolder {
  using Call = Tensor* (*)(void* data, Tensor* const* inputs, size_t count);
  using Drop = void (*)(void* data);

  Segment(Call call, Drop drop, void* data) : call(call), drop(drop), data(data) {}
  ~Segment() override { drop(data); }
  Segment(const Segment&) = delete;
  Segment& operator=(const Segment&) = delete;

  Tensor run(const variable_list& inputs) const {
    std::vector<Tensor*> pointers;
    pointers.reserve(inputs.size());
    for (const auto& input : inputs) pointers.push_back(const_cast<Tensor*>(&input));
    Tensor* out = call(data, pointers.data(), pointers.size());
    TORCH_CHECK(out != nullptr, "the checkpointed segment panicked");
    Tensor result = *out;
    delete out;
    return result;
  }

  Call call;
  Drop drop;
  void* data;
};

// Reentrant activation checkpointing: nothing inside the segment is kept for the backward pass, which runs
// the segment again and differentiates that second run on the spot. Parameters receive their gradients by
// that inner pass. The segment must be deterministic (stepdown's networks have no dropout).
struct Checkpoint : torch::autograd::Function<Checkpoint> {
  // `anchor` requires a gradient, so that the function is recorded even where no input does (the first
  // block of a network whose parameters are trained).
  static Tensor forward(AutogradContext* context, const Tensor& anchor, at::TensorList inputs,
                        const c10::intrusive_ptr<Segment>& segment) {
    context->saved_data["segment"] = c10::IValue::make_capsule(segment);
    context->save_for_backward(inputs.vec());
    return segment->run(inputs.vec());
  }

  static variable_list backward(AutogradContext* context, variable_list grads) {
    auto segment = c10::static_intrusive_pointer_cast<Segment>(
        context->saved_data.at("segment").toCapsule());
    variable_list detached;
    for (const auto& saved : context->get_saved_variables()) {
      auto input = saved.detach();
      input.set_requires_grad(saved.requires_grad());
      detached.push_back(std::move(input));
    }
    {
      at::AutoGradMode record(true);
      auto output = segment->run(detached);
      torch::autograd::backward({output}, {grads.at(0)});
    }
    variable_list out;
    out.reserve(detached.size() + 2);
    out.emplace_back();  // the anchor
    for (const auto& input : detached) out.push_back(input.grad());
    out.emplace_back();  // the segment
    return out;
  }
};

}  // namespace

extern "C" {

const char* sd_last_error() { return last_error.c_str(); }

// Loads the CUDA half of libtorch. Before any other call: the first query of the CUDA hooks caches a stub.
int sd_load_cuda() {
  if (dlopen("libtorch_cuda.so", RTLD_NOW | RTLD_GLOBAL) != nullptr) return 1;
  const char* why = dlerror();
  last_error = why != nullptr ? why : "libtorch_cuda.so cannot be loaded";
  return 0;
}

// glibc gives every large block back to the system when it is freed, and the next tensor pays for fresh, zeroed pages.
// Blocks beyond the threshold still go back: in one heap the holes that they leave would raise the peak.
void sd_keep_freed_memory() {
  mallopt(M_MMAP_THRESHOLD, 64 << 20);
  mallopt(M_TRIM_THRESHOLD, 256 << 20);
}

int sd_fused_adam(Tensor* const* params, Tensor* const* grads, Tensor* const* first_moments,
                  Tensor* const* second_moments, Tensor* const* steps, size_t count, double lr,
                  double beta1, double beta2, double weight_decay, double epsilon, int decoupled_decay) {
  return guarded([&] {
    at::NoGradGuard no_grad;
    auto p = list(params, count), g = list(grads, count), m = list(first_moments, count),
         v = list(second_moments, count), s = list(steps, count);
    if (decoupled_decay) {
      at::_fused_adamw_(p, g, m, v, {}, s, lr, beta1, beta2, weight_decay, epsilon, false, false);
    } else {
      at::_fused_adam_(p, g, m, v, {}, s, lr, beta1, beta2, weight_decay, epsilon, false, false);
    }
    return 1;
  });
}

// The 2-norm over all tensors, as a 0-dimensional FP32 tensor on their device.
Tensor* sd_global_norm(Tensor* const* tensors, size_t count) {
  return guarded([&]() -> Tensor* {
    at::NoGradGuard no_grad;
    auto norms = at::_foreach_norm(list(tensors, count), 2, at::kFloat);
    return new Tensor(at::linalg_vector_norm(at::stack(norms)));
  });
}

int sd_backward(Tensor* const* roots, Tensor* const* grads, size_t count, int keep_graph) {
  return guarded([&] {
    torch::autograd::backward(list(roots, count), list(grads, count), keep_graph != 0);
    return 1;
  });
}

int sd_set_grad(Tensor* tensor, Tensor* grad) {
  return guarded([&] {
    tensor->mutable_grad() = *grad;
    return 1;
  });
}

Tensor* sd_checkpoint(Tensor* const* inputs, size_t count, Segment::Call call, Segment::Drop drop,
                      void* data) {
  // From here on the segment owns `data`, whatever fails.
  auto segment = c10::make_intrusive<Segment>(call, drop, data);
  return guarded([&]() -> Tensor* {
    auto anchor = at::zeros({1}, at::kFloat);
    anchor.set_requires_grad(true);
    auto tensors = list(inputs, count);
    return new Tensor(Checkpoint::apply(anchor, at::TensorList(tensors), segment));
  });
}

int sd_set_numerics(int allow_tf32, int deterministic, int cudnn_benchmark) {
  return guarded([&] {
    auto& context = at::globalContext();
    context.setAllowTF32CuBLAS(allow_tf32 != 0);
    context.setAllowTF32CuDNN(allow_tf32 != 0);
    context.setDeterministicAlgorithms(deterministic != 0, /*warn_only=*/false);
    context.setDeterministicCuDNN(deterministic != 0);
    context.setDeterministicFillUninitializedMemory(false);
    context.setBenchmarkCuDNN(cudnn_benchmark != 0 && deterministic == 0);
    return 1;
  });
}

int sd_set_attention(int flash, int memory_efficient, int cudnn, int math) {
  return guarded([&] {
    auto& context = at::globalContext();
    context.setSDPUseFlash(flash != 0);
    context.setSDPUseMemEfficient(memory_efficient != 0);
    context.setSDPUseCuDNN(cudnn != 0);
    context.setSDPUseMath(math != 0);
    return 1;
  });
}

// Writes {allocated, peak allocated, reserved, peak reserved} in bytes.
int sd_cuda_memory(int device, int64_t* out) {
  return guarded([&] {
    auto index = static_cast<c10::DeviceIndex>(device);
    auto stats = at::getDeviceAllocator(c10::DeviceType::CUDA)->getDeviceStats(index);
    out[0] = stats.allocated_bytes[0].current;
    out[1] = stats.allocated_bytes[0].peak;
    out[2] = stats.reserved_bytes[0].current;
    out[3] = stats.reserved_bytes[0].peak;
    return 1;
  });
}

int sd_cuda_reset_peak(int device) {
  return guarded([&] {
    at::getDeviceAllocator(c10::DeviceType::CUDA)
        ->resetPeakStats(static_cast<c10::DeviceIndex>(device));
    return 1;
  });
}

int sd_cuda_empty_cache() {
  return guarded([&] {
    at::getDeviceAllocator(c10::DeviceType::CUDA)->emptyCache();
    return 1;
  });
}

}  // extern "C"
