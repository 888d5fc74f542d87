//! Signed links: whoever has one may read, or write, one file of one sandbox.

use std::borrow::Cow;
use std::time::{SystemTime, UNIX_EPOCH};

use axum::http::{Method, Uri};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD_NO_PAD;
use ring::digest::{SHA256, digest};
use url::form_urlencoded;

/// Longest path of a file: Linux takes no longer one (`PATH_MAX`).
const MAX_PATH: usize = 4096;
/// Longest name of a user.
const MAX_USER: usize = 256;
/// Longest time, in digits.
const MAX_EXPIRATION: usize = 20;

/// What a link is signed for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Signed {
    /// SHA-256 of the rest and the sandbox's token.
    signature: [u8; 32],
    path: String,
    operation: &'static str,
    user: String,
    expiration: Option<String>,
}

impl Signed {
    /// Reads it from the query of a link; `None` when it has no signature, or one that can be of
    /// nobody.
    pub fn of(method: &Method, uri: &Uri) -> Option<Self> {
        let (mut signature, mut path, mut user, mut expiration) = (None, None, None, None);
        for (name, value) in form_urlencoded::parse(uri.query()?.as_bytes()) {
            match &*name {
                "signature" => signature = Some(value),
                "path" => path = Some(value),
                "username" => user = Some(value),
                "signature_expiration" => expiration = Some(value),
                _ => {}
            }
        }
        let digits = signature?;
        // Each sandbox that lives costs a hash of these, and nothing longer leads to a file.
        let long =
            |text: &Option<Cow<'_, str>>, most| text.as_ref().is_some_and(|text| text.len() > most);
        if long(&path, MAX_PATH) || long(&user, MAX_USER) || long(&expiration, MAX_EXPIRATION) {
            return None;
        }
        let bytes = STANDARD_NO_PAD.decode(digits.strip_prefix("v1_")?).ok()?;
        Some(Self {
            signature: bytes.try_into().ok()?,
            path: path.unwrap_or_default().into_owned(),
            operation: if method == Method::POST { "write" } else { "read" },
            user: user.unwrap_or_default().into_owned(),
            expiration: expiration.map(Cow::into_owned),
        })
    }

    /// Returns whether the holder of a sandbox's token has signed it.
    pub fn is_by(&self, token: &str) -> bool {
        let Self { path, operation, user, .. } = self;
        let mut text = format!("{path}:{operation}:{user}:{token}");
        if let Some(expiration) = &self.expiration {
            text = format!("{text}:{expiration}");
        }
        let ours: [u8; 32] =
            digest(&SHA256, text.as_bytes()).as_ref().try_into().unwrap_or([0; 32]);
        // blake3 compares hashes in constant time.
        blake3::Hash::from_bytes(ours) == blake3::Hash::from_bytes(self.signature)
    }

    /// Returns whether its time is over. A time that cannot be read is.
    pub fn is_over(&self) -> bool {
        let Some(expiration) = &self.expiration else { return false };
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        expiration.parse::<u64>().map_or(true, |expiration| expiration < now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A link as SDKs make it.
    fn link(
        path: &str,
        operation: &str,
        user: &str,
        token: &str,
        expiration: Option<u64>,
    ) -> String {
        let mut text = format!("{path}:{operation}:{user}:{token}");
        if let Some(expiration) = expiration {
            text += &format!(":{expiration}");
        }
        let signature = STANDARD_NO_PAD.encode(digest(&SHA256, text.as_bytes()));
        let mut query = form_urlencoded::Serializer::new(String::new());
        query.append_pair("path", path).append_pair("signature", &format!("v1_{signature}"));
        if !user.is_empty() {
            query.append_pair("username", user);
        }
        if let Some(expiration) = expiration {
            query.append_pair("signature_expiration", &expiration.to_string());
        }
        format!("/files?{}", query.finish())
    }

    fn signed(method: &Method, link: &str) -> Option<Signed> {
        Signed::of(method, &link.parse().unwrap())
    }

    #[test]
    fn a_link_is_for_one_path_operation_user_and_sandbox() {
        let link = link("/a b/ü+%.txt", "read", "ann", "token", None);
        let read = signed(&Method::GET, &link).unwrap();
        assert!(read.is_by("token") && !read.is_by("other") && !read.is_over());
        assert!(!signed(&Method::POST, &link).unwrap().is_by("token"));
        let other = link.replace("username=ann", "username=bob");
        assert!(!signed(&Method::GET, &other).unwrap().is_by("token"));
        let other = link.replace(".txt", ".txz");
        assert!(!signed(&Method::GET, &other).unwrap().is_by("token"));
    }

    #[test]
    fn a_link_has_its_time() {
        let at =
            |time| signed(&Method::POST, &link("x", "write", "", "token", Some(time))).unwrap();
        assert!(at(u64::MAX).is_by("token") && !at(u64::MAX).is_over());
        assert!(at(1).is_by("token") && at(1).is_over());
        let longer = link("x", "write", "", "token", Some(1)).replace("tion=1", "tion=99999999999");
        assert!(!signed(&Method::POST, &longer).unwrap().is_by("token"));
    }

    #[test]
    fn what_is_no_signature_is_none() {
        for link in [
            "/files",
            "/files?path=x",
            "/files?signature=",
            "/files?signature=v1_",
            "/files?signature=v1_AAAA",
            "/files?signature=v2_AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA",
        ] {
            assert_eq!(signed(&Method::GET, link), None, "{link}");
        }
    }
}
