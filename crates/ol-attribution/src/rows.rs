//! Gradients as rows.

use std::io;

/// Rows that are read in pieces, so that there may be more than fit in memory.
pub trait RowSource {
    /// How many rows there are.
    fn n_rows(&self) -> usize;

    /// Numbers in a row.
    fn n_columns(&self) -> usize;

    /// Reads the numbers of a row from `start` on.
    ///
    /// # Errors
    /// What reading fails with.
    ///
    /// # Panics
    /// If there is no such row, or it ends before; that is a bug in the caller.
    fn read(&mut self, row: usize, start: usize, into: &mut [f32]) -> io::Result<()>;
}

/// Rows of equal length in memory: `[n, d]`, row-major `f32`. One row is the
/// gradient (or its reduction) of one record, or one sample of the Fisher
/// information.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Rows {
    d: usize,
    data: Vec<f32>,
}

impl Rows {
    /// No rows yet, of `d` numbers each.
    #[must_use]
    pub const fn new(d: usize) -> Self {
        Self {
            d,
            data: Vec::new(),
        }
    }

    /// Appends a row.
    ///
    /// # Panics
    /// If it does not have `d` numbers; that is a bug in the caller.
    pub fn push(&mut self, row: &[f32]) {
        assert_eq!(row.len(), self.d, "a row of {} numbers", self.d);
        self.data.extend_from_slice(row);
    }

    /// How many rows there are.
    #[must_use]
    pub const fn len(&self) -> usize {
        match self.data.len().checked_div(self.d) {
            Some(n) => n,
            None => 0,
        }
    }

    /// Whether there are none.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.data.is_empty()
    }

    /// Numbers in a row.
    #[must_use]
    pub const fn dim(&self) -> usize {
        self.d
    }

    /// Row `index`.
    ///
    /// # Panics
    /// If there is no such row.
    #[must_use]
    pub fn row(&self, index: usize) -> &[f32] {
        &self.data[index * self.d..(index + 1) * self.d]
    }

    /// The rows, in order.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = &[f32]> {
        self.data.chunks_exact(self.d.max(1))
    }
}

impl RowSource for Rows {
    fn n_rows(&self) -> usize {
        self.len()
    }

    fn n_columns(&self) -> usize {
        self.d
    }

    fn read(&mut self, row: usize, start: usize, into: &mut [f32]) -> io::Result<()> {
        into.copy_from_slice(&self.row(row)[start..start + into.len()]);
        Ok(())
    }
}
