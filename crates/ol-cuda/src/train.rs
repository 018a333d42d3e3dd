//! Losses and the adapter's gradient over packed, ragged batches.

use ol_model::Sequence;

use crate::adapters::AdapterSlot;
use crate::backend::{Backend, Operand, Product};
use crate::error::GpuError;
use crate::forward::{RowTable, Saved};
use crate::kernels::{self, Kernel};
use crate::model::{GpuModel, MAX_ROWS, PROJECTIONS, int};
use crate::weights::Side;

/// Rows whose logits exist at the same time.
const LOGIT_ROWS: usize = 512;

/// Sequences laid end to end; the last token of each is only a target.
struct Batch<M> {
    table: RowTable<M>,
    /// First row of each row's sequence, and the row after its last.
    begins: M,
    ends: M,
    /// One start a sequence, and each row's place among them.
    starts: M,
    tables: M,
    /// Rows that have a loss: row, goal, weight, sequence.
    goals: Vec<(i32, i32, f32, usize)>,
}

/// A factor for the gradient of each sequence, from the losses of all.
type Factors<'a> = &'a dyn Fn(&[f64]) -> Vec<f32>;

impl<B: Backend> GpuModel<B> {
    /// Loss of every sequence: `sum_t weights[t] nll_t`, in nats.
    ///
    /// # Errors
    /// [`GpuError::Invalid`] when a sequence does not fit the model or all of them
    /// do not fit a pass.
    pub fn losses(
        &self,
        adapter: Option<AdapterSlot>,
        sequences: &[Sequence],
    ) -> Result<Vec<f64>, GpuError> {
        let batch = self.batch(adapter, sequences)?;
        let x = self.run(&batch, None)?;
        Ok(self.score(&batch, &x, sequences.len(), None)?.0)
    }

    /// Loss of each sequence, and the gradient of their sum with respect to the
    /// adapter, in the flat order of its parameters. With `factors`, the gradient
    /// of each sequence is scaled by what they make of the losses of all.
    ///
    /// # Errors
    /// As [`GpuModel::losses`].
    ///
    /// # Panics
    /// If there is not one factor for each sequence.
    pub fn lora_gradient(
        &self,
        adapter: AdapterSlot,
        sequences: &[Sequence],
        factors: Option<Factors<'_>>,
    ) -> Result<(Vec<f64>, Vec<f32>), GpuError> {
        let n_params = self.slots.get(adapter)?.n_params;
        let batch = self.batch(Some(adapter), sequences)?;
        let gradient = self.floats("gradients", n_params)?;
        let mut saved = Vec::new();
        let x = self.run(&batch, Some(&mut saved))?;
        let mut scales = vec![1.0; sequences.len()];
        if let Some(factors) = factors {
            let losses = self.score(&batch, &x, sequences.len(), None)?.0;
            scales = factors(&losses);
            assert_eq!(scales.len(), sequences.len(), "one factor a sequence");
        }
        let (losses, dx) = self.score(&batch, &x, sequences.len(), Some(&scales))?;
        let Some(dx) = dx else {
            return Ok((losses, vec![0.0; n_params]));
        };
        for (layer, saved) in saved.into_iter().enumerate().rev() {
            self.block_backward(layer, adapter, &batch, saved, &dx, &gradient)?;
        }
        Ok((losses, self.download(&gradient, n_params)?))
    }

