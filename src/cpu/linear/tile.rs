//! A few rows times one panel of weights: the innermost loops (an unsafe fence: see
//! `tests/house.rs`).
//!
//! A panel is [`PANEL`] columns of a weight matrix, its rows one behind the other, so that a product
//! reads memory in one stream. Each loop keeps all sums of its rows in registers and adds
//! products in the order of the weight's rows, whatever the number of rows: a row's result does
//! not depend, to the bit, on the rows beside it.
//!
//! | tile | activations | weights | sums |
//! |------|-------------|---------|------|
//! | [`FloatTile`] | f32 `[rows, depth]` | f32, f16 or i8 `[depth, 32]`, widened on the way | f32 `[rows, 32]` |
//! | [`DotTile`] | u8 `[rows, depth]` | i8 `[depth / 4, 32, 4]` | i32 `[rows, 32]`, exact |
#![allow(unsafe_code)]

use half::f16;

/// Columns of a panel.
pub(super) const PANEL: usize = 32;

/// Rows of weights that one step of a [`DotTile`] takes.
pub(super) const DOT_DEPTH: usize = 4;

/// `(depth, x, stride, w, sums)`: adds to `sums` the product of `M` rows of `x`, `stride` elements
/// apart, with `depth` rows of a panel.
type Raw<X, W, S> = unsafe fn(usize, *const X, usize, *const W, *mut S);

/// Tiles for 1, 2, ... rows.
type Rows<X, W, S> = &'static [Raw<X, W, S>];

/// Products of f32 rows with a panel of `W`.
#[derive(Clone, Copy)]
pub(super) struct FloatTile<W: 'static>(Rows<f32, W, f32>);

impl<W> FloatTile<W> {
    /// Most rows of one call.
    pub(super) fn max_rows(self) -> usize {
        self.0.len()
    }

    /// Adds to `sums` the product of `sums.len()` rows of `x`, each `stride` elements behind the
    /// one before, with the first `depth` rows of `panel`.
    ///
    /// # Panics
    /// If a slice is too short, or there are more rows than [`FloatTile::max_rows`].
    pub(super) fn add(
        self,
        depth: usize,
        x: &[f32],
        stride: usize,
        panel: &[W],
        sums: &mut [[f32; PANEL]],
    ) {
        let rows = sums.len();
        assert!(panel.len() >= depth * PANEL && x.len() >= (rows - 1) * stride + depth);
        // SAFETY: the table was made by `Isa` for instructions that this machine has. The tile
        // reads `depth` elements of each of `rows` rows of `x` and `depth * PANEL` weights, which
        // was checked above, and updates the `rows * PANEL` sums of an exclusive slice.
        unsafe {
            self.0[rows - 1](
                depth,
                x.as_ptr(),
                stride,
                panel.as_ptr(),
                sums.as_mut_ptr().cast(),
            );
        }
    }
}

/// Products of u8 rows with a panel of i8.
#[cfg_attr(not(target_arch = "x86_64"), allow(dead_code))] // no other machine makes one yet
#[derive(Clone, Copy)]
pub(super) struct DotTile(Rows<u8, i8, i32>);

impl DotTile {
    /// Most rows of one call.
    pub(super) fn max_rows(self) -> usize {
        self.0.len()
    }

    /// As [`FloatTile::add`]; `depth` is a multiple of [`DOT_DEPTH`].
    ///
    /// # Panics
    /// As [`FloatTile::add`].
    pub(super) fn add(
        self,
        depth: usize,
        x: &[u8],
        stride: usize,
        panel: &[i8],
        sums: &mut [[i32; PANEL]],
    ) {
        let rows = sums.len();
        assert!(depth.is_multiple_of(DOT_DEPTH));
        assert!(panel.len() >= depth * PANEL && x.len() >= (rows - 1) * stride + depth);
        // SAFETY: as in `FloatTile::add`.
        unsafe {
            self.0[rows - 1](
                depth,
                x.as_ptr(),
                stride,
                panel.as_ptr(),
                sums.as_mut_ptr().cast(),
            );
        }
    }
}

