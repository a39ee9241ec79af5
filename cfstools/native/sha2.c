/* SHA-256 and SHA-512 of independent blocks, several at a time.
 *
 * The blocks of a Merkle tree do not depend on each other, so their hashes can be interleaved: a single SHA-256
 * stream leaves the SHA instructions waiting for their own results, and a vector register holds one word each of
 * eight or sixteen blocks. Which kernel is fastest is known only at run time, from cpuid. Where none applies the
 * caller is better off with the system's library, so no portable kernel is offered; the portable compression here
 * only absorbs salts. Rules: FIPS 180-4. */
#include "sha2.h"

#include <string.h>

#if defined(__x86_64__) && defined(__GNUC__)
#define X86_KERNELS 1
#include <cpuid.h>
#include <immintrin.h>
#endif

#define ALWAYS_INLINE static inline __attribute__((always_inline))

static const uint32_t K256[64] = {
    0x428a2f98U, 0x71374491U, 0xb5c0fbcfU, 0xe9b5dba5U, 0x3956c25bU, 0x59f111f1U, 0x923f82a4U, 0xab1c5ed5U,
    0xd807aa98U, 0x12835b01U, 0x243185beU, 0x550c7dc3U, 0x72be5d74U, 0x80deb1feU, 0x9bdc06a7U, 0xc19bf174U,
    0xe49b69c1U, 0xefbe4786U, 0x0fc19dc6U, 0x240ca1ccU, 0x2de92c6fU, 0x4a7484aaU, 0x5cb0a9dcU, 0x76f988daU,
    0x983e5152U, 0xa831c66dU, 0xb00327c8U, 0xbf597fc7U, 0xc6e00bf3U, 0xd5a79147U, 0x06ca6351U, 0x14292967U,
    0x27b70a85U, 0x2e1b2138U, 0x4d2c6dfcU, 0x53380d13U, 0x650a7354U, 0x766a0abbU, 0x81c2c92eU, 0x92722c85U,
    0xa2bfe8a1U, 0xa81a664bU, 0xc24b8b70U, 0xc76c51a3U, 0xd192e819U, 0xd6990624U, 0xf40e3585U, 0x106aa070U,
    0x19a4c116U, 0x1e376c08U, 0x2748774cU, 0x34b0bcb5U, 0x391c0cb3U, 0x4ed8aa4aU, 0x5b9cca4fU, 0x682e6ff3U,
    0x748f82eeU, 0x78a5636fU, 0x84c87814U, 0x8cc70208U, 0x90befffaU, 0xa4506cebU, 0xbef9a3f7U, 0xc67178f2U,
};

