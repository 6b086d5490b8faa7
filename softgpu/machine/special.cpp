// PTX ISA, "Special Registers": those whose value a block or a lane has from its start.
#include "settings.h"
#include "warp.h"

namespace softgpu {
namespace {

using Value = u32 (*)(const Warp& w, u32 lane);

const Block& block(const Warp& w) { return *w.block; }
u32 thread(const Warp& w, u32 lane) { return w.number * LANES + lane; }

const std::map<std::string, Value> VALUES = {
    {"%tid.x", [](const Warp& w, u32 l) { return thread(w, l) % block(w).grid->block.x; }},
    {"%tid.y", [](const Warp& w, u32 l) { return thread(w, l) / block(w).grid->block.x % block(w).grid->block.y; }},
    {"%tid.z", [](const Warp& w, u32 l) { return thread(w, l) / block(w).grid->block.x / block(w).grid->block.y; }},
    {"%ntid.x", [](const Warp& w, u32) { return block(w).grid->block.x; }},
    {"%ntid.y", [](const Warp& w, u32) { return block(w).grid->block.y; }},
    {"%ntid.z", [](const Warp& w, u32) { return block(w).grid->block.z; }},
    {"%ctaid.x", [](const Warp& w, u32) { return block(w).at.x; }},
    {"%ctaid.y", [](const Warp& w, u32) { return block(w).at.y; }},
    {"%ctaid.z", [](const Warp& w, u32) { return block(w).at.z; }},
    {"%nctaid.x", [](const Warp& w, u32) { return block(w).grid->grid.x; }},
    {"%nctaid.y", [](const Warp& w, u32) { return block(w).grid->grid.y; }},
    {"%nctaid.z", [](const Warp& w, u32) { return block(w).grid->grid.z; }},
    {"%laneid", [](const Warp&, u32 l) { return l; }},
    {"%warpid", [](const Warp& w, u32) { return w.number; }},
    {"%nwarpid", [](const Warp&, u32) { return 64u; }},
    {"%smid", [](const Warp& w, u32) { return u32(block(w).number % settings().sms); }},
    {"%nsmid", [](const Warp&, u32) { return u32(settings().sms); }},
    {"%gridid", [](const Warp&, u32) { return 1u; }},
    {"%dynamic_smem_size", [](const Warp& w, u32) { return block(w).grid->dynamic_shared; }},
    {"%total_smem_size", [](const Warp& w, u32) { return u32(block(w).shared.size()); }},
    {"%lanemask_eq", [](const Warp&, u32 l) { return 1u << l; }},
    {"%lanemask_lt", [](const Warp&, u32 l) { return (1u << l) - 1; }},
    {"%lanemask_le", [](const Warp&, u32 l) { return (2u << l) - 1; }},
    {"%lanemask_gt", [](const Warp&, u32 l) { return ~((2u << l) - 1); }},
    {"%lanemask_ge", [](const Warp&, u32 l) { return ~((1u << l) - 1); }},
};

}  // namespace

void set_special_registers(Warp& w) {
  for (auto& [name, place] : w.program->special) {
    const auto value = VALUES.find(name);
    for (u32 l = 0; l < LANES; l++) w.at<u32>(place)[l] = value == VALUES.end() ? 0 : value->second(w, l);
  }
}

}  // namespace softgpu