    fn batch(
        &self,
        adapter: Option<AdapterSlot>,
        sequences: &[Sequence],
    ) -> Result<Batch<B::Memory>, GpuError> {
        let (mut tokens, mut positions, mut tables) = (Vec::new(), Vec::new(), Vec::new());
        let (mut begins, mut ends, mut starts) = (Vec::new(), Vec::new(), Vec::new());
        let mut goals = Vec::new();
        let all: usize = sequences.iter().map(|s| s.tokens.len()).sum();
        if all > MAX_ROWS {
            return Err(GpuError::Invalid(format!(
                "{all} tokens in a pass, at most {MAX_ROWS}"
            )));
        }
        for (i, s) in sequences.iter().enumerate() {
            let vocab = self.config.vocab_size;
            if let Some(token) = s.tokens.iter().find(|t| **t as usize >= vocab) {
                return Err(GpuError::Invalid(format!(
                    "sequence {i}: token {token} is outside the vocabulary of {vocab}"
                )));
            }
            let finite = s.weights.iter().all(|w| w.is_finite());
            if s.weights.len() != s.tokens.len() || !finite {
                return Err(GpuError::Invalid(format!(
                    "sequence {i}: needs one finite weight a token"
                )));
            }
            let inputs = s.tokens.len().saturating_sub(1);
            if inputs > self.config.max_position_embeddings {
                return Err(GpuError::Invalid(format!(
                    "sequence {i}: {inputs} tokens, the context has {}",
                    self.config.max_position_embeddings
                )));
            }
            let begin = tokens.len();
            for (position, &token) in s.tokens[..inputs].iter().enumerate() {
                tokens.push(int(token as usize));
                positions.push(int(position));
                tables.push(int(i));
                begins.push(int(begin));
                ends.push(int(begin + inputs));
            }
            starts.push(int(begin));
            for t in (1..s.tokens.len()).filter(|t| s.weights[*t] != 0.0) {
                let goal = int(s.tokens[t] as usize);
                goals.push((int(begin + t - 1), goal, s.weights[t], i));
            }
        }
        let (mut spans, mut rank) = (Vec::new(), 0);
        if let Some(slot) = adapter {
            rank = self.slots.get(slot)?.rank;
            spans.push((0, tokens.len(), slot.0));
        }
        Ok(Batch {
            table: RowTable {
                rows: tokens.len(),
                tokens: self.upload_ints(&tokens)?,
                positions: self.upload_ints(&positions)?,
                adapted: self.adapted(&spans, rank)?,
            },
            begins: self.upload_ints(&begins)?,
            ends: self.upload_ints(&ends)?,
            starts: self.upload_ints(&starts)?,
            tables: self.upload_ints(&tables)?,
            goals,
        })
    }

    /// The residual stream after the last block.
    fn run(
        &self,
        batch: &Batch<B::Memory>,
        mut saved: Option<&mut Vec<Saved<B::Memory>>>,
    ) -> Result<B::Memory, GpuError> {
        let (h, rows) = (self.config.hidden_size, batch.table.rows);
        let x = self.embed(&batch.table)?;
        for (layer, places) in self.places.iter().enumerate() {
            let keep = saved.is_some();
            let start = self.kept(&x, rows * h, keep)?;
            let (normed, inverse1) = self.normed(&x, places.norms[0], rows)?;
            let qkv = self.qkv(layer, &batch.table, &normed, keep)?;
            let (attended, log_sum) = self.attend_packed(layer, batch, &qkv.rows)?;
            let z_output = self.residual(layer, 3, &batch.table, &attended, &x)?;
            let middle = self.kept(&x, rows * h, keep)?;
            let (normed, inverse2) = self.normed(&x, places.norms[1], rows)?;
            let (gate_up, [z_gate, z_up]) = self.gate_up(layer, &batch.table, &normed)?;
            let act = self.activated(&gate_up, rows)?;
            let z_down = self.residual(layer, 6, &batch.table, &act, &x)?;
            if let (Some(saved), Some(x), Some(middle)) = (saved.as_deref_mut(), start, middle) {
                saved.push(Saved {
                    x,
                    inverse1,
                    qkv,
                    attended,
                    log_sum,
                    middle,
                    inverse2,
                    gate_up,
                    z: [z_output, z_gate, z_up, z_down],
                });
            }
        }
        Ok(x)
    }

    fn kept(&self, x: &B::Memory, n: usize, keep: bool) -> Result<Option<B::Memory>, GpuError> {
        keep.then(|| self.copy(x, n)).transpose()
    }

