//! New tokens of many sequences, each with its own adapter: a server's passes.

use ol_model::{
    Draw, Drawn, Executor, ForwardError, Forwarded, KvPool, Lora, PAGE_TOKENS, Segment,
};

use crate::adapters::AdapterSlot;
use crate::backend::Backend;
use crate::error::GpuError;
use crate::forward::RowTable;
use crate::kernels::{self, Arguments, DrawRow, Kernel};
use crate::model::{GpuModel, MAX_ROWS, int, supports};

/// Most likeliest tokens that are named beside a drawn one; who wants more gets
/// the logits.
const MAX_TOP: usize = 20;

/// Floats that the sampling kernel writes for a row.
const DRAWN_FLOATS: usize = 3 + 2 * MAX_TOP;

/// Where attention finds keys and values.
struct Lookup<M> {
    slots: M,
    tables: M,
    starts: M,
}

impl From<GpuError> for ForwardError {
    fn from(error: GpuError) -> Self {
        Self::Device(error.to_string())
    }
}

impl<B> Executor for GpuModel<B>
where
    B: Backend + Send,
    B::Memory: Send,
{
    fn kv_pool(&self, _n_pages: usize) -> KvPool {
        self.pool.clone()
    }

    fn check_adapter(&self, adapter: &Lora) -> Result<(), String> {
        supports(&self.config, Some(adapter.config())).map_err(|error| error.to_string())
    }

    fn forward(
        &mut self,
        segments: &mut [Segment<'_>],
        draws: &[Option<Draw>],
    ) -> Result<Forwarded, ForwardError> {
        self.check(segments)?;
        assert_eq!(draws.len(), segments.len(), "one draw a segment");
        let result = self
            .reserve(segments)
            .and_then(|()| self.parts(segments, draws));
        for segment in segments.iter_mut() {
            if result.is_ok() {
                segment.cache.advance(segment.tokens.len());
            } else {
                segment.cache.truncate(segment.cache.len());
            }
        }
        result
    }
}

impl<B: Backend> GpuModel<B> {
    fn check(&self, segments: &[Segment<'_>]) -> Result<(), ForwardError> {
        let vocab_size = self.config.vocab_size;
        for (segment, s) in segments.iter().enumerate() {
            if s.tokens.is_empty() {
                return Err(ForwardError::Empty(segment));
            }
            if let Some(&token) = s.tokens.iter().find(|t| **t as usize >= vocab_size) {
                return Err(ForwardError::Token {
                    segment,
                    token,
                    vocab_size,
                });
            }
            let shape = |what| Err(ForwardError::Shape { segment, what });
            if !s.cache.is_in(&self.pool) {
                return shape("cache");
            }
            if s.adapter.is_some_and(|a| !a.fits(&self.config)) {
                return shape("adapter");
            }
            let needed = s.cache.len() + s.tokens.len();
            let room = s.cache.capacity_tokens().min(s.cache.len() + MAX_ROWS);
            if needed > room {
                return Err(ForwardError::TooLong {
                    segment,
                    needed,
                    room,
                });
            }
        }
        Ok(())
    }

    /// Gets pages for all new tokens; those that were shared are copied at once,
    /// since they stay in place of the shared ones whatever comes after.
    fn reserve(&self, segments: &mut [Segment<'_>]) -> Result<(), ForwardError> {
        for (i, segment) in segments.iter_mut().enumerate() {
            let copied = segment
                .cache
                .reserve(segment.tokens.len())
                .map_err(|source| ForwardError::PoolFull { segment: i, source })?;
            for (from, to) in copied {
                self.copy_page(from, to)?;
            }
        }
        Ok(())
    }

    fn copy_page(&self, from: usize, to: usize) -> Result<(), GpuError> {
        let width = self.config.key_value_size();
        let start = |page: usize| (page * PAGE_TOKENS * width) as i64;
        for memory in self.cache.iter().flat_map(|(keys, values)| [keys, values]) {
            let arguments = kernels::CopyPage {
                cache: self.address(memory),
                from: start(from),
                to: start(to),
                width: int(width),
                unused: 0,
            };
            self.launch(Kernel::CopyPage, (PAGE_TOKENS, 1), &arguments)?;
        }
        Ok(())
    }

    /// The passes over parts of the segments whose adapters, and whose rows, the
    /// device has room for together: nearly always one.
    fn parts(
        &mut self,
        segments: &[Segment<'_>],
        draws: &[Option<Draw>],
    ) -> Result<Forwarded, ForwardError> {
        let mut out = Forwarded::default();
        let mut first = 0;
        while first < segments.len() {
            let (mut slots, mut kept, mut rows) = (Vec::new(), Vec::new(), 0);
            for segment in &segments[first..] {
                rows += segment.tokens.len();
                if rows > MAX_ROWS && !slots.is_empty() {
                    break;
                }
                let slot = match segment.adapter.map(|a| self.resident(a, &kept)) {
                    None => None,
                    Some(Ok(slot)) => Some(slot),
                    Some(Err(GpuError::Full(_) | GpuError::Memory { .. })) if !kept.is_empty() => {
                        break;
                    }
                    Some(Err(error)) => return Err(error.into()),
                };
                kept.extend(slot);
                slots.push(slot);
            }
            let last = first + slots.len();
            let logits = self.last_logits(&segments[first..last], &slots)?;
            self.answer(&logits, &draws[first..last], &mut out)?;
            first = last;
        }
        Ok(out)
    }

    /// Logits of the segments' last rows, on the device.
    fn last_logits(
        &self,
        segments: &[Segment<'_>],
        slots: &[Option<usize>],
    ) -> Result<B::Memory, GpuError> {
        let c = &self.config;
        let width = c.query_size() + 2 * c.key_value_size();
        let (table, lookup, lasts) = self.rows_of(segments, slots)?;
        let rows = table.rows;
        let x = self.embed(&table)?;
        let attended = self.floats("activations", rows * c.query_size())?;
        let log_sum = self.floats("activations", rows * c.num_attention_heads)?;
        for (layer, places) in self.places.iter().enumerate() {
            let normed = self.normed(&x, places.norms[0], rows)?.0;
            let qkv = self.qkv(layer, &table, &normed, false)?.rows;
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
            self.residual(layer, 3, &table, &attended, &x)?;
            let normed = self.normed(&x, places.norms[1], rows)?.0;
            let gate_up = self.gate_up(layer, &table, &normed)?.0;
            let act = self.activated(&gate_up, rows)?;
            self.residual(layer, 6, &table, &act, &x)?;
        }
        let last = self.gather(&x, &self.upload_ints(&lasts)?, lasts.len(), c.hidden_size)?;
        let normed = self.normed(&last, self.final_norm, lasts.len())?.0;
        self.logits(&normed, lasts.len())
    }

    /// The tables of a pass, and the last row of each segment.
    #[expect(clippy::type_complexity, reason = "used once")]
    fn rows_of(
        &self,
        segments: &[Segment<'_>],
        adapters: &[Option<usize>],
    ) -> Result<(RowTable<B::Memory>, Lookup<B::Memory>, Vec<i32>), GpuError> {
        let (mut tokens, mut positions, mut slots) = (Vec::new(), Vec::new(), Vec::new());
        let (mut tables, mut starts, mut lasts) = (Vec::new(), Vec::new(), Vec::new());
        let (mut spans, mut rank) = (Vec::new(), 0);
        for (segment, adapter) in segments.iter().zip(adapters) {
            if let Some(slot) = adapter {
                rank = rank.max(self.slots.get(AdapterSlot(*slot))?.rank);
                spans.push((tokens.len(), segment.tokens.len(), *slot));
            }
            let pages: Vec<usize> = segment.cache.page_numbers().collect();
            let table = int(starts.len());
            starts.extend(pages.iter().map(|page| int(page * PAGE_TOKENS)));
            for (at, &token) in (segment.cache.len()..).zip(segment.tokens) {
                tokens.push(int(token as usize));
                positions.push(int(at));
                let page = pages[at / PAGE_TOKENS];
                slots.push(int(page * PAGE_TOKENS + at % PAGE_TOKENS));
                tables.push(table);
            }
            lasts.push(int(tokens.len() - 1));
        }
        let table = RowTable {
            rows: tokens.len(),
            tokens: self.upload_ints(&tokens)?,
            positions: self.upload_ints(&positions)?,
            adapted: self.adapted(&spans, rank)?,
        };
        let lookup = Lookup {
            slots: self.upload_ints(&slots)?,
            tables: self.upload_ints(&tables)?,
            starts: self.upload_ints(&starts)?,
        };
        Ok((table, lookup, lasts))
    }

    /// Draws what is to be drawn and fetches that; fetches the other logits.
    fn answer(
        &self,
        logits: &B::Memory,
        draws: &[Option<Draw>],
        out: &mut Forwarded,
    ) -> Result<(), GpuError> {
        let vocab = self.config.vocab_size;
        let wanted: Vec<(usize, Draw)> = draws
            .iter()
            .enumerate()
            .filter_map(|(row, draw)| Some((row, draw.filter(|d| d.n_top <= MAX_TOP)?)))
            .collect();
        let first = out.drawn.len();
        out.drawn.resize(first + draws.len(), None);
        if !wanted.is_empty() {
            for ((row, draw), floats) in wanted.iter().zip(self.draw(logits, &wanted)?) {
                out.drawn[first + row] = drawn(&floats, draw.n_top.min(vocab));
            }
        }
        // A row that nothing can be drawn from shows that by its logits.
        for row in 0..draws.len() {
            if out.drawn[first + row].is_none() {
                let mut bytes = vec![0; vocab * size_of::<f32>()];
                self.device.read(logits, row * bytes.len(), &mut bytes)?;
                out.logits.extend(floats_of(&bytes));
            }
        }
        Ok(())
    }

    /// What the sampling kernel says of each wanted row.
    fn draw(
        &self,
        logits: &B::Memory,
        wanted: &[(usize, Draw)],
    ) -> Result<Vec<Vec<f32>>, GpuError> {
        let vocab = self.config.vocab_size;
        let rows: Vec<u8> = wanted
            .iter()
            .flat_map(|(row, draw)| {
                let row = DrawRow {
                    uniform: draw.uniform,
                    temperature: draw.temperature,
                    top_p: draw.top_p,
                    min_p: draw.min_p,
                    top_k: i32::try_from(draw.top_k).unwrap_or(i32::MAX),
                    n_top: int(draw.n_top.min(vocab)),
                    row: int(*row),
                };
                row.bytes().to_vec()
            })
            .collect();
        let mut table = self.device.allocate("a batch", rows.len())?;
        self.device.write(&mut table, 0, &rows)?;
        let weights = self.floats("logits", wanted.len() * vocab)?;
        let out = self.floats("tokens", wanted.len() * DRAWN_FLOATS)?;
        let arguments = kernels::Sample {
            logits: self.address(logits),
            weights: self.address(&weights),
            draws: self.address(&table),
            out: self.address(&out),
            vocab: int(vocab),
            stride: int(DRAWN_FLOATS),
        };
        self.launch(Kernel::Sample, (wanted.len(), 1), &arguments)?;
        let floats = self.download(&out, wanted.len() * DRAWN_FLOATS)?;
        Ok(floats
            .chunks_exact(DRAWN_FLOATS)
            .map(<[f32]>::to_vec)
            .collect())
    }
}

fn floats_of(bytes: &[u8]) -> impl Iterator<Item = f32> + '_ {
    let four = bytes.as_chunks::<4>().0.iter();
    four.map(|b| f32::from_le_bytes(*b))
}

/// A row that the sampling kernel wrote; `None` if the logits were no numbers.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "ids and ranks, exact in f32 for every vocabulary there is"
)]
fn drawn(floats: &[f32], n_top: usize) -> Option<Drawn> {
    let [token, rank, logprob, top @ ..] = floats else {
        return None;
    };
    (*token >= 0.0).then(|| Drawn {
        token: *token as u32,
        logprob: *logprob,
        rank: *rank as u32,
        top: top
            .as_chunks::<2>()
            .0
            .iter()
            .take(n_top)
            .map(|[id, logprob]| (*id as u32, *logprob))
            .collect(),
    })
}
