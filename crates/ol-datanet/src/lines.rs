//! Lines of a stream, with a limit on each and on all of them.

use std::io::{self, BufRead};

/// One line, without its line feed.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Line<'a> {
    /// It fits.
    Whole(&'a [u8]),
    /// It is longer than the limit; its bytes were passed over.
    TooLong,
}

/// Why no further line could be read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum InputError {
    /// The input is larger than one `add` takes.
    #[error("the input is larger than {max_size_bytes} bytes; split it")]
    TooLarge {
        /// The limit.
        max_size_bytes: u64,
    },
    /// The input could not be read.
    #[error("could not read the input")]
    Io(#[from] io::Error),
}

/// Splits a stream into lines, in memory of one line.
pub(crate) struct Lines<R> {
    reader: R,
    buffer: Vec<u8>,
    line_max_size_bytes: usize,
    total_max_size_bytes: u64,
    total_size_bytes: u64,
}

impl<R: BufRead> Lines<R> {
    pub(crate) const fn new(
        reader: R,
        line_max_size_bytes: usize,
        total_max_size_bytes: u64,
    ) -> Self {
        Self {
            reader,
            buffer: Vec::new(),
            line_max_size_bytes,
            total_max_size_bytes,
            total_size_bytes: 0,
        }
    }

    /// The next line, or `None` after the last.
    pub(crate) fn next_line(&mut self) -> Result<Option<Line<'_>>, InputError> {
        self.buffer.clear();
        let mut is_too_long = false;
        let mut has_begun = false;
        loop {
            let available = match self.reader.fill_buf() {
                Ok(available) => available,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(error.into()),
            };
            if available.is_empty() {
                break;
            }
            has_begun = true;
            let line_end = available.iter().position(|&byte| byte == b'\n');
            let part = &available[..line_end.unwrap_or(available.len())];
            if self.buffer.len() + part.len() > self.line_max_size_bytes {
                is_too_long = true;
            }
            if !is_too_long {
                self.buffer.extend_from_slice(part);
            }
            let n_used = part.len() + usize::from(line_end.is_some());
            self.reader.consume(n_used);
            self.total_size_bytes = self.total_size_bytes.saturating_add(n_used as u64);
            if self.total_size_bytes > self.total_max_size_bytes {
                return Err(InputError::TooLarge {
                    max_size_bytes: self.total_max_size_bytes,
                });
            }
            if line_end.is_some() {
                break;
            }
        }
        if !has_begun {
            return Ok(None);
        }
        Ok(Some(if is_too_long {
            Line::TooLong
        } else {
            Line::Whole(&self.buffer)
        }))
    }
}

#[cfg(test)]
mod tests;
