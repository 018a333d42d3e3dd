//! The HTTP edge: eth JSON-RPC and the OpenAI-compatible API.
