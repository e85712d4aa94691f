// The passes over memory of SPAM, Stable-SPAM and the spike monitor on a CPU, a call for all tensors
// of a step. native.py builds it. The formulas are those of kernels.py and spikes.py, and so are the
// results, each operation rounded as IEEE 754 has it: no contraction, no reassociation.
//
// A root or a division costs as much as the memory that an entry moves. So entries are taken in
// tiles, and what only spikes need is computed only in tiles that may hold one. The quick tests err
// to that side; the exact ones follow.

#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <mutex>
#include <thread>
#include <type_traits>
#include <vector>

namespace {

enum { RATE, ROOT, EPS, BEFORE, AFTER, W1, W2, CLIP, CAP, GAIN, TAKEN, SCALARS };
constexpr int64_t TILE = 64;
constexpr int64_t AHEAD = 4;        // blocks asked for before they are needed
constexpr int64_t SHARE = 1 << 18;  // entries that are worth a thread
constexpr double MARGIN = 0.99;     // of the quick tests; rounding errors are far smaller

struct BFloat16 {
  uint16_t bits;
  operator float() const {
    const uint32_t wide = uint32_t(bits) << 16;
    float value;
    std::memcpy(&value, &wide, sizeof value);
    return value;
  }
};

template <class T, class G>
struct Call {
  int64_t tensors;
  const int64_t* addresses;  // [lists, tensors]
  const int64_t* sizes;      // [tensors], in units of `width` entries
  int64_t width;

  template <class X>
  X* at(int64_t list, int64_t tensor) const {
    return reinterpret_cast<X*>(addresses[list * tensors + tensor]);
  }
};

template <class X>
inline void ask(const X* from, int64_t count) {
#ifdef __GNUC__
  for (int64_t i = 0; i < count; i += 64 / int64_t(sizeof(X))) __builtin_prefetch(from + i);
#endif
}

// Call work(tensor, first, last) for parts of all tensors, on some threads. Parts begin at multiples
// of `grain`; what a part computes must not depend on where it ends.
template <class Work>
void share(int64_t tensors, const int64_t* sizes, int64_t width, int64_t grain, int64_t threads,
           Work work) {
  int64_t total = 0;
  for (int64_t i = 0; i < tensors; ++i) total += (sizes[i] + grain - 1) / grain;
  const int64_t useful = total * grain * width / SHARE + 1;
  if (threads > useful) threads = useful;
  auto part = [=](int64_t from, int64_t to) {
    int64_t begin = 0;
    for (int64_t i = 0; i < tensors; ++i) {
      const int64_t units = (sizes[i] + grain - 1) / grain, end = begin + units;
      const int64_t a = from > begin ? from - begin : 0;
      const int64_t b = (to < end ? to : end) - begin;
      if (a < b) work(i, a * grain, b * grain < sizes[i] ? b * grain : sizes[i]);
      begin = end;
    }
  };
  std::vector<std::thread> others;
  for (int64_t t = 1; t < threads; ++t)
    others.emplace_back(part, t * total / threads, (t + 1) * total / threads);
  part(0, total / (threads > 1 ? threads : 1));
  for (auto& other : others) other.join();
}

template <class T>
inline void adam(T& p, T c, T& m, T& v, const T* s) {
  m = m + s[W1] * (c - m);
  v = v + s[W2] * (c * c - v);
  p = (p * s[BEFORE] - s[RATE] * m / (std::sqrt(v) * s[ROOT] + s[EPS])) * s[AFTER];
}

// What SPAM's quick test needs: is g² above all of a tile's limits, or isn't it finite?
template <class T>
struct Quick {
  T square, cap;

  explicit Quick(const T* s) : square(s[CLIP] * s[CLIP]), cap(s[CAP] * s[CAP]) {
    constexpr T most = std::numeric_limits<T>::max();
    square = square < most ? square * T(MARGIN) : most;
    cap = cap < most ? cap * T(MARGIN) : most;
  }

