// Vectors of the instruction set that kernels.h is compiled for, and 16-bit floats.
//
// Included by kernels.h, inside its namespace.

#if defined(__GNUC__)
#define DCNV3_NOINLINE __attribute__((noinline))
#define DCNV3_INLINE inline __attribute__((always_inline))
#else
#define DCNV3_NOINLINE
#define DCNV3_INLINE inline
#endif

// ---------------------------------------------------------------------------------- 16-bit floats

template <typename To, typename From>
inline To bit_cast(const From& from) {
  static_assert(sizeof(To) == sizeof(From), "the same bits");
  To to;
  std::memcpy(&to, &from, sizeof to);
  return to;
}

inline float to_compute(float value) { return value; }
inline double to_compute(double value) { return value; }
inline float to_compute(BFloat16 value) { return bit_cast<float>(uint32_t(value.bits) << 16); }

inline float to_compute(Float16 value) {
  const uint32_t magnitude = value.bits & 0x7fffu;
  // Moving the exponent field as it is and scaling by the difference of the biases (2^112) is exact
  // for normal and subnormal numbers alike.
  const float finite = bit_cast<float>(magnitude << 13) * 0x1p112f;
  const uint32_t bits =
      magnitude >= 0x7c00u ? (magnitude << 13 | 0x7f800000u) : bit_cast<uint32_t>(finite);
  return bit_cast<float>(bits | uint32_t(value.bits & 0x8000u) << 16);
}

inline void store(float value, float* to) { *to = value; }
inline void store(double value, double* to) { *to = value; }

// Bits of 16-bit floats, for a number or a vector of them. Both round to nearest, ties to even.
template <typename Bits, typename Real>
inline Bits bfloat16_bits(Real value) {
  const Bits bits = bit_cast<Bits>(value);
  const Bits rounded = (bits + 0x7fffu + (bits >> 16 & 1u)) >> 16;
  return value != value ? Bits{} + 0x7fc0u : rounded;
}

template <typename Bits, typename Real>
inline Bits float16_bits(Real value) {
  const Bits bits = bit_cast<Bits>(value);
  const Bits magnitude = bits & 0x7fffffffu;
  const Bits normal = (magnitude + 0xfffu + (magnitude >> 13 & 1u) - (112u << 23)) >> 13;
  // Half a unit in the last place of 0.5f is the unit of subnormal halves, so the addition rounds.
  const Bits subnormal =
      bit_cast<Bits>(bit_cast<Real>(magnitude) + 0.5f) - bit_cast<uint32_t>(0.5f);
  Bits half = magnitude < 0x38800000u ? subnormal : normal;   // 2^-14
  half = magnitude >= 0x477ff000u ? Bits{} + 0x7c00u : half;  // 65520
  half = magnitude > 0x7f800000u ? Bits{} + 0x7e00u : half;   // NaN
  return half | (bits >> 16 & 0x8000u);
}

inline void store(float value, BFloat16* to) {
  to->bits = uint16_t(bfloat16_bits<uint32_t>(value));
}
inline void store(float value, Float16* to) { to->bits = uint16_t(float16_bits<uint32_t>(value)); }

// --------------------------------------------------------------------------- channels in registers

// N channels of one group. Vectors are at most one register wide.
template <typename S, int N>
struct Lanes {
#if DCNV3_VECTOR_BYTES
  static constexpr int kRegister = DCNV3_VECTOR_BYTES / int(sizeof(S));
  static constexpr int kWidth = N < kRegister ? N : kRegister;
  typedef S Vector __attribute__((vector_size(kWidth * sizeof(S))));
#else
  static constexpr int kWidth = 1;
  using Vector = S;
#endif
  static constexpr int kCount = N / kWidth;
};

template <typename S>
struct Lanes<S, 1> {
  static constexpr int kWidth = 1;
  using Vector = S;
  static constexpr int kCount = 1;
};

template <typename V, typename S>
inline V load_vector(const S* from) {
  V value;
  std::memcpy(&value, from, sizeof value);
  return value;
}

