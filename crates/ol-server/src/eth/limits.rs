//! What a server answers at most.

use std::time::Duration;

use ol_node::TraceConfig;

/// Limits of a server. Plain data.
#[derive(Debug, Clone)]
pub struct Limits {
    /// Largest request body: a batch of the largest transactions in
    /// hexadecimal. Default 4 MiB.
    pub request_max_size_bytes: u32,
    /// Largest response body. Default 64 MiB.
    pub response_max_size_bytes: u32,
    /// Most calls in one batch. Default 256.
    pub batch_max: u32,
    /// Most connections at one time. Default 256.
    pub connections_max: u32,
    /// Most subscriptions of one WebSocket connection. Default 64.
    pub subscriptions_max: u32,
    /// Most filters (`eth_newFilter` and the like) at one time. Default 1,024.
    pub filters_max: usize,
    /// How long a filter lives that nobody asks for. Default 300 s.
    pub filter_expiry_s: u64,
    /// How long one request is waited for. Default 30 s.
    pub request_timeout_s: u64,
    /// How often a WebSocket client is asked whether it is still there.
    /// Default 30 s.
    pub ping_interval: Duration,
    /// After how much silence it is taken to be gone. Default 75 s.
    pub silence_max: Duration,
    /// Methods that only read, running at one time. Default 64.
    pub reads_max: usize,
    /// Methods that run the EVM or read much, running at one time. Default 8.
    pub calls_max: usize,
    /// Methods of each of these two kinds that wait for a thread. Default 1,024.
    pub waiting_max: usize,
    /// Methods that trace, running at one time. Default 2.
    pub traces_max: usize,
    /// Methods that trace and wait for a thread. Default 16.
    pub traces_waiting_max: usize,
    /// What one of them may record.
    pub trace: TraceConfig,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            request_max_size_bytes: 4 << 20,
            response_max_size_bytes: 64 << 20,
            batch_max: 256,
            connections_max: 256,
            subscriptions_max: 64,
            filters_max: 1_024,
            filter_expiry_s: 300,
            request_timeout_s: 30,
            ping_interval: Duration::from_secs(30),
            silence_max: Duration::from_secs(75),
            reads_max: 64,
            calls_max: 8,
            waiting_max: 1_024,
            traces_max: 2,
            traces_waiting_max: 16,
            trace: TraceConfig::default(),
        }
    }
}
