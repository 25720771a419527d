// Meters of tensor memory and arithmetic, and a device that has neither: see src/meter.rs.
//
// A meter is active on the thread that started it. Every storage that is allocated there, on the CPU or on
// libtorch's meta device, is charged to it until it is freed, on whichever thread that happens. The products,
// convolutions and attentions of the meta device are counted.
//
// The meta device computes shapes and nothing else. tch has no name for it: its tensors say that they are on
// MPS, an Apple device that libtorch for Linux knows and has no kernels for. So MPS is where phantoms live:
// whoever asks for memory there gets a tensor of the meta device. Kernels that libtorch has in Python alone
// are added below; each allocates what its CUDA counterpart allocates.

#include <atomic>
#include <cstdint>
#include <cstring>
#include <memory>
#include <mutex>
#include <tuple>
#include <unordered_map>
#include <vector>

#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/empty_strided.h>
#include <ATen/record_function.h>
#include <c10/core/Allocator.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

namespace {

using at::IntArrayRef;
using at::Tensor;
using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

struct Meter {
  std::atomic<int64_t> live{0}, peak{0};
  std::atomic<double> operations{0};

  void charge(int64_t bytes) {
    int64_t now = live.fetch_add(bytes) + bytes;
    int64_t most = peak.load();
    while (now > most && !peak.compare_exchange_weak(most, now)) {
    }
  }
  void count(double more) { operations.store(operations.load() + more); }
};

thread_local std::shared_ptr<Meter> active;

// Memory that was charged to a meter, given back when this goes.
struct Charge {
  Charge(std::shared_ptr<Meter> to, size_t bytes) : meter(std::move(to)), bytes(rounded(bytes)) {
    meter->charge(this->bytes);
  }
  ~Charge() { meter->live.fetch_sub(bytes); }
  Charge(const Charge&) = delete;
  Charge& operator=(const Charge&) = delete;

  // Blocks of 512 bytes, as the caching allocator of CUDA hands them out.
  static int64_t rounded(size_t bytes) { return static_cast<int64_t>((bytes + 511) / 512 * 512); }

  std::shared_ptr<Meter> meter;
  int64_t bytes;
};

// The CPU's allocator, with charges. libtorch wants a block's context to be the block, so charges lie in a
// table beside it.
class MeteredCpu final : public c10::Allocator {
 public:
  static MeteredCpu& get() {
    static MeteredCpu allocator;
    return allocator;
  }

  c10::DataPtr allocate(size_t bytes) override {
    if (active == nullptr || bytes == 0) return inner->allocate(bytes);
    void* data = inner->raw_allocate(bytes);
    std::lock_guard<std::mutex> lock(mutex);
    charges.emplace(data, std::make_unique<Charge>(active, bytes));
    return {data, data, &release, at::kCPU};
  }

  c10::DeleterFnPtr raw_deleter() const override { return &release; }
  void copy_data(void* to, const void* from, size_t bytes) const override { default_copy_data(to, from, bytes); }

 private:
  MeteredCpu() : inner(c10::GetAllocator(c10::kCPU)) {}

  static void release(void* data) {
    auto& self = get();
    {
      std::lock_guard<std::mutex> lock(self.mutex);
      self.charges.erase(data);
    }
    self.inner->raw_deallocate(data);
  }

  c10::Allocator* inner;
  std::mutex mutex;
  std::unordered_map<void*, std::unique_ptr<Charge>> charges;
};

// The meta device's allocator, which hands out nothing, with charges.
class MeteredMeta final : public c10::Allocator {
 public:
  c10::DataPtr allocate(size_t bytes) override {
    auto* charge = active != nullptr && bytes > 0 ? new Charge(active, bytes) : nullptr;
    return {nullptr, charge, &release, at::kMeta};
  }

  void copy_data(void*, const void*, size_t) const override {}

