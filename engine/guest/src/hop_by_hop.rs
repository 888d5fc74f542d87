//! Headers of one HTTP connection, not of the message it carries, which a proxy must not pass on.

use hyper::header::{self, HeaderName};

/// RFC 9110, section 7.6.1, and the older ones still in use.
pub const NAMES: [HeaderName; 8] = [
    header::CONNECTION,
    header::PROXY_AUTHENTICATE,
    header::PROXY_AUTHORIZATION,
    header::TE,
    header::TRAILER,
    header::TRANSFER_ENCODING,
    header::UPGRADE,
    HeaderName::from_static("keep-alive"),
];
