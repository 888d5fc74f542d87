//! API keys in E2B's form.

use rand::TryRng;
use rand::rngs::SysRng;

/// Makes a random API key: `e2b_` and 40 hexadecimal digits, as SDKs check it.
///
/// # Errors
/// When the host's random source fails.
pub fn new_key() -> std::io::Result<String> {
    let mut bytes = [0_u8; 20];
    SysRng.try_fill_bytes(&mut bytes).map_err(std::io::Error::other)?;
    Ok(bytes.iter().fold("e2b_".to_owned(), |key, byte| format!("{key}{byte:02x}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_has_the_form_that_sdks_check_and_is_another_each_time() {
        let (one, other) = (new_key().unwrap(), new_key().unwrap());
        let digits = one.strip_prefix("e2b_").unwrap();
        assert!(digits.len() == 40 && digits.bytes().all(|b| b.is_ascii_hexdigit()), "{one}");
        assert_ne!(one, other);
    }
}