static const uint64_t K512[80] = {
    0x428a2f98d728ae22ULL, 0x7137449123ef65cdULL, 0xb5c0fbcfec4d3b2fULL, 0xe9b5dba58189dbbcULL,
    0x3956c25bf348b538ULL, 0x59f111f1b605d019ULL, 0x923f82a4af194f9bULL, 0xab1c5ed5da6d8118ULL,
    0xd807aa98a3030242ULL, 0x12835b0145706fbeULL, 0x243185be4ee4b28cULL, 0x550c7dc3d5ffb4e2ULL,
    0x72be5d74f27b896fULL, 0x80deb1fe3b1696b1ULL, 0x9bdc06a725c71235ULL, 0xc19bf174cf692694ULL,
    0xe49b69c19ef14ad2ULL, 0xefbe4786384f25e3ULL, 0x0fc19dc68b8cd5b5ULL, 0x240ca1cc77ac9c65ULL,
    0x2de92c6f592b0275ULL, 0x4a7484aa6ea6e483ULL, 0x5cb0a9dcbd41fbd4ULL, 0x76f988da831153b5ULL,
    0x983e5152ee66dfabULL, 0xa831c66d2db43210ULL, 0xb00327c898fb213fULL, 0xbf597fc7beef0ee4ULL,
    0xc6e00bf33da88fc2ULL, 0xd5a79147930aa725ULL, 0x06ca6351e003826fULL, 0x142929670a0e6e70ULL,
    0x27b70a8546d22ffcULL, 0x2e1b21385c26c926ULL, 0x4d2c6dfc5ac42aedULL, 0x53380d139d95b3dfULL,
    0x650a73548baf63deULL, 0x766a0abb3c77b2a8ULL, 0x81c2c92e47edaee6ULL, 0x92722c851482353bULL,
    0xa2bfe8a14cf10364ULL, 0xa81a664bbc423001ULL, 0xc24b8b70d0f89791ULL, 0xc76c51a30654be30ULL,
    0xd192e819d6ef5218ULL, 0xd69906245565a910ULL, 0xf40e35855771202aULL, 0x106aa07032bbd1b8ULL,
    0x19a4c116b8d2d0c8ULL, 0x1e376c085141ab53ULL, 0x2748774cdf8eeb99ULL, 0x34b0bcb5e19b48a8ULL,
    0x391c0cb3c5c95a63ULL, 0x4ed8aa4ae3418acbULL, 0x5b9cca4f7763e373ULL, 0x682e6ff3d6b2b8a3ULL,
    0x748f82ee5defb2fcULL, 0x78a5636f43172f60ULL, 0x84c87814a1f0ab72ULL, 0x8cc702081a6439ecULL,
    0x90befffa23631e28ULL, 0xa4506cebde82bde9ULL, 0xbef9a3f7b2c67915ULL, 0xc67178f2e372532bULL,
    0xca273eceea26619cULL, 0xd186b8c721c0c207ULL, 0xeada7dd6cde0eb1eULL, 0xf57d4f7fee6ed178ULL,
    0x06f067aa72176fbaULL, 0x0a637dc5a2c898a6ULL, 0x113f9804bef90daeULL, 0x1b710b35131c471bULL,
    0x28db77f523047d84ULL, 0x32caab7b40c72493ULL, 0x3c9ebe0a15c9bebcULL, 0x431d67c49c100d4cULL,
    0x4cc5d4becb3e42b6ULL, 0x597f299cfc657e2aULL, 0x5fcb6fab3ad6faecULL, 0x6c44198c4a475817ULL,
};

static const uint32_t INIT256[8] = {
    0x6a09e667U, 0xbb67ae85U, 0x3c6ef372U, 0xa54ff53aU, 0x510e527fU, 0x9b05688cU, 0x1f83d9abU, 0x5be0cd19U,
};

static const uint64_t INIT512[8] = {
    0x6a09e667f3bcc908ULL, 0xbb67ae8584caa73bULL, 0x3c6ef372fe94f82bULL, 0xa54ff53a5f1d36f1ULL,
    0x510e527fade682d1ULL, 0x9b05688c2b3e6c1fULL, 0x1f83d9abfb41bd6bULL, 0x5be0cd19137e2179ULL,
};

ALWAYS_INLINE uint32_t rotate32(uint32_t value, unsigned bits) { return value >> bits | value << (32 - bits); }
ALWAYS_INLINE uint64_t rotate64(uint64_t value, unsigned bits) { return value >> bits | value << (64 - bits); }

ALWAYS_INLINE uint32_t load32(const uint8_t *at) {
    uint32_t value;
    memcpy(&value, at, sizeof value);
    return __builtin_bswap32(value);
}

ALWAYS_INLINE uint64_t load64(const uint8_t *at) {
    uint64_t value;
    memcpy(&value, at, sizeof value);
    return __builtin_bswap64(value);
}

static void sha256_init(struct sha2_start *start) {
    for (int word = 0; word < 8; word++)
        start->state[word] = INIT256[word];
    start->bytes = 0;
}

static void sha512_init(struct sha2_start *start) {
    memcpy(start->state, INIT512, sizeof start->state);
    start->bytes = 0;
}

