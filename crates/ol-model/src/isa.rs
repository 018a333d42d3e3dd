//! Which vector instructions the kernels may use.

/// Instruction set that the kernels run on.
///
/// Results do not depend on it: every level performs the same fused
/// multiply-adds in the same order (see [`crate::kernels`]). A value can only be
/// had from [`Isa::detect`] or [`Isa::available`], so holding one proves that
/// this CPU has the instructions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Isa(pub(crate) Level);

/// What an [`Isa`] proves to be there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Level {
    /// Nothing beyond the target's own instructions.
    Scalar,
    /// AVX2, FMA and F16C.
    #[cfg(target_arch = "x86_64")]
    Avx2,
    /// These, and AVX-512 F, VL, DQ and BW.
    #[cfg(target_arch = "x86_64")]
    Avx512,
}

impl Isa {
    /// The portable oracle; on a machine without hardware FMA it is slow.
    pub const SCALAR: Self = Self(Level::Scalar);

    /// Every level this CPU can run, slowest first.
    #[must_use]
    pub fn available() -> Vec<Self> {
        #[cfg_attr(
            not(target_arch = "x86_64"),
            expect(unused_mut, reason = "elsewhere there is only the portable one")
        )]
        let mut levels = vec![Self::SCALAR];
        #[cfg(target_arch = "x86_64")]
        {
            let avx2 = is_x86_feature_detected!("avx2")
                && is_x86_feature_detected!("fma")
                && is_x86_feature_detected!("f16c");
            if avx2 {
                levels.push(Self(Level::Avx2));
            }
            if avx2
                && is_x86_feature_detected!("avx512f")
                && is_x86_feature_detected!("avx512vl")
                && is_x86_feature_detected!("avx512dq")
                && is_x86_feature_detected!("avx512bw")
            {
                levels.push(Self(Level::Avx512));
            }
        }
        levels
    }

    /// The fastest level this CPU can run.
    #[must_use]
    pub fn detect() -> Self {
        Self::available().pop().unwrap_or(Self::SCALAR)
    }

    /// The instructions themselves, for kernels of other crates.
    #[must_use]
    pub const fn level(self) -> Level {
        self.0
    }

    /// Name for logs and reports.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self.0 {
            Level::Scalar => "scalar",
            #[cfg(target_arch = "x86_64")]
            Level::Avx2 => "avx2",
            #[cfg(target_arch = "x86_64")]
            Level::Avx512 => "avx512",
        }
    }
}
