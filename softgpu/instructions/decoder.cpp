#include "decoder.h"

#include <bit>
#include <cstdio>
#include <functional>

#include "../machine/settings.h"
#include "../machine/warp.h"

namespace softgpu {
namespace {

[[noreturn]] void not_modelled(Warp& w, const Instruction& i, u32 m) {
  fault(w, i, __builtin_ctz(m), ILLEGAL_INSTRUCTION, "softgpu does not model this instruction");
}

std::map<std::string, bool> names_used(const Function& f) {
  std::map<std::string, bool> used;
  std::function<void(const Operand&)> visit = [&](const Operand& o) {
    used[o.name] = true;
    for (auto& part : o.parts) visit(part);
  };
  for (auto& s : f.body)
    for (auto& o : s.operands) visit(o);
  return used;
}

}  // namespace

Decoder::Decoder(Program& program, const Function& function, const Module& module)
    : function(function), program(program), module_(module), lifetimes_(function) {
  program.register_bytes = 64;  // place 0 means "none"
  scratch = reserve(8);
  lay_out_variables();
}

void Decoder::lay_out_variables() {
  const auto align = [](u64 at, u64 to) { return (at + to - 1) / to * to; };
  u64 shared = 0;
  const auto place_shared = [&](Variable v) {
    shared = align(shared, v.align);
    v.address = SHARED_START + shared;
    shared += v.size;
    variables_[v.name] = v;
  };
  for (auto& [name, v] : function.variables) {
    if (v.space == Space::Shared) {
      place_shared(v);
      continue;
    }
    variables_[name] = v;
    if (v.space != Space::Local) continue;
    program.local_bytes = variables_[name].address = align(program.local_bytes, v.align);
    program.local_bytes += v.size;
  }
  const auto used = names_used(function);
  u32 dynamic_align = 16;
  for (auto& [name, v] : module_.variables) {
    if (v.space != Space::Shared) variables_.try_emplace(name, v);
    else if (!used.count(name)) continue;
    else if (v.dynamic) dynamic_align = std::max(dynamic_align, v.align);
    else place_shared(v);
  }
  shared = align(shared, dynamic_align);
  for (auto& [name, v] : module_.variables)
    if (v.space == Space::Shared && v.dynamic) {
      variables_[name] = v;
      variables_[name].address = SHARED_START + shared;
    }
  program.static_shared = shared;
  program.local_bytes = align(program.local_bytes, 16);
}

u32 Decoder::reserve(int bytes) {
  const u32 place = program.register_bytes;
  program.register_bytes += std::max(64, bytes * LANES);
  return place;
}

u32 Decoder::constant(u64 bits, int bytes) {
  const auto [it, fresh] = constants_.try_emplace({bits, bytes}, 0);
  if (!fresh) return it->second;
  it->second = reserve(bytes);
  std::vector<u8> image;
  for (int l = 0; l < (bytes ? LANES : 1); l++)
    for (int k = 0; k < (bytes ? bytes : 4); k++) image.push_back(bits >> (8 * k));
  program.constants.push_back({it->second, image});
  return it->second;
}

const Variable* Decoder::variable(const std::string& name) const {
  const auto v = variables_.find(name);
  return v == variables_.end() ? nullptr : &v->second;
}

int Decoder::width(const Operand& o) const {
  const auto r = function.registers.find(o.name);
  return r == function.registers.end() ? 4 : std::max(2, bytes_of(r->second));  // special ones have 32 bits
}

u32 Decoder::place(const std::string& name) {
  const auto [it, fresh] = places_.try_emplace(name, 0);
  if (!fresh) return it->second;
  const int bytes = width_of(name);
  auto& free = free_[bytes];
  if (free.empty() || !lifetimes_.is_brief(name)) return it->second = reserve(bytes);
  it->second = free.back();
  free.pop_back();
  return it->second;
}

int Decoder::width_of(const std::string& name) const {
  const auto r = function.registers.find(name);
  if (r == function.registers.end()) throw ParseError("unknown register " + name);
  const int bytes = bytes_of(r->second);
  return bytes == 1 ? 2 : bytes;
}

void Decoder::ends(u32 statement) {
  for (auto& name : lifetimes_.ending_at(statement))
    if (const auto place = places_.find(name); place != places_.end()) free_[width_of(name)].push_back(place->second);
}

u32 Decoder::source(const Operand& o, int bytes) {
  if (o.kind == Operand::Register) {
    if (is_register(o.name)) return place(o.name);
    const auto [it, fresh] = program.special.try_emplace(o.name, 0);
    if (fresh) it->second = reserve(4);
    return it->second;
  }
  if (o.kind == Operand::Integer) {
    if (bytes == 0) return constant(o.bits ? ALL : 0, 0);
    return constant(bytes == 8 ? o.bits : o.bits & ((1ull << 8 * bytes) - 1), bytes);
  }
  if (o.kind == Operand::Float) {
    if (o.float_bytes == 8 && bytes == 4) return constant(std::bit_cast<u32>(float(std::bit_cast<double>(o.bits))), 4);
    if (o.float_bytes == 4 && bytes == 8) return constant(std::bit_cast<u64>(double(std::bit_cast<float>(u32(o.bits)))), 8);
    return constant(o.bits, bytes);
  }
  if (o.kind != Operand::Symbol) throw ParseError("an operand of an unexpected kind");
  if (o.name == "WARP_SZ") return constant(LANES, bytes);
  if (const Variable* v = variable(o.name)) return constant(v->address + o.displacement, bytes);
  throw ParseError("unknown symbol " + o.name);
}

u32 Decoder::target(const Operand& o) {
  if (o.kind == Operand::Sink) return scratch;
  if (o.kind != Operand::Register || !is_register(o.name)) throw ParseError("a result that is no register");
  return place(o.name);
}

void Decoder::address(const Operand& o, Instruction& out) {
  out.offset = o.displacement, out.b = 8;
  if (o.name.empty()) {
    out.o[15] = constant(0, 8);
  } else if (is_register(o.name)) {
    out.o[15] = place(o.name);
    out.b = width(o);
  } else if (const Variable* v = variable(o.name)) {
    out.o[15] = constant(v->address, 8);
  } else {
    throw ParseError("unknown symbol " + o.name);
  }
}

Form::Form(const Statement& s, Decoder& d, Instruction& out) : statement(s), decoder(d), out(out), op(s.opcode) {
  type = s.parts.empty() ? "" : s.parts.back();
  bytes = bytes_of(type);
  ftz = s.has("ftz"), sat = s.has("sat"), relu = s.has("relu");
  rounding = s.has("rz") ? 1 : s.has("rm") ? 2 : s.has("rp") ? 3 : 0;
}

Space Form::space() const {
  for (auto& p : statement.parts) {
    if (p == "global") return Space::Global;
    if (p == "shared" || p == "shared::cta") return Space::Shared;
    if (p == "local") return Space::Local;
    if (p == "param" || p == "param::entry") return Space::Param;
    if (p == "const") return Space::Const;
  }
  return Space::Generic;
}

Scope Form::scope() const {
  if (has("sys") || has("volatile") || (op == "membar" && has("sys"))) return Scope::Sys;
  return has("cta") ? Scope::Cta : Scope::Gpu;  // a cluster is not modelled: as the GPU
}

Instruction decode(const Statement& s, Decoder& d) {
  static const Family* const FAMILIES[] = {&INTEGER,  &EXTENDED,     &FLOATING, &HALF,     &COMPARISON,      &LOGIC,   &MOVES,         &CONVERSIONS,
                                           &MEMORY,   &ATOMICS,      &ASYNC_COPIES, &WARPWIDE, &MATRICES, &SYNCHRONIZATION, &CONTROL, &MISCELLANEOUS};
  Instruction guarded;
  if (!s.guard.empty()) guarded.guard = d.place(s.guard), guarded.guard_negated = s.guard_negated;
  std::string why;
  for (const Family* family : FAMILIES) {
    const auto choose = family->find(s.opcode);
    if (choose == family->end()) continue;
    Instruction out = guarded;
    try {
      Form form(s, d, out);
      out.run = choose->second(form);
      const bool has_no_handler = out.flow != Flow::Plain && out.flow != Flow::WarpSync;
      if (out.run || has_no_handler) return out;
    } catch (const ParseError& e) {
      why = e.what();
    }
  }
  if (settings().trace) std::fprintf(stderr, "softgpu: PTX line %u: %s is not modelled %s\n", s.line, s.opcode.c_str(), why.c_str());
  guarded.run = not_modelled;
  return guarded;
}

}  // namespace softgpu
