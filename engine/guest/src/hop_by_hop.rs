//! Headers of one HTTP connection, not of the message it carries, which a proxy must not pass on.

use hyper::header::{self, HeaderMap, HeaderName, HeaderValue};

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

/// Removes [`NAMES`], and what `Connection` names.
pub fn strip(headers: &mut HeaderMap) {
    strip_but(headers, &[]);
}

/// Removes [`NAMES`], and what `Connection` names, but for `kept`.
pub(crate) fn strip_but(headers: &mut HeaderMap, kept: &[HeaderName]) {
    let named: Vec<HeaderName> =
        connection_options(headers).filter_map(|option| option.parse().ok()).collect();
    for name in named.iter().chain(&NAMES).filter(|name| !kept.contains(name)) {
        headers.remove(name);
    }
}

/// The protocol that a request asks to change to, or that an answer of status 101 changes to.
pub fn upgrade(headers: &HeaderMap) -> Option<HeaderValue> {
    connection_options(headers)
        .any(|option| option.eq_ignore_ascii_case("upgrade"))
        .then_some(())?;
    headers.get(header::UPGRADE).cloned()
}

/// Asks for a change to `protocol`, or says that it is made. For headers that were stripped.
pub fn set_upgrade(headers: &mut HeaderMap, protocol: HeaderValue) {
    headers.insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
    headers.insert(header::UPGRADE, protocol);
}

fn connection_options(headers: &HeaderMap) -> impl Iterator<Item = &str> {
    let values = headers.get_all(header::CONNECTION).iter().filter_map(|value| value.to_str().ok());
    values.flat_map(|value| value.split(',')).map(str::trim)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_belongs_to_the_connection_stays_with_it() {
        let mut headers = HeaderMap::new();
        for (name, value) in [
            ("connection", "Upgrade, X-Mine"),
            ("upgrade", "tcp"),
            ("x-mine", "1"),
            ("te", "x"),
            ("accept", "*/*"),
        ] {
            headers.insert(HeaderName::from_static(name), HeaderValue::from_static(value));
        }
        assert_eq!(upgrade(&headers).unwrap(), "tcp");
        strip(&mut headers);
        assert_eq!(headers.keys().collect::<Vec<_>>(), [header::ACCEPT]);
        assert_eq!(upgrade(&headers), None);
        set_upgrade(&mut headers, HeaderValue::from_static("h2c"));
        assert_eq!(upgrade(&headers).unwrap(), "h2c");
    }
}
