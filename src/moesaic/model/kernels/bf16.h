// bf16 as the upper half of a float.

#pragma once
#include <cstdint>
#include <cstring>

using bf16 = uint16_t;
using Int = int64_t;

static inline float up(bf16 x) {
    uint32_t bits = uint32_t(x) << 16;
    float f;
    std::memcpy(&f, &bits, 4);
    return f;
}

static inline bf16 down(float f) {  // to nearest, ties to even; NaN stays NaN
    uint32_t bits;
    std::memcpy(&bits, &f, 4);
    bf16 rounded = bf16((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16);
    return (bits & 0x7FFFFFFF) > 0x7F800000 ? bf16(0x7FC0) : rounded;
}
