// The state of running warps and blocks.
#pragma once
#include <cstring>

#include "launch.h"

namespace softgpu {

struct Block;

// Lanes at one place in the code. Lanes of a warp that go different ways are different splits.
struct Split {
  u32 pc, mask;
  bool blocked;  // waits for the other lanes of the warp
};

// One cp.async of a warp: done when it is waited for, not before, so that a missing wait shows.
struct AsyncCopy {
  u32 mask;
  u32 bytes;
  u32 group[LANES];
  u64 target[LANES];  // shared addresses
  u32 taken[LANES];   // bytes that are copied, the others become zeros
  u64 source[LANES];
  const Instruction* by;
};

// The allocation that an instruction met last.
struct Known {
  u64 begin = 1, end = 0;
};

struct Warp {
  u8* registers = nullptr;
  Block* block = nullptr;
  const Program* program = nullptr;
  u32 number = 0, live = 0;
  u32 carry = 0;  // the condition code register CC.CF, a bit a lane
  u32 pc = 0;
  std::vector<Split> splits;
  u32 turn = 0;          // which split is next, where some spin
  int waits_at = -1;     // barrier
  bool yielded = false;  // by nanosleep, or by looking at a flag again
  u32 polls = 0;         // looks at the time and at what others write, since the last backward branch
  Known known[16];
  std::vector<AsyncCopy> copies;
  u32 committed[LANES] = {};
  u32* reduced = nullptr;  // where bar.red leaves its predicate or count
  int reduction = 0;
  void* watched = nullptr;  // what the watcher keeps of it

  template <class T>
  T* at(u32 place) const {
    return reinterpret_cast<T*>(registers + place);
  }
};

struct Barrier {
  u32 arrived = 0, expected = 0;    // threads; 0: all
  u32 count = 0, any = 0, all = 1;  // of bar.red
  std::vector<Warp*> waiting;
  std::vector<std::pair<Warp*, u32>> came;  // warps and lanes, waiting or not
};

// Where to interrupt, and whom to run next, in random order.
struct Dice {
  u64 state;
  u32 roll(u32 sides) {
    state ^= state << 13, state ^= state >> 7, state ^= state << 17;
    return u32(state >> 20) % sides;
  }
};

// What the blocks of one call of launch() share.
struct Run {
  const Options& options;
  Dice dice;
  u64 timer_ns = 0;
  u64 progress = 0;  // stores, atomics, barriers: what a waiting thread may be waiting for
  bool random() const { return options.seed > 1; }
};

struct Block {
  Run* run = nullptr;
  const Grid* grid = nullptr;
  u64 grid_number = 0, number = 0;  // of the grid in the launch, of the block in the grid
  u64 id = 0;                       // of the block in the launch
  Dim at;
  std::vector<u8> shared;  // from SHARED_START on
  std::vector<u8> local;
  std::vector<Warp> warps;
  std::vector<u8> registers;
  Barrier barriers[16];
  u32 live_warps = 0;

  Watcher* watcher() const { return run->options.watcher; }
};

enum Error { ILLEGAL_ADDRESS = 700, HUNG = 702, ASSERT = 710, ILLEGAL_INSTRUCTION = 715, MISALIGNED = 716, LAUNCH_FAILED = 719 };

// Ends the launch: names kernel, block, thread, the line of PTX and that of the source.
[[noreturn]] void fault(const Warp& w, const Instruction& i, int lane, int code, const std::string& what);
std::string place_of(const Program& p, const Instruction& i);  // "\n  PTX line ..., source ..."
std::string source_of(const Program& p, const Instruction& i);  // "file:line", or nothing without -lineinfo

// Where the lanes' addresses lie in the host's memory; Fault where they lie nowhere, or are not aligned.
void locate(Warp& w, const Instruction& i, u32 mask, const u64* addresses, Space space, u32 bytes, u8** host);
// The same for an access that happens now.
void reach(Warp& w, const Instruction& i, u32 mask, const u64* addresses, Space space, u32 bytes, u8** host);

// A warp.
enum class Stop { Done, Waiting, Spent };
Stop run(Warp& w, s64& budget, u64 until);
void finish_copies(Warp& w, u32 mask, s64 newest);  // cp.async; newest < 0: all

// A block.
void start(Block& block, Run& run, const Grid& grid, u64 number);
enum class Outcome { Done, Waits, Busy };  // Waits: all that is left to do is to look at flags again
Outcome run(Block& block, s64 budget);
void arrive(Warp& w, const Instruction& i, u32 mask, bool waits);
void release_if_full(Block& block, int id);
void set_special_registers(Warp& w);

}  // namespace softgpu