// W unsigned 16-bit numbers as 32-bit ones, and back. Written out for each width, since GCC 12
// rejects __builtin_convertvector on vectors of dependent size.
template <int W>
struct Bits;

#if DCNV3_VECTOR_BYTES
#define DCNV3_BITS(W)                                              \
  template <>                                                      \
  struct Bits<W> {                                                 \
    typedef uint16_t Narrow __attribute__((vector_size(W * 2)));   \
    typedef uint32_t Wide __attribute__((vector_size(W * 4)));     \
    static Wide load(const void* from) {                           \
      Narrow narrow;                                               \
      std::memcpy(&narrow, from, sizeof narrow);                   \
      return __builtin_convertvector(narrow, Wide);                \
    }                                                              \
    static void store(Wide wide, void* to) {                       \
      const Narrow narrow = __builtin_convertvector(wide, Narrow); \
      std::memcpy(to, &narrow, sizeof narrow);                     \
    }                                                              \
  };
DCNV3_BITS(4)
#if DCNV3_VECTOR_BYTES >= 32
DCNV3_BITS(8)
#endif
#if DCNV3_VECTOR_BYTES >= 64
DCNV3_BITS(16)
#endif
#undef DCNV3_BITS
#endif

template <typename V>
inline V load_vector(const BFloat16* from) {
  constexpr int kWidth = sizeof(V) / sizeof(float);
  if constexpr (kWidth == 1) {
    return to_compute(*from);
  } else {
    return bit_cast<V>(Bits<kWidth>::load(from) << 16);
  }
}

template <typename V>
inline V load_vector(const Float16* from) {
  constexpr int kWidth = sizeof(V) / sizeof(float);
  if constexpr (kWidth == 1) {
    return to_compute(*from);
  } else {
    using Wide = typename Bits<kWidth>::Wide;
    const Wide bits = Bits<kWidth>::load(from);
    const Wide magnitude = bits & 0x7fffu;
    const Wide moved = magnitude << 13;
    const Wide finite = bit_cast<Wide>(bit_cast<V>(moved) * 0x1p112f);
    const Wide result = magnitude >= 0x7c00u ? (moved | 0x7f800000u) : finite;
    return bit_cast<V>(result | (bits & 0x8000u) << 16);
  }
}

template <typename V, typename S, typename T>
inline void store_vector(V value, T* to) {
  if constexpr (sizeof(V) == sizeof(S)) {
    store(value, to);
  } else if constexpr (std::is_same<S, T>::value) {
    std::memcpy(to, &value, sizeof value);
  } else {
    using B = Bits<sizeof(V) / sizeof(S)>;
    if constexpr (std::is_same<T, BFloat16>::value) {
      B::store(bfloat16_bits<typename B::Wide>(value), to);
    } else {
      B::store(float16_bits<typename B::Wide>(value), to);
    }
  }
}

// N channels of one group in registers, in the order of memory.
template <typename T, int N>
struct Channels : Lanes<typename Compute<T>::type, N> {
  using L = Lanes<typename Compute<T>::type, N>;
  using S = typename Compute<T>::type;
  using Vector = typename L::Vector;
  static void load(const T* from, Vector* to) {
    for (int v = 0; v < L::kCount; ++v) to[v] = load_vector<Vector>(from + v * L::kWidth);
  }
  static void store(const Vector* from, T* to) {
    for (int v = 0; v < L::kCount; ++v) store_vector<Vector, S>(from[v], to + v * L::kWidth);
  }
};

#if DCNV3_VECTOR_BYTES
// N channels of bfloat16: of two neighbours one is moved into place by a shift and the other has
// its place already, so vectors of every second channel cost less than widening does.
template <int N>
struct PairedChannels {
  using L = Lanes<float, N / 2>;
  using Vector = typename L::Vector;
  using Wide = typename Bits<L::kWidth>::Wide;
  static constexpr int kWidth = L::kWidth, kCount = 2 * L::kCount;
  static void load(const BFloat16* from, Vector* to) {
    for (int v = 0; v < kCount; v += 2) {
      Wide bits;
      std::memcpy(&bits, from + v * kWidth, sizeof bits);
      to[v] = bit_cast<Vector>(bits << 16);
      to[v + 1] = bit_cast<Vector>(bits & 0xffff0000u);
    }
  }
  static void store(const Vector* from, BFloat16* to) {
    for (int v = 0; v < kCount; v += 2) {
      const Wide bits = bfloat16_bits<Wide>(from[v]) | bfloat16_bits<Wide>(from[v + 1]) << 16;
      std::memcpy(to + v * kWidth, &bits, sizeof bits);
    }
  }
};
template <>
struct Channels<BFloat16, 8> : PairedChannels<8> {};
template <>
struct Channels<BFloat16, 16> : PairedChannels<16> {};
template <>
struct Channels<BFloat16, 32> : PairedChannels<32> {};
#endif

