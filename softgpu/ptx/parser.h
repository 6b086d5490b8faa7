// A recursive descent over the tokens of a module.
#pragma once
#include "tokens.h"

namespace softgpu {

class Parser {
 public:
  explicit Parser(const std::string& text);
  std::unique_ptr<Module> run();

 private:
  std::unique_ptr<Module> module_;
  std::vector<Token> tokens_;
  size_t at_ = 0;
  Function* function_ = nullptr;
  std::vector<std::map<std::string, std::string>> scopes_;  // name in the text -> unique name
  int unique_ = 0;
  u32 source_file_ = 0, source_line_ = 0;

  const Token& peek(int ahead = 0) const { return tokens_[std::min(at_ + ahead, tokens_.size() - 1)]; }
  Token next() { return tokens_[at_ + 1 < tokens_.size() ? at_++ : at_]; }
  bool is(const char* text, int ahead = 0) const;
  bool take(const char* text);
  void expect(const char* text);
  void skip_to_semicolon();
  [[noreturn]] void fail(const std::string& what) const;

  // parse_module.cpp
  void top_level();
  void location();
  void declaration();
  std::vector<Variable> variables(Space space, bool external);
  void initial_values(Variable& v, u64 element);
  u64 initial_value(Variable& v);

  // parse_function.cpp
  void function(bool entry);
  std::vector<Variable> parameters();
  Variable parameter();
  std::string declare(const std::string& name);
  std::string resolve(const std::string& name) const;
  void block();
  void label();
  void body_directive();
  void registers();

  // parse_statement.cpp
  void statement();
  Operand operand();
  Operand vector_operand();
  Operand address_operand();
  Operand named_operand(const Token& t);
};

}  // namespace softgpu
