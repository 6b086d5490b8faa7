// Which lane runs next, how blocks come and go, and how a hang is told from work.
//
// A lane runs until it waits, spins or exits, and switches straight to the next one. The order is a function
// of the seed: 0 ascending, depth first within a warp (one switch a lane and collective); 1 descending lanes,
// warps and blocks; from 2 on random, with a jump to another warp at one pick in eight. At most
// `max_resident` blocks are alive at a time, as on a GPU: with one of them, a kernel that waits for a block
// not started yet hangs, and says so.
#include <pthread.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/time.h>

#include <algorithm>
#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <random>

#include "fiber.h"
#include "runtime.h"

namespace simt {

State state;

namespace {

void* main_context;
pthread_t launching_thread;
std::mt19937 rng;
int seed, slot_now, warp_now, live_blocks;
std::vector<std::pair<Launch*, int>> queue;  // blocks in the order in which they start
size_t queue_at;
std::vector<Block*> free_slots;

[[noreturn]] void leave() {
  static void* dead;
  simt_switch(&dead, main_context);
  abort();
}

int random_bit(uint32_t bits) {
  for (int skip = rng() % __builtin_popcount(bits); skip > 0; skip--) bits &= bits - 1;
  return __builtin_ctz(bits);
}

int pick_in_warp(uint32_t runnable) {
  if (seed == 0) return __builtin_ctz(runnable);
  return seed == 1 ? 31 - __builtin_clz(runnable) : random_bit(runnable);
}

// The next runnable lane: from the current warp on, through the other blocks, back to the warps before it.
// rotate: leave the current warp first, since a spinning lane must not starve the one it waits for.
Lane* pick(bool rotate) {
  const int slots = state.residents.size();
  if (seed > 1 && rng() % 8 == 0) {
    slot_now = rng() % slots;
    warp_now = rng() % std::max<size_t>(1, state.residents[slot_now]->warps.size());
  }
  for (int i = 0; i <= slots; i++) {
    const int slot = (slot_now + i) % slots;
    Block& block = *state.residents[slot];
    if (!block.alive) continue;
    const int warps = block.warps.size();
    const int first = i ? 0 : warp_now + rotate, end = i == slots ? std::min(warp_now + 1, warps) : warps;
    for (int k = first; k < end; k++) {
      const int warp = seed == 1 ? warps - 1 - k : k;
      if (!block.warps[warp].runnable) continue;
      slot_now = slot, warp_now = k;
      return &block.lanes[warp * 32 + pick_in_warp(block.warps[warp].runnable)];
    }
  }
  return nullptr;
}

[[noreturn]] void hang(const char* what) {
  std::map<std::string, int> places;
  for (auto* block : state.residents)
    for (auto& lane : block->lanes)
      if (block->alive && lane.waits_for)
        places[std::string(lane.waits_for) + " line " + std::to_string(lane.wait_line) + " in block " +
               std::to_string(lane.block_at.x) + "," + std::to_string(lane.block_at.y)]++;
  std::string table;
  for (auto& [place, lanes] : places)
    if (table.size() < 600) table += "; " + std::to_string(lanes) + " lanes at " + place;
  state.lane = nullptr;
  fail("%s%s", what, table.c_str());
}

void reschedule(bool rotate = false) {
  Lane *self = state.lane, *next = pick(rotate);
  if (!next) hang("deadlock");
  if (next == self) return;
  state.lane = next;
  simt_switch(&self->context, next->context);
}

void enqueue(Launch* launch) {
  const size_t first = queue.size();
  for (int i = 0; i < launch->blocks; i++) queue.push_back({launch, i});
  if (seed == 1) std::reverse(queue.begin() + first, queue.end());
  if (seed > 1) std::shuffle(queue.begin() + first, queue.end(), rng);
}

// Where every lane begins and ends.
void lane_main() {
  state.lane->block->launch->kernel(state.lane->block->launch->args);
  Lane* lane = state.lane;
  Block* block = lane->block;
  Warp& warp = block->warps[lane->index / 32];
  if (!lane->copies.empty()) fail("thread exits with cp.async copies that were never waited for");
  if (state.check && block->launch->next) block->launch->known.join(publish(lane));
  warp.exited |= 1u << (lane->index & 31);
  warp.runnable &= ~(1u << (lane->index & 31));
  state.idle_spins = 0;
  if (--block->alive == 0) {
    check_red_zones(block);
    live_blocks--;
    free_slots.push_back(block);
    Launch* launch = block->launch;
    if (--launch->unfinished == 0 && launch->next) enqueue(launch->next);
    // slots are refilled from the main stack: this one is among those to be reused
    if (queue_at < queue.size() || !live_blocks) leave();
  }
  reschedule();
}

dim3 unravel(unsigned i, dim3 shape) { return {i % shape.x, i / shape.x % shape.y, i / (shape.x * shape.y)}; }

void start_block(Block* block) {
  auto [launch, number] = queue[queue_at++];
  live_blocks++;
  block->launch = launch;
  block->id = launch->first_block + number;
  block->alive = launch->threads;
  block->warps.assign((launch->threads + 31) / 32, {});
  for (auto& barrier : block->barriers) barrier = {};
  reset_shared(block);
  for (int t = 0; t < launch->threads; t++) {
    Lane& lane = block->lanes[t];
    char* stack = lane.stack;
    lane = {};
    lane.stack = stack;
    lane.thread = unravel(t, launch->block), lane.block_at = unravel(number, launch->grid);
    lane.block_dim = launch->block, lane.grid_dim = launch->grid;
    lane.block = block, lane.index = t, lane.now = 1;
    if (launch->after) lane.known = launch->after->known;
    lane.context = new_fiber(stack + state.stack_bytes, lane_main);
    wake(&lane);
  }
}

void on_signal(int number, siginfo_t* info, void*) {
  if (!state.running) {
    signal(number, SIG_DFL);
    return;
  }
  if (!pthread_equal(pthread_self(), launching_thread)) {  // an alarm may come to any thread of the process
    pthread_kill(launching_thread, number);
    return;
  }
  if (number == SIGALRM)
    fail(
        "watchdog: a lane ran too long without yielding; loops that wait must use "
        "ld_acquire, ld_relaxed, an atomic or __nanosleep");
  explain_fault(static_cast<const char*>(info->si_addr), number);
}

// Bad accesses and endless loops end the launch, not the process: signals are taken on a stack of their own.
class SignalGuard {
  struct sigaction old_[3];
  stack_t old_stack_;
  static constexpr int SIGNALS[3] = {SIGSEGV, SIGBUS, SIGALRM};

