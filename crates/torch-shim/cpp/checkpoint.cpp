// Activation checkpointing: a part of the forward pass keeps its input only, and is computed again in the backward pass.
#include <ATen/Context.h>
#include <ATen/core/Generator.h>
#include <c10/core/GradMode.h>
#include <torch/csrc/autograd/autograd.h>
#include <torch/csrc/autograd/custom_function.h>

#include <memory>
#include <mutex>
#include <stdexcept>
#include <string>

#include "autocast.h"
#include "guard.h"

using at::Tensor;
using flywheel::Autocast;
using flywheel::guard;
using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

namespace {

// Gives the output, or why there is none; that text lives until the next call.
using Compute = const char* (*)(void* context, const Tensor* input, Tensor** output);
using Release = void (*)(void* context);

struct Segment : torch::CustomClassHolder {
  Segment(void* context, Compute compute, Release release) : context(context), compute(compute), release(release) {}
  ~Segment() override { release(context); }

  Tensor run(const Tensor& input) const {
    Tensor* out = nullptr;
    if (const char* why = compute(context, &input, &out)) throw std::runtime_error(why);
    const std::unique_ptr<Tensor> owned(out);
    return *owned;
  }

  void* context;
  Compute compute;
  Release release;
};

// Draws of the default generator from a state on, and afterwards as if there had been none.
class Replayed {
 public:
  Replayed(at::Device device, const Tensor& state) : generator_(at::globalContext().defaultGenerator(device)) {
    const std::lock_guard<std::mutex> lock(generator_.mutex());
    before_ = generator_.get_state();
    generator_.set_state(state);
  }
  ~Replayed() {
    const std::lock_guard<std::mutex> lock(generator_.mutex());
    generator_.set_state(before_);
  }
  Replayed(const Replayed&) = delete;
  Replayed& operator=(const Replayed&) = delete;

 private:
  at::Generator generator_;
  Tensor before_;
};

struct Recomputed : torch::autograd::Function<Recomputed> {
  static Tensor forward(AutogradContext* ctx, const Tensor& input, const c10::intrusive_ptr<Segment>& segment) {
    const auto device = input.device();
    {
      at::Generator generator = at::globalContext().defaultGenerator(device);
      const std::lock_guard<std::mutex> lock(generator.mutex());
      ctx->saved_data["generator"] = generator.get_state();
    }
    ctx->saved_data["segment"] = c10::IValue::make_capsule(segment);
    ctx->saved_data["autocast"] = at::autocast::is_autocast_enabled(device.type());
    ctx->saved_data["kind"] = static_cast<int64_t>(at::autocast::get_autocast_dtype(device.type()));
    ctx->save_for_backward({input});
    return segment->run(input);
  }

  // On a GPU's own thread where the input lies on one; what a thread is set to is therefore set here.
  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    const Tensor input = ctx->get_saved_variables()[0].detach().requires_grad_(true);
    const auto segment = c10::static_intrusive_pointer_cast<Segment>(ctx->saved_data["segment"].toCapsule());
    Tensor output;
    {
      const c10::AutoGradMode record(true);
      const Replayed replayed(input.device(), ctx->saved_data["generator"].toTensor());
      const Autocast autocast(input.device().type(), ctx->saved_data["autocast"].toBool(),
                              static_cast<at::ScalarType>(ctx->saved_data["kind"].toInt()));
      // Not the leaf itself: autocast would convert that once for all who use it, and their gradients would be added up in
      // the short format.
      output = segment->run(input.view_as(input));
    }
    torch::autograd::backward({output}, {grads[0]});
    return {input.grad(), Tensor()};
  }
};

}  // namespace

extern "C" {

// The output of compute(input), one tensor. Takes context over; it is released with the graph, on whatever thread.
int fw_recomputed(const Tensor* input, void* context, Compute compute, Release release, Tensor** out) {
  return guard([&] {
    const auto segment = c10::make_intrusive<Segment>(context, compute, release);
    *out = new Tensor(Recomputed::apply(*input, segment));
  });
}
}
