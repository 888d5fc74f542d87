//! Identity of a session: fresh names, entropy and clock for each restore, so that no two are
//! clones.

use std::time::{SystemTime, UNIX_EPOCH};

use mayfly_protocol::{Entropy, Hello, PROTOCOL_VERSION};
use rand::TryRng;
use rand::rngs::SysRng;

/// The host's random source failed.
#[derive(Debug, thiserror::Error)]
#[error("cannot read random bytes from the host: {0}")]
pub struct NoEntropy(String);

/// Makes a fresh session id: 16 hexadecimal digits.
///
/// # Errors
/// [`NoEntropy`].
pub fn new_id() -> Result<String, NoEntropy> {
    Ok(hex(&random::<8>()?))
}

/// Makes the identity of session `id`, with the clock of this moment. Never send one twice.
///
/// # Errors
/// [`NoEntropy`].
pub fn hello(id: &str) -> Result<Hello, NoEntropy> {
    // A clock before 1970 is a host without a clock; the guest then starts at the epoch as well.
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Ok(Hello {
        protocol: PROTOCOL_VERSION,
        session: id.to_owned(),
        hostname: format!("mayfly-{id}"),
        machine_id: uuid(random()?),
        boot_id: uuid(random()?),
        wall_clock_ns: u64::try_from(now.as_nanos()).unwrap_or(u64::MAX),
        entropy: Entropy::new(random()?),
    })
}

fn random<const N: usize>() -> Result<[u8; N], NoEntropy> {
    let mut bytes = [0; N];
    SysRng.try_fill_bytes(&mut bytes).map_err(|e| NoEntropy(e.to_string()))?;
    Ok(bytes)
}

/// Marks random bytes as a version 4 UUID (RFC 9562), as machine-id(5) and the kernel's boot id
/// are.
fn uuid(mut bytes: [u8; 16]) -> [u8; 16] {
    bytes[6] = bytes[6] & 0x0f | 0x40;
    bytes[8] = bytes[8] & 0x3f | 0x80;
    bytes
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_identities_share_nothing() {
        let (id, other) = (new_id().unwrap(), new_id().unwrap());
        assert_ne!(id, other);
        let (a, b) = (hello(&id).unwrap(), hello(&other).unwrap());
        a.check().unwrap();
        assert!(a.hostname != b.hostname && a.machine_id != b.machine_id && a.boot_id != b.boot_id);
        assert!(a.entropy != b.entropy);
        assert_eq!(a.machine_id[6] >> 4, 4);
    }
}
