// Work of even cost, shared among threads: quantizers and checksums.
#pragma once

#include <algorithm>

#include "common/types.h"
#include "threads/pool.h"
#include "threads/work_queue.h"

namespace mxfp4moe {

// So many values are worth a thread of their own: 64 KiB of float32, some 10 us of work.
constexpr int64_t kMinValuesPerThread = 16384;

// About as many products take as long as the slowest conversion of a value.
constexpr int64_t kValueWork = 32;

// Calls run(begin, end) for parts of an even split of [0, num_units) over the threads.
template <class Run>
void split_units(int64_t num_units, int64_t values_per_unit, int num_threads, const Run& run) {
  struct Split {
    int64_t num_units, unit_work;
    const Run& run;
  } split{num_units, values_per_unit * kValueWork, run};
  const int64_t min_units = std::max<int64_t>(1, kMinValuesPerThread / std::max<int64_t>(1, values_per_unit));
  const int64_t useful = std::max<int64_t>(1, num_units / min_units);
  parallel_run(
      static_cast<int>(std::min<int64_t>(num_threads, useful)),
      [](void* context, int thread, int threads) {
        const Split& s = *static_cast<const Split*>(context);
        const int64_t share = ceil_div(s.num_units, threads);
        const int64_t begin = std::min(s.num_units, thread * share);
        const int64_t end = std::min(s.num_units, begin + share);
        run_parts({begin, end}, s.unit_work, [&](ItemRange part) { s.run(part.begin, part.end); });
      },
      &split);
}

// Calls run(part, threads) for each part in [0, num_parts); `run` may share its part among `threads` threads. If there
// are many parts they are split over the threads; if there are few, each part in turn is given all threads.
template <class Run>
void split_parts(int64_t num_parts, int64_t values_per_part, int num_threads, const Run& run) {
  if (num_parts < 4 * int64_t{num_threads}) {
    for (int64_t part = 0; part < num_parts && keep_going(); ++part) run(part, num_threads);
    return;
  }
  split_units(num_parts, values_per_part, num_threads, [&](int64_t begin, int64_t end) {
    for (int64_t part = begin; part < end && keep_going(); ++part) run(part, 1);
  });
}

}  // namespace mxfp4moe
