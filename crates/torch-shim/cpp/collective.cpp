// Processes that compute together: c10d's store and process groups, and the sum of gradients while backward runs.
#include <ATen/ATen.h>
#include <c10/core/GradMode.h>
#include <dlfcn.h>
#include <torch/csrc/distributed/c10d/Backend.hpp>
#include <torch/csrc/distributed/c10d/PrefixStore.hpp>
#include <torch/csrc/distributed/c10d/ProcessGroupGloo.hpp>
#include <torch/csrc/distributed/c10d/TCPStore.hpp>

#include <algorithm>
#include <chrono>
#include <mutex>
#include <stdexcept>
#include <vector>

#include "guard.h"

using at::Tensor;
using flywheel::guard;
using std::chrono::milliseconds;

namespace {

using Backend = c10::intrusive_ptr<c10d::Backend>;
using Work = c10::intrusive_ptr<c10d::Work>;

struct Store {
  c10::intrusive_ptr<c10d::TCPStore> tcp;
};

struct Group {
  c10::intrusive_ptr<c10d::Store> store;
  Backend backend;
};

// What libflywheel_nccl.so exports (cpp/nccl.cpp).
using MakeNccl = c10d::Backend* (*)(const c10::intrusive_ptr<c10d::Store>&, int rank, int size, milliseconds timeout);

Backend nccl(const c10::intrusive_ptr<c10d::Store>& store, int rank, int size, milliseconds timeout) {
  void* library = dlopen("libflywheel_nccl.so", RTLD_NOW | RTLD_GLOBAL);
  void* make = library ? dlsym(library, "flywheel_make_nccl") : nullptr;
  if (!make) {
    const char* why = dlerror();
    throw std::runtime_error(std::string("several GPUs need libflywheel_nccl.so beside libtorch_cuda.so: ") +
                             (why ? why : "unknown reason"));
  }
  return Backend::reclaim(reinterpret_cast<MakeNccl>(make)(store, rank, size, timeout));
}

Work all_reduce(const Backend& backend, const Tensor& tensor) {
  std::vector<Tensor> one{tensor};
  return backend->allreduce(one);
}

void broadcast(const Backend& backend, const Tensor& tensor) {
  std::vector<Tensor> one{tensor};
  c10d::BroadcastOptions from_first;
  from_first.rootRank = 0;
  backend->broadcast(one, from_first)->wait();
}

// Adds gradients up over all processes, in flat buckets, each sent as soon as its last gradient is there.
//
// What allows this: a hook of a leaf runs once in a backward, with its whole gradient, while nodes nearer to the inputs
// are still to come; and c10d computes on threads of its own. Which gradients come first is only known after the first
// backward; rank 0's order is then everybody's, since buckets must be sent in one order by all.
class Reducer {
 public:
  Reducer(Backend backend, std::vector<Tensor> params, size_t bucket_bytes)
      : backend_(std::move(backend)), params_(std::move(params)), bucket_bytes_(bucket_bytes), places_(params_.size()) {
    for (size_t i = 0; i < params_.size(); ++i) {
      if (params_[i].options().dtype() != params_[0].options().dtype() || params_[i].device() != params_[0].device()) {
        throw std::runtime_error("parameters of several types or devices cannot be trained together");
      }
    }
    hooks_.reserve(params_.size());
    try {
      for (size_t i = 0; i < params_.size(); ++i) {
        hooks_.push_back(params_[i].register_hook([this, i](Tensor grad) { arrived(i, grad); }));
      }
    } catch (...) {
      remove_hooks();
      throw;
    }
  }

  ~Reducer() { remove_hooks(); }
  Reducer(const Reducer&) = delete;
  Reducer& operator=(const Reducer&) = delete;

  // Before the last backward of each step: what earlier ones of the step have given is taken along.
  void begin() {
    const std::lock_guard<std::mutex> lock(mutex_);
    here_.assign(params_.size(), false);
    order_.clear();
    next_ = 0;
    failure_ = nullptr;
    for (auto& bucket : buckets_) {
      bucket.missing = bucket.params;
      bucket.work.reset();
    }
  }

