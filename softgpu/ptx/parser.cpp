#include "parser.h"

namespace softgpu {

int bytes_of(const std::string& type) {
  static const std::map<std::string, int> sizes = {
      {"pred", 0},   {"b8", 1},     {"u8", 1},      {"s8", 1},      {"e4m3", 1}, {"e5m2", 1}, {"e2m1x2", 1}, {"b16", 2},
      {"u16", 2},    {"s16", 2},    {"f16", 2},     {"bf16", 2},    {"e4m3x2", 2}, {"e5m2x2", 2}, {"b32", 4},
      {"u32", 4},    {"s32", 4},    {"f32", 4},     {"tf32", 4},    {"f16x2", 4}, {"bf16x2", 4}, {"b64", 8},
      {"u64", 8},    {"s64", 8},    {"f64", 8},     {"b128", 16}};
  const auto found = sizes.find(type);
  return found == sizes.end() ? -1 : found->second;
}

bool Statement::has(const char* part) const {
  for (auto& p : parts)
    if (p == part) return true;
  return false;
}

std::unique_ptr<Module> parse(const std::string& text) { return Parser(text).run(); }

Parser::Parser(const std::string& text) : module_(std::make_unique<Module>()), tokens_(tokens_of(text)) {
  module_->lines = split(text, '\n');
}

std::unique_ptr<Module> Parser::run() {
  while (peek().kind != Token::End) top_level();
  return std::move(module_);
}

bool Parser::is(const char* text, int ahead) const {
  return peek(ahead).text == text && peek(ahead).kind != Token::Text;
}

bool Parser::take(const char* text) {
  if (!is(text)) return false;
  at_++;
  return true;
}

void Parser::expect(const char* text) {
  if (!take(text)) fail(std::string("expected ") + text);
}

void Parser::skip_to_semicolon() {
  while (peek().kind != Token::End && !take(";")) at_++;
}

void Parser::fail(const std::string& what) const {
  throw ParseError("PTX line " + std::to_string(peek().line) + ": " + what + ", at '" + peek().text + "'");
}

}  // namespace softgpu
