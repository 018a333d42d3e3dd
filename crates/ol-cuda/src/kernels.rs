//! The kernels' names and arguments; `kernels/kernels.cu` declares the same
//! structs, field by field. Addresses are 64-bit integers.

/// Threads of every block.
pub const THREADS: usize = 128;

/// Rows of a tile of the segmented low-rank kernels.
pub(crate) const TILE: usize = 16;

macro_rules! kernels {
    ($($(#[$doc:meta])* $variant:ident = $name:literal;)*) => {
        /// A kernel.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        pub enum Kernel {
            $($(#[$doc])* $variant,)*
        }

        impl Kernel {
            /// Every kernel.
            pub const ALL: &[Self] = &[$(Self::$variant,)*];

            /// Its name in the module.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self { $(Self::$variant => $name,)* }
            }
        }
    };
}

kernels! {
    /// Rows of a stored matrix.
    Expand = "expand";
    /// A page of the cache into another.
    CopyPage = "copy_page";
    /// Rows of a matrix.
    Gather = "gather";
    /// Rows back to their places.
    Scatter = "scatter";
    /// RMS norm.
    RmsNorm = "rms_norm";
    /// Its backward pass.
    RmsNormBackward = "rms_norm_backward";
    /// Rotary embedding.
    Rotate = "rotate";
    /// Gated activation.
    Swiglu = "swiglu";
    /// Its backward pass.
    SwigluBackward = "swiglu_backward";
    /// Sum of two matrices.
    Add = "add";
    /// Sum of a matrix and a row.
    AddRow = "add_row";
    /// f32 to bf16.
    Narrow = "narrow";
    /// Keys and values into the cache.
    Store = "store";
    /// Attention.
    Attend = "attend";
    /// `d_out . out` of attention.
    AttendInner = "attend_inner";
    /// Gradient of the queries.
    AttendDQuery = "attend_d_query";
    /// Gradients of keys and values.
    AttendDKeyValue = "attend_d_key_value";
    /// Losses and the gradient of the logits.
    CrossEntropy = "cross_entropy";
    /// Tokens from logits.
    Sample = "sample";
    /// First product of the adapters, of single rows.
    BgmvShrink = "bgmv_shrink";
    /// Second product of the adapters, of single rows.
    BgmvExpand = "bgmv_expand";
    /// First product of the adapters, of tiles of rows.
    SgmvShrink = "sgmv_shrink";
    /// Second product of the adapters, of tiles of rows.
    SgmvExpand = "sgmv_expand";
}

/// A struct of arguments without padding bytes.
///
/// # Safety
/// `repr(C)`, and every byte belongs to a field.
#[expect(unsafe_code, reason = "promises about layout")]
pub(crate) unsafe trait Arguments: Copy {
    /// Its bytes.
    fn bytes(&self) -> &[u8] {
        // SAFETY: implementors have no padding, so every byte is initialised,
        // and the slice borrows `self`.
        unsafe {
            std::slice::from_raw_parts(std::ptr::from_ref(self).cast::<u8>(), size_of::<Self>())
        }
    }
}

macro_rules! arguments {
    ($($(#[$doc:meta])* $name:ident { $($field:ident: $type:ty,)* })*) => {
        $(
            $(#[$doc])*
            #[derive(Debug, Clone, Copy)]
            #[repr(C)]
            pub(crate) struct $name {
                $(pub(crate) $field: $type,)*
            }

            const _: () = assert!(
                size_of::<$name>() == 0 $(+ size_of::<$type>())*,
                "padding in a struct of arguments"
            );

            // SAFETY: `repr(C)`, and the assertion above excludes padding.
            #[expect(unsafe_code, reason = "promises about layout")]
            unsafe impl Arguments for $name {}
        )*
    };
}

arguments! {
    Expand {
        table: u64, rows: u64, out: u64, row_bytes: i64, width: i32, format: i32, first: i32,
        is_bf16: i32,
    }
    CopyPage { cache: u64, from: i64, to: i64, width: i32, unused: i32, }
    Rows { x: u64, rows: u64, out: u64, width: i32, unused: i32, }
    RmsNorm {
        x: u64, weight: u64, out: u64, inverse: u64, width: i32, stride: i32, pieces: i32, eps: f32,
    }
    RmsNormBackward {
        x: u64, weight: u64, inverse: u64, dy: u64, dx: u64, width: i32, stride: i32, pieces: i32,
        add: i32,
    }
    Rotate {
        x: u64, positions: u64, cosines: u64, sines: u64, heads: i32, head_dim: i32, stride: i32,
        sign: f32,
    }
    Swiglu { gate_up: u64, d_out: u64, out: u64, width: i32, unused: i32, }
    Add { x: u64, y: u64, n: i64, period: i32, unused: i32, }
    Narrow { x: u64, out: u64, width: i32, stride: i32, }
    Store { qkv: u64, keys: u64, values: u64, slots: u64, q_width: i32, kv_width: i32, }
    Attend {
        q: u64, keys: u64, values: u64, out: u64, log_sum: u64, tables: u64, starts: u64,
        positions: u64, q_stride: i32, kv_stride: i32, head_dim: i32, heads: i32, share: i32,
        page: i32, window: i32, scale: f32,
    }
    AttendBackward {
        qkv: u64, out: u64, d_out: u64, log_sum: u64, inner: u64, d_qkv: u64, begins: u64,
        ends: u64, stride: i32, head_dim: i32, heads: i32, kv_heads: i32, window: i32, scale: f32,
    }
    CrossEntropy { logits: u64, goals: u64, weights: u64, losses: u64, vocab: i32, unused: i32, }
    /// How the token of one row is drawn.
    DrawRow {
        uniform: f64, temperature: f32, top_p: f32, min_p: f32, top_k: i32, n_top: i32, row: i32,
    }
    Sample { logits: u64, weights: u64, draws: u64, out: u64, vocab: i32, stride: i32, }
    /// One entry of the table that the low-rank kernels look adapters up in.
    LoraEntry { a: u64, b: u64, rank: i32, scale: f32, }
    LoraRows {
        x: u64, blocks: u64, items: u64, z: u64, y: u64, d_in: i32, d_out: i32,
        y_stride: i32, z_stride: i32, block: i32, n_blocks: i32,
    }
}
