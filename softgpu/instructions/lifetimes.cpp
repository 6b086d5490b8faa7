#include "lifetimes.h"

#include <functional>
#include <set>

namespace softgpu {

Lifetimes::Lifetimes(const Function& f) : ending_at_(f.body.size()) {
  std::set<u32> labelled;
  for (auto& [name, place] : f.labels) labelled.insert(place);
  u32 block = 0;
  for (u32 n = 0; n < f.body.size(); n++) {
    const Statement& s = f.body[n];
    block += labelled.count(n);
    const auto appears = [&](const std::string& name, bool written) {
      if (!f.registers.count(name)) return;
      const auto [life, first] = lives_.try_emplace(name, Life{block, n, written});
      life->second.last = n;
      life->second.brief &= life->second.block == block;
    };
    const std::function<void(const Operand&, bool)> visit = [&](const Operand& o, bool written) {
      for (auto& part : o.parts) visit(part, written);
      appears(o.name, written && o.kind == Operand::Register);
      appears(o.also, written);
    };
    appears(s.guard, false);
    for (size_t k = s.operands.size(); k-- > 0;) visit(s.operands[k], k == 0 && s.guard.empty());  // sources are read first
    if (s.opcode == "bra" || s.opcode == "brx") block++;
  }
  for (auto& [name, life] : lives_)
    if (life.brief) ending_at_[life.last].push_back(name);
}

bool Lifetimes::is_brief(const std::string& name) const {
  const auto life = lives_.find(name);
  return life != lives_.end() && life->second.brief;
}

}  // namespace softgpu
