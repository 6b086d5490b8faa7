#include "tokens.h"

#include <cctype>
#include <cstdlib>

namespace softgpu {
namespace {

bool starts_word(char c) { return std::isalpha(u8(c)) || c == '_' || c == '%' || c == '$' || c == '.'; }
bool in_word(char c) { return starts_word(c) || std::isdigit(u8(c)); }

class Lexer {
 public:
  explicit Lexer(const std::string& text) : text_(text) {}

  std::vector<Token> run() {
    while (at_ < text_.size() && text_[at_]) step();
    found_.push_back({Token::End, "", line_});
    return std::move(found_);
  }

 private:
  const std::string& text_;
  std::vector<Token> found_;
  size_t at_ = 0;
  u32 line_ = 1;

  void step() {
    const char c = text_[at_];
    if (std::isspace(u8(c))) {
      line_ += c == '\n';
      at_++;
    } else if (text_.compare(at_, 2, "//") == 0) {
      while (at_ < text_.size() && text_[at_] != '\n') at_++;
    } else if (text_.compare(at_, 2, "/*") == 0) {
      for (at_ += 2; at_ < text_.size() && text_.compare(at_, 2, "*/"); at_++) line_ += text_[at_] == '\n';
      at_ += 2;
    } else if (c == '"') {
      string();
    } else if (starts_word(c)) {
      take(Token::Word, end_of_word());
    } else if (std::isdigit(u8(c))) {
      size_t end = at_;
      while (end < text_.size() && (std::isalnum(u8(text_[end])) || text_[end] == '.')) end++;
      take(Token::Number, end);
    } else {
      take(Token::Punctuation, at_ + 1);
    }
  }

  void take(Token::Kind kind, size_t end) {
    found_.push_back({kind, text_.substr(at_, end - at_), line_});
    at_ = end;
  }

  void string() {
    size_t end = at_ + 1;
    while (end < text_.size() && text_[end] != '"') end += text_[end] == '\\' ? 2 : 1;
    found_.push_back({Token::Text, text_.substr(at_ + 1, end - at_ - 1), line_});
    at_ = end + 1;
  }

  // A word may hold "::", as shared::cta does.
  size_t end_of_word() const {
    size_t end = at_;
    for (;;) {
      if (in_word(text_[end])) end++;
      else if (text_.compare(end, 2, "::") == 0 && end + 2 < text_.size() && starts_word(text_[end + 2])) end += 2;
      else return end;
    }
  }
};

}  // namespace

std::vector<Token> tokens_of(const std::string& text) { return Lexer(text).run(); }

std::vector<std::string> split(const std::string& text, char by) {
  std::vector<std::string> parts;
  for (size_t start = 0;;) {
    const size_t at = text.find(by, start);
    parts.push_back(text.substr(start, at - start));
    if (at == std::string::npos) return parts;
    start = at + 1;
  }
}

u64 integer_of(std::string text) {
  while (!text.empty() && (text.back() == 'U' || text.back() == 'u')) text.pop_back();
  const bool binary = text.size() > 1 && text[0] == '0' && (text[1] == 'b' || text[1] == 'B');
  return binary ? std::strtoull(text.c_str() + 2, nullptr, 2) : std::strtoull(text.c_str(), nullptr, 0);
}

}  // namespace softgpu