// ---------------------------------------------------------------------------- points in registers

// What the arithmetic over sampling points is written in: one register of numbers of type S with as
// many 32-bit integers, or single numbers where there are no vectors of the kind. `Mask` is what a
// comparison gives.
template <typename S>
struct Pack {
  static constexpr int kWidth = 1;
  using Real = S;
  using Int = int32_t;
  using Mask = bool;

  static Int truncate(Real x) { return Int(x); }
  static Real real(Int x) { return Real(x); }
  static Real floor(Real x) { return std::floor(x); }
  // Whether 0 <= x < width and 0 <= y < height for the first `count` numbers, at least one.
  static bool all_within(Real x, S width, Real y, S height, int64_t) {
    return (x >= 0) & (x < width) & (y >= 0) & (y < height);
  }
  static bool below(Int x, int32_t size) { return uint32_t(x) < uint32_t(size); }
  // Of column x and line y in an image of this width; overflow is allowed, for unused numbers.
  static Int index(Int x, Int y, int32_t width) {
    return Int(uint32_t(y) * uint32_t(width) + uint32_t(x));
  }
  static Real power_of_two(Int exponent) {
    return Real(bit_cast<float>(uint32_t(exponent + 127) << 23));
  }

  // S from (x, y) pairs, and back
  template <typename T>
  static void load_pairs(const T* from, Real* x, Real* y) {
    *x = to_compute(from[0]);
    *y = to_compute(from[1]);
  }
  template <typename T>
  static void store_pairs(Real x, Real y, T* to) {
    store(x, to);
    store(y, to + 1);
  }
  // four numbers for each point
  static void load_quads(const S* from, Real* a, Real* b, Real* c, Real* d) {
    *a = from[0], *b = from[1], *c = from[2], *d = from[3];
  }
  static void store_quads(Real a, Real b, Real c, Real d, S* to) {
    to[0] = a, to[1] = b, to[2] = c, to[3] = d;
  }
};

#if DCNV3_VECTOR_BYTES
#if DCNV3_VECTOR_BYTES == 64
#define DCNV3_EVEN 0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30
#define DCNV3_ODD 1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31
#define DCNV3_LOW 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23
#define DCNV3_HIGH 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31
#elif DCNV3_VECTOR_BYTES == 32
#define DCNV3_EVEN 0, 2, 4, 6, 8, 10, 12, 14
#define DCNV3_ODD 1, 3, 5, 7, 9, 11, 13, 15
#define DCNV3_LOW 0, 8, 1, 9, 2, 10, 3, 11
#define DCNV3_HIGH 4, 12, 5, 13, 6, 14, 7, 15
#else
#define DCNV3_EVEN 0, 2, 4, 6
#define DCNV3_ODD 1, 3, 5, 7
#define DCNV3_LOW 0, 4, 1, 5
#define DCNV3_HIGH 2, 6, 3, 7
#endif

// Numbers from two vectors by their index, GCC's way and Clang's.
#if defined(__clang__)
#define DCNV3_SHUFFLE(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define DCNV3_SHUFFLE(a, b, ...) __builtin_shuffle(a, b, (Int){__VA_ARGS__})
#endif

template <>
struct Pack<float> {
  static constexpr int kWidth = DCNV3_VECTOR_BYTES / int(sizeof(float));
  typedef float Real __attribute__((vector_size(DCNV3_VECTOR_BYTES)));
  typedef int32_t Int __attribute__((vector_size(DCNV3_VECTOR_BYTES)));
  typedef uint32_t Unsigned __attribute__((vector_size(DCNV3_VECTOR_BYTES)));
  using Mask = Int;  // 0 or -1

