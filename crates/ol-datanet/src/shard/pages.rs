//! Bounds what a Parquet file can unpack to, before it is unpacked.
//!
//! The Parquet reader makes room for whatever a page header announces, and a
//! few bytes of some encodings stand for gigabytes. So the page headers are
//! read here first, by a parser that knows only what shards need: data pages of
//! version 1 and dictionary pages, plain or dictionary-coded.
//!
//! # Source
//! Apache Parquet format 2.11, `parquet.thrift`; Apache Thrift compact protocol.

use crate::limits::SHARD_RECORDS_MAX;

/// Most bytes of a file's footer. Ours have about two thousand.
const FOOTER_MAX_SIZE_BYTES: usize = 256 * 1_024;

/// Page types of `parquet.thrift`.
const DATA_PAGE: i32 = 0;
const DICTIONARY_PAGE: i32 = 2;

/// Encodings of `parquet.thrift` in which no value is longer than its bytes
/// in the page or the dictionary.
const ENCODINGS: [i32; 4] = [PLAIN, PLAIN_DICTIONARY, RLE, RLE_DICTIONARY];
const PLAIN: i32 = 0;
const PLAIN_DICTIONARY: i32 = 2;
const RLE: i32 = 3;
const RLE_DICTIONARY: i32 = 8;

/// Types of the compact protocol.
const STOP: u8 = 0;
const TRUE: u8 = 1;
const FALSE: u8 = 2;
const I32: u8 = 5;
const STRUCT: u8 = 12;

/// Checks that the footer is no longer than a shard's may be.
pub(super) fn check_footer(file: &[u8]) -> Result<(), String> {
    let n = file.len();
    let tail = file.get(n.saturating_sub(8)..n.saturating_sub(4));
    let Some(Ok(length)) = tail.map(<[u8; 4]>::try_from) else {
        return Err("it is too short".to_owned());
    };
    if u32::from_le_bytes(length) as usize > FOOTER_MAX_SIZE_BYTES {
        return Err("its footer is too long".to_owned());
    }
    Ok(())
}

/// The bytes that the pages of one column chunk say they unpack to.
pub(super) fn unpacked_size_bytes(mut chunk: &[u8]) -> Result<u64, String> {
    let mut unpacked = 0_u64;
    while !chunk.is_empty() {
        let page = page_header(&mut chunk).ok_or("a page header is not one of a shard")?;
        unpacked = unpacked.saturating_add(page.unpacked_size_bytes);
        chunk = chunk
            .get(page.packed_size_bytes..)
            .ok_or("a page is cut off")?;
    }
    Ok(unpacked)
}

struct Page {
    packed_size_bytes: usize,
    unpacked_size_bytes: u64,
}

/// Reads `PageHeader { 1: type, 2: uncompressed_page_size,
/// 3: compressed_page_size, 4: optional crc, 5: data_page_header |
/// 7: dictionary_page_header }`; anything else gives `None`.
fn page_header(input: &mut &[u8]) -> Option<Page> {
    let mut reader = Struct {
        input,
        last_field: 0,
    };
    let page_type = reader.i32_field(1)?;
    let unpacked_size_bytes = u64::try_from(reader.i32_field(2)?).ok()?;
    let packed_size_bytes = usize::try_from(reader.i32_field(3)?).ok()?;
    let mut next = reader.field()?;
    if next == (4, I32) {
        reader.i32()?;
        next = reader.field()?;
    }
    match (page_type, next) {
        (DATA_PAGE, (5, STRUCT)) => {
            // 1: num_values, 2: encoding, 3 and 4: encodings of the levels.
            let mut data = Struct {
                input: reader.input,
                last_field: 0,
            };
            data.n_values_field()?;
            for field in 2..=4 {
                let encoding = data.i32_field(field)?;
                ENCODINGS.contains(&encoding).then_some(())?;
            }
            data.stop()?;
        }
        (DICTIONARY_PAGE, (7, STRUCT)) => {
            // 1: num_values, 2: encoding, 3: optional is_sorted.
            let mut dictionary = Struct {
                input: reader.input,
                last_field: 0,
            };
            dictionary.n_values_field()?;
            let encoding = dictionary.i32_field(2)?;
            [PLAIN, PLAIN_DICTIONARY]
                .contains(&encoding)
                .then_some(())?;
            match dictionary.field()? {
                (3, TRUE | FALSE) => dictionary.stop()?,
                (_, STOP) => {}
                _ => return None,
            }
        }
        _ => return None,
    }
    reader.stop()?;
    Some(Page {
        packed_size_bytes,
        unpacked_size_bytes,
    })
}

/// A struct of the compact protocol whose fields come in ascending order.
struct Struct<'a, 'b> {
    input: &'a mut &'b [u8],
    last_field: u8,
}

impl Struct<'_, '_> {
    fn byte(&mut self) -> Option<u8> {
        let (&first, rest) = self.input.split_first()?;
        *self.input = rest;
        Some(first)
    }

    /// Number and type of the next field; the type is [`STOP`] at the end.
    fn field(&mut self) -> Option<(u8, u8)> {
        let byte = self.byte()?;
        let (step, kind) = (byte >> 4, byte & 0x0f);
        if byte == STOP {
            return Some((self.last_field, STOP));
        }
        // Step 0 is the long form, by which a field could come twice.
        if step == 0 || kind == STOP {
            return None;
        }
        self.last_field = self.last_field.checked_add(step)?;
        Some((self.last_field, kind))
    }

    fn stop(&mut self) -> Option<()> {
        (self.byte()? == STOP).then_some(())
    }

    fn i32_field(&mut self, number: u8) -> Option<i32> {
        if self.field()? != (number, I32) {
            return None;
        }
        self.i32()
    }

    fn n_values_field(&mut self) -> Option<()> {
        let n_values = usize::try_from(self.i32_field(1)?).ok()?;
        (n_values <= SHARD_RECORDS_MAX).then_some(())
    }

    /// A zigzag varint of at most five bytes.
    fn i32(&mut self) -> Option<i32> {
        let mut value = 0_u64;
        for shift in [0, 7, 14, 21, 28] {
            let byte = self.byte()?;
            value |= u64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                let value = u32::try_from(value).ok()?;
                return Some((value >> 1).cast_signed() ^ -(value & 1).cast_signed());
            }
        }
        None
    }
}

#[cfg(test)]
mod tests;
