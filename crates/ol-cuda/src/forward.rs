//! Passes over a model's blocks: what generation and training share.

use crate::backend::{Backend, Operand};
use crate::error::GpuError;
use crate::kernels::{self, Kernel, THREADS, TILE};
use crate::model::{GpuModel, PROJECTIONS, int};
use crate::weights::Side;

/// Rows with an adapter, as the low-rank kernels take them.
pub(crate) struct Adapted<M> {
    /// Widest rank among them.
    pub(crate) rank: usize,
    /// Row and adapter of each row that stands alone.
    singles: (M, usize),
    /// First row, number of rows and adapter of each tile.
    tiles: (M, usize),
}

/// What the kernels need to know of the rows of a pass.
pub(crate) struct RowTable<M> {
    pub(crate) rows: usize,
    pub(crate) tokens: M,
    pub(crate) positions: M,
    /// None when no row has an adapter.
    pub(crate) adapted: Option<Adapted<M>>,
}

/// Queries, keys and values of the rows, and what made them.
pub(crate) struct Qkv<M> {
    /// `[q, k, v]` of each row.
    pub(crate) rows: M,
    /// Inner products of the adapter.
    pub(crate) z: [Option<M>; 3],
    /// Queries and keys before their head norms, and the inverse roots of the
    /// queries' heads and of the keys'; where asked for and there are such norms.
    pub(crate) norms: Option<(M, [M; 2])>,
}

impl<B: Backend> GpuModel<B> {
    /// Groups rows with an adapter: (first row, number of rows, adapter slot).
    pub(crate) fn adapted(
        &self,
        spans: &[(usize, usize, usize)],
        rank: usize,
    ) -> Result<Option<Adapted<B::Memory>>, GpuError> {
        if rank == 0 || spans.is_empty() {
            return Ok(None);
        }
        let (mut singles, mut tiles) = (Vec::new(), Vec::new());
        for &(first, rows, slot) in spans {
            if rows == 1 {
                singles.extend([int(first), int(slot)]);
                continue;
            }
            for at in (0..rows).step_by(TILE) {
                tiles.extend([int(first + at), int(TILE.min(rows - at)), int(slot)]);
            }
        }
        Ok(Some(Adapted {
            rank,
            singles: (self.upload_ints(&singles)?, singles.len() / 2),
            tiles: (self.upload_ints(&tiles)?, tiles.len() / 3),
        }))
    }

    #[expect(clippy::cast_precision_loss, reason = "head widths are small")]
    pub(crate) fn attention_scale(&self) -> f32 {
        1.0 / (self.config.head_dim as f32).sqrt()
    }

    pub(crate) fn embed(&self, table: &RowTable<B::Memory>) -> Result<B::Memory, GpuError> {
        let x = self.floats("activations", table.rows * self.config.hidden_size)?;
        let rows = (0, table.rows);
        self.expand(&self.embedding, Some(&table.tokens), rows, &x, false)?;
        Ok(x)
    }

    /// Normed rows of the residual stream and the inverse roots.
    pub(crate) fn normed(
        &self,
        x: &B::Memory,
        weight: usize,
        rows: usize,
    ) -> Result<(B::Memory, B::Memory), GpuError> {
        let h = self.config.hidden_size;
        let out = self.floats("activations", rows * h)?;
        let inverse = self.floats("activations", rows)?;
        let arguments = kernels::RmsNorm {
            x: self.address(x),
            weight: self.vector(weight),
            out: self.address(&out),
            inverse: self.address(&inverse),
            width: int(h),
            stride: int(h),
            pieces: 1,
            eps: self.config.rms_norm_eps,
        };
        self.launch(Kernel::RmsNorm, (rows, 1), &arguments)?;
        Ok((out, inverse))
    }

    pub(crate) fn gather(
        &self,
        x: &B::Memory,
        rows: &B::Memory,
        n: usize,
        width: usize,
    ) -> Result<B::Memory, GpuError> {
        let out = self.floats("activations", n * width)?;
        let arguments = kernels::Rows {
            x: self.address(x),
            rows: self.address(rows),
            out: self.address(&out),
            width: int(width),
            unused: 0,
        };
        self.launch(Kernel::Gather, (n, 1), &arguments)?;
        Ok(out)
    }

    pub(crate) fn logits(&self, normed: &B::Memory, rows: usize) -> Result<B::Memory, GpuError> {
        let (h, vocab) = (self.config.hidden_size, self.config.vocab_size);
        let logits = self.floats("logits", rows * vocab)?;
        let input = self.input(Operand::new(normed, h), rows, h)?;
        let out = Operand::new(&logits, vocab);
        self.product(&input, rows, self.head(), Side::Forward, out, 0.0)?;
        Ok(logits)
    }

