// Finds what compute-sanitizer's racecheck, initcheck and synccheck look for, and what they do not: the memory order of
// the PTX ISA, "Memory Consistency Model". Memory itself is not weak here: a program without races behaves as on a GPU,
// one with a race is reported, also where this schedule happened to give the right result.
#pragma once
#include <memory>

#include "../machine/watcher.h"

namespace softgpu {

// grows: grids may be appended to the vector between launches, and start early; it lives as long as the checker.
std::unique_ptr<Watcher> new_checker(const std::vector<Grid>& grids, bool grows = false);

}  // namespace softgpu
