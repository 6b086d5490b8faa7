// PTX ISA, "Instruction Statements" and "Instruction Operands".
#include "parser.h"

#include <cstdlib>
#include <cstring>

namespace softgpu {

void Parser::statement() {
  Statement s;
  s.line = peek().line;
  s.source_file = source_file_, s.source_line = source_line_;
  if (take("@")) {
    s.guard_negated = take("!");
    s.guard = resolve(next().text);
  }
  if (peek().kind != Token::Word) fail("expected an instruction");
  auto parts = split(next().text, '.');
  s.opcode = parts[0];
  s.parts.assign(parts.begin() + 1, parts.end());
  while (!take(";")) {
    if (take("(")) {  // a call's list
      Operand list;
      list.kind = Operand::Vector;
      while (!take(")")) {
        list.parts.push_back(operand());
        take(",");
      }
      s.operands.push_back(list);
    } else {
      s.operands.push_back(operand());
    }
    take(",");
  }
  function_->body.push_back(std::move(s));
}

namespace {

// "Constants": 0f3F800000 is a float32 by its bits, 0d a float64; 12, 0x1f, 0b101, 12U integers.
Operand constant(const std::string& text, bool minus) {
  Operand o;
  if (text.size() > 2 && text[0] == '0' && std::strchr("fFdD", text[1])) {
    o.kind = Operand::Float;
    o.float_bytes = std::strchr("fF", text[1]) ? 4 : 8;
    o.bits = std::strtoull(text.c_str() + 2, nullptr, 16);
    if (minus) o.bits ^= 1ull << (8 * o.float_bytes - 1);
  } else if (text.find('.') != std::string::npos) {
    o.kind = Operand::Float;
    o.float_bytes = 8;
    const double value = minus ? -std::strtod(text.c_str(), nullptr) : std::strtod(text.c_str(), nullptr);
    std::memcpy(&o.bits, &value, 8);
  } else {
    o.kind = Operand::Integer;
    o.bits = minus ? -integer_of(text) : integer_of(text);
  }
  return o;
}

}  // namespace

Operand Parser::operand() {
  if (take("!")) {
    Operand o = operand();
    o.negated = true;
    return o;
  }
  if (take("{")) return vector_operand();
  if (take("[")) return address_operand();
  const bool minus = take("-");
  const Token t = next();
  if (t.kind == Token::Number) return constant(t.text, minus);
  if (t.kind != Token::Word) fail("expected an operand");
  return named_operand(t);
}

Operand Parser::vector_operand() {
  Operand o;
  o.kind = Operand::Vector;
  for (; !take("}"); take(",")) o.parts.push_back(operand());
  return o;
}

// [base], [base+displacement], [displacement]
Operand Parser::address_operand() {
  Operand o;
  o.kind = Operand::Address;
  if (peek().kind == Token::Number) o.displacement = integer_of(next().text);
  else o.name = resolve(next().text);
  while (is("+") || is("-")) {
    bool minus = next().text == "-";
    if (!minus && take("-")) minus = true;
    const s64 n = integer_of(next().text);
    o.displacement += minus ? -n : n;
  }
  expect("]");
  return o;
}

Operand Parser::named_operand(const Token& t) {
  Operand o;
  if (t.text != "_") {
    o.name = resolve(t.text);
    const bool special = t.text[0] == '%' && !function_->variables.count(o.name);
    o.kind = special || function_->registers.count(o.name) ? Operand::Register : Operand::Symbol;
    if (o.kind == Operand::Symbol && take("+")) o.displacement = integer_of(next().text);
  }
  if (take("|")) o.also = is("_") ? (at_++, "_") : resolve(next().text);
  return o;
}

}  // namespace softgpu