  // After it: every gradient is the sum over all processes.
  void finish() {
    const std::lock_guard<std::mutex> lock(mutex_);
    c10::NoGradGuard no_grad;
    if (failure_) std::rethrow_exception(failure_);
    if (buckets_.empty()) {
      plan();
      for (size_t i = 0; i < params_.size(); ++i) {
        fill(i, params_[i].grad());
        ready(i);
      }
    }
    if (next_ != buckets_.size()) throw std::runtime_error("the loss does not depend on every parameter");
    for (auto& bucket : buckets_) bucket.work->wait();
    for (size_t i = 0; i < params_.size(); ++i) params_[i].mutable_grad() = view(i);
  }

 private:
  struct Bucket {
    Tensor flat;
    size_t params = 0;
    size_t missing = 0;
    Work work;
  };
  struct Place {
    size_t bucket = 0;
    int64_t begin = 0;
  };

  void remove_hooks() {
    for (size_t i = 0; i < hooks_.size(); ++i) params_[i].remove_hook(hooks_[i]);
    hooks_.clear();
  }

  // On the thread of the backward. What fails here is told by finish(), as a failure of the processes together and not of
  // the backward.
  void arrived(size_t i, const Tensor& grad) {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (failure_ || here_.size() != params_.size() || here_[i]) return;
    here_[i] = true;
    try {
      if (buckets_.empty()) {
        order_.push_back(static_cast<int64_t>(i));
      } else {
        c10::NoGradGuard no_grad;
        fill(i, grad);
        // From passes before this one, over other rows of the same step.
        const Tensor earlier = params_[i].grad();
        if (earlier.defined()) view(i).add_(earlier);
        ready(i);
      }
    } catch (...) {
      failure_ = std::current_exception();
    }
  }

  void plan() {
    const auto n = static_cast<int64_t>(params_.size());
    if (static_cast<int64_t>(order_.size()) != n) throw std::runtime_error("the loss does not depend on every parameter");
    Tensor order = at::tensor(order_, at::kLong).to(params_[0].device());
    broadcast(backend_, order);
    order = order.cpu();
    const int64_t* first = order.const_data_ptr<int64_t>();
    std::vector<bool> seen(params_.size(), false);
    std::vector<int64_t> sizes;
    std::vector<Place> places(params_.size());
    std::vector<size_t> counts;
    const auto limit = static_cast<int64_t>(bucket_bytes_ / params_[0].element_size());
    for (int64_t k = 0; k < n; ++k) {
      const int64_t i = first[k];
      if (i < 0 || i >= n || seen[i]) throw std::runtime_error("process 0 names no order of the parameters");
      seen[i] = true;
      const int64_t size = params_[i].numel();
      if (sizes.empty() || sizes.back() + size > limit) {
        sizes.push_back(0);
        counts.push_back(0);
      }
      places[i] = Place{sizes.size() - 1, sizes.back()};
      sizes.back() += size;
      counts.back() += 1;
    }
    std::vector<Bucket> buckets(sizes.size());
    for (size_t b = 0; b < sizes.size(); ++b) {
      buckets[b].flat = at::empty({sizes[b]}, params_[0].options().requires_grad(false));
      buckets[b].params = buckets[b].missing = counts[b];
    }
    places_ = std::move(places);
    buckets_ = std::move(buckets);
  }

  Tensor view(size_t i) const {
    const Place& place = places_[i];
    return buckets_[place.bucket].flat.narrow(0, place.begin, params_[i].numel()).view(params_[i].sizes());
  }

  // A gradient of few rows travels in full.
  void fill(size_t i, const Tensor& grad) {
    Tensor place = view(i);
    if (grad.is_sparse()) {
      place.zero_().add_(grad);
    } else {
      place.copy_(grad);
    }
  }

  void ready(size_t i) {
    --buckets_[places_[i].bucket].missing;
    for (; next_ < buckets_.size() && buckets_[next_].missing == 0; ++next_) {
      buckets_[next_].work = all_reduce(backend_, buckets_[next_].flat);
    }
  }

