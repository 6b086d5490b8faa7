// The state of a launch, and what the parts of the runtime offer each other.
//
//   fiber        a stack and a switch                    checker      races, memory order, bounds,
//   initialisation scheduler    which lane runs next; blocks come and go  collectives  warps, barriers,
//   atomics, fences memory       device buffers, shared memory, cp.async   matrix       ldmatrix and mma
//   interface    what Python calls
//
// A "lane" is one CUDA thread. The runtime is compiled without instrumentation; where it touches memory for a
// lane it tells the checker itself.
#pragma once
#include <cstdint>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "clocks.h"
#include "cuda.h"

namespace simt {

constexpr uint32_t RED_ZONE = 1024;  // between two shared arrays; keeps the address bits that a swizzle sees
constexpr uint32_t SHARED_ADDRESS = 1024;  // where 32-bit shared addresses begin, so that zero is none
constexpr int MAX_SHARED_ARRAYS = 32;
constexpr size_t PAGE = 65536;

struct Copy {
  char* dst;
  const char* src;
  int bytes, src_bytes, group;
};
struct Pending {
  uint32_t mask;
  const char* op;
  void* operands;
  int line;
};
struct Block;

struct Lane {
  dim3 thread, block_at, block_dim, grid_dim;
  void* context;  // where it stopped
  char* stack;
  Block* block;
  int index;              // in the block
  const char* waits_for;  // null while it can run
  int wait_line;
  Pending pending;           // the collective it has arrived at
  std::vector<Copy> copies;  // cp.async, issued and not waited for
  int copy_group;
  uint32_t now;           // its own clock
  VectorClock known;      // what happened before
  VectorClock at_fence;   // the same at its last fence: what a relaxed store publishes
  VectorClock collected;  // seen by relaxed loads; counts from the next fence on
};

struct Warp {
  uint32_t arrived = 0, runnable = 0, exited = 0;
};

struct Barrier {
  int arrived = 0, needed = 0;
  int line_of_warp[32] = {};
  std::vector<Lane*> waiters;
  VectorClock known;
  std::vector<ThreadClock> clocks;
};

// What the checker knows of one byte.
struct Cell {
  uint32_t writer, write_clock;  // the last write; clock 0: none
  int reads;                     // head of the list of reads since
  uint32_t flags;
};
enum CellFlag : uint32_t { INITIALISED = 1, IN_FLIGHT = 2, ATOMIC = 4, ALLOCATED = 8 };

struct Array {
  uint32_t device_offset, host_offset, bytes;
};  // in shared memory

struct Launch {
  Thunk kernel;
  void** args;
  dim3 grid, block;
  uint32_t shared_bytes;
  int threads, blocks, first_block;  // first_block: number of its first block among all of a joint launch
  int device;                        // launches of one device run one after the other
  Launch* after;                     // the one before it on its device, or null
  Launch* next = nullptr;            // the one that waits for it
  int unfinished = 0;                // blocks
  VectorClock known = {};            // what its threads knew at their ends
};

struct Block {
  Launch* launch;
  uint32_t id;  // unique in the joint launch
  int alive = 0;
  std::vector<Lane> lanes;
  std::vector<Warp> warps;
  Barrier barriers[16];
  char* shared = nullptr;
  uint32_t arena = 0;  // bytes of `shared`, red zones included
  std::vector<Array> arrays;
  std::vector<Cell> cells;
};

struct Buffer {
  char* mapping;
  size_t mapped, bytes;
  std::vector<Cell> cells;
  uint64_t cells_of_launch;
};

struct Export {
  Thunk kernel;
  std::vector<Parameter> parameters;
};

// ---- the launch that is under way (one at a time)
struct State {
  Lane* lane = nullptr;  // the running one
  bool running = false, check = false;
  int mma_model = 90;
  int threads_per_block = 0;  // the largest of a joint launch; numbers threads as block * this + index
  uint64_t launch_number = 0;
  uint64_t timer_ns = 0;  // of the device: every look at it takes a microsecond
  long idle_spins = 0;  // picks since anything but spinning happened
  std::vector<Block*> residents;
  size_t stack_bytes = 64 << 10;
  long ldmatrix_wavefronts = 0,
       ldmatrix_ideal = 0;  // shared-memory passes taken, and those a good swizzle takes
  char error[4096] = "";
};
extern State state;

std::map<std::string, Export>& exports();
std::map<uintptr_t, Buffer>& buffers();  // by address of their first byte

// ---- scheduler
struct Options {
  int check, seed, max_resident, mma_model, timeout_s;
};
void run_blocks(std::vector<Launch>& launches, uint32_t shared_bytes, const Options& options);
void block_on(const char* what, int line);  // the running lane waits until someone wakes it
void wake(Lane* lane);
[[noreturn]] void fail(const char* format, ...) __attribute__((format(printf, 1, 2)));

// ---- memory
char* new_arena(uint32_t bytes);
void free_arena(char* arena, uint32_t bytes);
void reset_shared(Block* block);           // poison before a block starts
void check_red_zones(const Block* block);  // after it ended
char* shared_pointer(uint32_t address, int bytes, int line);
void explain_fault(const char* address, int signal);

// ---- checker
void check_access(const void* p, uint32_t bytes, bool write, bool atomic, void* pc, int line,
                  bool aligned = true);
VectorClock publish(Lane* lane);  // what a release by this lane makes known
void reset_checker();
void mark_in_flight(Block* block, const char* p, int bytes);
void mark_landed(Block* block, const char* p, int bytes, uint32_t clock);
std::string source_place(void* pc, int line);

}  // namespace simt
