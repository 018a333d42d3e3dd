//! New tokens of many sequences, each with its own adapter, in one pass.

use crate::backend::{Backend, Operand};
use crate::cache::{GpuSequence, PAGE_TOKENS};
use crate::error::GpuError;
use crate::kernels::{self, Kernel, THREADS};
use crate::model::{AdapterSlot, GpuModel, MAX_ROWS, PROJECTIONS, Places, int};

/// New tokens of one sequence: a prompt, or the one token chosen last.
#[derive(Debug)]
pub struct GpuSegment<'a> {
    /// Tokens not yet in the cache; at least one.
    pub tokens: &'a [u32],
    /// What the sequence has seen; the tokens are added to it.
    pub sequence: &'a mut GpuSequence,
    /// Adapter of this sequence.
    pub adapter: Option<AdapterSlot>,
}

/// What the kernels need to know of the rows of a pass.
pub(crate) struct RowTable<M> {
    pub(crate) rows: usize,
    pub(crate) tokens: M,
    pub(crate) positions: M,
    /// Adapter slot of each row, -1 for none.
    pub(crate) adapters: M,
    /// Widest rank among them, 0 when no row has an adapter.
    pub(crate) rank: usize,
}

/// Where attention finds keys and values.
struct Lookup<M> {
    slots: M,
    tables: M,
    starts: M,
}