  static Int truncate(Real x) { return __builtin_convertvector(x, Int); }
  static Real real(Int x) { return __builtin_convertvector(x, Real); }
#if DCNV3_VECTOR_BYTES == 64
  static Real floor(Real x) { return Real(_mm512_maskz_roundscale_ps(__mmask16(-1), x, 1)); }
  static bool all_within(Real x, float width, Real y, float height, int64_t count) {
    const auto below = [](__mmask16 mask, Real value, float limit) {
      mask = _mm512_mask_cmp_ps_mask(mask, value, _mm512_setzero_ps(), _CMP_GE_OQ);
      return _mm512_mask_cmp_ps_mask(mask, value, _mm512_set1_ps(limit), _CMP_LT_OQ);
    };
    const __mmask16 needed = __mmask16((1u << std::min<int64_t>(count, kWidth)) - 1);
    return below(below(needed, x, width), y, height) == needed;
  }
#else
  // Of numbers that an int32 holds; others give some number.
  static Real floor(Real x) {
    const Real truncated = real(truncate(x));
    return truncated - real(Int(x < truncated) & 1);
  }
  static bool all_within(Real x, float width, Real y, float height, int64_t count) {
    static const int32_t kLanes[8] = {0, 1, 2, 3, 4, 5, 6, 7};
    Int lanes;
    std::memcpy(&lanes, kLanes, sizeof lanes);
    const Real zero = {};
    Mask mask = ((x >= zero) & (x < width)) & ((y >= zero) & (y < height));
    mask |= lanes >= int32_t(std::min<int64_t>(count, kWidth));
    for (int n = kWidth; n > 1; n /= 2) {
      mask = DCNV3_SHUFFLE(mask, mask, DCNV3_EVEN) & DCNV3_SHUFFLE(mask, mask, DCNV3_ODD);
    }
    return mask[0];
  }
#endif
  static Mask below(Int x, int32_t size) { return Mask(Unsigned(x) < uint32_t(size)); }
  static Int index(Int x, Int y, int32_t width) {
    return Int(Unsigned(y) * uint32_t(width) + Unsigned(x));
  }
  static Real power_of_two(Int exponent) { return Real((exponent + 127) << 23); }

  static Real even(Real a, Real b) { return DCNV3_SHUFFLE(a, b, DCNV3_EVEN); }
  static Real odd(Real a, Real b) { return DCNV3_SHUFFLE(a, b, DCNV3_ODD); }
  static Real low(Real a, Real b) { return DCNV3_SHUFFLE(a, b, DCNV3_LOW); }
  static Real high(Real a, Real b) { return DCNV3_SHUFFLE(a, b, DCNV3_HIGH); }

  template <typename T>
  static void load_pairs(const T* from, Real* x, Real* y) {
    const Real a = load_vector<Real>(from);
    const Real b = load_vector<Real>(from + kWidth);
    *x = even(a, b);
    *y = odd(a, b);
  }
  template <typename T>
  static void store_pairs(Real x, Real y, T* to) {
    store_vector<Real, float>(low(x, y), to);
    store_vector<Real, float>(high(x, y), to + kWidth);
  }
  static void load_quads(const float* from, Real* a, Real* b, Real* c, Real* d) {
    Real ab_cd[4];  // a b c d a b ...
    std::memcpy(ab_cd, from, sizeof ab_cd);
    const Real ac0 = even(ab_cd[0], ab_cd[1]), ac1 = even(ab_cd[2], ab_cd[3]);
    const Real bd0 = odd(ab_cd[0], ab_cd[1]), bd1 = odd(ab_cd[2], ab_cd[3]);
    *a = even(ac0, ac1), *c = odd(ac0, ac1);
    *b = even(bd0, bd1), *d = odd(bd0, bd1);
  }
  static void store_quads(Real a, Real b, Real c, Real d, float* to) {
    const Real ac0 = low(a, c), ac1 = high(a, c), bd0 = low(b, d), bd1 = high(b, d);
    // One by one: GCC 12 writes an array of them to the stack as well.
    store_vector<Real, float>(low(ac0, bd0), to);
    store_vector<Real, float>(high(ac0, bd0), to + kWidth);
    store_vector<Real, float>(low(ac1, bd1), to + 2 * kWidth);
    store_vector<Real, float>(high(ac1, bd1), to + 3 * kWidth);
  }
};
#endif