/* One compression of FIPS 180-4, for words of either width. */
#define COMPRESS(WORD, ROUNDS, K, LOAD, BIG0, BIG1, SMALL0, SMALL1)                                                    \
    WORD w[ROUNDS];                                                                                                    \
    WORD s[8];                                                                                                         \
    for (int t = 0; t < 16; t++)                                                                                       \
        w[t] = LOAD(data + t * sizeof(WORD));                                                                          \
    for (int t = 16; t < (ROUNDS); t++)                                                                                \
        w[t] = SMALL1(w[t - 2]) + w[t - 7] + SMALL0(w[t - 15]) + w[t - 16];                                            \
    for (int i = 0; i < 8; i++)                                                                                        \
        s[i] = (WORD)start->state[i];                                                                                  \
    for (int t = 0; t < (ROUNDS); t++) {                                                                               \
        WORD one = s[7] + BIG1(s[4]) + ((s[4] & s[5]) ^ (~s[4] & s[6])) + K[t] + w[t];                                 \
        WORD two = BIG0(s[0]) + ((s[0] & s[1]) ^ (s[0] & s[2]) ^ (s[1] & s[2]));                                       \
        memmove(s + 1, s, 7 * sizeof(WORD));                                                                           \
        s[4] += one;                                                                                                   \
        s[0] = one + two;                                                                                              \
    }                                                                                                                  \
    for (int i = 0; i < 8; i++)                                                                                        \
        start->state[i] = (WORD)(start->state[i] + s[i]);

#define BIG0_32(x) (rotate32(x, 2) ^ rotate32(x, 13) ^ rotate32(x, 22))
#define BIG1_32(x) (rotate32(x, 6) ^ rotate32(x, 11) ^ rotate32(x, 25))
#define SMALL0_32(x) (rotate32(x, 7) ^ rotate32(x, 18) ^ ((x) >> 3))
#define SMALL1_32(x) (rotate32(x, 17) ^ rotate32(x, 19) ^ ((x) >> 10))
#define BIG0_64(x) (rotate64(x, 28) ^ rotate64(x, 34) ^ rotate64(x, 39))
#define BIG1_64(x) (rotate64(x, 14) ^ rotate64(x, 18) ^ rotate64(x, 41))
#define SMALL0_64(x) (rotate64(x, 1) ^ rotate64(x, 8) ^ ((x) >> 7))
#define SMALL1_64(x) (rotate64(x, 19) ^ rotate64(x, 61) ^ ((x) >> 6))

static void sha256_absorb(struct sha2_start *start, const uint8_t *data, size_t blocks) {
    for (; blocks; blocks--, data += 64, start->bytes += 64) {
        COMPRESS(uint32_t, 64, K256, load32, BIG0_32, BIG1_32, SMALL0_32, SMALL1_32)
    }
}

static void sha512_absorb(struct sha2_start *start, const uint8_t *data, size_t blocks) {
    for (; blocks; blocks--, data += 128, start->bytes += 128) {
        COMPRESS(uint64_t, 80, K512, load64, BIG0_64, BIG1_64, SMALL0_64, SMALL1_64)
    }
}

#ifdef X86_KERNELS

/* The last compression block of every message: all data came in whole blocks, so only the end mark and the length
 * in bits are left, and they are the same for all messages of one size. */
static void padding(uint8_t *block, size_t block_size, uint64_t bytes) {
    uint64_t bits = __builtin_bswap64(bytes * 8);
    memset(block, 0, block_size);
    block[0] = 0x80;
    memcpy(block + block_size - 8, &bits, sizeof bits);
}

/* --- SHA-256 with the SHA instructions, several messages interleaved ------------------------------------------- */

#define SHA_TARGET __attribute__((target("sha,sse4.1,ssse3")))

/* One compression of each of `streams` messages. The state is kept as the instructions want it: (a b e f), (c d g h).
 * Unrolled for a constant number of streams, the independent chains fill each other's waits. */
