// What the environment says the device is; README.md lists the variables.
#pragma once
#include <string>

#include "../ptx/text.h"

namespace softgpu {

struct Settings {
  int arch = 90;
  int devices = 1;
  int sms = 132;
  u64 memory = 16ull << 30;
  bool trace = false;
  bool fill = true;  // new memory holds 0xff, a NaN of every width
  bool check_bounds = true;
  bool check_races = false;
  u32 seed = 0;                // order of blocks and warps: 0 ascending, 1 descending, else random
  bool async_default = false;  // the default stream is a thread, too
  std::string dump;            // folder for the PTX of every module
  std::string count;           // file for a line per launch
};

const Settings& settings();
u64 nanoseconds();  // of the host's monotonic clock

}  // namespace softgpu
