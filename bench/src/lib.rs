//! Micro and macro benchmarks that print latency distributions.