    fn attend_packed(
        &self,
        layer: usize,
        batch: &Batch<B::Memory>,
        qkv: &B::Memory,
    ) -> Result<(B::Memory, B::Memory), GpuError> {
        let (c, rows) = (&self.config, batch.table.rows);
        let width = c.query_size() + 2 * c.key_value_size();
        let attended = self.floats("activations", rows * c.query_size())?;
        let log_sum = self.floats("activations", rows * c.num_attention_heads)?;
        let keys = self.address(qkv) + (c.query_size() * size_of::<f32>()) as u64;
        let attend = kernels::Attend {
            q: self.address(qkv),
            keys,
            values: keys + (c.key_value_size() * size_of::<f32>()) as u64,
            out: self.address(&attended),
            log_sum: self.address(&log_sum),
            tables: self.address(&batch.tables),
            starts: self.address(&batch.starts),
            positions: self.address(&batch.table.positions),
            q_stride: int(width),
            kv_stride: int(width),
            head_dim: int(c.head_dim),
            heads: int(c.num_attention_heads),
            share: int(c.num_attention_heads / c.num_key_value_heads),
            // One page holds the whole sequence.
            page: i32::MAX,
            window: int(c.window(layer).unwrap_or(0)),
            scale: self.attention_scale(),
        };
        self.launch(Kernel::Attend, (rows, c.num_attention_heads), &attend)?;
        Ok((attended, log_sum))
    }

    /// Losses of the sequences and, given a factor for each, the gradient of the
    /// residual stream after the last block.
    fn score(
        &self,
        batch: &Batch<B::Memory>,
        x: &B::Memory,
        sequences: usize,
        factors: Option<&[f32]>,
    ) -> Result<(Vec<f64>, Option<B::Memory>), GpuError> {
        let (h, vocab) = (self.config.hidden_size, self.config.vocab_size);
        let mut losses = vec![0.0_f64; sequences];
        let dx = self.floats("gradients", batch.table.rows * h)?;
        for goals in batch.goals.chunks(LOGIT_ROWS) {
            let n = goals.len();
            let rows = self.upload_ints(&goals.iter().map(|g| g.0).collect::<Vec<_>>())?;
            let targets = self.upload_ints(&goals.iter().map(|g| g.1).collect::<Vec<_>>())?;
            let factor = |sequence: usize| factors.map_or(1.0, |factors| factors[sequence]);
            let scaled: Vec<f32> = goals.iter().map(|g| g.2 * factor(g.3)).collect();
            let weights = self.upload_floats(&scaled)?;
            let from = self.gather(x, &rows, n, h)?;
            let (normed, inverse) = self.normed(&from, self.final_norm, n)?;
            let logits = self.logits(&normed, n)?;
            let row_losses = self.floats("losses", n)?;
            let arguments = kernels::CrossEntropy {
                logits: self.address(&logits),
                goals: self.address(&targets),
                weights: self.address(&weights),
                losses: self.address(&row_losses),
                vocab: int(vocab),
                unused: 0,
            };
            self.launch(Kernel::CrossEntropy, (n, 1), &arguments)?;
            for (goal, loss) in goals.iter().zip(self.download(&row_losses, n)?) {
                losses[goal.3] += f64::from(goal.2) * f64::from(loss);
            }
            if factors.is_none() {
                continue;
            }
            let d_normed = self.floats("gradients", n * h)?;
            let input = self.input(Operand::new(&logits, vocab), n, vocab)?;
            let out = Operand::new(&d_normed, h);
            self.product(&input, n, self.head(), Side::Back, out, 0.0)?;
            let d_from = self.floats("gradients", n * h)?;
            let norm = (&from, self.vector(self.final_norm), &inverse);
            self.norm_backward(n, norm, &d_normed, &d_from)?;
            // Rows of the targets are distinct: each has one next token.
            let arguments = kernels::Rows {
                x: self.address(&d_from),
                rows: self.address(&rows),
                out: self.address(&dx),
                width: int(h),
                unused: 0,
            };
            self.launch(Kernel::Scatter, (n, 1), &arguments)?;
        }
        let any = factors.is_some() && !batch.goals.is_empty();
        Ok((losses, any.then_some(dx)))
    }

    /// Adds the gradient of normed rows to `dx`.
    fn norm_backward(
        &self,
        rows: usize,
        (x, weight, inverse): (&B::Memory, u64, &B::Memory),
        dy: &B::Memory,
        dx: &B::Memory,
    ) -> Result<(), GpuError> {
        let h = self.config.hidden_size;
        let arguments = kernels::RmsNormBackward {
            x: self.address(x),
            weight,
            inverse: self.address(inverse),
            dy: self.address(dy),
            dx: self.address(dx),
            width: int(h),
            stride: int(h),
            pieces: 1,
            add: 1,
        };
        self.launch(Kernel::RmsNormBackward, (rows, 1), &arguments)
    }

