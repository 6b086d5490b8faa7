// Modules: global variables get memory, kernels are decoded when they are first asked for.
#include <cstdio>
#include <cstring>

#include "../instructions/decoder.h"
#include "memory.h"
#include "settings.h"

namespace softgpu {

std::unique_ptr<Loaded> load(const std::string& text) {
  auto loaded = std::make_unique<Loaded>();
  loaded->module = parse(text);
  auto& variables = loaded->module->variables;
  for (auto& [name, v] : variables) {
    if (v.space != Space::Global && v.space != Space::Const) continue;
    u8* p = static_cast<u8*>(memory::allocate(std::max<u64>(v.size, 1), Allocation::Symbol, current_device()));
    std::memset(p, 0, v.size);
    std::memcpy(p, v.initial.data(), std::min<u64>(v.size, v.initial.size()));
    v.address = u64(p);
  }
  for (auto& [name, v] : variables)
    for (auto& [offset, other] : v.pointers)
      if (const auto found = variables.find(other); found != variables.end())
        std::memcpy(reinterpret_cast<u8*>(v.address) + offset, &found->second.address, 8);
  return loaded;
}

Program* program(Loaded& loaded, const std::string& name) {
  if (const auto have = loaded.programs.find(name); have != loaded.programs.end()) return have->second.get();
  const auto found = loaded.module->functions.find(name);
  if (found == loaded.module->functions.end() || !found->second->entry) return nullptr;
  const Function& f = *found->second;
  auto p = std::make_unique<Program>();
  p->name = name, p->module = loaded.module.get(), p->parameters = f.parameters, p->max_threads = f.max_threads;
  for (auto& v : f.parameters) p->parameter_bytes = std::max<u64>(p->parameter_bytes, v.address + v.size);
  Decoder decoder(*p, f, *loaded.module);
  p->statements = f.body;
  if (p->statements.empty()) p->statements.emplace_back();
  for (u32 n = 0; n < f.body.size(); n++) {
    p->code.push_back(decode(f.body[n], decoder));
    p->code.back().statement = n;
    decoder.ends(n);
  }
  if (settings().trace) std::fprintf(stderr, "softgpu: %s: %u bytes of registers a warp\n", name.c_str(), p->register_bytes);
  Instruction end;
  end.flow = Flow::Exit;
  end.statement = p->statements.size() - 1;
  p->code.push_back(end);
  p->register_bytes = (p->register_bytes + 63) / 64 * 64;
  return (loaded.programs[name] = std::move(p)).get();
}

}  // namespace softgpu
