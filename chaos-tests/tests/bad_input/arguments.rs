//! Names and recipes that are wrong.

use std::fs;

use mayfly_chaos_tests::home::{GOLDEN, Home};

use crate::support::check_failure;

#[test]
fn an_unknown_golden_is_named_with_those_there_are() {
    let home = Home::shared();
    for args in [
        ["run", "defualt", "--", "true"].as_slice(),
        &["golden", "inspect", "defualt"],
        &["golden", "rm", "defualt"],
    ] {
        let ended = home.mayfly(args.iter().copied()).run();
        check_failure(home, &ended, &["defualt", GOLDEN]);
    }
    let empty = Home::empty();
    let ended = empty.mayfly(["run", GOLDEN, "--", "true"]).run();
    check_failure(&empty, &ended, &["mayfly golden build"]);
}

#[test]
fn a_recipe_typo_is_named_by_line_and_key() {
    let home = Home::empty();
    let recipe = home.layout().run().join("typo.toml");
    let cases: [(&str, &[&str]); 3] = [
        ("name = \"x\"\n[vm]\nmemroy_mib = 512\n", &["typo.toml:3:", "memroy_mib", "memory_mib"]),
        ("name = \"x\"\n[vm]\nvcpus = \"two\"\n", &["typo.toml:3:", "\"two\"", "[vm]"]),
        ("name = \"x\"\n[vm\n", &["typo.toml:2:"]),
    ];
    for (text, words) in cases {
        fs::write(&recipe, text).unwrap();
        let ended = home.mayfly(["golden", "build", recipe.to_str().unwrap()]).run();
        check_failure(&home, &ended, words);
    }
    let ended = home.mayfly(["golden", "build", "/no/such/recipe.toml"]).run();
    check_failure(&home, &ended, &["/no/such/recipe.toml"]);
    assert!(
        !home.layout().store().exists() && !home.layout().images().exists(),
        "a refused recipe began to build"
    );
}

#[test]
fn bounds_that_cannot_be_are_refused_without_a_daemon_as_with_one() {
    let home = Home::shared();
    for (option, words) in [
        (["--cpus", "0"], "--cpus must be 0.01 to 1024, not 0"),
        (["--cpus", "nan"], "--cpus must be"),
        (["--memory", "10"], "--memory must be"),
        (["--disk", "0"], "--disk must be"),
        (["--io", "0"], "--io must be"),
    ] {
        let args = ["run", GOLDEN].into_iter().chain(option).chain(["--", "true"]);
        let ended = home.mayfly(args).run();
        check_failure(home, &ended, &[words]);
    }
}
