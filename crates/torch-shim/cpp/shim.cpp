// The pieces of libtorch that tch does not bind, behind a C interface.
#include <ATen/ATen.h>
#include <ATen/Context.h>
#include <ATen/detail/CUDAHooksInterface.h>
#include <c10/core/GradMode.h>
#include <c10/core/InferenceMode.h>
#include <dlfcn.h>
#include <malloc.h>
#include <torch/version.h>

#include <cstdlib>
#include <optional>
#include <stdexcept>
#include <string>
#include <vector>

#include "autocast.h"
#include "guard.h"

using at::Tensor;
using flywheel::Autocast;
using flywheel::guard;

namespace {

std::vector<Tensor> list(const Tensor* const* tensors, size_t n) {
  std::vector<Tensor> out;
  out.reserve(n);
  for (size_t i = 0; i < n; ++i) out.push_back(*tensors[i]);
  return out;
}

}  // namespace

extern "C" {

// Valid until the next failing call of the same thread.
const char* fw_error() { return flywheel::last_error.c_str(); }

// Headers and loaded library must be of one release: another one loads without complaint and computes garbage.
int fw_check_version() {
  return guard([] {
    const std::string key = "TORCH_VERSION=", loaded = at::show_config();
    const auto at = loaded.find(key);
    const std::string found =
        at == std::string::npos ? "unknown" : loaded.substr(at + key.size(), loaded.find(',', at) - at - key.size());
    if (found != TORCH_VERSION) {
      throw std::runtime_error("built for libtorch " TORCH_VERSION ", but LD_LIBRARY_PATH gives libtorch " + found);
    }
  });
}

// Makes libtorch's CUDA kernels known to this process. *loaded = 0 when there is no such library at all.
int fw_load_cuda(int* loaded) {
  return guard([&] {
    static const std::string name = "libtorch_cuda.so";
    *loaded = dlopen(name.c_str(), RTLD_NOW | RTLD_GLOBAL) != nullptr;
    if (*loaded) {
      // libtorch looks for CUDA when it is first asked about anything of it, and that once.
      if (at::detail::getCUDAHooks().hasCUDART()) return;
      throw std::runtime_error("libtorch was used before " + name + " was loaded, so it does not know of it");
    }
    const char* text = dlerror();
    const std::string why = text ? text : "unknown reason";
    // The loader names the file that is missing: only our own may be absent, not one that it needs.
    if (why.rfind(name + ": cannot open shared object file: No such file", 0) != 0) throw std::runtime_error(why);
  });
}

int fw_fused_adamw(const Tensor* const* params, const Tensor* const* grads, const Tensor* const* exp_avg,
                   const Tensor* const* exp_avg_sq, const Tensor* const* steps, size_t n, double lr, double beta1,
                   double beta2, double weight_decay, double eps, double grad_scale) {
  return guard([&] {
    c10::NoGradGuard no_grad;
    auto counts = list(steps, n);
    at::_foreach_add_(counts, at::Scalar(1));
    // In the same pass over the gradients, which are left divided.
    std::optional<Tensor> divisor;
    if (grad_scale != 1) divisor = at::full({}, grad_scale, params[0]->options().dtype(at::kFloat).requires_grad(false));
    at::_fused_adamw_(list(params, n), list(grads, n), list(exp_avg, n), list(exp_avg_sq, n), {}, counts, lr, beta1,
                      beta2, weight_decay, eps, /*amsgrad=*/false, /*maximize=*/false, divisor);
  });
}

int fw_global_norm(const Tensor* const* tensors, size_t n, Tensor** out) {
  return guard([&] {
    c10::NoGradGuard no_grad;
    *out = new Tensor(at::linalg_vector_norm(at::stack(at::_foreach_norm(list(tensors, n), 2)), 2));
  });
}

// *overflowed = 1 where a number of any tensor is infinite or none; the tensors are multiplied by factor all the same.
int fw_unscale_all(const Tensor* const* tensors, size_t n, double factor, int* overflowed) {
  return guard([&] {
    c10::NoGradGuard no_grad;
    const auto options = tensors[0]->options().dtype(at::kFloat);
    Tensor found = at::zeros({}, options);
    at::_amp_foreach_non_finite_check_and_unscale_(list(tensors, n), found, at::full({}, factor, options));
    *overflowed = found.item<float>() != 0;
  });
}

// Without a gradient backward hands its own over; with one of zeros it would have to add to it.
int fw_drop_grads(const Tensor* const* tensors, size_t n) {
  return guard([&] {
    for (size_t i = 0; i < n; ++i) tensors[i]->mutable_grad() = Tensor();
  });
}

// 1 where the allocator is glibc's, which alone has these settings.
int fw_memory_for_training() {
  // Read when the first kernel is made. Each shape of a batch makes some, and a step's layers share them; a thousand of
  // them, its default, hold 200 MB and save nothing that can be measured.
  setenv("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "64", /*overwrite=*/0);
#ifdef __GLIBC__
  // The last two also end their adaptation, which would lower them again.
  return mallopt(M_ARENA_MAX, 1) && mallopt(M_TRIM_THRESHOLD, 512 << 20) && mallopt(M_MMAP_THRESHOLD, 128 << 20);
#else
  return 0;
#endif
}

// *flushes = 0 where the processor cannot. Threads begin with the setting of the one that starts them.
int fw_flush_denormals(int* flushes) {
  return guard([&] { *flushes = at::globalContext().setFlushDenormal(true); });
}

// *fast = 1 where the first GPU has units for bfloat16: compute capability 8.0 and newer, which is what cuDNN asks for.
int fw_cuda_bfloat16(int* fast) {
  return guard([&] { *fast = at::detail::getCUDAHooks().supportsBFloat16ConvolutionWithCuDNNv8(); });
}

// From now on this thread computes matrix products and the like in the given format.
int fw_autocast_enter(int cuda, int bfloat16, Autocast** out) {
  return guard([&] { *out = new Autocast(cuda ? at::kCUDA : at::kCPU, true, bfloat16 ? at::kBFloat16 : at::kHalf); });
}

void fw_autocast_exit(Autocast* autocast) { delete autocast; }

int fw_inference_enter(c10::InferenceMode** out) {
  return guard([&] { *out = new c10::InferenceMode(true); });
}

void fw_inference_exit(c10::InferenceMode* guard) { delete guard; }

// Without the destructors of static objects, which may wait for threads that wait for a peer.
void fw_exit(int code) { std::_Exit(code); }
}