    fn add_bias(
        &self,
        bias: Option<usize>,
        y: &B::Memory,
        rows: usize,
        width: usize,
    ) -> Result<(), GpuError> {
        let Some(bias) = bias else {
            return Ok(());
        };
        let n = rows * width;
        let arguments = kernels::Add {
            x: self.address(y),
            y: self.vector(bias),
            n: n as i64,
            period: int(width),
            unused: 0,
        };
        self.launch(Kernel::AddRow, (n.div_ceil(THREADS), 1), &arguments)
    }

    pub(crate) fn add(&self, x: &B::Memory, y: &B::Memory, n: usize) -> Result<(), GpuError> {
        let arguments = kernels::Add {
            x: self.address(x),
            y: self.address(y),
            n: n as i64,
            period: 1,
            unused: 0,
        };
        self.launch(Kernel::Add, (n.div_ceil(THREADS), 1), &arguments)
    }

    /// Adds `scale x A^T B^T` to the columns of `y` for rows with an adapter; gives
    /// the inner products, `[rows, rank]`.
    fn adapt(
        &self,
        table: &RowTable<B::Memory>,
        layer: usize,
        projection: usize,
        (x, d_in): (&B::Memory, usize),
        y: Operand<'_, B::Memory>,
        d_out: usize,
    ) -> Result<Option<B::Memory>, GpuError> {
        let Some(adapted) = &table.adapted else {
            return Ok(None);
        };
        let z = self.floats("activations", table.rows * adapted.rank)?;
        let arguments = kernels::LoraRows {
            x: self.address(x),
            blocks: self.address(&self.slots.table),
            items: 0,
            z: self.address(&z),
            y: self.address(y.memory) + (y.offset * size_of::<f32>()) as u64,
            d_in: int(d_in),
            d_out: int(d_out),
            y_stride: int(y.stride),
            z_stride: int(adapted.rank),
            block: int(layer * PROJECTIONS.len() + projection),
            n_blocks: int(self.config.num_hidden_layers * PROJECTIONS.len()),
        };
        let outputs = d_out.div_ceil(THREADS);
        let (singles, n) = &adapted.singles;
        if *n > 0 {
            let arguments = kernels::LoraRows {
                items: self.address(singles),
                ..arguments
            };
            self.launch(Kernel::BgmvShrink, (*n, 1), &arguments)?;
            self.launch(Kernel::BgmvExpand, (*n, outputs), &arguments)?;
        }
        let (tiles, n) = &adapted.tiles;
        if *n > 0 {
            let arguments = kernels::LoraRows {
                items: self.address(tiles),
                ..arguments
            };
            let ranks = adapted.rank.div_ceil(32);
            self.launch(Kernel::SgmvShrink, (*n, ranks), &arguments)?;
            self.launch(Kernel::SgmvExpand, (*n, outputs), &arguments)?;
        }
        Ok(Some(z))
    }

    /// Queries, keys and values of the rows: products, biases, adapters, head
    /// norms, rotation. With `keep`, what the backward pass of the head norms
    /// needs too.
    pub(crate) fn qkv(
        &self,
        layer: usize,
        table: &RowTable<B::Memory>,
        normed: &B::Memory,
        keep: bool,
    ) -> Result<Qkv<B::Memory>, GpuError> {
        let (c, places) = (&self.config, &self.places[layer]);
        let (h, n) = (c.hidden_size, table.rows);
        let (q, kv) = (c.query_size(), c.key_value_size());
        let width = q + 2 * kv;
        let rows = self.floats("activations", n * width)?;
        let input = self.input(Operand::new(normed, h), n, h)?;
        let columns = |at| Operand::new(&rows, width).at([0, q, q + kv][at]);
        for (part, matrix) in places.matrices[..3].iter().enumerate() {
            self.product(&input, n, matrix, Side::Forward, columns(part), 0.0)?;
        }
        self.add_bias(places.qkv_bias, &rows, n, width)?;
        let adapt = |part, d_out| self.adapt(table, layer, part, (normed, h), columns(part), d_out);
        let z = [adapt(0, q)?, adapt(1, kv)?, adapt(2, kv)?];
        let mut kept = None;
        if let Some(norms) = places.qk_norms {
            let raw = if keep {
                Some(self.copy(&rows, n * width)?)
            } else {
                None
            };
            let norm = |weight, heads: usize, column| {
                let inverse = self.floats("activations", n * heads)?;
                let at = self.address(&rows) + (column * size_of::<f32>()) as u64;
                let arguments = kernels::RmsNorm {
                    x: at,
                    weight: self.vector(weight),
                    out: at,
                    inverse: self.address(&inverse),
                    width: int(c.head_dim),
                    stride: int(width),
                    pieces: int(heads),
                    eps: c.rms_norm_eps,
                };
                self.launch(Kernel::RmsNorm, (n, heads), &arguments)?;
                Ok::<_, GpuError>(inverse)
            };
            let inverses = [
                norm(norms[0], c.num_attention_heads, 0)?,
                norm(norms[1], c.num_key_value_heads, q)?,
            ];
            kept = raw.map(|raw| (raw, inverses));
        }
        self.rotate(table, &rows, 1.0)?;
        Ok(Qkv {
            rows,
            z,
            norms: kept,
        })
    }

