// What the checker knows of every byte of shared and global memory: who wrote it last, and who has read it since.
#pragma once
#include <memory>
#include <unordered_map>
#include <vector>

#include "../machine/program.h"

namespace softgpu {

// Lanes of a warp that accessed a cell at the same instruction, or at several between two releases.
struct Reader {
  u64 block = 0;
  u32 warp = 0, mask = 0, clock = 0, pc = 0;
  bool atomic = false;
  Scope scope = Scope::Cta;
  s32 next = -1;
};

enum CellFlag : u16 { INITIALISED = 1, IN_FLIGHT = 2, ATOMIC = 4, READ_ONLY = 8, RED = 16 };
struct Cell {
  u64 writer_block = 0;
  u32 write_clock = 0, write_pc = 0;  // clock 0: not written in this launch
  u16 writer_thread = 0, flags = 0;
  Scope scope = Scope::Cta;  // of an atomic write
  s32 readers = -1;          // head of a list
};

// Readers of all cells.
class Readers {
 public:
  Reader& operator[](s32 n) { return all_[n]; }
  s32 add(const Reader& r) {
    if (free_ < 0) {
      all_.push_back(r);
      return all_.size() - 1;
    }
    const s32 n = free_;
    free_ = all_[n].next;
    all_[n] = r;
    return n;
  }
  s32 drop(s32 n) {  // returns the next one
    const s32 next = all_[n].next;
    all_[n].next = free_;
    free_ = n;
    return next;
  }
  s32 copy(s32 list) {
    if (list < 0) return -1;
    Reader r = all_[list];
    r.next = copy(r.next);
    return add(r);
  }

 private:
  std::vector<Reader> all_;
  s32 free_ = -1;
};

// Cells of a kilobyte. A cell is four bytes until a smaller access is met.
class Chunk {
 public:
  static constexpr u64 BYTES = 1024;
  // The cells of an access, which does not cross the chunk's end.
  std::pair<Cell*, Cell*> cells(u64 offset, u32 bytes, Readers& readers) {
    while (bytes < (1u << shift_)) split(readers);
    Cell* first = &cells_[offset >> shift_];
    return {first, first + std::max(1u, bytes >> shift_)};
  }

 private:
  u32 shift_ = 2;
  std::vector<Cell> cells_ = std::vector<Cell>(BYTES >> 2);

  void split(Readers& readers) {
    std::vector<Cell> finer;
    for (const Cell& c : cells_) {
      finer.push_back(c);
      finer.push_back(c);
      finer.back().readers = readers.copy(c.readers);
    }
    cells_.swap(finer);
    shift_--;
  }
};

class Shadow {
 public:
  Chunk& chunk(u64 address) {
    const u64 key = address / Chunk::BYTES;
    if (key == last_key_) return *last_;
    auto& slot = chunks_[key];
    if (!slot) slot = std::make_unique<Chunk>();
    last_key_ = key, last_ = slot.get();
    return *last_;
  }
  void clear() { chunks_.clear(), last_key_ = ~0ull; }

 private:
  std::unordered_map<u64, std::unique_ptr<Chunk>> chunks_;
  u64 last_key_ = ~0ull;
  Chunk* last_ = nullptr;
};

}  // namespace softgpu
