// From statements to handlers. A family is a chapter of the PTX ISA: for each of its opcodes a function that chooses the
// handler for the statement's types and modifiers, or returns null where the family has none.
#pragma once
#include "../machine/program.h"
#include "lifetimes.h"

namespace softgpu {

// Places of registers and constants in a warp's register file, and addresses of variables.
class Decoder {
 public:
  Decoder(Program& program, const Function& function, const Module& module);

  const Function& function;
  Program& program;
  u32 scratch = 0;  // where results go that nobody reads

  bool is_register(const std::string& name) const { return function.registers.count(name); }
  const Variable* variable(const std::string& name) const;
  int width(const Operand& o) const;  // bytes of a register
  u32 place(const std::string& name);
  u32 constant(u64 bits, int bytes);
  u32 source(const Operand& o, int bytes);
  u32 target(const Operand& o);
  void address(const Operand& o, Instruction& out);  // o[15] base, b its bytes, offset
  void ends(u32 statement);  // places of registers that nobody reads after it are free

 private:
  const Module& module_;
  const Lifetimes lifetimes_;
  std::map<std::string, u32> places_;
  std::map<int, std::vector<u32>> free_;  // by bytes of a lane
  std::map<std::pair<u64, int>, u32> constants_;
  std::map<std::string, Variable> variables_;

  int width_of(const std::string& name) const;
  u32 reserve(int bytes);
  void lay_out_variables();
};

// One statement while its handler is chosen.
struct Form {
  const Statement& statement;
  Decoder& decoder;
  Instruction& out;
  std::string op, type;  // "add"; the last part: "f32"
  int bytes;             // of `type`
  bool ftz, sat, relu;
  int rounding;  // 0 .rn, 1 .rz, 2 .rm, 3 .rp

  Form(const Statement& s, Decoder& d, Instruction& out);
  bool has(const char* part) const { return statement.has(part); }
  bool is_float() const { return type == "f32" || type == "f64"; }
  bool is_16_bit() const { return type == "f16" || type == "bf16" || type == "f16x2" || type == "bf16x2"; }
  const std::string& part_from_end(size_t n) const { return statement.parts.at(statement.parts.size() - n); }
  size_t count() const { return statement.operands.size(); }
  const Operand& in(size_t n) const { return statement.operands.at(n); }
  u32 source(size_t n, int bytes) { return decoder.source(in(n), bytes); }
  u32 target(size_t n) { return decoder.target(in(n)); }
  void unary(int result, int a) { (void)result, out.o[0] = target(0), out.o[1] = source(1, a); }
  void unary(int n) { unary(n, n); }
  void binary(int n) { unary(n), out.o[2] = source(2, n); }
  void ternary(int n) { binary(n), out.o[3] = source(3, n); }
  Space space() const;
  Scope scope() const;
};

using Choose = Handler (*)(Form&);
using Family = std::map<std::string, Choose>;

extern const Family INTEGER, EXTENDED, FLOATING, HALF, COMPARISON, LOGIC, MOVES, CONVERSIONS, MEMORY, ATOMICS, ASYNC_COPIES,
    WARPWIDE, MATRICES, SYNCHRONIZATION, CONTROL, MISCELLANEOUS;

Instruction decode(const Statement& s, Decoder& d);

}  // namespace softgpu