  template <class G>
  bool may_cut(const G* __restrict g, const T* __restrict v) const {
    int over = 0;
    for (int64_t i = 0; i < TILE; ++i) {
      const T c = g[i];
      T limit = square * v[i];
      limit = limit < cap ? limit : cap;
      over |= !(c * c <= limit);
    }
    return over;
  }
};

// The exact one, and the limit.
template <class T>
inline bool is_cut(T length, T second, const T* s, T& limit) {
  limit = std::sqrt(second) * s[CLIP];
  limit = limit < s[CAP] ? limit : s[CAP];
  return (length > limit) & (second > 0);
}

template <class T, class G>
void spam(T* __restrict p, const G* __restrict g, T* __restrict m, T* __restrict v, int64_t n,
          const T* scalars) {
  constexpr T inf = std::numeric_limits<T>::infinity();
  T s[SCALARS];
  std::memcpy(s, scalars, sizeof s);
  const Quick<T> quick(s);
  for (int64_t start = 0; start < n; start += TILE, p += TILE, g += TILE, m += TILE, v += TILE) {
    const int64_t size = n - start < TILE ? n - start : TILE;
    if (size == TILE && !quick.may_cut(g, v)) {
      for (int64_t i = 0; i < TILE; ++i) adam<T>(p[i], g[i], m[i], v[i], s);
      continue;
    }
    for (int64_t i = 0; i < size; ++i) {
      const T value = g[i], length = std::fabs(value), second = v[i];
      T limit;
      const bool over = is_cut(length, second, s, limit);
      const T c = over ? (value < 0 ? -limit : limit) : value;
      T new_p = p[i], new_m = m[i], new_v = second;
      adam(new_p, c, new_m, new_v, s);
      const bool taken = length < inf;
      p[i] = taken ? new_p : p[i];
      m[i] = taken ? new_m : m[i];
      v[i] = taken ? new_v : v[i];
    }
  }
}

// How many entries `spam` would cut.
template <class T, class G>
int64_t count(const G* __restrict g, const T* __restrict v, int64_t n, const T* s) {
  constexpr T inf = std::numeric_limits<T>::infinity();
  const Quick<T> quick(s);
  int64_t found = 0;
  for (int64_t start = 0; start < n; start += TILE, g += TILE, v += TILE) {
    const int64_t size = n - start < TILE ? n - start : TILE;
    if (size == TILE && !quick.may_cut(g, v)) continue;
    for (int64_t i = 0; i < size; ++i) {
      T limit;
      const T length = std::fabs(T(g[i]));
      found += is_cut(length, v[i], s, limit) & (length < inf);
    }
  }
  return found;
}

template <bool clamp, class T, class G>
void stable(T* __restrict p, const G* __restrict g, T* __restrict m, T* __restrict v, int64_t n,
            const T* scalars) {
  T s[SCALARS];
  std::memcpy(s, scalars, sizeof s);
  if (!(s[TAKEN] > 0)) return;
  for (int64_t i = 0; i < n; ++i) {
    T c = g[i];
    if (clamp) {
      c = c < -s[CLIP] ? -s[CLIP] : c;
      c = c > s[CLIP] ? s[CLIP] : c;
    } else {
      c = std::fabs(c) > s[CLIP] ? c * s[CAP] : c;
    }
    adam<T>(p[i], c * s[GAIN], m[i], v[i], s);
  }
}

// Spikes among g, the largest g² over its limit, and the means v advanced.
template <class T, class G>
void watch(const G* __restrict g, T* __restrict v, int64_t n, const T* s, int64_t& count, T& ratio) {
  constexpr T inf = std::numeric_limits<T>::infinity();
  const T theta = s[0], weight = s[1];
  for (int64_t start = 0; start < n; start += TILE, g += TILE, v += TILE) {
    const int64_t size = n - start < TILE ? n - start : TILE;
    const T least = (ratio < 1 ? ratio : 1) * T(MARGIN) * theta;
    int seen = size < TILE && theta < inf;  // nothing is above a limit that is infinite
    if (theta < inf && !seen)
      for (int64_t i = 0; i < TILE; ++i) {
        const T c = g[i];
        seen |= !(c * c <= least * v[i]);
      }
    if (!seen) {
      for (int64_t i = 0; i < size; ++i) {
        const T c = g[i];
        v[i] = v[i] + weight * (c * c - v[i]);
      }
      continue;
    }
    for (int64_t i = 0; i < size; ++i) {
      const T c = g[i], square = c * c;
      const T limit = v[i] > 0 ? v[i] * theta : inf;
      const T own = square / limit;
      count += square > limit;
      ratio = own > ratio ? own : ratio;
      v[i] = v[i] + weight * ((square < limit ? square : limit) - v[i]);
    }
  }
}

// The largest |entry| of a row, as its bits: of numbers without sign these have the same order, and
// what isn't a number comes last. And the sum of squares, in 64 sums that don't wait for each other.
template <class T, class G>
void row(const G* x, int64_t n, T& largest, T& squares) {
  using Bits = typename std::conditional<sizeof(T) == 4, uint32_t, uint64_t>::type;
  constexpr Bits unsign = ~(Bits(1) << (8 * sizeof(T) - 1));
  Bits tops[TILE] = {0};
  T sums[TILE] = {0};
  auto take = [&](const G* from, int64_t i) {
    const T value = from[i];
    Bits bits;
    std::memcpy(&bits, &value, sizeof bits);
    bits &= unsign;
    tops[i] = bits > tops[i] ? bits : tops[i];
    sums[i] += value * value;
  };
  int64_t done = 0;
  for (; done + TILE <= n; done += TILE)
    for (int64_t i = 0; i < TILE; ++i) take(x + done, i);
  for (int64_t i = 0; done + i < n; ++i) take(x + done, i);
  Bits top = 0;
  squares = 0;
  for (int64_t i = 0; i < TILE; ++i) {
    top = tops[i] > top ? tops[i] : top;
    squares += sums[i];
  }
  std::memcpy(&largest, &top, sizeof top);
}

// The sum of squares of a row once entries above `limit` are clamped to it, or times `factor`.
template <class T, class G>
double row_after(const G* x, int64_t n, T limit, T factor, bool clamp) {
  double sum = 0;
  for (int64_t i = 0; i < n; ++i) {
    const T size = std::fabs(T(x[i]));
    const T cut = size > limit ? (clamp ? limit : size * factor) : size;
    sum += double(cut * cut);
  }
  return sum;
}

template <class T, class G, void (*pass)(T*, const G*, T*, T*, int64_t, const T*)>
void dense(const Call<T, G>& call, int64_t threads) {
  share(call.tensors, call.sizes, 1, TILE, threads, [&](int64_t i, int64_t a, int64_t b) {
    pass(call.template at<T>(0, i) + a, call.template at<const G>(1, i) + a,
         call.template at<T>(2, i) + a, call.template at<T>(3, i) + a, b - a,
         call.template at<const T>(4, i));
  });
}

template <class T, class G>
void blocks(const Call<T, G>& call, int64_t threads) {
  const int64_t width = call.width;
  share(call.tensors, call.sizes, width, 1, threads, [&](int64_t i, int64_t a, int64_t b) {
    const auto* chosen = call.template at<const int64_t>(5, i);
    auto* p = call.template at<T>(0, i);
    const auto* g = call.template at<const G>(1, i);
    for (int64_t k = a; k < b; ++k) {
      const int64_t next = chosen[k + AHEAD < b ? k + AHEAD : b - 1] * width;
      ask(p + next, width);  // blocks lie anywhere: no hardware foresees them
      ask(g + next, width);
      spam<T, G>(p + chosen[k] * width, g + chosen[k] * width,
                 call.template at<T>(2, i) + k * width, call.template at<T>(3, i) + k * width,
                 width, call.template at<const T>(4, i));
    }
  });
}

template <class T, class G>
void counted(const Call<T, G>& call, int64_t threads) {
  std::vector<int64_t> counts(call.tensors, 0);
  std::mutex joining;
  share(call.tensors, call.sizes, 1, TILE, threads, [&](int64_t i, int64_t a, int64_t b) {
    const int64_t found = count(call.template at<const G>(0, i) + a,
                                call.template at<const T>(1, i) + a, b - a,
                                call.template at<const T>(2, i));
    const std::lock_guard<std::mutex> alone(joining);
    counts[i] += found;
  });
  for (int64_t i = 0; i < call.tensors; ++i) *call.template at<int64_t>(3, i) = counts[i];
}

template <class T, class G>
void watched(const Call<T, G>& call, int64_t threads) {
  std::vector<int64_t> counts(call.tensors, 0);
  std::vector<T> ratios(call.tensors, 0);
  std::mutex joining;
  share(call.tensors, call.sizes, 1, TILE, threads, [&](int64_t i, int64_t a, int64_t b) {
    int64_t count = 0;
    T ratio = 0;
    watch(call.template at<const G>(0, i) + a, call.template at<T>(1, i) + a, b - a,
          call.template at<const T>(2, i), count, ratio);
    const std::lock_guard<std::mutex> alone(joining);
    counts[i] += count;
    ratios[i] = ratio > ratios[i] ? ratio : ratios[i];
  });
  for (int64_t i = 0; i < call.tensors; ++i) {
    *call.template at<T>(3, i) = T(counts[i]);
    *call.template at<T>(4, i) = ratios[i];
  }
}

template <class T, class G>
void measured(const Call<T, G>& call, T* largest, T* squares, double* tops, int64_t threads) {
  const int64_t width = call.width;
  std::vector<int64_t> rows(call.tensors), first(call.tensors + 1, 0);
  for (int64_t i = 0; i < call.tensors; ++i) {
    rows[i] = (call.sizes[i] + width - 1) / width;
    first[i + 1] = first[i] + rows[i];
  }
  share(call.tensors, rows.data(), width, 1, threads, [&](int64_t i, int64_t a, int64_t b) {
    for (int64_t k = a; k < b; ++k) {
      const int64_t left = call.sizes[i] - k * width;
      row<T, G>(call.template at<const G>(0, i) + k * width, left < width ? left : width,
                largest[first[i] + k], squares[first[i] + k]);
    }
  });
  for (int64_t i = 0; i < call.tensors; ++i) {
    tops[i] = 0;
    for (int64_t k = first[i]; k < first[i + 1]; ++k)
      if (tops[i] == tops[i] && !(largest[k] <= tops[i])) tops[i] = largest[k];
  }
}

template <class T, class G>
void measured_after(const Call<T, G>& call, const T* largest, const T* squares,
                    const double* limits, const double* factors, bool clamp, double* sums) {
  const int64_t width = call.width;
  for (int64_t i = 0; i < call.tensors; ++i) {
    const T limit = T(limits[i]), factor = T(factors[i]);
    sums[i] = 0;
    for (int64_t start = 0; start < call.sizes[i]; start += width, ++largest, ++squares) {
      const int64_t left = call.sizes[i] - start;
      sums[i] += *largest > limit ? row_after<T, G>(call.template at<const G>(0, i) + start,
                                                   left < width ? left : width, limit, factor, clamp)
                                  : double(*squares);
    }
  }
}

}  // namespace

