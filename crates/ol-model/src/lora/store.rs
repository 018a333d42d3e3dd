//! The one copy of an adapter's factors: in the type of its file, laid out as
//! the products read them.

use std::borrow::Cow;

use super::LoraBlock;
use crate::kernels::{Factor, FactorBytes};
use crate::weights::Dtype;

/// Factors begin at cache lines.
const ALIGNMENT_BYTES: usize = 64;

/// One of a block's tensors.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Part {
    A,
    B,
    Magnitude,
}

/// Where a factor lies.
#[derive(Debug, Clone, Copy)]
struct Place {
    dtype: Dtype,
    start: usize,
}

/// All factors, in flat order: the panels of A^T (`d_in x rank`), then those
/// of B^T (`rank x d_out`).
#[derive(Debug, Clone)]
pub(super) struct Store {
    bytes: FactorBytes,
    /// A and B of each block.
    places: Vec<[Place; 2]>,
    /// Of all blocks.
    magnitudes: Vec<f32>,
}

impl Store {
    /// The factors of `blocks`: `dtype` tells the type of each tensor, `read`
    /// its elements, row-major and stored as that type.
    pub(super) fn new<'b, E>(
        blocks: &[LoraBlock],
        dtype: impl Fn(&LoraBlock, Part) -> Result<Dtype, E>,
        mut read: impl FnMut(&LoraBlock, Part) -> Result<Cow<'b, [u8]>, E>,
    ) -> Result<Self, E> {
        let mut size = 0;
        let mut places = Vec::with_capacity(blocks.len());
        for block in blocks {
            let mut place = |part, n: usize| {
                let dtype = dtype(block, part)?;
                let start = size;
                size = (size + n * dtype.size_bytes()).next_multiple_of(ALIGNMENT_BYTES);
                Ok(Place { dtype, start })
            };
            let a = place(Part::A, block.range_a().len())?;
            places.push([a, place(Part::B, block.range_b().len())?]);
        }
        let mut bytes = FactorBytes::zeroed(size);
        let mut magnitudes = Vec::new();
        for (block, place) in blocks.iter().zip(&places) {
            for (part, place, k) in [
                (Part::A, place[0], block.rows_a.1),
                (Part::B, place[1], block.rows_b.1),
            ] {
                let stored = read(block, part)?;
                Factor::write(
                    place.dtype,
                    &stored,
                    k,
                    &mut bytes.bytes_mut()[place.start..],
                );
            }
            if block.has_magnitude {
                let stored = read(block, Part::Magnitude)?;
                let start = magnitudes.len();
                magnitudes.resize(start + block.rows_b.0, 0.0);
                dtype(block, Part::Magnitude)?.decode(&stored, &mut magnitudes[start..]);
            }
        }
        Ok(Self {
            bytes,
            places,
            magnitudes,
        })
    }

    /// The factors of flat parameters.
    pub(super) fn of_parameters(blocks: &[LoraBlock], params: &[f32]) -> Self {
        let stored = |values: &[f32]| {
            let mut bytes = Vec::with_capacity(size_of_val(values));
            for value in values {
                bytes.extend_from_slice(&value.to_le_bytes());
            }
            bytes
        };
        let made = Self::new(
            blocks,
            |_, _| Ok(Dtype::F32),
            |block, part| {
                Ok::<_, std::convert::Infallible>(Cow::Owned(stored(&params[range(block, part)])))
            },
        );
        match made {
            Ok(store) => store,
            Err(never) => match never {},
        }
    }

    /// A^T of block `at`.
    pub(super) fn a_t(&self, block: &LoraBlock, at: usize) -> Factor<'_> {
        let Place { dtype, start } = self.places[at][0];
        let (rank, d_in) = block.rows_a;
        Factor::new(dtype, &self.bytes.bytes()[start..], d_in, rank)
    }

    /// B^T of block `at`.
    pub(super) fn b_t(&self, block: &LoraBlock, at: usize) -> Factor<'_> {
        let Place { dtype, start } = self.places[at][1];
        let (d_out, rank) = block.rows_b;
        Factor::new(dtype, &self.bytes.bytes()[start..], rank, d_out)
    }

    /// Magnitudes of a block.
    pub(super) fn magnitudes(&self, blocks: &[LoraBlock], at: usize) -> &[f32] {
        let before: usize = blocks[..at].iter().map(|b| b.range_magnitude().len()).sum();
        &self.magnitudes[before..][..blocks[at].range_magnitude().len()]
    }

    /// Bytes in memory.
    pub(super) fn size_bytes(&self) -> usize {
        self.bytes.bytes().len()
            + size_of_val(self.places.as_slice())
            + size_of_val(self.magnitudes.as_slice())
    }
}

/// Elements of a tensor in the flat vector.
pub(super) fn range(block: &LoraBlock, part: Part) -> std::ops::Range<usize> {
    match part {
        Part::A => block.range_a(),
        Part::B => block.range_b(),
        Part::Magnitude => block.range_magnitude(),
    }
}
