// PTX ISA, "Kernel and Function Directives", and "Declarations" within a function.
#include "parser.h"

namespace softgpu {

void Parser::function(bool entry) {
  auto made = std::make_unique<Function>();
  function_ = made.get();
  made->entry = entry;
  scopes_.assign(1, {});
  source_file_ = source_line_ = 0;
  if (is("(")) made->results = parameters();
  made->name = next().text;
  if (is("(")) made->parameters = parameters();
  while (!is("{") && !is(";")) {
    if (take(".maxntid") || take(".reqntid")) {
      made->max_threads = integer_of(next().text);
      while (take(",")) made->max_threads *= integer_of(next().text);
    } else {
      at_++;
    }
  }
  if (take(";")) return;  // a declaration
  expect("{");
  for (auto& list : {made->parameters, made->results})
    for (auto& p : list) {
      scopes_[0][p.name] = p.name;
      made->variables[p.name] = p;
    }
  block();
  module_->functions[made->name] = std::move(made);
  function_ = nullptr;
}

Variable Parser::parameter() {
  Variable v;
  v.space = take(".reg") ? Space::None : Space::Param;
  take(".param");
  u32 align = 0;
  while (peek().kind == Token::Word && peek().text[0] == '.') {
    const std::string word = next().text.substr(1);
    if (word == "align") align = integer_of(next().text);
    else if (bytes_of(word) >= 0) v.size = bytes_of(word);
  }
  v.align = align ? align : v.size;
  v.name = next().text;
  if (take("[")) {
    v.size *= integer_of(next().text);
    expect("]");
  }
  return v;
}

std::vector<Variable> Parser::parameters() {
  std::vector<Variable> list;
  u64 offset = 0;
  for (expect("("); !take(")"); take(",")) {
    Variable v = parameter();
    v.address = offset = (offset + v.align - 1) / v.align * v.align;
    offset += v.size;
    list.push_back(v);
  }
  return list;
}

std::string Parser::declare(const std::string& name) {
  std::string unique = scopes_.size() == 1 ? name : name + "'" + std::to_string(unique_++);
  scopes_.back()[name] = unique;
  return unique;
}

std::string Parser::resolve(const std::string& name) const {
  for (auto scope = scopes_.rbegin(); scope != scopes_.rend(); ++scope) {
    auto found = scope->find(name);
    if (found != scope->end()) return found->second;
  }
  return name;
}

// Labels can be used before they are declared, so they keep the names that the block gives them.
void Parser::block() {
  while (!take("}")) {
    if (peek().kind == Token::End) fail("a function does not end");
    if (take("{")) {
      scopes_.emplace_back();
      block();
      scopes_.pop_back();
    } else if (is(":", 1) && peek().kind == Token::Word) {
      label();
    } else if (peek().text[0] == '.' && peek().kind == Token::Word) {
      body_directive();
    } else {
      statement();
    }
  }
}

void Parser::label() {
  std::string name = next().text;
  at_++;
  if (is(".branchtargets")) {
    at_++;
    auto& list = function_->branch_targets[name];
    while (!take(";")) {
      list.push_back(next().text);
      take(",");
    }
  } else if (is(".callprototype")) {
    skip_to_semicolon();
  } else {
    function_->labels[name] = function_->body.size();
  }
}

void Parser::body_directive() {
  if (is(".loc")) return location();
  if (take(".pragma") || take(".file")) return skip_to_semicolon();
  if (take(".reg")) return registers();
  Space space = take(".local") ? Space::Local : take(".shared") ? Space::Shared : take(".param") ? Space::Param : Space::None;
  if (space == Space::None) fail("unknown directive in a function");
  for (auto& v : variables(space, false)) {
    std::string unique = declare(v.name);
    v.name = unique;
    function_->variables[unique] = v;
  }
}

void Parser::registers() {
  std::string type;
  int lanes = 1;
  while (peek().text[0] == '.') {
    std::string word = next().text.substr(1);
    if (word == "v2" || word == "v4") lanes = word[1] - '0';
    else type = word;
  }
  if (bytes_of(type) < 0) fail("unknown register type ." + type);
  if (lanes != 1) fail("vector registers are not known");
  do {
    std::string name = next().text;
    if (take("<")) {
      u64 count = integer_of(next().text);
      expect(">");
      for (u64 i = 0; i < count; i++) function_->registers[declare(name + std::to_string(i))] = type;
    } else {
      function_->registers[declare(name)] = type;
    }
  } while (take(","));
  expect(";");
}

}  // namespace softgpu
