// Messages that say where.
#include <cstdio>

#include "warp.h"

namespace softgpu {

std::string place_of(const Program& p, const Instruction& i) {
  const Statement& s = p.statements[i.statement];
  std::string text = s.line && s.line <= p.module->lines.size() ? p.module->lines[s.line - 1] : "";
  text.erase(0, text.find_first_not_of(" \t"));
  std::string place = "\n  PTX line " + std::to_string(s.line) + ": " + text;
  const std::string source = source_of(p, i);
  return source.empty() ? place : place + "\n  source: " + source;
}

std::string source_of(const Program& p, const Instruction& i) {
  const Statement& s = p.statements[i.statement];
  if (!s.source_line) return "";
  const auto file = p.module->files.find(s.source_file);
  return (file == p.module->files.end() ? "?" : file->second) + ":" + std::to_string(s.source_line);
}

void fault(const Warp& w, const Instruction& i, int lane, int code, const std::string& what) {
  const Block& b = *w.block;
  const Dim dim = b.grid->block;
  const u32 t = w.number * LANES + lane;
  char at[200];
  std::snprintf(at, sizeof at, "softgpu: kernel %s, block (%u, %u, %u), thread (%u, %u, %u): ", w.program->name.c_str(), b.at.x,
                b.at.y, b.at.z, t % dim.x, t / dim.x % dim.y, t / dim.x / dim.y);
  throw Fault(code, at + what + place_of(*w.program, i));
}

}  // namespace softgpu
