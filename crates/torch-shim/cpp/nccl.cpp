// libflywheel_nccl.so: makes c10d's NCCL group for cpp/collective.cpp, which loads it where a training has several GPUs. A
// library of its own, because it needs libtorch_cuda, which images without a GPU do not have, and CUDA's headers, which a
// build without one does not have. `make nccl` builds it.
//
// Not run on hardware yet: it is compiled and linked only.
#include <torch/csrc/distributed/c10d/ProcessGroupNCCL.hpp>

extern "C" c10d::Backend* flywheel_make_nccl(const c10::intrusive_ptr<c10d::Store>& store, int rank, int size,
                                             std::chrono::milliseconds timeout) {
  auto options = c10d::ProcessGroupNCCL::Options::create();
  options->timeout = timeout;
  c10::intrusive_ptr<c10d::Backend> backend =
      c10::make_intrusive<c10d::ProcessGroupNCCL>(store, rank, size, std::move(options));
  return backend.release();
}
