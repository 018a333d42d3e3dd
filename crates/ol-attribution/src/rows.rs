//! Gradients as rows.

/// Rows of equal length: `[n, d]`, row-major `f32`. One row is the gradient (or
/// its reduction) of one record, or one sample of the Fisher information.
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