 private:
  static void release(void* charge) { delete static_cast<Charge*>(charge); }
};

void meter_allocators() {
  static const bool done = [] {
    static MeteredMeta meta;
    constexpr uint8_t kPriority = 100;
    c10::SetAllocator(c10::kCPU, &MeteredCpu::get(), kPriority);
    c10::SetAllocator(c10::kMeta, &meta, kPriority);
    return true;
  }();
  (void)done;
}

double elements(const c10::IValue& value) {
  return value.isTensor() && value.toTensor().defined() ? static_cast<double>(value.toTensor().numel()) : 0;
}

double last_side(const c10::IValue& value) { return static_cast<double>(value.toTensor().size(-1)); }

// Multiplications and additions of one operation, each counted as one.
double operations_of(const char* name, c10::ArrayRef<const c10::IValue> inputs) {
  auto is = [&](const char* other) { return std::strcmp(name, other) == 0; };
  if (is("aten::mm") || is("aten::bmm")) return 2 * elements(inputs[0]) * last_side(inputs[1]);
  if (is("aten::addmm") || is("aten::baddbmm")) return 2 * elements(inputs[1]) * last_side(inputs[2]);
  if (is("aten::convolution_backward")) {
    // (grad_output, input, weight, ...): once for the input and once for the weight, where they are wanted.
    const auto& weight = inputs[2].toTensor();
    const auto mask = inputs[10].toBoolList();
    return (mask[0] + mask[1]) * 2 * elements(inputs[0]) * static_cast<double>(weight.numel() / weight.size(0));
  }
  return 0;
}

std::unique_ptr<at::ObserverContext> observe(const at::RecordFunction& function) {
  auto inputs = function.inputs();
  if (active != nullptr && !inputs.empty() && inputs[0].isTensor() && inputs[0].toTensor().is_meta()) {
    double more = operations_of(function.name(), inputs);
    if (more > 0) active->count(more);
  }
  return nullptr;
}

thread_local at::CallbackHandle observer = at::INVALID_CALLBACK_HANDLE;

// Kernels of the meta device. -------------------------------------------------------------------------

Tensor like(const Tensor& x, IntArrayRef size, at::ScalarType type) {
  return at::empty(size, x.options().dtype(type));
}

Tensor maybe_like(bool wanted, const Tensor& x) {
  return wanted ? at::empty_like(x, at::MemoryFormat::Contiguous) : Tensor();
}

Tensor empty_phantom(IntArrayRef size, std::optional<at::ScalarType> type, std::optional<at::Layout>,
                     std::optional<at::Device>, std::optional<bool>, std::optional<at::MemoryFormat> format) {
  return at::empty(size, at::TensorOptions().dtype(type).device(at::kMeta), format);
}

Tensor empty_strided_phantom(IntArrayRef size, IntArrayRef stride, std::optional<at::ScalarType> type,
                             std::optional<at::Layout>, std::optional<at::Device>, std::optional<bool>) {
  return at::empty_strided(size, stride, at::TensorOptions().dtype(type).device(at::kMeta));
}

Tensor convolution(const Tensor& input, const Tensor& weight, const std::optional<Tensor>&, IntArrayRef stride,
                   IntArrayRef padding, IntArrayRef dilation, bool transposed, IntArrayRef, int64_t) {
  TORCH_CHECK(!transposed, "the phantom device has no transposed convolution");
  // One number stands for all sides.
  auto side = [](IntArrayRef values, size_t i) { return values[values.size() == 1 ? 0 : i]; };
  std::vector<int64_t> size{input.size(0), weight.size(0)};
  for (int64_t i = 2; i < input.dim(); ++i) {
    auto kernel = side(dilation, i - 2) * (weight.size(i) - 1) + 1;
    size.push_back((input.size(i) + 2 * side(padding, i - 2) - kernel) / side(stride, i - 2) + 1);
  }
  auto out = like(input, size, input.scalar_type());
  if (active != nullptr) {
    active->count(2.0 * static_cast<double>(out.numel()) * static_cast<double>(weight.numel() / weight.size(0)));
  }
  return out;
}

std::tuple<Tensor, Tensor, Tensor> convolution_backward(const Tensor& grad, const Tensor& input,
                                                        const Tensor& weight, at::OptionalIntArrayRef, IntArrayRef,
                                                        IntArrayRef, IntArrayRef, bool, IntArrayRef, int64_t,
                                                        std::array<bool, 3> wanted) {
  auto bias = wanted[2] ? like(grad, {grad.size(1)}, grad.scalar_type()) : Tensor();
  return {maybe_like(wanted[0], input), maybe_like(wanted[1], weight), bias};
}

std::tuple<Tensor, Tensor, Tensor> group_norm(const Tensor& input, const std::optional<Tensor>&,
                                              const std::optional<Tensor>&, int64_t batch, int64_t, int64_t,
                                              int64_t groups, double) {
  auto statistic = [&] { return like(input, {batch, groups}, input.scalar_type()); };
  return {maybe_like(true, input), statistic(), statistic()};
}

std::tuple<Tensor, Tensor, Tensor> group_norm_backward(const Tensor&, const Tensor& input, const Tensor&,
                                                       const Tensor&, const std::optional<Tensor>&, int64_t,
                                                       int64_t channels, int64_t, int64_t,
                                                       std::array<bool, 3> wanted) {
  auto parameter = [&](bool is) { return is ? like(input, {channels}, input.scalar_type()) : Tensor(); };
  return {maybe_like(wanted[0], input), parameter(wanted[1]), parameter(wanted[2])};
}

std::tuple<Tensor, Tensor, Tensor> layer_norm(const Tensor& input, IntArrayRef shape, const std::optional<Tensor>&,
                                              const std::optional<Tensor>&, double) {
  std::vector<int64_t> size(input.sizes().begin(), input.sizes().end());
  std::fill(size.end() - static_cast<int64_t>(shape.size()), size.end(), 1);
  auto statistic = [&] { return like(input, size, at::kFloat); };
  return {maybe_like(true, input), statistic(), statistic()};
}

std::tuple<Tensor, Tensor, Tensor> layer_norm_backward(const Tensor&, const Tensor& input, IntArrayRef shape,
                                                       const Tensor&, const Tensor&, const std::optional<Tensor>&,
                                                       const std::optional<Tensor>&, std::array<bool, 3> wanted) {
  auto parameter = [&](bool is) { return is ? like(input, shape, input.scalar_type()) : Tensor(); };
  return {maybe_like(wanted[0], input), parameter(wanted[1]), parameter(wanted[2])};
}

// Attention as the fused kernels do it: the scores are never stored, their log-sums are.
struct FusedAttention : torch::autograd::Function<FusedAttention> {
  static Tensor forward(AutogradContext* context, const Tensor& query, const Tensor& key, const Tensor& value) {
    auto batch = query.size(0), heads = query.size(1), length = query.size(2), width = query.size(3);
    auto out = like(query, {batch, length, heads, width}, query.scalar_type()).transpose(1, 2);
    auto log_sums = like(query, {batch, heads, length}, at::kFloat);
    context->save_for_backward({query, key, value, out, log_sums});
    count(query, key, 2);
    return out;
  }