ALWAYS_INLINE SHA_TARGET void sha_ni_compress(int streams, __m128i (*state)[2], const uint8_t *const *data) {
    const __m128i swap = _mm_set_epi64x(0x0c0d0e0f08090a0bLL, 0x0405060700010203LL);
    __m128i before[4][2];
    __m128i message[4][4];
    for (int s = 0; s < streams; s++) {
        before[s][0] = state[s][0];
        before[s][1] = state[s][1];
    }
#pragma GCC unroll 16
    for (int group = 0; group < 16; group++) {
        const __m128i key = _mm_loadu_si128((const __m128i *)(K256 + 4 * group));
#pragma GCC unroll 4
        for (int s = 0; s < streams; s++) {
            __m128i *m = message[s];
            if (group < 4) {
                m[group] = _mm_shuffle_epi8(_mm_loadu_si128((const __m128i *)(data[s] + 16 * group)), swap);
            } else {
                __m128i next = _mm_sha256msg1_epu32(m[group & 3], m[(group + 1) & 3]);
                next = _mm_add_epi32(next, _mm_alignr_epi8(m[(group + 3) & 3], m[(group + 2) & 3], 4));
                m[group & 3] = _mm_sha256msg2_epu32(next, m[(group + 3) & 3]);
            }
            __m128i sum = _mm_add_epi32(m[group & 3], key);
            state[s][1] = _mm_sha256rnds2_epu32(state[s][1], state[s][0], sum);
            sum = _mm_shuffle_epi32(sum, 0x0e);
            state[s][0] = _mm_sha256rnds2_epu32(state[s][0], state[s][1], sum);
        }
    }
    for (int s = 0; s < streams; s++) {
        state[s][0] = _mm_add_epi32(state[s][0], before[s][0]);
        state[s][1] = _mm_add_epi32(state[s][1], before[s][1]);
    }
}

ALWAYS_INLINE SHA_TARGET void sha_ni_messages(int streams, const struct sha2_start *start, const uint8_t *data,
                                              size_t size, const uint8_t *last, uint8_t *out) {
    const uint64_t *h = start->state;
    const __m128i reverse = _mm_set_epi64x(0x0001020304050607LL, 0x08090a0b0c0d0e0fLL);
    __m128i state[4][2];
    const uint8_t *at[4];
    const uint8_t *padded[4];
    for (int s = 0; s < streams; s++) {
        state[s][0] = _mm_set_epi32((int)h[0], (int)h[1], (int)h[4], (int)h[5]);
        state[s][1] = _mm_set_epi32((int)h[2], (int)h[3], (int)h[6], (int)h[7]);
        at[s] = data + (size_t)s * size;
        padded[s] = last;
    }
    for (size_t done = 0; done < size; done += 64) {
        sha_ni_compress(streams, state, at);
        for (int s = 0; s < streams; s++)
            at[s] += 64;
    }
    sha_ni_compress(streams, state, padded);
    for (int s = 0; s < streams; s++) {
        /* (a b e f) and (c d g h), high word first, to a b c d and e f g h in memory, big endian. */
        const __m128i abcd = _mm_unpackhi_epi64(state[s][1], state[s][0]);
        const __m128i efgh = _mm_unpacklo_epi64(state[s][1], state[s][0]);
        _mm_storeu_si128((__m128i *)(out + 32 * s), _mm_shuffle_epi8(abcd, reverse));
        _mm_storeu_si128((__m128i *)(out + 32 * s + 16), _mm_shuffle_epi8(efgh, reverse));
    }
}

static SHA_TARGET void sha256_ni(const struct sha2_start *start, const uint8_t *data, size_t size, size_t count,
                                 uint8_t *out) {
    uint8_t last[64];
    padding(last, sizeof last, start->bytes + size);
    for (; count >= 4; count -= 4, data += 4 * size, out += 4 * 32)
        sha_ni_messages(4, start, data, size, last, out);
    for (; count >= 2; count -= 2, data += 2 * size, out += 2 * 32)
        sha_ni_messages(2, start, data, size, last, out);
    if (count)
        sha_ni_messages(1, start, data, size, last, out);
}

/* --- AVX-512: one word of 16 (SHA-256) or 8 (SHA-512) messages in a register ------------------------------------ */

#define WIDE_TARGET __attribute__((target("avx512f,avx512bw")))
#define XOR3(a, b, c, TERNARY) TERNARY(a, b, c, 0x96)
#define CHOOSE(a, b, c, TERNARY) TERNARY(a, b, c, 0xca)
#define MAJORITY(a, b, c, TERNARY) TERNARY(a, b, c, 0xe8)

