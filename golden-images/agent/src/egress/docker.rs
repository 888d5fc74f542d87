//! The configuration by which the docker client of the guest tells containers and builds of the
//! proxy.
//!
//! It is there only while there is egress: a container that has these variables cannot reach its
//! neighbours by name.

use super::environment::NO_PROXY;
use mayfly_protocol::PROXY_PORT;
use std::io::Write;
use std::net::Ipv4Addr;
use std::path::Path;

const CONFIG: &str = "/root/.docker/config.json";

/// Our configuration, removed when dropped unless somebody has changed it.
pub struct ClientConfig(String);

impl ClientConfig {
    /// Writes it; `None` when there is one already, which is left alone, or it cannot be written.
    pub fn put(bridge: Ipv4Addr) -> Option<Self> {
        let proxy = format!("http://{bridge}:{PROXY_PORT}");
        let text = format!(
            r#"{{"proxies":{{"default":{{"httpProxy":"{proxy}","httpsProxy":"{proxy}","noProxy":"{NO_PROXY}"}}}}}}"#
        );
        std::fs::create_dir_all(Path::new(CONFIG).parent()?).ok()?;
        let mut file = std::fs::File::create_new(CONFIG).ok()?;
        file.write_all(text.as_bytes()).ok()?;
        Some(Self(text))
    }
}

impl Drop for ClientConfig {
    fn drop(&mut self) {
        if std::fs::read(CONFIG).is_ok_and(|now| now == self.0.as_bytes()) {
            let _ = std::fs::remove_file(CONFIG);
        }
    }
}
