// Products of NF4 weights with a few rows of activations, for decoding: what is read is 4 bits a weight, once.
//
// ROWS and PER_WARP are defined when this is compiled, and HALF for fp16 instead of bf16. A warp computes PER_WARP
// outputs of every row; blocks have eight warps.

#define WARPS 8
#define ALL 0xffffffffu
#define UNROLLED (8 / PER_WARP)  // words a lane takes at once from each of its outputs: 32 scales, one to a lane

#ifdef HALF
__device__ float low_half(unsigned pair) {
    float value;
    asm("{.reg .f16 a, b; mov.b32 {a, b}, %1; cvt.f32.f16 %0, a;}" : "=f"(value) : "r"(pair));
    return value;
}
__device__ float high_half(unsigned pair) {
    float value;
    asm("{.reg .f16 a, b; mov.b32 {a, b}, %1; cvt.f32.f16 %0, b;}" : "=f"(value) : "r"(pair));
    return value;
}
__device__ unsigned short rounded(float value) {
    unsigned short bits;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(bits) : "f"(value));
    return bits;
}
__device__ float widened(unsigned short bits) {
    float value;
    asm("cvt.f32.f16 %0, %1;" : "=f"(value) : "h"(bits));
    return value;
}
#else
__device__ float low_half(unsigned pair) { return __uint_as_float(pair << 16); }
__device__ float high_half(unsigned pair) { return __uint_as_float(pair & 0xffff0000u); }
__device__ unsigned short rounded(float value) {  // to the nearest, ties to even
    unsigned bits = __float_as_uint(value);
    return value != value ? 0x7fc0 : (unsigned short)((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}
__device__ float widened(unsigned short bits) { return __uint_as_float((unsigned)bits << 16); }
#endif

__device__ void unpack(uint4 packed, float* values) {
    values[0] = low_half(packed.x), values[1] = high_half(packed.x);
    values[2] = low_half(packed.y), values[3] = high_half(packed.y);
    values[4] = low_half(packed.z), values[5] = high_half(packed.z);
    values[6] = low_half(packed.w), values[7] = high_half(packed.w);
}

// A lane's words of its outputs from word `from` on, and the scale that it holds for the warp.
#define TAKE(words_taken, scale_taken, from)                                                                       \
    {                                                                                                              \
        _Pragma("unroll") for (int u = 0; u < UNROLLED; u++)                                                       \
            _Pragma("unroll") for (int o = 0; o < PER_WARP; o++) {                                                 \
                const int word = (from) + 32 * u + lane, output = min(first + o, outputs - 1);                     \
                words_taken[u][o] = word < words ? __ldcs(weights + (size_t)output * words + word) : 0;            \
            }                                                                                                      \
        const int block = (from) / 8 + 4 * scale_unrolled + scale_block;                                           \
        if (block < blocks) {                                                                                      \
            const int number = scale_output * blocks + block;                                                      \
            scale_taken = scale_code[scales[number]] * scale_scales[number / 256] + shift;                         \
        }                                                                                                          \
    }

__device__ float summed(float value) {
    for (int distance = 16; distance; distance /= 2) value += __shfl_xor_sync(ALL, value, distance);
    return value;
}

// out [ROWS, outputs] = x [ROWS, inputs] · (weights in NF4)ᵀ + low [ROWS, rank] · up [outputs, rank]ᵀ + bias.
//
// weights: two to a byte, the first in the high bits, [outputs, inputs]. A block of 64 has one scale, a byte of
// `scales` that stands for scale_code[byte] · scale_scales[its number / 256] + offset. low has `low_stride` values a row.
extern "C" __global__ void __launch_bounds__(32 * WARPS, 2) product(
    const uint4* x, const unsigned* weights, const unsigned char* scales, const float* scale_code,
    const float* scale_scales, const float* offset, const float* code, const float* low, const unsigned short* up,
    const unsigned short* bias, unsigned short* out, int outputs, int inputs, int rank, int low_stride, int has_bias) {
    __shared__ float table[16];
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, first = (blockIdx.x * WARPS + warp) * PER_WARP;
    const int words = inputs / 8, blocks = inputs / 64;
    if (threadIdx.x < 16) table[threadIdx.x] = code[threadIdx.x];
    __syncthreads();

    const int scale_unrolled = lane / (PER_WARP * 4), scale_block = lane % 4;
    const int scale_output = min(first + lane / 4 % PER_WARP, outputs - 1);
    const float shift = *offset;
    float sums[PER_WARP][ROWS] = {};
    unsigned taken[UNROLLED][PER_WARP], next[UNROLLED][PER_WARP];
    float scale, next_scale = 0;
    TAKE(next, next_scale, 0)
    for (int start = 0; start < words; start += 32 * UNROLLED) {
#pragma unroll
        for (int u = 0; u < UNROLLED; u++)
#pragma unroll
            for (int o = 0; o < PER_WARP; o++) taken[u][o] = next[u][o];
        scale = next_scale;
        TAKE(next, next_scale, start + 32 * UNROLLED)  // on their way while these are computed with
#pragma unroll
        for (int u = 0; u < UNROLLED; u++) {
            const int word = start + 32 * u + lane;
            float values[ROWS][8];
#pragma unroll
            for (int row = 0; row < ROWS; row++)
                unpack(word < words ? x[row * words + word] : make_uint4(0, 0, 0, 0), values[row]);
#pragma unroll
            for (int o = 0; o < PER_WARP; o++) {
                float product[ROWS] = {};
#pragma unroll
                for (int byte = 0; byte < 4; byte++) {
                    const float a = table[taken[u][o] >> (8 * byte + 4) & 15], b = table[taken[u][o] >> (8 * byte) & 15];
#pragma unroll
                    for (int row = 0; row < ROWS; row++)
                        product[row] += a * values[row][2 * byte] + b * values[row][2 * byte + 1];
                }
                const float mine = __shfl_sync(ALL, scale, (u * PER_WARP + o) * 4 + lane / 8);
#pragma unroll
                for (int row = 0; row < ROWS; row++) sums[o][row] += mine * product[row];
            }
        }
    }
    for (int r = lane; r < rank; r += 32)
        for (int o = 0; o < PER_WARP; o++) {
            const float weight = widened(up[(size_t)min(first + o, outputs - 1) * rank + r]);
            for (int row = 0; row < ROWS; row++) sums[o][row] += low[row * low_stride + r] * weight;
        }
#pragma unroll
    for (int o = 0; o < PER_WARP; o++)
#pragma unroll
        for (int row = 0; row < ROWS; row++) {
            const float sum = summed(sums[o][row]);
            if (lane == 0 && first + o < outputs)
                out[row * outputs + first + o] = rounded(has_bias ? sum + widened(bias[first + o]) : sum);
        }
}

// low [ROWS, rank] = (x [ROWS, inputs] · down [rank, inputs]ᵀ) · factors [ROWS, rank]. A block a rank.
extern "C" __global__ void __launch_bounds__(32 * WARPS) low_rank(
    const uint4* x, const uint4* down, const float* factors, float* low, int inputs, int rank) {
    __shared__ float parts[WARPS][ROWS];
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, words = inputs / 8, r = blockIdx.x;
    float sums[ROWS] = {};
    for (int word = threadIdx.x; word < words; word += 32 * WARPS) {
        float weights[8], values[8];
        unpack(down[(size_t)r * words + word], weights);
        for (int row = 0; row < ROWS; row++) {
            unpack(x[row * words + word], values);
            for (int i = 0; i < 8; i++) sums[row] += weights[i] * values[i];
        }
    }
    for (int row = 0; row < ROWS; row++) {
        const float sum = summed(sums[row]);
        if (lane == 0) parts[warp][row] = sum;
    }
    __syncthreads();
    if (threadIdx.x < ROWS) {
        float sum = 0;
        for (int other = 0; other < WARPS; other++) sum += parts[other][threadIdx.x];
        low[threadIdx.x * rank + r] = sum * factors[threadIdx.x * rank + r];
    }
}

__device__ uint4 packed(const float* values) {
    return make_uint4(rounded(values[0]) | (unsigned)rounded(values[1]) << 16,
                      rounded(values[2]) | (unsigned)rounded(values[3]) << 16,
                      rounded(values[4]) | (unsigned)rounded(values[5]) << 16,
                      rounded(values[6]) | (unsigned)rounded(values[7]) << 16);
}

// out [rows, width] = weight · (x / sqrt(mean(x²) + epsilon)), rounded before and after the weight as transformers does.
// A block a row; width is a multiple of 8.
extern "C" __global__ void __launch_bounds__(32 * WARPS) rms_norm(
    const uint4* x, const uint4* weight, uint4* out, int width, double epsilon) {
    __shared__ float parts[WARPS];
    const int words = width / 8;
    const uint4* mine = x + (size_t)blockIdx.x * words;
    float values[8], weights[8], sum = 0;
    for (int word = threadIdx.x; word < words; word += 32 * WARPS) {
        unpack(mine[word], values);
        for (int i = 0; i < 8; i++) sum += values[i] * values[i];
    }
    sum = summed(sum);
    if (threadIdx.x % 32 == 0) parts[threadIdx.x / 32] = sum;
    __syncthreads();
    sum = 0;
    for (int warp = 0; warp < WARPS; warp++) sum += parts[warp];
    const float factor = rsqrtf(sum / width + (float)epsilon);
    for (int word = threadIdx.x; word < words; word += 32 * WARPS) {
        unpack(mine[word], values);
        unpack(weight[word], weights);
        for (int i = 0; i < 8; i++) values[i] = weights[i] * widened(rounded(values[i] * factor));
        out[(size_t)blockIdx.x * words + word] = packed(values);
    }
}

// Rotary positions of one token's queries and keys, [rows, heads, width] each: the halves of a head's width are the
// coordinates that are turned. cos, sin [rows, width]. A block a head of a row, queries' heads first.
extern "C" __global__ void rotary(const unsigned short* queries, const unsigned short* keys, const unsigned short* cos,
                                  const unsigned short* sin, unsigned short* new_queries, unsigned short* new_keys,
                                  int heads, int key_heads, int width) {
    const int row = blockIdx.x / (heads + key_heads), head = blockIdx.x % (heads + key_heads);
    const bool is_query = head < heads;
    const size_t at = is_query ? (size_t)(row * heads + head) * width
                               : (size_t)(row * key_heads + head - heads) * width;
    const unsigned short* from = (is_query ? queries : keys) + at;
    unsigned short* to = (is_query ? new_queries : new_keys) + at;
    for (int i = threadIdx.x; i < width; i += 32 * WARPS) {
        const float other = i < width / 2 ? -widened(from[i + width / 2]) : widened(from[i - width / 2]);
        to[i] = rounded(widened(from[i]) * widened(cos[row * width + i]) + other * widened(sin[row * width + i]));
    }
}

// out = silu(gate) · up, elementwise, silu(gate) rounded as transformers does.
extern "C" __global__ void __launch_bounds__(32 * WARPS) silu_times(
    const unsigned short* gate, const unsigned short* up, unsigned short* out, int count) {
    const int i = blockIdx.x * 32 * WARPS + threadIdx.x;
    if (i < count) {
        const float value = widened(gate[i]);
        out[i] = rounded(widened(rounded(value / (1 + __expf(-value)))) * widened(up[i]));
    }
}