/* One compression of a vector of messages: `w` holds the 16 words of each, `s` their states. */
#define WIDE_COMPRESS(BITS, ROUNDS, K, SET, B0, B1, B2, C0, C1, C2, D0, D1, D2, E0, E1, E2)                            \
    __m512i v[8];                                                                                                      \
    memcpy(v, s, sizeof v);                                                                                            \
    for (int t = 0; t < (ROUNDS); t += 16) {                                                                           \
        _Pragma("GCC unroll 16") for (int i = 0; i < 16; i++) {                                                        \
            if (t) {                                                                                                   \
                const __m512i x = w[(i + 1) & 15], y = w[(i + 14) & 15];                                               \
                const __m512i low = XOR3(_mm512_ror_epi##BITS(x, D0), _mm512_ror_epi##BITS(x, D1),                     \
                                         _mm512_srli_epi##BITS(x, D2), _mm512_ternarylogic_epi##BITS);                 \
                const __m512i high = XOR3(_mm512_ror_epi##BITS(y, E0), _mm512_ror_epi##BITS(y, E1),                    \
                                          _mm512_srli_epi##BITS(y, E2), _mm512_ternarylogic_epi##BITS);                \
                w[i] = _mm512_add_epi##BITS(_mm512_add_epi##BITS(w[i], low),                                           \
                                            _mm512_add_epi##BITS(w[(i + 9) & 15], high));                              \
            }                                                                                                          \
            const __m512i e = v[4], a = v[0];                                                                          \
            const __m512i big1 = XOR3(_mm512_ror_epi##BITS(e, C0), _mm512_ror_epi##BITS(e, C1),                        \
                                      _mm512_ror_epi##BITS(e, C2), _mm512_ternarylogic_epi##BITS);                     \
            const __m512i big0 = XOR3(_mm512_ror_epi##BITS(a, B0), _mm512_ror_epi##BITS(a, B1),                        \
                                      _mm512_ror_epi##BITS(a, B2), _mm512_ternarylogic_epi##BITS);                     \
            __m512i one = _mm512_add_epi##BITS(v[7], _mm512_add_epi##BITS(w[i], SET(K[t + i])));                       \
            one = _mm512_add_epi##BITS(                                                                                \
                one, _mm512_add_epi##BITS(big1, CHOOSE(e, v[5], v[6], _mm512_ternarylogic_epi##BITS)));                \
            const __m512i two = _mm512_add_epi##BITS(big0, MAJORITY(a, v[1], v[2], _mm512_ternarylogic_epi##BITS));    \
            v[7] = v[6], v[6] = v[5], v[5] = v[4];                                                                     \
            v[4] = _mm512_add_epi##BITS(v[3], one);                                                                    \
            v[3] = v[2], v[2] = v[1], v[1] = v[0];                                                                     \
            v[0] = _mm512_add_epi##BITS(one, two);                                                                     \
        }                                                                                                              \
    }                                                                                                                  \
    for (int i = 0; i < 8; i++)                                                                                        \
        s[i] = _mm512_add_epi##BITS(s[i], v[i]);

ALWAYS_INLINE WIDE_TARGET __m512i set32(uint32_t value) { return _mm512_set1_epi32((int)value); }
ALWAYS_INLINE WIDE_TARGET __m512i set64(uint64_t value) { return _mm512_set1_epi64((long long)value); }

ALWAYS_INLINE WIDE_TARGET void wide256_compress(__m512i *s, __m512i *w) {
    WIDE_COMPRESS(32, 64, K256, set32, 2, 13, 22, 6, 11, 25, 7, 18, 3, 17, 19, 10)
}

ALWAYS_INLINE WIDE_TARGET void wide512_compress(__m512i *s, __m512i *w) {
    WIDE_COMPRESS(64, 80, K512, set64, 28, 34, 39, 14, 18, 41, 1, 8, 7, 19, 61, 6)
}

/* The next 16 words of each of 16 messages, word by word. Transposed in registers: gathers would fetch each word by
 * itself, from lines that are all in one set of the first cache when messages are 4 KiB apart. */
ALWAYS_INLINE WIDE_TARGET void wide256_words(__m512i *w, const uint8_t *data, size_t distance, __m512i swap) {
    __m512i r[16], t[16];
#pragma GCC unroll 16
    for (int i = 0; i < 16; i++)
        r[i] = _mm512_shuffle_epi8(_mm512_loadu_si512(data + (size_t)i * distance), swap);
#pragma GCC unroll 16
    for (int i = 0; i < 16; i += 2) {
        t[i] = _mm512_unpacklo_epi32(r[i], r[i + 1]);
        t[i + 1] = _mm512_unpackhi_epi32(r[i], r[i + 1]);
    }
#pragma GCC unroll 16
    for (int i = 0; i < 16; i += 4) {
        r[i] = _mm512_unpacklo_epi64(t[i], t[i + 2]);
        r[i + 1] = _mm512_unpackhi_epi64(t[i], t[i + 2]);
        r[i + 2] = _mm512_unpacklo_epi64(t[i + 1], t[i + 3]);
        r[i + 3] = _mm512_unpackhi_epi64(t[i + 1], t[i + 3]);
    }
    /* Quarter q of r[4 * g + k] is now word 4 * q + k of the messages 4 * g to 4 * g + 3. */
#pragma GCC unroll 4
    for (int k = 0; k < 4; k++) {
        const __m512i even = _mm512_shuffle_i32x4(r[k], r[4 + k], 0x88), odd = _mm512_shuffle_i32x4(r[k], r[4 + k], 0xdd);
        const __m512i even2 = _mm512_shuffle_i32x4(r[8 + k], r[12 + k], 0x88);
        const __m512i odd2 = _mm512_shuffle_i32x4(r[8 + k], r[12 + k], 0xdd);
        w[k] = _mm512_shuffle_i32x4(even, even2, 0x88);
        w[4 + k] = _mm512_shuffle_i32x4(odd, odd2, 0x88);
        w[8 + k] = _mm512_shuffle_i32x4(even, even2, 0xdd);
        w[12 + k] = _mm512_shuffle_i32x4(odd, odd2, 0xdd);
    }
}

static WIDE_TARGET void wide256_messages(const struct sha2_start *start, const uint8_t *data, size_t size,
                                         const uint8_t *last, uint8_t *out) {
    const __m512i swap = _mm512_broadcast_i32x4(_mm_set_epi64x(0x0c0d0e0f08090a0bLL, 0x0405060700010203LL));
    __m512i s[8], w[16];
    for (int i = 0; i < 8; i++)
        s[i] = set32((uint32_t)start->state[i]);
    for (size_t done = 0; done < size; done += 64) {
        wide256_words(w, data + done, size, swap);
        wide256_compress(s, w);
    }
    for (int i = 0; i < 16; i++)
        w[i] = set32(load32(last + 4 * i));
    wide256_compress(s, w);
    const __m512i lanes = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    const __m512i places = _mm512_mullo_epi32(lanes, _mm512_set1_epi32(32));
    for (int i = 0; i < 8; i++)
        _mm512_i32scatter_epi32(out + 4 * i, places, _mm512_shuffle_epi8(s[i], swap), 1);
}

static WIDE_TARGET void wide512_messages(const struct sha2_start *start, const uint8_t *data, size_t size,
                                         const uint8_t *last, uint8_t *out) {
    const __m256i lanes = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
    const __m256i distance = _mm256_mullo_epi32(lanes, _mm256_set1_epi32((int)size));
    const __m512i swap = _mm512_broadcast_i32x4(_mm_set_epi64x(0x08090a0b0c0d0e0fLL, 0x0001020304050607LL));
    __m512i s[8], w[16];
    for (int i = 0; i < 8; i++)
        s[i] = set64(start->state[i]);
    for (size_t done = 0; done < size; done += 128) {
        for (int i = 0; i < 16; i++)
            w[i] = _mm512_shuffle_epi8(_mm512_i32gather_epi64(distance, data + done + 8 * i, 1), swap);
        wide512_compress(s, w);
    }
    for (int i = 0; i < 16; i++)
        w[i] = set64(load64(last + 8 * i));
    wide512_compress(s, w);
    const __m256i places = _mm256_mullo_epi32(lanes, _mm256_set1_epi32(64));
    for (int i = 0; i < 8; i++)
        _mm512_i32scatter_epi64(out + 8 * i, places, _mm512_shuffle_epi8(s[i], swap), 1);
}

/* Runs whole vectors of messages. The last vector ends with the last message and so may overlap the one before it:
 * hashing a message twice is cheaper than hashing it alone. Gathers take 32-bit distances, hence SHA2_SIZE_MAX. */
#define WIDE_KERNEL(NAME, MESSAGES, LANES, BLOCK, DIGEST)                                                              \
    static WIDE_TARGET void NAME(const struct sha2_start *start, const uint8_t *data, size_t size, size_t count,      \
                                 uint8_t *out) {                                                                       \
        uint8_t last[BLOCK];                                                                                           \
        padding(last, sizeof last, start->bytes + size);                                                              \
        for (size_t done = 0; done < count; done += (LANES)) {                                                         \
            const size_t at = done + (LANES) <= count ? done : count - (LANES);                                        \
            MESSAGES(start, data + at * size, size, last, out + at * (DIGEST));                                        \
        }                                                                                                              \
    }

WIDE_KERNEL(sha256_wide, wide256_messages, 16, 64, 32)
WIDE_KERNEL(sha512_wide, wide512_messages, 8, 128, 64)

/* Whole vectors, and what is left over (or all, when there is less than a vector) with SHA instructions. */
static WIDE_TARGET void sha256_mixed(const struct sha2_start *start, const uint8_t *data, size_t size, size_t count,
                                     uint8_t *out) {
    const size_t whole = count / 16 * 16;
    if (whole)
        sha256_wide(start, data, size, whole, out);
    if (count > whole)
        sha256_ni(start, data + whole * size, size, count - whole, out + whole * 32);
}

/* Intel's vector units outrun its SHA instructions (4.2 against 2.3 GB/s on Sapphire Rapids); on AMD's the SHA
 * instructions win (3.0-3.7 against 2.8-3.4 on Zen 4). */
static int is_intel(void) {
    unsigned a, b, c, d;
    return __get_cpuid(0, &a, &b, &c, &d) && b == signature_INTEL_ebx && c == signature_INTEL_ecx &&
           d == signature_INTEL_edx;
}

static int has_sha(void) {
    unsigned a, b, c, d;
    return __builtin_cpu_supports("sse4.1") && __get_cpuid_count(7, 0, &a, &b, &c, &d) && b >> 29 & 1;
}

static int has_wide(void) { return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw"); }

static void add(struct sha2_algorithm *algorithm, const char *name, sha2_kernel *run, size_t least) {
    algorithm->kernels[algorithm->kernel_count++] = (struct sha2_choice){name, run, least};
}

#endif

struct sha2_algorithm *sha2_algorithms(void) {
    static struct sha2_algorithm algorithms[2] = {
        {"sha256", 32, 64, sha256_init, sha256_absorb, 0, {{0}}},
        {"sha512", 64, 128, sha512_init, sha512_absorb, 0, {{0}}},
    };
    static int ready;
    if (ready)
        return algorithms;
    ready = 1;
#ifdef X86_KERNELS
    __builtin_cpu_init();
    if (has_sha() && has_wide() && is_intel())
        add(&algorithms[0], "avx512+sha-ni", sha256_mixed, 1);
    if (has_sha())
        add(&algorithms[0], "sha-ni", sha256_ni, 1);
    if (has_wide()) {
        add(&algorithms[0], "avx512", sha256_wide, 16);
        add(&algorithms[1], "avx512", sha512_wide, 8);
    }
#endif
    return algorithms;
}
