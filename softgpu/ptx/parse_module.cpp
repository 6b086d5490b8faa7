// PTX ISA, "Directives": the module, its files and its variables.
#include "parser.h"

namespace softgpu {

void Parser::top_level() {
  const std::string word = peek().text;
  if (word == ".version" || word == ".address_size") {
    at_ += 2;
  } else if (word == ".target") {
    at_++;
    do at_++;
    while (take(","));
  } else if (word == ".file") {
    at_++;
    u32 index = std::stoul(next().text);
    module_->files[index] = next().text;
    while (take(",")) at_++;
  } else if (word == ".section") {
    while (!take("{")) at_++;
    for (int depth = 1; depth;) {
      depth += is("{") - is("}");
      at_++;
    }
  } else if (word == ".loc") {
    location();
  } else if (word == ".pragma" || word == ".alias") {
    skip_to_semicolon();
  } else {
    declaration();
  }
}

void Parser::location() {
  u32 line = peek().line;
  at_++;
  source_file_ = std::stoul(next().text);
  source_line_ = std::stoul(next().text);
  while (peek().line == line && peek().kind != Token::End) at_++;
}

// [.extern|.visible|.weak|...] .entry|.func|.global|.const|.shared
void Parser::declaration() {
  bool external = false;
  while (is(".extern") || is(".visible") || is(".weak") || is(".common")) external |= next().text == ".extern";
  if (take(".entry")) return function(true);
  if (take(".func")) return function(false);
  Space space = take(".global") ? Space::Global : take(".const") ? Space::Const : take(".shared") ? Space::Shared : Space::None;
  if (space == Space::None) fail("unknown directive");
  for (auto& v : variables(space, external)) module_->variables[v.name] = v;
}

// after the space: [.align n] [.v2|.v4] .type name[size] [= values], ...;
std::vector<Variable> Parser::variables(Space space, bool external) {
  std::vector<Variable> out;
  u32 align = 0;
  int lanes = 1;
  std::string type;
  while (peek().kind == Token::Word && peek().text[0] == '.') {
    std::string word = next().text.substr(1);
    if (word == "align")
      align = std::stoul(next().text);
    else if (word == "v2" || word == "v4")
      lanes = word[1] - '0';
    else if (bytes_of(word) >= 0)
      type = word;
    else if (word != "attribute" && word != "ptr" && word != "global" && word != "shared" && word != "const")
      fail("unknown attribute ." + word);
    if (word == "attribute") {
      while (!take(")")) at_++;
    }
  }
  do {
    Variable v;
    v.space = space;
    const u64 element = bytes_of(type) * lanes;
    v.align = align ? align : element;
    v.name = next().text;
    v.size = element;
    while (take("[")) {
      if (take("]")) {
        v.dynamic = true, v.size = 0;
      } else {
        v.size *= integer_of(next().text);
        expect("]");
      }
    }
    if (take("=")) {
      initial_values(v, element);
      if (v.size == 0) v.size = v.initial.size();
    }
    v.dynamic = v.dynamic && external;
    out.push_back(v);
  } while (take(","));
  take(";");
  return out;
}

// A number, or the address of another variable.
u64 Parser::initial_value(Variable& v) {
  const bool minus = take("-");
  Token t = next();
  u64 bits = 0;
  if (t.kind == Token::Number) {
    const bool hexadecimal_float = t.text.size() > 2 && t.text[0] == '0' && std::string("fFdD").find(t.text[1]) != std::string::npos;
    bits = hexadecimal_float ? std::stoull(t.text.substr(2), nullptr, 16) : integer_of(t.text);
  } else {
    if (t.text == "generic") {
      expect("(");
      t = next();
      expect(")");
    }
    v.pointers.push_back({v.initial.size(), t.text});
  }
  return minus ? -bits : bits;
}

void Parser::initial_values(Variable& v, u64 element) {
  if (take("{")) {
    while (!take("}")) {
      initial_values(v, element);
      take(",");
    }
  } else {
    const u64 bits = initial_value(v);
    for (u64 i = 0; i < element; i++) v.initial.push_back(i < 8 ? bits >> (8 * i) : 0);
  }
}

}  // namespace softgpu
