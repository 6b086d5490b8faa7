// PTX ISA, "Syntax": words, numbers, strings, punctuation; comments are left out.
#pragma once
#include "text.h"

namespace softgpu {

struct Token {
  enum Kind { Word, Number, Punctuation, Text, End } kind;
  std::string text;
  u32 line;
};

std::vector<Token> tokens_of(const std::string& text);
std::vector<std::string> split(const std::string& text, char by);
u64 integer_of(std::string text);  // "0x1f", "0b101", "12U"

}  // namespace softgpu