// Each of four numbers that are next to one another, in all lanes.
template <typename V, typename S>
struct Splats {
  const S* from;
  explicit Splats(const S* from_) : from(from_) {}
  template <int c>
  S get() const {
    return from[c];
  }
};

// One load and four shuffles within 128 bits: four loads, as of above, would compete with those of
// the channels.
#if DCNV3_VECTOR_BYTES >= 32
typedef float FloatX8 __attribute__((vector_size(32)));
template <>
struct Splats<FloatX8, float> {
  typedef int32_t Int __attribute__((vector_size(32)));
  FloatX8 quads;
  explicit Splats(const float* from)
      : quads(FloatX8(_mm256_broadcast_ps(reinterpret_cast<const __m128*>(from)))) {}
  template <int c>
  FloatX8 get() const {
    return DCNV3_SHUFFLE(quads, quads, c, c, c, c, c + 4, c + 4, c + 4, c + 4);
  }
};
#endif
#if DCNV3_VECTOR_BYTES == 64
typedef float FloatX16 __attribute__((vector_size(64)));
template <>
struct Splats<FloatX16, float> {
  typedef int32_t Int __attribute__((vector_size(64)));
  FloatX16 quads;
  // With a mask, since GCC 12 warns about its own intrinsic without.
  explicit Splats(const float* from)
      : quads(FloatX16(_mm512_maskz_broadcast_f32x4(__mmask16(-1), _mm_loadu_ps(from)))) {}
  template <int c>
  FloatX16 get() const {
    return DCNV3_SHUFFLE(quads, quads, c, c, c, c, c + 4, c + 4, c + 4, c + 4, c + 8, c + 8, c + 8,
                         c + 8, c + 12, c + 12, c + 12, c + 12);
  }
};
#endif

// Add the sums over the lanes of four vectors to `to`.
template <typename S, int W, typename V>
inline void add_sums(const V* values, S* to) {
  using P = Pack<S>;
  if constexpr (W == 1) {
    for (int c = 0; c < 4; ++c) to[c] += values[c];
#if DCNV3_VECTOR_BYTES
  } else if constexpr (W == P::kWidth) {
    const V ab = P::even(values[0], values[1]) + P::odd(values[0], values[1]);
    const V cd = P::even(values[2], values[3]) + P::odd(values[2], values[3]);
    V sums = P::even(ab, cd) + P::odd(ab, cd);
    for (int n = W; n > 4; n /= 2) sums = P::even(sums, sums) + P::odd(sums, sums);
    typedef S Quad __attribute__((vector_size(4 * sizeof(S))));
    Quad four, before;
    std::memcpy(&four, &sums, sizeof four);
    std::memcpy(&before, to, sizeof before);
    before += four;
    std::memcpy(to, &before, sizeof before);
  } else {
    for (int c = 0; c < 4; ++c) {
      for (int i = 0; i < W; ++i) to[c] += values[c][i];
    }
#endif
  }
}

// Split `channels` into register blocks: visit(std::integral_constant<int, N>, first channel).
template <typename Visit>
inline void for_channel_blocks(int64_t channels, Visit visit) {
  int64_t c = 0;
  for (; c + 32 <= channels; c += 32) visit(std::integral_constant<int, 32>(), c);
  for (; c + 16 <= channels; c += 16) visit(std::integral_constant<int, 16>(), c);
  for (; c + 8 <= channels; c += 8) visit(std::integral_constant<int, 8>(), c);
  for (; c + 4 <= channels; c += 4) visit(std::integral_constant<int, 4>(), c);
  for (; c < channels; ++c) visit(std::integral_constant<int, 1>(), c);
}
