//! Recipes: what a golden image is made of.

mod diagnose;
mod parse;
mod types;
mod validate;

pub use diagnose::RecipeError;
pub use types::{Debian, Docker, DockerImage, Hooks, ImageSource, Recipe, User, Vm};
