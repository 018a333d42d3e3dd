//! Register tiles for x86-64.

use std::arch::x86_64::{
    __m256, __m512, _mm256_fmadd_ps, _mm256_loadu_ps, _mm256_set1_ps, _mm256_setzero_ps,
    _mm256_storeu_ps, _mm512_fmadd_ps, _mm512_loadu_ps, _mm512_set1_ps, _mm512_setzero_ps,
    _mm512_storeu_ps,
};

use super::{PANEL, Tile};

/// Panels side by side for a tile of `rows` rows: enough independent chains to
/// hide the latency of an FMA, no more than there are registers.
pub(super) fn group_avx512(rows: usize) -> usize {
    match rows {
        0..=3 => 8,
        4..=6 => 4,
        _ => 2,
    }
}

/// As [`group_avx512`] for sixteen registers of half the width.
pub(super) fn group_avx2(rows: usize) -> usize {
    match rows {
        0..=1 => 4,
        2..=3 => 2,
        _ => 1,
    }
}

macro_rules! tile {
    ($name:ident, $features:literal, $vector:ty, $lanes:literal, $zero:ident, $load:ident, $store:ident, $set1:ident, $fma:ident) => {
        /// # Safety
        /// As `micro`, for `MR` rows and `NV` registers of columns.
        #[target_feature(enable = $features)]
        unsafe fn $name<const MR: usize, const NV: usize>(t: Tile) {
            let mut acc: [[$vector; NV]; MR] = [[$zero(); NV]; MR];
            let mut a: [*const f32; MR] = [t.a; MR];
            for (i, a) in a.iter_mut().enumerate() {
                // SAFETY: row i exists.
                *a = unsafe { t.a.add(i * t.a_row) };
            }
            if t.accumulate {
                for i in 0..MR {
                    for j in 0..NV {
                        // SAFETY: these columns of row i of C exist.
                        acc[i][j] = unsafe { $load(t.c.add(i * t.c_row + j * $lanes)) };
                    }
                }
            }
            let run = t.b.run();
            let mut a_at = 0_usize;
            let mut row = 0_usize;
            while row < t.k {
                let mut b = [std::ptr::null::<f32>(); NV];
                for (j, b) in b.iter_mut().enumerate() {
                    let column = j * $lanes;
                    // SAFETY: panel column / 16 exists and has this row.
                    *b = unsafe { t.b.line(column / PANEL, row).add(column % PANEL) };
                }
                let height = run.min(t.k - row);
                let mut b_at = 0_usize;
                for _ in 0..height {
                    let mut line = [$zero(); NV];
                    for j in 0..NV {
                        // SAFETY: b_at is 16 times a row of the panel.
                        line[j] = unsafe { $load(b[j].add(b_at)) };
                    }
                    for i in 0..MR {
                        // SAFETY: a_at is a column of A times its stride.
                        let x = unsafe { $set1(*a[i].add(a_at)) };
                        for j in 0..NV {
                            acc[i][j] = $fma(x, line[j], acc[i][j]);
                        }
                    }
                    b_at = b_at.wrapping_add(PANEL);
                    a_at = a_at.wrapping_add(t.a_col);
                }
                row += height;
            }
            for i in 0..MR {
                for j in 0..NV {
                    // SAFETY: these columns of row i of C exist and are ours.
                    unsafe { $store(t.c.add(i * t.c_row + j * $lanes), acc[i][j]) };
                }
            }
        }
    };
}

tile!(
    tile_avx512,
    "avx512f",
    __m512,
    16,
    _mm512_setzero_ps,
    _mm512_loadu_ps,
    _mm512_storeu_ps,
    _mm512_set1_ps,
    _mm512_fmadd_ps
);
tile!(
    tile_avx2,
    "avx2,fma",
    __m256,
    8,
    _mm256_setzero_ps,
    _mm256_loadu_ps,
    _mm256_storeu_ps,
    _mm256_set1_ps,
    _mm256_fmadd_ps
);

macro_rules! pick {
    ($tile:ident, $t:ident, $panels:ident, $(($rows:literal, $count:literal, $registers:literal)),* $(,)?) => {
        match ($t.m, $panels) {
            // SAFETY: the tile has just these rows and panels, the CPU the instructions.
            $(($rows, $count) => unsafe { $tile::<$rows, $registers>($t) },)*
            (rows, count) => unreachable!("no tile of {rows} rows and {count} panels"),
        }
    };
}

/// # Safety
/// As `micro`; the CPU has AVX-512F.
pub(super) unsafe fn micro_avx512(panels: usize, t: Tile) {
    pick!(
        tile_avx512,
        t,
        panels,
        (1, 1, 1),
        (2, 1, 1),
        (3, 1, 1),
        (4, 1, 1),
        (5, 1, 1),
        (6, 1, 1),
        (7, 1, 1),
        (8, 1, 1),
        (9, 1, 1),
        (10, 1, 1),
        (11, 1, 1),
        (12, 1, 1),
        (1, 2, 2),
        (2, 2, 2),
        (3, 2, 2),
        (4, 2, 2),
        (5, 2, 2),
        (6, 2, 2),
        (7, 2, 2),
        (8, 2, 2),
        (9, 2, 2),
        (10, 2, 2),
        (11, 2, 2),
        (12, 2, 2),
        (1, 4, 4),
        (2, 4, 4),
        (3, 4, 4),
        (4, 4, 4),
        (5, 4, 4),
        (6, 4, 4),
        (1, 8, 8),
        (2, 8, 8),
        (3, 8, 8),
    );
}

/// # Safety
/// As `micro`; the CPU has AVX2 and FMA.
pub(super) unsafe fn micro_avx2(panels: usize, t: Tile) {
    pick!(
        tile_avx2,
        t,
        panels,
        (1, 1, 2),
        (2, 1, 2),
        (3, 1, 2),
        (4, 1, 2),
        (5, 1, 2),
        (6, 1, 2),
        (1, 2, 4),
        (2, 2, 4),
        (3, 2, 4),
        (1, 4, 8),
    );
}
