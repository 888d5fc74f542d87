//! The list of checks.

use super::check::Check;
use super::{destruction, egress, guest, host, quota, vmm};

/// Returns all checks, in the order in which they run.
pub fn checks() -> impl Iterator<Item = &'static Check> {
    [host::CHECKS, vmm::CHECKS, guest::CHECKS, egress::CHECKS, quota::CHECKS, destruction::CHECKS]
        .into_iter()
        .flatten()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn names_are_unique_and_of_a_group() {
        let mut seen = BTreeSet::new();
        for check in checks() {
            assert!(seen.insert(check.id), "{} twice", check.id);
            assert!(check.id.starts_with(&format!("{}.", check.group())), "{}", check.id);
            assert!(
                check.is_called(check.id)
                    && check.is_called(check.group())
                    && !check.is_called("x")
            );
            assert!(check.tried.ends_with('.') && check.control.ends_with('.'), "{}", check.id);
        }
        assert!(seen.len() > 15, "{seen:?}");
    }
}