#define EXPORT(NAME, T, G, ...)                                                                   \
  extern "C" void NAME(int64_t tensors, const int64_t* addresses, const int64_t* sizes,           \
                       int64_t width, int64_t threads) {                                          \
    const Call<T, G> call{tensors, addresses, sizes, width};                                      \
    __VA_ARGS__(call, threads);                                                                   \
  }
#define EXPORT_ALL(T, G, END)                                                                     \
  EXPORT(spam_##END, T, G, dense<T, G, spam<T, G>>)                                               \
  EXPORT(spam_blocks_##END, T, G, blocks<T, G>)                                                   \
  EXPORT(stable_scale_##END, T, G, dense<T, G, stable<false, T, G>>)                              \
  EXPORT(stable_clamp_##END, T, G, dense<T, G, stable<true, T, G>>)                               \
  EXPORT(spam_count_##END, T, G, counted<T, G>)                                                   \
  EXPORT(watch_##END, T, G, watched<T, G>)                                                        \
  extern "C" void measure_##END(int64_t tensors, const int64_t* addresses, const int64_t* sizes,  \
                                int64_t width, T* largest, T* squares, double* tops,              \
                                int64_t threads) {                                                \
    measured(Call<T, G>{tensors, addresses, sizes, width}, largest, squares, tops, threads);      \
  }                                                                                               \
  extern "C" void measure_after_##END(int64_t tensors, const int64_t* addresses,                  \
                                      const int64_t* sizes, int64_t width, const T* largest,      \
                                      const T* squares, const double* limits,                     \
                                      const double* factors, int clamp, double* sums) {           \
    measured_after(Call<T, G>{tensors, addresses, sizes, width}, largest, squares, limits,        \
                   factors, clamp != 0, sums);                                                    \
  }

EXPORT_ALL(float, float, float32_float32)
EXPORT_ALL(double, double, float64_float64)
EXPORT_ALL(float, BFloat16, float32_bfloat16)