    /// One block: adds to the gradient of the adapter and carries `dx` from its
    /// output to its input.
    fn block_backward(
        &self,
        layer: usize,
        adapter: AdapterSlot,
        batch: &Batch<B::Memory>,
        s: Saved<B::Memory>,
        dx: &B::Memory,
        gradient: &B::Memory,
    ) -> Result<(), GpuError> {
        let c = &self.config;
        let places = &self.places[layer];
        let rows = batch.table.rows;
        let (h, f) = (c.hidden_size, c.intermediate_size);
        let (q, kv) = (c.query_size(), c.key_value_size());
        let width = q + 2 * kv;
        let at = Place {
            layer,
            adapter,
            rows,
            gradient,
        };
        // Feed-forward.
        let act = self.activated(&s.gate_up, rows)?;
        let d_act = self.floats("gradients", rows * f)?;
        self.linear_backward(
            &at,
            6,
            (dx, 0, h),
            h,
            (&act, f),
            s.z[3].as_ref(),
            &d_act,
            0.0,
        )?;
        let arguments = kernels::Swiglu {
            gate_up: self.address(&s.gate_up),
            d_out: self.address(&d_act),
            out: 0,
            width: int(f),
            unused: 0,
        };
        self.launch(Kernel::SwigluBackward, (rows, 1), &arguments)?;
        let normed = self.normed(&s.middle, places.norms[1], rows)?.0;
        let d_normed = self.floats("gradients", rows * h)?;
        for part in 0..2 {
            let dy = (&s.gate_up, part * f, 2 * f);
            let z = s.z[1 + part].as_ref();
            self.linear_backward(&at, 4 + part, dy, f, (&normed, h), z, &d_normed, 1.0)?;
        }
        let norm = (&s.middle, self.vector(places.norms[1]), &s.inverse2);
        self.norm_backward(rows, norm, &d_normed, dx)?;
        // Attention.
        let d_attended = self.floats("gradients", rows * q)?;
        self.linear_backward(
            &at,
            3,
            (dx, 0, h),
            h,
            (&s.attended, q),
            s.z[0].as_ref(),
            &d_attended,
            0.0,
        )?;
        let d_qkv = self.floats("gradients", rows * width)?;
        self.attend_backward(layer, batch, &s, &d_attended, &d_qkv)?;
        self.rotate(&batch.table, &d_qkv, -1.0)?;
        self.head_norms_backward(layer, &s, rows, &d_qkv)?;
        let normed = self.normed(&s.x, places.norms[0], rows)?.0;
        let d_normed = self.floats("gradients", rows * h)?;
        for (projection, (column, n)) in [(0, q), (q, kv), (q + kv, kv)].into_iter().enumerate() {
            let dy = (&d_qkv, column, width);
            let z = s.qkv.z[projection].as_ref();
            self.linear_backward(&at, projection, dy, n, (&normed, h), z, &d_normed, 1.0)?;
        }
        let norm = (&s.x, self.vector(places.norms[0]), &s.inverse1);
        self.norm_backward(rows, norm, &d_normed, dx)
    }

    fn attend_backward(
        &self,
        layer: usize,
        batch: &Batch<B::Memory>,
        s: &Saved<B::Memory>,
        d_attended: &B::Memory,
        d_qkv: &B::Memory,
    ) -> Result<(), GpuError> {
        let c = &self.config;
        let (rows, heads) = (batch.table.rows, c.num_attention_heads);
        let inner = self.floats("gradients", rows * heads)?;
        let arguments = kernels::AttendBackward {
            qkv: self.address(&s.qkv.rows),
            out: self.address(&s.attended),
            d_out: self.address(d_attended),
            log_sum: self.address(&s.log_sum),
            inner: self.address(&inner),
            d_qkv: self.address(d_qkv),
            begins: self.address(&batch.begins),
            ends: self.address(&batch.ends),
            stride: int(c.query_size() + 2 * c.key_value_size()),
            head_dim: int(c.head_dim),
            heads: int(heads),
            kv_heads: int(c.num_key_value_heads),
            window: int(c.window(layer).unwrap_or(0)),
            scale: self.attention_scale(),
        };
        self.launch(Kernel::AttendInner, (rows, heads), &arguments)?;
        self.launch(Kernel::AttendDQuery, (rows, heads), &arguments)?;
        let blocks = (rows, c.num_key_value_heads);
        self.launch(Kernel::AttendDKeyValue, blocks, &arguments)
    }

