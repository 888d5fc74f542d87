//! The body of an answer of the proxy, whoever it comes from.

use bytes::Bytes;
use http_body_util::combinators::BoxBody;

/// Content from the outside, or a refusal of our own.
pub(super) type Body = BoxBody<Bytes, hyper::Error>;
