//! The limits of `specs/datanet.md`. Part of the format: another value makes
//! other shards, or lets in what others refuse.

/// Most bytes of one line of input, without its line feed.
pub const LINE_MAX_SIZE_BYTES: usize = 256 * 1_024;

/// Most bytes of one input.
pub const INPUT_MAX_SIZE_BYTES: u64 = 1 << 30;

/// Most records of a datanet.
pub const RECORDS_MAX: u64 = 1 << 20;

/// Most different licences of a datanet.
pub const LICENSES_MAX: usize = 256;

/// Most versions of a datanet.
pub const VERSIONS_MAX: u64 = 100_000;

/// Most records of a shard.
pub const SHARD_RECORDS_MAX: usize = 4_096;

/// Most bytes of canonical JSON of the records of a shard.
pub const SHARD_TEXT_MAX_SIZE_BYTES: usize = 32 * 1_024 * 1_024;

/// Most bytes of a shard. Generous: the text compressed by nothing, and the
/// columns beside it.
pub const SHARD_MAX_SIZE_BYTES: u64 = 48 * 1_024 * 1_024;

/// Most bytes of a manifest.
pub const MANIFEST_MAX_SIZE_BYTES: u64 = 4 * 1_024 * 1_024;

/// Most lines whose reason for rejection is kept; the others are counted.
pub const REJECTIONS_MAX: usize = 1_000;
