#include "settings.h"

#include <time.h>

#include <cstdlib>

namespace softgpu {
namespace {

long number(const char* name, long otherwise) {
  const char* v = std::getenv(name);
  return v && *v ? std::strtol(v, nullptr, 0) : otherwise;
}
std::string text(const char* name) {
  const char* v = std::getenv(name);
  return v ? v : "";
}

Settings from_environment() {
  Settings s;
  s.arch = number("SOFTGPU_ARCH", 90);
  s.devices = number("SOFTGPU_DEVICES", 1);
  s.sms = number("SOFTGPU_SMS", s.arch >= 90 ? 132 : 108);
  s.memory = u64(number("SOFTGPU_MEMORY_GB", 16)) << 30;
  s.trace = number("SOFTGPU_TRACE", 0);
  s.fill = number("SOFTGPU_FILL", 1);
  s.check_bounds = number("SOFTGPU_CHECK", 1);
  s.check_races = number("SOFTGPU_RACES", 0);
  s.seed = number("SOFTGPU_SEED", 0);
  s.async_default = number("SOFTGPU_ASYNC", 0);
  s.dump = text("SOFTGPU_DUMP");
  s.count = text("SOFTGPU_COUNT");
  return s;
}

}  // namespace

const Settings& settings() {
  static const Settings made = from_environment();
  return made;
}

u64 nanoseconds() {
  timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return u64(t.tv_sec) * 1000000000 + t.tv_nsec;
}

}  // namespace softgpu