impl<B: Backend> GpuModel<B> {
    /// Feeds the new tokens of every segment and returns the logits of each
    /// segment's last token, `[segments, vocab]`.
    ///
    /// # Errors
    /// [`GpuError::Invalid`] for tokens, sequences or adapters that do not
    /// belong to this model, [`GpuError::Full`] when there are not enough pages;
    /// no sequence has grown then.
    pub fn forward(&self, segments: &mut [GpuSegment<'_>]) -> Result<Vec<f32>, GpuError> {
        if segments.is_empty() {
            return Ok(Vec::new());
        }
        let logits = self.last_logits(segments)?;
        let logits = self.download(&logits, segments.len() * self.config.vocab_size)?;
        advance(segments);
        Ok(logits)
    }

    /// As [`GpuModel::forward`], but chooses the most likely next token of each
    /// segment on the device (the lowest of equals) and fetches only those.
    ///
    /// # Errors
    /// As [`GpuModel::forward`].
    pub fn forward_greedy(&self, segments: &mut [GpuSegment<'_>]) -> Result<Vec<u32>, GpuError> {
        if segments.is_empty() {
            return Ok(Vec::new());
        }
        let logits = self.last_logits(segments)?;
        let out = self.floats("tokens", segments.len())?;
        let arguments = kernels::Argmax {
            logits: self.address(&logits),
            out: self.address(&out),
            vocab: int(self.config.vocab_size),
            unused: 0,
        };
        self.launch(Kernel::Argmax, (segments.len(), 1), &arguments)?;
        let mut bytes = vec![0; segments.len() * size_of::<u32>()];
        self.device.read(&out, 0, &mut bytes)?;
        advance(segments);
        Ok(bytes
            .chunks_exact(4)
            .map(|b| u32::from_le_bytes([b[0], b[1], b[2], b[3]]))
            .collect())
    }

    /// Logits of the segments' last rows, on the device.
    fn last_logits(&self, segments: &mut [GpuSegment<'_>]) -> Result<B::Memory, GpuError> {
        self.check(segments)?;
        for segment in segments.iter_mut() {
            segment.sequence.reserve(segment.tokens.len())?;
        }
        let c = &self.config;
        let (h, width) = (c.hidden_size, c.query_size() + 2 * c.key_value_size());
        let (table, lookup, lasts) = self.rows_of(segments)?;
        let rows = table.rows;
        let x = self.embed(&table)?;
        let qkv = self.floats("activations", rows * width)?;
        let attended = self.floats("activations", rows * c.query_size())?;
        let log_sum = self.floats("activations", rows * c.num_attention_heads)?;
        for (layer, places) in self.places.iter().enumerate() {
            let normed = self.normed(&x, places.norms[0], rows)?.0;
            self.qkv(layer, places, &table, &normed, &qkv, None)?;
            let (keys, values) = &self.cache[layer];
            let store = kernels::Store {
                qkv: self.address(&qkv),
                keys: self.address(keys),
                values: self.address(values),
                slots: self.address(&lookup.slots),
                q_width: int(c.query_size()),
                kv_width: int(c.key_value_size()),
            };
            self.launch(Kernel::Store, (rows, 1), &store)?;
            let attend = kernels::Attend {
                q: self.address(&qkv),
                keys: self.address(keys),
                values: self.address(values),
                out: self.address(&attended),
                log_sum: self.address(&log_sum),
                tables: self.address(&lookup.tables),
                starts: self.address(&lookup.starts),
                positions: self.address(&table.positions),
                q_stride: int(width),
                kv_stride: int(c.key_value_size()),
                head_dim: int(c.head_dim),
                heads: int(c.num_attention_heads),
                share: int(c.num_attention_heads / c.num_key_value_heads),
                page: int(PAGE_TOKENS),
                window: int(c.window(layer).unwrap_or(0)),
                scale: self.attention_scale(),
            };
            self.launch(Kernel::Attend, (rows, c.num_attention_heads), &attend)?;
            self.output(layer, places, &table, &attended, &x, None)?;
            let normed = self.normed(&x, places.norms[1], rows)?.0;
            let gate_up = self.gate_up(layer, places, &table, &normed, None)?;
            let act = self.activated(&gate_up, rows)?;
            self.down(layer, places, &table, &act, &x, None)?;
        }
        let last = self.gather(&x, &self.upload_ints(&lasts)?, lasts.len(), h)?;
        let normed = self.normed(&last, self.final_norm, lasts.len())?.0;
        self.logits(&normed, lasts.len())
    }

    fn check(&self, segments: &[GpuSegment<'_>]) -> Result<(), GpuError> {
        let invalid = |reason: String| Err(GpuError::Invalid(reason));
        let rows: usize = segments.iter().map(|s| s.tokens.len()).sum();
        if rows > MAX_ROWS {
            return invalid(format!("{rows} rows in a pass, at most {MAX_ROWS}"));
        }
        for (i, segment) in segments.iter().enumerate() {
            if segment.tokens.is_empty() {
                return invalid(format!("segment {i} has no tokens"));
            }
            self.check_tokens(i, segment.tokens)?;
            if !self.owns(segment.sequence) {
                return invalid(format!("segment {i}: its sequence is of another model"));
            }
            let needed = segment.sequence.len() + segment.tokens.len();
            let room = self.config.max_position_embeddings;
            if needed > room {
                return invalid(format!(
                    "segment {i}: {needed} tokens, the context has {room}"
                ));
            }
            if let Some(slot) = segment.adapter {
                self.adapter(slot)?;
            }
        }
        Ok(())
    }

    pub(crate) fn check_tokens(&self, sequence: usize, tokens: &[u32]) -> Result<(), GpuError> {
        let vocab = self.config.vocab_size;
        match tokens.iter().find(|t| **t as usize >= vocab) {
            Some(token) => Err(GpuError::Invalid(format!(
                "sequence {sequence}: token {token} is outside the vocabulary of {vocab}"
            ))),
            None => Ok(()),
        }
    }

    pub(crate) fn adapter(
        &self,
        slot: AdapterSlot,
    ) -> Result<&crate::model::GpuAdapter<B::Memory>, GpuError> {
        self.adapters
            .get(slot.0)
            .and_then(Option::as_ref)
            .ok_or_else(|| GpuError::Invalid(format!("no adapter in slot {}", slot.0)))
    }

    /// The tables of a pass, and the last row of each segment.
    #[expect(clippy::type_complexity, reason = "used once")]
    fn rows_of(
        &self,
        segments: &[GpuSegment<'_>],
    ) -> Result<(RowTable<B::Memory>, Lookup<B::Memory>, Vec<i32>), GpuError> {
        let (mut tokens, mut positions, mut slots) = (Vec::new(), Vec::new(), Vec::new());
        let (mut tables, mut starts, mut adapters) = (Vec::new(), Vec::new(), Vec::new());
        let mut lasts = Vec::new();
        let mut rank = 0;
        for segment in segments {
            let table = int(starts.len());
            starts.extend(segment.sequence.starts().map(int));
            let slot = segment.adapter.map_or(-1, |slot| int(slot.0));
            if let Some(slot) = segment.adapter {
                rank = rank.max(self.adapter(slot)?.rank);
            }
            for (position, &token) in (segment.sequence.len()..).zip(segment.tokens) {
                tokens.push(int(token as usize));
                positions.push(int(position));
                slots.push(int(segment.sequence.slot(position)));
                tables.push(table);
                adapters.push(slot);
            }
            lasts.push(int(tokens.len() - 1));
        }
        let table = RowTable {
            rows: tokens.len(),
            tokens: self.upload_ints(&tokens)?,
            positions: self.upload_ints(&positions)?,
            adapters: self.upload_ints(&adapters)?,
            rank,
        };
        let lookup = Lookup {
            slots: self.upload_ints(&slots)?,
            tables: self.upload_ints(&tables)?,
            starts: self.upload_ints(&starts)?,
        };
        Ok((table, lookup, lasts))
    }

    #[expect(clippy::cast_precision_loss, reason = "head widths are small")]
    pub(crate) fn attention_scale(&self) -> f32 {
        1.0 / (self.config.head_dim as f32).sqrt()
    }

    pub(crate) fn embed(&self, table: &RowTable<B::Memory>) -> Result<B::Memory, GpuError> {
        let h = self.config.hidden_size;
        let x = self.floats("activations", table.rows * h)?;
        let bf16 = self.options.precision == crate::Precision::Bf16;
        let element = if bf16 { 2 } else { 4 };
        let arguments = kernels::Embed {
            table: self.address(&self.matrices) + (self.embedding * element) as u64,
            tokens: self.address(&table.tokens),
            out: self.address(&x),
            width: int(h),
            is_bf16: i32::from(bf16),
        };
        self.launch(Kernel::Embed, (table.rows, 1), &arguments)?;
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
        let input = self.input(normed, rows, h)?;
        let out = Operand::new(&logits, vocab);
        self.product(&input, rows, self.head, vocab, false, out, 0.0)?;
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

    /// `y[:, column..column + d_out] += scale x A^T B^T` for rows with an
    /// adapter; `z` keeps the inner product, `[rows, rank]`, if given.
    #[expect(
        clippy::too_many_arguments,
        reason = "one call a layer, all of it needed"
    )]
    fn adapt(
        &self,
        table: &RowTable<B::Memory>,
        layer: usize,
        projection: usize,
        x: &B::Memory,
        d_in: usize,
        y: &B::Memory,
        (column, d_out, stride): (usize, usize, usize),
        z: Option<&B::Memory>,
    ) -> Result<(), GpuError> {
        if table.rank == 0 {
            return Ok(());
        }
        let scratch;
        let z = if let Some(z) = z {
            z
        } else {
            scratch = self.floats("activations", table.rows * table.rank)?;
            &scratch
        };
        let arguments = kernels::LoraRows {
            x: self.address(x),
            blocks: self.address(&self.table),
            adapters: self.address(&table.adapters),
            z: self.address(z),
            y: self.address(y) + (column * size_of::<f32>()) as u64,
            d_in: int(d_in),
            d_out: int(d_out),
            y_stride: int(stride),
            z_stride: int(table.rank),
            block: int(layer * 7 + projection),
            n_blocks: int(self.config.num_hidden_layers * 7),
        };
        self.launch(Kernel::LoraShrink, (table.rows, 1), &arguments)?;
        let blocks = (table.rows, d_out.div_ceil(THREADS));
        self.launch(Kernel::LoraExpand, blocks, &arguments)
    }

    /// Queries, keys and values of the rows: products, biases, adapters, head
    /// norms, rotation. `saved` keeps what the backward pass needs.
    pub(crate) fn qkv(
        &self,
        layer: usize,
        places: &Places,
        table: &RowTable<B::Memory>,
        normed: &B::Memory,
        qkv: &B::Memory,
        mut saved: Option<&mut Saved<B::Memory>>,
    ) -> Result<(), GpuError> {
        let c = &self.config;
        let (h, rows) = (c.hidden_size, table.rows);
        let (q, kv) = (c.query_size(), c.key_value_size());
        let width = q + 2 * kv;
        let input = self.input(normed, rows, h)?;
        let columns = [(0, q), (q, kv), (q + kv, kv)];
        for (projection, (column, n)) in columns.into_iter().enumerate() {
            let out = Operand::new(qkv, width).at(column);
            self.product(
                &input,
                rows,
                places.matrices[projection],
                n,
                false,
                out,
                0.0,
            )?;
        }
        self.add_bias(places.qkv_bias, qkv, rows, width)?;
        for (projection, (column, n)) in columns.into_iter().enumerate() {
            let z = saved.as_deref().map(|s| &s.z[projection]);
            self.adapt(
                table,
                layer,
                projection,
                normed,
                h,
                qkv,
                (column, n, width),
                z,
            )?;
        }
        if let Some(norms) = places.qk_norms {
            if let Some(saved) = saved.as_deref_mut() {
                let raw = self.floats("activations", rows * width)?;
                self.add(&raw, qkv, rows * width)?;
                saved.raw = Some(raw);
            }
            let heads = [c.num_attention_heads, c.num_key_value_heads];
            let mut inverses = Vec::new();
            for ((weight, heads), column) in norms.into_iter().zip(heads).zip([0, q]) {
                let inverse = self.floats("activations", rows * heads)?;
                let at = self.address(qkv) + (column * size_of::<f32>()) as u64;
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
                self.launch(Kernel::RmsNorm, (rows, heads), &arguments)?;
                inverses.push(inverse);
            }
            if let Some(saved) = saved {
                saved.head_inverses = inverses;
            }
        }
        self.rotate(table, qkv, 1.0)
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

    /// Adds the attention's output to the residual stream.
    pub(crate) fn output(
        &self,
        layer: usize,
        places: &Places,
        table: &RowTable<B::Memory>,
        attended: &B::Memory,
        x: &B::Memory,
        z: Option<&B::Memory>,
    ) -> Result<(), GpuError> {
        let width = self.config.query_size();
        self.residual(
            layer,
            3,
            places.o_bias,
            places,
            table,
            (attended, width),
            x,
            z,
        )
    }

    /// Adds the feed-forward layer's output to the residual stream.
    pub(crate) fn down(
        &self,
        layer: usize,
        places: &Places,
        table: &RowTable<B::Memory>,
        act: &B::Memory,
        x: &B::Memory,
        z: Option<&B::Memory>,
    ) -> Result<(), GpuError> {
        let width = self.config.intermediate_size;
        self.residual(
            layer,
            6,
            places.down_bias,
            places,
            table,
            (act, width),
            x,
            z,
        )
    }

    #[expect(clippy::too_many_arguments, reason = "two callers, all of it needed")]
    fn residual(
        &self,
        layer: usize,
        projection: usize,
        bias: Option<usize>,
        places: &Places,
        table: &RowTable<B::Memory>,
        (from, width): (&B::Memory, usize),
        x: &B::Memory,
        z: Option<&B::Memory>,
    ) -> Result<(), GpuError> {
        let (h, rows) = (self.config.hidden_size, table.rows);
        let input = self.input(from, rows, width)?;
        let out = Operand::new(x, h);
        self.product(
            &input,
            rows,
            places.matrices[projection],
            h,
            false,
            out,
            1.0,
        )?;
        self.add_bias(bias, x, rows, h)?;
        self.adapt(table, layer, projection, from, width, x, (0, h, h), z)
    }

    /// `[gate, up]` of the rows.
    pub(crate) fn gate_up(
        &self,
        layer: usize,
        places: &Places,
        table: &RowTable<B::Memory>,
        normed: &B::Memory,
        z: Option<[&B::Memory; 2]>,
    ) -> Result<B::Memory, GpuError> {
        let (h, f, rows) = (
            self.config.hidden_size,
            self.config.intermediate_size,
            table.rows,
        );
        let gate_up = self.floats("activations", rows * 2 * f)?;
        let input = self.input(normed, rows, h)?;
        for part in 0..2 {
            let out = Operand::new(&gate_up, 2 * f).at(part * f);
            self.product(&input, rows, places.matrices[4 + part], f, false, out, 0.0)?;
        }
        self.add_bias(places.gate_up_bias, &gate_up, rows, 2 * f)?;
        for part in 0..2 {
            let columns = (part * f, f, 2 * f);
            let z = z.map(|z| z[part]);
            self.adapt(table, layer, 4 + part, normed, h, &gate_up, columns, z)?;
        }
        Ok(gate_up)
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

fn advance(segments: &mut [GpuSegment<'_>]) {
    for segment in segments {
        segment.sequence.advance(segment.tokens.len());
    }
}

/// What the forward pass of one block leaves for the backward pass.
pub(crate) struct Saved<M> {
    pub(crate) x: M,
    pub(crate) inverse1: M,
    /// Queries and keys before their head norms.
    pub(crate) raw: Option<M>,
    /// Inverse roots of the queries' heads, and of the keys'.
    pub(crate) head_inverses: Vec<M>,
    pub(crate) qkv: M,
    pub(crate) attended: M,
    pub(crate) log_sum: M,
    pub(crate) middle: M,
    pub(crate) inverse2: M,
    pub(crate) gate_up: M,
    /// Inner products of the adapter, in the order of [`PROJECTIONS`].
    pub(crate) z: [M; PROJECTIONS.len()],
}