  static variable_list backward(AutogradContext* context, variable_list) {
    auto saved = context->get_saved_variables();
    auto gradient = [](const Tensor& x) { return at::empty_like(x); };
    variable_list out{gradient(saved[0]), gradient(saved[1]), gradient(saved[2])};
    // Gradients of the query are added up in FP32, and the sums over its rows are FP32 too.
    auto row_sums = at::empty_like(saved[4]);
    auto sums = saved[0].scalar_type() == at::kFloat ? Tensor() : like(saved[0], saved[0].sizes(), at::kFloat);
    // Two products again for the scores, and two for each of query, key and value together with them.
    count(saved[0], saved[1], 5);
    return out;
  }

  static void count(const Tensor& query, const Tensor& key, double products) {
    if (active != nullptr) {
      active->count(products * 2.0 * static_cast<double>(query.numel()) * static_cast<double>(key.size(2)));
    }
  }
};

Tensor attention(const Tensor& query, const Tensor& key, const Tensor& value, const std::optional<Tensor>& mask,
                 double dropout, bool, std::optional<double>, bool) {
  TORCH_CHECK((!mask || !mask->defined()) && dropout == 0, "the phantom device has attention without mask and dropout");
  return FusedAttention::apply(query, key, value);
}

}  // namespace

namespace at {
// Where phantoms are said to live: there is nothing to guard.
C10_REGISTER_GUARD_IMPL(MPS, c10::impl::NoOpDeviceGuardImpl<c10::DeviceType::MPS>)
}  // namespace at

TORCH_LIBRARY_IMPL(aten, MPS, library) {
  library.impl("empty.memory_format", &empty_phantom);
  library.impl("empty_strided", &empty_strided_phantom);
}

TORCH_LIBRARY_IMPL(aten, Meta, library) {
  library.impl("convolution", &convolution);
  library.impl("convolution_backward", &convolution_backward);
  library.impl("native_group_norm", &group_norm);
  library.impl("native_group_norm_backward", &group_norm_backward);
  library.impl("native_layer_norm", &layer_norm);
  library.impl("native_layer_norm_backward", &layer_norm_backward);
}

TORCH_LIBRARY_IMPL(aten, AutogradMeta, library) { library.impl("scaled_dot_product_attention", &attention); }

extern "C" {

// Makes a meter and activates it on this thread, in place of any other.
void* sd_meter_start() {
  meter_allocators();
  auto* meter = new std::shared_ptr<Meter>(std::make_shared<Meter>());
  active = *meter;
  if (observer == at::INVALID_CALLBACK_HANDLE) {
    auto callback = at::RecordFunctionCallback(&observe).needsInputs(true);
    observer = at::addThreadLocalCallback(callback.scopes({at::RecordScope::FUNCTION}));
  }
  return meter;
}

// Writes {bytes live, most bytes live} and the operations.
void sd_meter_read(void* handle, int64_t* bytes, double* operations) {
  auto& meter = **static_cast<std::shared_ptr<Meter>*>(handle);
  bytes[0] = meter.live.load();
  bytes[1] = meter.peak.load();
  *operations = meter.operations.load();
}

// Sets the peak back to what is live, and the operations to none.
void sd_meter_restart(void* handle) {
  auto& meter = **static_cast<std::shared_ptr<Meter>*>(handle);
  meter.peak.store(meter.live.load());
  meter.operations.store(0);
}

// Deactivates and forgets a meter; storages charged to it keep it alive for themselves.
void sd_meter_stop(void* handle) {
  auto* meter = static_cast<std::shared_ptr<Meter>*>(handle);
  if (active == *meter) {
    active = nullptr;
    at::removeCallback(observer);
    observer = at::INVALID_CALLBACK_HANDLE;
  }
  delete meter;
}

}  // extern "C"
