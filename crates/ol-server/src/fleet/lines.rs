//! Server-sent events of a worker, line by line and within limits.

/// Why what a worker sends is not read on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum LineError {
    /// A line does not end.
    #[error("a line has more than {max_size_bytes} bytes")]
    Line {
        /// The limit.
        max_size_bytes: usize,
    },
    /// There is no end to it.
    #[error("the body has more than {max_size_bytes} bytes")]
    Body {
        /// The limit.
        max_size_bytes: usize,
    },
    /// Not text.
    #[error("a line is not UTF-8")]
    Utf8,
}

/// Cuts bytes into the data of events.
///
/// An event of a worker is one `data:` line; comments and other fields are
/// passed over, as the format says.
///
/// # Source
/// HTML standard, section 9.2.6, "Interpreting an event stream".
#[derive(Debug)]
pub(super) struct EventLines {
    line: Vec<u8>,
    n_read_bytes: usize,
    line_max_size_bytes: usize,
    body_max_size_bytes: usize,
}

impl EventLines {
    pub(super) const fn new(line_max_size_bytes: usize, body_max_size_bytes: usize) -> Self {
        Self {
            line: Vec::new(),
            n_read_bytes: 0,
            line_max_size_bytes,
            body_max_size_bytes,
        }
    }

    /// Takes bytes, and gives the data of the events that are complete.
    pub(super) fn push(&mut self, bytes: &[u8]) -> Result<Vec<String>, LineError> {
        self.n_read_bytes = self.n_read_bytes.saturating_add(bytes.len());
        if self.n_read_bytes > self.body_max_size_bytes {
            return Err(LineError::Body {
                max_size_bytes: self.body_max_size_bytes,
            });
        }
        let mut events = Vec::new();
        for part in bytes.split_inclusive(|&byte| byte == b'\n') {
            if self.line.len() + part.len() > self.line_max_size_bytes {
                return Err(LineError::Line {
                    max_size_bytes: self.line_max_size_bytes,
                });
            }
            self.line.extend_from_slice(part);
            if part.ends_with(b"\n") {
                let line = std::str::from_utf8(&self.line).map_err(|_| LineError::Utf8)?;
                let data = line.trim_end_matches(['\n', '\r']).strip_prefix("data:");
                if let Some(data) = data {
                    events.push(data.strip_prefix(' ').unwrap_or(data).to_owned());
                }
                self.line.clear();
            }
        }
        Ok(events)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const STREAM: &str =
        ": hello\r\ndata: {\"a\":\"é\"}\r\n\r\ndata:b\nevent: x\n\ndata: [DONE]\n\nrest";

    proptest! {
        #[test]
        fn the_cuts_do_not_matter(cuts in prop::collection::vec(0..STREAM.len(), 0..8)) {
            let mut cuts = cuts;
            cuts.sort_unstable();
            let mut lines = EventLines::new(1_000, 1_000);
            let (mut found, mut from) = (Vec::new(), 0);
            for cut in cuts.into_iter().chain([STREAM.len()]) {
                found.extend(lines.push(&STREAM.as_bytes()[from..cut]).unwrap());
                from = cut;
            }
            prop_assert_eq!(found, ["{\"a\":\"é\"}", "b", "[DONE]"]);
        }

        #[test]
        fn any_bytes_are_read_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
            let _ = EventLines::new(50, 300).push(&bytes);
        }
    }

    #[test]
    fn nothing_grows_past_its_limit() {
        let mut lines = EventLines::new(10, 100);
        assert_eq!(
            lines.push(&[b'x'; 11]),
            Err(LineError::Line { max_size_bytes: 10 })
        );
        let mut lines = EventLines::new(10, 100);
        for _ in 0..50 {
            assert_eq!(lines.push(b"x\n"), Ok(Vec::new()));
        }
        assert_eq!(
            lines.push(b"x"),
            Err(LineError::Body {
                max_size_bytes: 100
            })
        );
        assert_eq!(
            EventLines::new(10, 100).push(b"data:\xff\n"),
            Err(LineError::Utf8)
        );
    }
}
