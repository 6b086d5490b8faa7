// A PTX module as text becomes functions of statements: names are resolved, no instruction is understood yet.
// "PTX ISA" is NVIDIA's Parallel Thread Execution ISA, whose chapters are named by title in this folder.
#pragma once
#include <cstdint>
#include <map>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

namespace softgpu {

using u8 = uint8_t;
using u16 = uint16_t;
using u32 = uint32_t;
using u64 = uint64_t;
using s8 = int8_t;
using s16 = int16_t;
using s32 = int32_t;
using s64 = int64_t;

struct ParseError : std::runtime_error {
  using std::runtime_error::runtime_error;
};

// Bytes of a fundamental type without its dot ("f32" -> 4); 0 for "pred", -1 for no type.
int bytes_of(const std::string& type);

// State spaces.
enum class Space { None, Generic, Global, Shared, Local, Param, Const };

// A variable in memory: its address, or its offset in shared, local and parameter space.
struct Variable {
  std::string name;
  Space space = Space::None;
  u32 align = 1;
  u64 size = 0;
  u64 address = 0;
  bool dynamic = false;  // .extern .shared x[]
  std::vector<u8> initial;
  std::vector<std::pair<u64, std::string>> pointers;  // offsets of initial values that are addresses of others
};

struct Operand {
  enum Kind { Register, Integer, Float, Symbol, Address, Vector, Sink } kind = Sink;
  std::string name;      // of a register, symbol or label; of an address's base, "" where there is none
  std::string also;      // the second destination: d|p
  bool negated = false;  // !p
  u64 bits = 0;          // of an immediate; a float's are those of its own width
  int float_bytes = 0;   // 4 or 8
  s64 displacement = 0;  // of an address, or added to a symbol
  std::vector<Operand> parts;
};

struct Statement {
  std::string opcode;              // "mad"
  std::vector<std::string> parts;  // "lo", "s32"
  std::string guard;               // the predicate of @p
  bool guard_negated = false;
  std::vector<Operand> operands;
  u32 line = 0;  // in the PTX text
  u32 source_line = 0, source_file = 0;

  bool has(const char* part) const;
};

// A function after parsing: registers have unique names, labels are places in `body`.
struct Function {
  std::string name;
  bool entry = false;
  std::vector<Variable> parameters, results;
  std::vector<Statement> body;
  std::map<std::string, u32> labels;
  std::map<std::string, std::vector<std::string>> branch_targets;
  std::map<std::string, std::string> registers;  // unique name -> type
  std::map<std::string, Variable> variables;     // shared, local and parameter variables of the body
  u32 max_threads = 0;
};

struct Module {
  std::vector<std::string> lines;
  std::map<u32, std::string> files;
  std::map<std::string, Variable> variables;
  std::map<std::string, std::unique_ptr<Function>> functions;
};

std::unique_ptr<Module> parse(const std::string& text);  // ParseError

}  // namespace softgpu