/// How far ahead of a tile memory is asked for, in bytes: what the machine itself foresees ends at
/// every page, and falls behind where several rows are computed.
#[cfg_attr(not(target_arch = "x86_64"), allow(dead_code))] // no other machine is asked yet
const AHEAD: usize = 2048;

/// Asks for `bytes` bytes, [`AHEAD`] of `p`. It is advice: nothing is read, whatever lies there.
#[inline(always)]
fn fetch<T>(p: *const T, bytes: usize) {
    #[cfg(target_arch = "x86_64")]
    for line in (0..bytes).step_by(64) {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        // SAFETY: every machine of this kind has the instruction, which touches no memory.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(p.cast::<i8>().wrapping_add(AHEAD + line)) };
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = (p, bytes);
}

/// Entries of a table for the row counts given.
macro_rules! tiles {
    ($module:ident::$name:ident, $($rows:literal),+) => {
        [$($module::$name::<$rows> as Raw<_, _, _>),+]
    };
}
/// Writes a tile of f32 sums.
///
/// `$lanes` elements are loaded with `$load`, weights with `$widen`, one activation fills a
/// register with `$splat`.
macro_rules! float_tile {
    ($(#[$features:meta])? $name:ident, $weight:ty, $lanes:literal, $load:ident, $store:ident, $widen:ident, $splat:ident, $fma:ident) => {
        $(#[$features])?
        pub(super) unsafe fn $name<const M: usize>(
            depth: usize,
            x: *const f32,
            stride: usize,
            w: *const $weight,
            sums: *mut f32,
        ) {
            const REGS: usize = PANEL / $lanes;
            // SAFETY: the caller (`FloatTile::add`) promises that `M` rows of `depth` elements,
            // `stride` apart, begin at `x`, `depth * PANEL` weights at `w`, and `M * PANEL` sums
            // at `sums`; every address below is within these. The instructions are those of the
            // table that holds this function.
            unsafe {
                let mut acc = [[$splat(0.0); REGS]; M];
                for m in 0..M {
                    for r in 0..REGS {
                        acc[m][r] = $load(sums.add(m * PANEL + r * $lanes));
                    }
                }
                for k in 0..depth {
                    let mut weights = [$splat(0.0); REGS];
                    fetch(w.wrapping_add(k * PANEL), size_of::<$weight>() * PANEL);
                    for r in 0..REGS {
                        weights[r] = $widen(w.add(k * PANEL + r * $lanes));
                    }
                    for m in 0..M {
                        let a = $splat(*x.add(m * stride + k));
                        for r in 0..REGS {
                            acc[m][r] = $fma(a, weights[r], acc[m][r]);
                        }
                    }
                }
                for m in 0..M {
                    for r in 0..REGS {
                        $store(sums.add(m * PANEL + r * $lanes), acc[m][r]);
                    }
                }
            }
        }
    };
}

/// Writes a tile of i32 sums: `$dot(sum, a, w)` adds the products of four bytes in each lane.
#[cfg(target_arch = "x86_64")]
macro_rules! dot_tile {
    (#[$features:meta] $name:ident, $lanes:literal, $load:ident, $store:ident, $splat:ident, $dot:ident) => {
        #[$features]
        pub(super) unsafe fn $name<const M: usize>(
            depth: usize,
            x: *const u8,
            stride: usize,
            w: *const i8,
            sums: *mut i32,
        ) {
            const REGS: usize = PANEL / $lanes;
            // SAFETY: as for tiles of f32; four bytes of `x`, and `4 * PANEL` weights, at a time.
            unsafe {
                let mut acc = [[$splat(0); REGS]; M];
                for m in 0..M {
                    for r in 0..REGS {
                        acc[m][r] = $load(sums.add(m * PANEL + r * $lanes).cast());
                    }
                }
                for k in (0..depth).step_by(DOT_DEPTH) {
                    let mut weights = [$splat(0); REGS];
                    fetch(w.wrapping_add(k * PANEL), PANEL * DOT_DEPTH);
                    for r in 0..REGS {
                        weights[r] = $load(w.add(k * PANEL + r * $lanes * DOT_DEPTH).cast());
                    }
                    for m in 0..M {
                        let four = x.add(m * stride + k).cast::<i32>().read_unaligned();
                        let a = $splat(four);
                        for r in 0..REGS {
                            acc[m][r] = $dot(acc[m][r], a, weights[r]);
                        }
                    }
                }
                for m in 0..M {
                    for r in 0..REGS {
                        $store(sums.add(m * PANEL + r * $lanes).cast(), acc[m][r]);
                    }
                }
            }
        }
    };
}

/// The instructions that products are computed with.
#[derive(Clone, Copy)]
pub(super) struct Isa {
    /// Name for people.
    pub(super) name: &'static str,
    /// Weights as they are.
    pub(super) f32: FloatTile<f32>,
    /// Weights of half precision, by their bits.
    pub(super) f16: FloatTile<u16>,
    /// Integer weights, widened.
    pub(super) i8: FloatTile<i8>,
    /// Integer products, where the machine has them without saturation.
    pub(super) dot: Option<DotTile>,
}

impl Isa {
    /// The best that this machine has.
    pub(super) fn detect() -> Self {
        Self::all().remove(0)
    }

    /// All that this machine has, the best first.
    pub(super) fn all() -> Vec<Self> {
        let mut all = Vec::new();
        #[cfg(target_arch = "x86_64")]
        {
            use std::arch::is_x86_feature_detected as has;
            if has!("avx512f") && has!("avx512bw") && has!("avx512vl") {
                let float = Self {
                    name: "AVX-512",
                    f32: FloatTile(&tiles!(x86::avx512_f32, 1, 2, 3, 4, 5, 6, 7, 8)),
                    f16: FloatTile(&tiles!(x86::avx512_f16, 1, 2, 3, 4, 5, 6, 7, 8)),
                    i8: FloatTile(&tiles!(x86::avx512_i8, 1, 2, 3, 4, 5, 6, 7, 8)),
                    dot: None,
                };
                if has!("avx512vnni") {
                    all.push(Self {
                        name: "AVX-512 VNNI",
                        dot: Some(DotTile(&tiles!(x86::avx512_dot, 1, 2, 3, 4, 5, 6, 7, 8))),
                        ..float
                    });
                }
                all.push(float);
            }
            if has!("avx2") && has!("fma") && has!("f16c") {
                let float = Self {
                    name: "AVX2",
                    f32: FloatTile(&tiles!(x86::avx2_f32, 1, 2, 3)),
                    f16: FloatTile(&tiles!(x86::avx2_f16, 1, 2, 3)),
                    i8: FloatTile(&tiles!(x86::avx2_i8, 1, 2, 3)),
                    dot: None,
                };
                if has!("avxvnni") {
                    all.push(Self {
                        name: "AVX2 VNNI",
                        dot: Some(DotTile(&tiles!(x86::avx2_dot, 1, 2, 3))),
                        ..float
                    });
                }
                all.push(float);
            }
        }
        all.push(Self {
            name: "portable",
            f32: FloatTile(&tiles!(portable::portable_f32, 1, 2, 3, 4)),
            f16: FloatTile(&tiles!(portable::portable_f16, 1, 2, 3, 4)),
            i8: FloatTile(&tiles!(portable::portable_i8, 1, 2, 3, 4)),
            dot: None,
        });
        all
    }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::*;

    use super::{DOT_DEPTH, PANEL, fetch};

    /// # Safety
    /// 16 elements at `p`.
    #[inline]
    #[target_feature(enable = "avx512f")]
    unsafe fn f16_512(p: *const u16) -> __m512 {
        // SAFETY: the caller's promise.
        _mm512_cvtph_ps(unsafe { _mm256_loadu_si256(p.cast()) })
    }

    /// # Safety
    /// 16 elements at `p`.
    #[inline]
    #[target_feature(enable = "avx512f")]
    unsafe fn i8_512(p: *const i8) -> __m512 {
        // SAFETY: the caller's promise.
        _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(unsafe { _mm_loadu_si128(p.cast()) }))
    }

    /// # Safety
    /// 8 elements at `p`.
    #[inline]
    #[target_feature(enable = "avx2,f16c")]
    unsafe fn f16_256(p: *const u16) -> __m256 {
        // SAFETY: the caller's promise.
        _mm256_cvtph_ps(unsafe { _mm_loadu_si128(p.cast()) })
    }

    /// # Safety
    /// 8 elements at `p`.
    #[inline]
    #[target_feature(enable = "avx2")]
    unsafe fn i8_256(p: *const i8) -> __m256 {
        // SAFETY: the caller's promise.
        _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(unsafe { _mm_loadl_epi64(p.cast()) }))
    }

    macro_rules! tile_512 {
        ($name:ident, $weight:ty, $widen:ident) => {
            float_tile!(
                #[target_feature(enable = "avx512f,avx512bw,avx512vl")]
                $name,
                $weight,
                16,
                _mm512_loadu_ps,
                _mm512_storeu_ps,
                $widen,
                _mm512_set1_ps,
                _mm512_fmadd_ps
            );
        };
    }
    macro_rules! tile_256 {
        ($name:ident, $weight:ty, $widen:ident) => {
            float_tile!(
                #[target_feature(enable = "avx2,fma,f16c")]
                $name,
                $weight,
                8,
                _mm256_loadu_ps,
                _mm256_storeu_ps,
                $widen,
                _mm256_set1_ps,
                _mm256_fmadd_ps
            );
        };
    }
    tile_512!(avx512_f32, f32, _mm512_loadu_ps);
    tile_512!(avx512_f16, u16, f16_512);
    tile_512!(avx512_i8, i8, i8_512);
    tile_256!(avx2_f32, f32, _mm256_loadu_ps);
    tile_256!(avx2_f16, u16, f16_256);
    tile_256!(avx2_i8, i8, i8_256);
    dot_tile!(
        #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
        avx512_dot,
        16,
        _mm512_loadu_si512,
        _mm512_storeu_si512,
        _mm512_set1_epi32,
        _mm512_dpbusd_epi32
    );
    dot_tile!(
        #[target_feature(enable = "avx2,avxvnni")]
        avx2_dot,
        8,
        _mm256_loadu_si256,
        _mm256_storeu_si256,
        _mm256_set1_epi32,
        _mm256_dpbusd_avx_epi32
    );
}

/// What any machine can do; compilers make vectors of it.
mod portable {
    use super::{PANEL, f16, fetch};

    const LANES: usize = 8;

    /// # Safety
    /// 8 elements at `p`.
    #[inline(always)]
    unsafe fn load(p: *const f32) -> [f32; LANES] {
        // SAFETY: the caller's promise; arrays of f32 have the alignment of f32.
        unsafe { p.cast::<[f32; LANES]>().read() }
    }

    /// # Safety
    /// Room for 8 elements at `p`.
    #[inline(always)]
    unsafe fn store(p: *mut f32, v: [f32; LANES]) {
        // SAFETY: the caller's promise.
        unsafe { p.cast::<[f32; LANES]>().write(v) }
    }

    /// # Safety
    /// 8 elements at `p`.
    #[inline(always)]
    unsafe fn half(p: *const u16) -> [f32; LANES] {
        // SAFETY: the caller's promise.
        unsafe { p.cast::<[u16; LANES]>().read() }.map(|bits| f16::from_bits(bits).to_f32())
    }

    /// # Safety
    /// 8 elements at `p`.
    #[inline(always)]
    unsafe fn byte(p: *const i8) -> [f32; LANES] {
        // SAFETY: the caller's promise.
        unsafe { p.cast::<[i8; LANES]>().read() }.map(f32::from)
    }

    #[inline(always)]
    fn splat(v: f32) -> [f32; LANES] {
        [v; LANES]
    }

    #[inline(always)]
    fn fma(a: [f32; LANES], b: [f32; LANES], c: [f32; LANES]) -> [f32; LANES] {
        // Where there is no such instruction, `mul_add` is a slow function.
        std::array::from_fn(|i| match cfg!(target_arch = "aarch64") {
            true => a[i].mul_add(b[i], c[i]),
            false => a[i] * b[i] + c[i],
        })
    }

    float_tile!(portable_f32, f32, 8, load, store, load, splat, fma);
    float_tile!(portable_f16, u16, 8, load, store, half, splat, fma);
    float_tile!(portable_i8, i8, 8, load, store, byte, splat, fma);
}
