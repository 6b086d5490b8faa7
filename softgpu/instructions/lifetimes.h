// Registers that live within one basic block. Their places are given to others afterwards: an unrolled kernel names
// thousands of registers, and those of all warps of a block should fit the host's cache.
#pragma once
#include "../ptx/text.h"

namespace softgpu {

class Lifetimes {
 public:
  explicit Lifetimes(const Function& f);

  // The register is written, without a guard, before it is read, and appears in one basic block only.
  bool is_brief(const std::string& name) const;
  const std::vector<std::string>& ending_at(u32 statement) const { return ending_at_.at(statement); }

 private:
  struct Life {
    u32 block, last;
    bool brief;
  };
  std::map<std::string, Life> lives_;
  std::vector<std::vector<std::string>> ending_at_;
};

}  // namespace softgpu
