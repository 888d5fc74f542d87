use super::*;
use crate::cgroup::testing::{Sleeper, V2Group};

#[test]
#[ignore = "needs root"]
fn processes_of_a_delegated_unit_or_a_container_are_moved_to_a_leaf_and_controllers_handed_down() {
    for owner in [Owner::Unit, Owner::Namespace] {
        let Some(group) = V2Group::with_controllers("leaf") else { return };
        let inside = [Sleeper::start_in(group.dir()), Sleeper::start_in(group.dir())];
        let place = Place(Kind::V2(group.parent(owner)));
        // Twice: as it does at each start of an engine.
        for _ in 0..2 {
            place.prepare().unwrap();
        }
        let on = Controller::named_in(&group.read("mayfly/cgroup.subtree_control"));
        assert!(missing_of(&on).is_empty(), "{on:?}");
        assert_eq!(group.read("cgroup.procs"), "");
        let members = group.read("supervisor/cgroup.procs");
        for sleeper in &inside {
            assert!(members.lines().any(|pid| pid == sleeper.pid().to_string()), "{members}");
        }
    }
}

#[test]
#[ignore = "needs root"]
fn a_group_without_processes_gets_no_leaf() {
    let Some(group) = V2Group::with_controllers("no-leaf") else { return };
    Place(Kind::V2(group.parent(Owner::Unit))).prepare().unwrap();
    assert!(!group.dir().join("supervisor").exists());
}

#[test]
#[ignore = "needs root"]
fn controllers_that_a_unit_or_a_container_was_not_given_are_named_and_nothing_is_left() {
    for (owner, remedy) in [(Owner::Unit, "Delegate=yes"), (Owner::Namespace, "--privileged")] {
        let Some(outer) = V2Group::with_controllers("partly") else { return };
        outer.write("cgroup.subtree_control", "+memory");
        let parent = outer.parent(owner.clone());
        let inner = outer.dir().join("unit");
        std::fs::create_dir(&inner).unwrap();
        let error = Place(Kind::V2(Parent { dir: inner.clone(), ..parent })).prepare().unwrap_err();
        assert!(error.found().ends_with("the controllers pids and cpu"), "{error}");
        assert!(error.found().contains(&inner.display().to_string()), "{error}");
        assert!(error.remedy().contains(remedy), "{error}");
        assert!(!inner.join(ROOT).exists());
    }
}

/// Runs where v2 has no controllers, too: that they are missing is what it is about.
#[test]
#[ignore = "needs root"]
fn a_host_whose_v2_has_no_controllers_is_told_so() {
    let Some(group) = V2Group::make("bare") else { return };
    if missing_of(&Controller::named_in(&group.read("cgroup.controllers"))).is_empty() {
        mayfly_skip::skip("this host's cgroup v2 has all controllers that sessions need");
        return;
    }
    let error = Place(Kind::V2(group.parent(Owner::Host))).prepare().unwrap_err();
    assert!(matches!(&error, CgroupError::Controllers(_)), "{error}");
    assert!(!group.dir().join(ROOT).exists());
}

#[test]
#[ignore = "needs root"]
fn processes_are_moved_to_a_leaf() {
    let Some(group) = V2Group::make("move") else { return };
    let sleeper = Sleeper::start_in(group.dir());
    empty(group.dir()).unwrap();
    assert_eq!(
        (group.read("cgroup.procs"), group.read("supervisor/cgroup.procs")),
        (String::new(), sleeper.pid().to_string())
    );
}