    fn head_norms_backward(
        &self,
        layer: usize,
        s: &Saved<B::Memory>,
        rows: usize,
        d_qkv: &B::Memory,
    ) -> Result<(), GpuError> {
        let c = &self.config;
        let (Some(norms), Some((raw, inverses))) = (self.places[layer].qk_norms, &s.qkv.norms)
        else {
            return Ok(());
        };
        let heads = [c.num_attention_heads, c.num_key_value_heads];
        for (i, column) in [0, c.query_size()].into_iter().enumerate() {
            let offset = (column * size_of::<f32>()) as u64;
            let arguments = kernels::RmsNormBackward {
                x: self.address(raw) + offset,
                weight: self.vector(norms[i]),
                inverse: self.address(&inverses[i]),
                dy: self.address(d_qkv) + offset,
                dx: self.address(d_qkv) + offset,
                width: int(c.head_dim),
                stride: int(c.query_size() + 2 * c.key_value_size()),
                pieces: int(heads[i]),
                add: 0,
            };
            self.launch(Kernel::RmsNormBackward, (rows, heads[i]), &arguments)?;
        }
        Ok(())
    }

    /// `dx = dy W + dz A` (plus `beta` times what `dx` holds), `dB += dy^T z`,
    /// `dA += dz^T x`, where `dz = scale dy B`. `dy` is `n` columns of a wider matrix.
    #[expect(clippy::too_many_arguments, reason = "all of a layer's tensors")]
    fn linear_backward(
        &self,
        at: &Place<'_, B::Memory>,
        projection: usize,
        (dy, column, stride): (&B::Memory, usize, usize),
        n: usize,
        (x, width): (&B::Memory, usize),
        z: Option<&B::Memory>,
        dx: &B::Memory,
        beta: f32,
    ) -> Result<(), GpuError> {
        let rows = at.rows;
        let matrix = &self.places[at.layer].matrices[projection];
        let columns = Operand::new(dy, stride).at(column);
        let out = Operand::new(dx, width);
        let input = self.input(columns, rows, n)?;
        self.product(&input, rows, matrix, Side::Back, out, beta)?;
        let adapter = self.slots.get(at.adapter)?;
        let block = adapter.blocks[at.layer * PROJECTIONS.len() + projection];
        let (Some(block), Some(z)) = (block, z) else {
            return Ok(());
        };
        let rank = block.rank;
        let small = |m, n, k, a_transposed, alpha, beta| Product {
            m,
            n,
            k,
            a_transposed,
            b_transposed: false,
            alpha,
            beta,
            bf16: false,
        };
        let factor = |offset, stride| Operand::new(&adapter.parameters, stride).at(offset);
        let slope = |offset, stride| Operand::new(at.gradient, stride).at(offset);
        let dz = self.floats("gradients", rows * rank)?;
        let dz_rows = Operand::new(&dz, rank);
        let device = &self.device;
        let product = small(rows, rank, n, false, block.scale, 0.0);
        device.multiply(&product, columns, factor(block.b, rank), dz_rows)?;
        let product = small(n, rank, rows, true, 1.0, 1.0);
        device.multiply(
            &product,
            columns,
            Operand::new(z, adapter.rank),
            slope(block.b, rank),
        )?;
        let product = small(rows, width, rank, false, 1.0, 1.0);
        device.multiply(&product, dz_rows, factor(block.a, width), out)?;
        let product = small(rank, width, rows, true, 1.0, 1.0);
        device.multiply(
            &product,
            dz_rows,
            Operand::new(x, width),
            slope(block.a, width),
        )
    }
}

/// Which block and adapter a gradient belongs to.
struct Place<'a, M> {
    layer: usize,
    adapter: AdapterSlot,
    rows: usize,
    gradient: &'a M,
}
