//! Golden images: built once (boot, warm, snapshot), loaded by every engine that starts sessions
//! from them.

mod artifacts;
mod boot;
mod build;
mod cold_boot;
mod disk;
mod error;
mod first_steps;
mod load;
mod manage;
mod pins;
mod template;
mod tsc;
mod working_set;

pub use artifacts::ArtifactSeal;
pub(crate) use boot::cmdline;
pub use build::{BuildOptions, Built, build};
pub use cold_boot::ColdBoot;
pub use error::GoldenError;
pub(crate) use first_steps::StepLimits;
pub use first_steps::{Extent, FirstStepError, FirstSteps};
pub use load::LoadedGolden;
pub use manage::{Verified, remove, verify};
pub use pins::host_pins;
pub use template::TemplateLimits;
