//! Stop strings over text that arrives in pieces.

/// Passes text on until a stop string is complete, which is cut away.
///
/// Text that could still become a stop string is held back, so nothing is ever
/// sent that a later piece would take back. The result does not depend on how
/// the text was cut into pieces: the match that ends first wins, of those that
/// end together the longest.
#[derive(Debug, Clone)]
pub struct StopFilter {
    stops: Vec<String>,
    held: String,
}

/// What one piece of text released.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Filtered {
    /// Text that may be sent now.
    pub text: String,
    /// The stop string that is complete: nothing follows.
    pub stop: Option<String>,
}

impl StopFilter {
    /// A filter for these strings; empty ones are ignored.
    #[must_use]
    pub fn new(mut stops: Vec<String>) -> Self {
        stops.retain(|stop| !stop.is_empty());
        Self {
            stops,
            held: String::new(),
        }
    }

    /// Takes the next piece.
    pub fn push(&mut self, piece: &str) -> Filtered {
        if self.stops.is_empty() {
            return Filtered {
                text: piece.to_owned(),
                stop: None,
            };
        }
        self.held.push_str(piece);
        let first_match = self
            .stops
            .iter()
            .filter_map(|stop| {
                self.held
                    .find(stop)
                    .map(|start| (start + stop.len(), start, stop))
            })
            .min();
        if let Some((_, start, stop)) = first_match {
            let stop = Some(stop.clone());
            self.held.truncate(start);
            return Filtered {
                text: std::mem::take(&mut self.held),
                stop,
            };
        }
        let n_sendable = self.held.len() - self.open_suffix_bytes();
        let rest = self.held.split_off(n_sendable);
        Filtered {
            text: std::mem::replace(&mut self.held, rest),
            stop: None,
        }
    }

    /// The text still held back, when no more pieces come.
    #[must_use]
    pub fn finish(self) -> String {
        self.held
    }

    /// Length of the longest end of the held text that some stop string begins with.
    fn open_suffix_bytes(&self) -> usize {
        let longest = self.stops.iter().map(String::len).max().unwrap_or(0);
        let earliest = self.held.len().saturating_sub(longest.saturating_sub(1));
        (earliest..self.held.len())
            .filter(|&start| self.held.is_char_boundary(start))
            .find(|&start| {
                self.stops
                    .iter()
                    .any(|stop| stop.starts_with(&self.held[start..]))
            })
            .map_or(0, |start| self.held.len() - start)
    }
}

#[cfg(test)]
mod tests;
