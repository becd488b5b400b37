// Autocast as torch.autocast sets it, for as long as a value of this type lives on its thread.
#pragma once
#include <ATen/autocast_mode.h>

namespace flywheel {

class Autocast {
 public:
  Autocast(at::DeviceType device, bool enabled, at::ScalarType kind)
      : device_(device),
        enabled_(at::autocast::is_autocast_enabled(device)),
        kind_(at::autocast::get_autocast_dtype(device)) {
    at::autocast::set_autocast_enabled(device, enabled);
    at::autocast::set_autocast_dtype(device, kind);
    at::autocast::increment_nesting();
  }
  ~Autocast() {
    // Weights that were converted are kept to the end of the outermost: they change with the next step.
    if (at::autocast::decrement_nesting() == 0) at::autocast::clear_cache();
    at::autocast::set_autocast_enabled(device_, enabled_);
    at::autocast::set_autocast_dtype(device_, kind_);
  }
  Autocast(const Autocast&) = delete;
  Autocast& operator=(const Autocast&) = delete;

 private:
  at::DeviceType device_;
  bool enabled_;
  at::ScalarType kind_;
};

}  // namespace flywheel
