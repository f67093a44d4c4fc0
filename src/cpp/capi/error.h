// Errors of the C interface: thrown inside of it, a status and a message outside.
#pragma once

#include <new>
#include <stdexcept>
#include <string>

#include "capi/include/mxfp4moe.h"

namespace mxfp4moe::capi {

struct Error {
  mxfp4moe_status status;
  std::string text;
};

[[noreturn]] inline void fail(mxfp4moe_status status, const std::string& name, const std::string& expected,
                              const std::string& got) {
  throw Error{status, name + ": expected " + expected + ", got " + got};
}

[[noreturn]] inline void invalid(const std::string& name, const std::string& expected, const std::string& got) {
  fail(MXFP4MOE_INVALID_ARGUMENT, name, expected, got);
}

void set_last_error(const char* text);

// The number as it is shown in errors.
std::string text_of(double value);
inline std::string text_of(int64_t value) { return std::to_string(value); }

// Runs the body of a function of the C interface.
template <class Body>
mxfp4moe_status guarded(Body&& body) noexcept {
  try {
    body();
    return MXFP4MOE_OK;
  } catch (const Error& error) {
    set_last_error(error.text.c_str());
    return error.status;
  } catch (const std::bad_alloc&) {
    set_last_error("no memory");
    return MXFP4MOE_OUT_OF_MEMORY;
  } catch (const std::length_error&) {  // of a container that could never be so long
    set_last_error("no memory");
    return MXFP4MOE_OUT_OF_MEMORY;
  } catch (...) {
    set_last_error("an internal error");
    return MXFP4MOE_INTERNAL_ERROR;
  }
}

}  // namespace mxfp4moe::capi
