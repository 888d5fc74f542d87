//! All cases, one file for each subject. The order is the order in which they run.

mod audit;
mod bench;
mod cgroups;
mod containers;
mod daemon;
mod first_steps;
mod kvm;
mod limits;
mod pager;
mod power_loss;
mod restore;
mod test_programs;
mod unit;

use crate::case::Case;

/// Returns every case.
pub fn all() -> Vec<Case> {
    [
        first_steps::CASES,
        containers::CASES,
        cgroups::CASES,
        unit::CASES,
        daemon::CASES,
        restore::CASES,
        limits::CASES,
        pager::CASES,
        kvm::CASES,
        power_loss::CASES,
        test_programs::CASES,
        audit::CASES,
        bench::CASES,
    ]
    .concat()
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn names_are_unique_and_fit_the_table() {
        let names: HashSet<_> = all().iter().map(|case| case.name).collect();
        assert_eq!(names.len(), all().len());
        assert!(names.iter().all(|name| name.len() <= 28), "{names:?}");
    }
}
