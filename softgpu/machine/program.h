// A kernel made ready to run: every statement has become a function on the 32 lanes of a warp, chosen once.
#pragma once
#include "../ptx/text.h"

namespace softgpu {

constexpr int LANES = 32;
constexpr u32 ALL = 0xffffffffu;
// Windows in the generic address space; what lies below is memory of the host.
constexpr u64 SHARED_WINDOW = 1ull << 56, LOCAL_WINDOW = 2ull << 56, PARAM_WINDOW = 3ull << 56;
constexpr u32 SHARED_START = 1024;  // of a block's shared memory: what lies below belongs to the system (sm_90)

struct Warp;
struct Instruction;
using Handler = void (*)(Warp&, const Instruction&, u32 mask);

// How an instruction changes who runs; plain ones do not.
enum class Flow : u8 { Plain, Branch, BranchTable, Exit, Barrier, Arrive, WarpSync, Yield };

// PTX ISA, "Memory Consistency Model": ".sem" and ".scope" of an access.
enum class Scope : u8 { Cta, Gpu, Sys };
enum class AccessKind : u8 { Read, ReadOnly, Write, AtomicRead, AtomicWrite, AtomicModify };
struct Access {
  AccessKind kind = AccessKind::Read;
  bool acquire = false, release = false;
  Scope scope = Scope::Cta;
  bool atomic() const { return kind >= AccessKind::AtomicRead; }
  bool writes() const { return kind == AccessKind::Write || kind >= AccessKind::AtomicWrite; }
};

struct Instruction {
  Handler run = nullptr;
  Flow flow = Flow::Plain;
  bool guard_negated = false;
  bool aligned = false;  // all live lanes of the warp have to execute it together
  s32 guard = -1;        // place of the predicate, or none
  u32 o[16] = {};        // places of operands in the register file; o[15] is an address's base
  u32 target = 0;        // of a branch
  s64 offset = 0;        // of an address
  u32 a = 0, b = 0, c = 0;  // what the handler says they are
  Access access;
  const std::vector<u32>* table = nullptr;
  u32 statement = 0;
};

struct Program {
  std::string name;
  const Module* module = nullptr;
  std::vector<Instruction> code;
  std::vector<Statement> statements;                       // for messages
  std::vector<std::pair<u32, std::vector<u8>>> constants;  // places in the register file, and what is there
  u32 register_bytes = 0;
  std::map<std::string, u32> special;  // "%tid.x" -> place
  std::vector<Variable> parameters;
  u32 parameter_bytes = 0;
  u64 local_bytes = 0, static_shared = 0;
  u32 max_threads = 0;
  u32 max_dynamic_shared = 48 << 10;
  std::vector<std::unique_ptr<std::vector<u32>>> tables;  // of brx.idx
};

struct Loaded {
  std::unique_ptr<Module> module;
  std::map<std::string, std::unique_ptr<Program>> programs;
};

std::unique_ptr<Loaded> load(const std::string& text);      // ParseError
Program* program(Loaded& loaded, const std::string& name);  // null if there is none

}  // namespace softgpu