    pub(crate) fn copy(&self, x: &B::Memory, n: usize) -> Result<B::Memory, GpuError> {
        let out = self.floats("activations", n)?;
        self.add(&out, x, n)?;
        Ok(out)
    }

    /// Turns queries and keys forth (1) or back (-1).
    pub(crate) fn rotate(
        &self,
        table: &RowTable<B::Memory>,
        qkv: &B::Memory,
        sign: f32,
    ) -> Result<(), GpuError> {
        let c = &self.config;
        let arguments = kernels::Rotate {
            x: self.address(qkv),
            positions: self.address(&table.positions),
            cosines: self.address(&self.cosines),
            sines: self.address(&self.sines),
            heads: int(c.num_attention_heads + c.num_key_value_heads),
            head_dim: int(c.head_dim),
            stride: int(c.query_size() + 2 * c.key_value_size()),
            sign,
        };
        self.launch(Kernel::Rotate, (table.rows, 1), &arguments)
    }

    /// Adds the output of the attention (projection 3) or of the feed-forward layer
    /// (6) to the residual stream; gives the adapter's inner products.
    pub(crate) fn residual(
        &self,
        layer: usize,
        projection: usize,
        table: &RowTable<B::Memory>,
        from: &B::Memory,
        x: &B::Memory,
    ) -> Result<Option<B::Memory>, GpuError> {
        let places = &self.places[layer];
        let (h, rows) = (self.config.hidden_size, table.rows);
        let matrix = &places.matrices[projection];
        let bias = if projection == 3 {
            places.o_bias
        } else {
            places.down_bias
        };
        let input = self.input(Operand::new(from, matrix.width), rows, matrix.width)?;
        let out = Operand::new(x, h);
        self.product(&input, rows, matrix, Side::Forward, out, 1.0)?;
        self.add_bias(bias, x, rows, h)?;
        self.adapt(table, layer, projection, (from, matrix.width), out, h)
    }

    /// `[gate, up]` of the rows, and the adapter's inner products.
    #[expect(clippy::type_complexity, reason = "two tensors and what they leave")]
    pub(crate) fn gate_up(
        &self,
        layer: usize,
        table: &RowTable<B::Memory>,
        normed: &B::Memory,
    ) -> Result<(B::Memory, [Option<B::Memory>; 2]), GpuError> {
        let places = &self.places[layer];
        let (h, f) = (self.config.hidden_size, self.config.intermediate_size);
        let rows = table.rows;
        let gate_up = self.floats("activations", rows * 2 * f)?;
        let input = self.input(Operand::new(normed, h), rows, h)?;
        let columns = |part| Operand::new(&gate_up, 2 * f).at(part * f);
        for part in 0..2 {
            let matrix = &places.matrices[4 + part];
            self.product(&input, rows, matrix, Side::Forward, columns(part), 0.0)?;
        }
        self.add_bias(places.gate_up_bias, &gate_up, rows, 2 * f)?;
        let adapt = |part| self.adapt(table, layer, 4 + part, (normed, h), columns(part), f);
        let z = [adapt(0)?, adapt(1)?];
        Ok((gate_up, z))
    }

    /// `silu(gate) up`.
    pub(crate) fn activated(
        &self,
        gate_up: &B::Memory,
        rows: usize,
    ) -> Result<B::Memory, GpuError> {
        let f = self.config.intermediate_size;
        let act = self.floats("activations", rows * f)?;
        let arguments = kernels::Swiglu {
            gate_up: self.address(gate_up),
            d_out: 0,
            out: self.address(&act),
            width: int(f),
            unused: 0,
        };
        self.launch(Kernel::Swiglu, (rows, 1), &arguments)?;
        Ok(act)
    }
}

/// What the forward pass of one block leaves for the backward pass.
pub(crate) struct Saved<M> {
    pub(crate) x: M,
    pub(crate) inverse1: M,
    pub(crate) qkv: Qkv<M>,
    pub(crate) attended: M,
    pub(crate) log_sum: M,
    pub(crate) middle: M,
    pub(crate) inverse2: M,
    pub(crate) gate_up: M,
    /// Inner products of the adapter: output, gate, up, down.
    pub(crate) z: [Option<M>; 4],
}
