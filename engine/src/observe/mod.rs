//! What an operator sees: metrics, traces and logs.
