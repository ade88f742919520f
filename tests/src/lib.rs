//! End-to-end tests: real gateways, agents, sprites and clients. See `tests/e2e/main.rs`.
