// How errors leave this crate's C++: every function that can fail returns 0 on success, and on failure 1, with the text in
// fw_error() of the same thread. No C++ exception reaches Rust: unwinding into it would be undefined behaviour.
#pragma once
#include <c10/util/Exception.h>

#include <exception>
#include <string>

namespace flywheel {

inline thread_local std::string last_error;

template <class F>
int guard(F&& f) noexcept {
  try {
    f();
    return 0;
  } catch (const c10::Error& e) {
    // what() would carry the C++ stack, some sixty lines.
    last_error = e.what_without_backtrace();
  } catch (const std::exception& e) {
    last_error = e.what();
  } catch (...) {
    last_error = "unknown C++ exception";
  }
  return 1;
}

}  // namespace flywheel