  Backend backend_;
  std::vector<Tensor> params_;
  size_t bucket_bytes_;
  std::vector<unsigned> hooks_;
  std::mutex mutex_;
  // Empty before the first backward is over.
  std::vector<Bucket> buckets_;
  std::vector<Place> places_;
  // The first bucket that is not sent.
  size_t next_ = 0;
  // Whose gradients have come, and before there are buckets in which order.
  std::vector<bool> here_;
  std::vector<int64_t> order_;
  std::exception_ptr failure_;
};

}  // namespace

extern "C" {

// Listens on a free port of all addresses, or connects to host:port. *port is the one that it listens on or connects to.
int fw_store_open(const char* host, uint16_t* port, int listen, int64_t timeout_ms, Store** out) {
  return guard([&] {
    c10d::TCPStoreOptions options;
    options.port = *port;
    options.isServer = listen != 0;
    options.waitWorkers = false;
    options.timeout = milliseconds(timeout_ms);
    auto tcp = c10::make_intrusive<c10d::TCPStore>(host, options);
    *port = tcp->getPort();
    *out = new Store{std::move(tcp)};
  });
}

void fw_store_free(Store* store) {
  guard([&] { delete store; });
}

// A group over Gloo, which listens on `address` of this host. join_ms: to come together; timeout_ms: of each operation.
int fw_group_gloo(Store* store, const char* address, int rank, int size, int64_t join_ms, int64_t timeout_ms,
                  Group** out) {
  return guard([&] {
    c10::intrusive_ptr<c10d::Store> own = c10::make_intrusive<c10d::PrefixStore>("gloo", store->tcp);
    auto options = c10d::ProcessGroupGloo::Options::create(milliseconds(join_ms));
    options->devices.push_back(c10d::ProcessGroupGloo::createDeviceForHostname(address));
    Backend gloo = c10::make_intrusive<c10d::ProcessGroupGloo>(own, rank, size, options);
    gloo->setTimeout(milliseconds(timeout_ms));
    *out = new Group{std::move(own), std::move(gloo)};
  });
}

// A group over NCCL, for tensors on this process's GPU.
int fw_group_nccl(Store* store, int rank, int size, int64_t timeout_ms, Group** out) {
  return guard([&] {
    c10::intrusive_ptr<c10d::Store> own = c10::make_intrusive<c10d::PrefixStore>("nccl", store->tcp);
    auto backend = nccl(own, rank, size, milliseconds(timeout_ms));
    *out = new Group{std::move(own), std::move(backend)};
  });
}

void fw_group_free(Group* group) {
  guard([&] { delete group; });
}

int fw_all_reduce(Group* group, const Tensor* tensor, Work** out) {
  return guard([&] { *out = new Work(all_reduce(group->backend, *tensor)); });
}

int fw_work_wait(Work* work) {
  return guard([&] { (*work)->wait(); });
}

void fw_work_free(Work* work) {
  guard([&] { delete work; });
}

int fw_broadcast(Group* group, const Tensor* tensor) {
  return guard([&] { broadcast(group->backend, *tensor); });
}

int fw_barrier(Group* group) {
  return guard([&] { group->backend->barrier()->wait(); });
}

int fw_reducer_make(Group* group, const Tensor* const* params, size_t n, size_t bucket_bytes, Reducer** out) {
  return guard([&] {
    std::vector<Tensor> all;
    all.reserve(n);
    for (size_t i = 0; i < n; ++i) all.push_back(*params[i]);
    *out = new Reducer(group->backend, std::move(all), bucket_bytes);
  });
}

int fw_reducer_begin(Reducer* reducer) {
  return guard([&] { reducer->begin(); });
}

int fw_reducer_finish(Reducer* reducer) {
  return guard([&] { reducer->finish(); });
}

void fw_reducer_free(Reducer* reducer) {
  guard([&] { delete reducer; });
}
}
