//! Any text is a recipe or an error of one line.
#![no_main]

use std::path::Path;

use libfuzzer_sys::fuzz_target;
use mayfly_golden_images::Recipe;

fuzz_target!(|text: &str| {
    if let Err(error) = Recipe::parse(text, Path::new("/nonexistent/recipe.toml")) {
        assert!(!error.to_string().contains('\n'), "{error}");
    }
});