 public:
  explicit SignalGuard(int timeout_s) {
    static char stack[65536];
    stack_t alternative = {stack, 0, sizeof stack};
    sigaltstack(&alternative, &old_stack_);
    struct sigaction action = {};
    action.sa_sigaction = on_signal;
    action.sa_flags = SA_SIGINFO | SA_ONSTACK | SA_NODEFER;
    for (int i = 0; i < 3; i++) sigaction(SIGNALS[i], &action, &old_[i]);
    itimerval timer = {{0, 0}, {timeout_s, 0}};
    setitimer(ITIMER_REAL, &timer, nullptr);
  }
  ~SignalGuard() {
    itimerval off = {};
    setitimer(ITIMER_REAL, &off, nullptr);
    for (int i = 0; i < 3; i++) sigaction(SIGNALS[i], &old_[i], nullptr);
    sigaltstack(&old_stack_, nullptr);
  }
};

void fill_queue(std::vector<Launch>& launches) {
  queue.clear(), queue_at = 0, live_blocks = 0;
  for (auto& launch : launches)
    for (int i = 0; i < launch.blocks && !launch.after; i++) queue.push_back({&launch, i});
  if (seed == 1) std::reverse(queue.begin(), queue.end());
  if (seed > 1) std::shuffle(queue.begin(), queue.end(), rng);
}

// As many blocks as can be alive at once: of each device its largest launch.
int most_alive(const std::vector<Launch>& launches) {
  std::map<int, int> of_device;
  for (auto& launch : launches)
    of_device[launch.device] = std::max(of_device[launch.device], launch.blocks);
  int sum = 0;
  for (auto& [device, blocks] : of_device) sum += blocks;
  return sum;
}

}  // namespace

void fail(const char* format, ...) {
  va_list values;
  va_start(values, format);
  const int n =
      std::min<int>(vsnprintf(state.error, sizeof state.error, format, values), sizeof state.error - 1);
  va_end(values);
  if (const Lane* l = state.lane)
    snprintf(state.error + n, sizeof state.error - n, " [block (%u,%u,%u) thread (%u,%u,%u)]", l->block_at.x,
             l->block_at.y, l->block_at.z, l->thread.x, l->thread.y, l->thread.z);
  leave();
}

void block_on(const char* what, int line) {
  Lane* lane = state.lane;
  lane->waits_for = what, lane->wait_line = line;
  lane->block->warps[lane->index / 32].runnable &= ~(1u << (lane->index & 31));
  reschedule();
}

void wake(Lane* lane) {
  lane->waits_for = nullptr;
  lane->block->warps[lane->index / 32].runnable |= 1u << (lane->index & 31);
}

void spin() {
  const long patience = 200000 + 1000L * state.threads_per_block * long(state.residents.size());
  if (++state.idle_spins > patience) hang("livelock: only spinning lanes are left");
  reschedule(true);
}

void run_blocks(std::vector<Launch>& launches, uint32_t shared_bytes, const Options& options) {
  seed = options.seed;
  rng.seed(seed);
  state.check = options.check, state.mma_model = options.mma_model;
  state.idle_spins = 0, state.timer_ns = 0, state.lane = nullptr, state.error[0] = 0, state.launch_number++;
  reset_checker();
  fill_queue(launches);

  const int slots = std::min(most_alive(launches), options.max_resident);
  const size_t stacks_bytes = state.stack_bytes * slots * state.threads_per_block;
  const int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE;
  char* stacks = static_cast<char*>(mmap(nullptr, stacks_bytes, PROT_READ | PROT_WRITE, flags, -1, 0));
  const uint32_t arena = (shared_bytes + (MAX_SHARED_ARRAYS + 1) * RED_ZONE + 4095) / 4096 * 4096;

  std::vector<Block> blocks(slots);
  state.residents.clear();
  for (int i = 0; i < slots; i++) {
    Block& block = blocks[i];
    state.residents.push_back(&block);
    block.arena = arena, block.shared = new_arena(arena);
    block.lanes.resize(state.threads_per_block);
    for (int t = 0; t < state.threads_per_block; t++)
      block.lanes[t].stack = stacks + state.stack_bytes * (size_t(i) * state.threads_per_block + t);
  }
  free_slots.clear();
  for (int i = slots; i-- > 0;) free_slots.push_back(&blocks[i]);
  {
    launching_thread = pthread_self();
    SignalGuard guard(options.timeout_s);
    state.running = true;
    slot_now = warp_now = 0;
    do {
      for (; queue_at < queue.size() && !free_slots.empty(); free_slots.pop_back())
        start_block(free_slots.back());
      state.lane = pick(false);
      simt_switch(&main_context, state.lane->context);
    } while (queue_at < queue.size() && !state.error[0]);
    state.running = false;
  }
  state.lane = nullptr;
  for (auto& block : blocks) free_arena(block.shared, arena);
  munmap(stacks, stacks_bytes);
}

uint64_t device_timer() { return state.timer_ns += 1000; }

dim3 thread_index() { return state.lane->thread; }
dim3 block_index() { return state.lane->block_at; }
dim3 block_shape() { return state.lane->block_dim; }
dim3 grid_shape() { return state.lane->grid_dim; }
int lane_index() { return state.lane->index & 31; }

}  // namespace simt
