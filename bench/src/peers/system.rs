//! The systems that are compared.

use clap::ValueEnum;
use serde::Serialize;

/// A way to a started sandbox. The order is that of tables.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, ValueEnum, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum System {
    /// Mayfly, from a standby.
    Standby,
    /// Mayfly, from a fork of a warmed-up VMM, made on request. Only where VMMs can be forked.
    Fork,
    /// Mayfly, from a shell. Measured together with `cold`.
    Shell,
    /// Mayfly, from nothing.
    Cold,
    /// Stock QEMU, `-loadvm` of an internal snapshot.
    #[value(name = "loadvm")]
    #[serde(rename = "loadvm")]
    LoadVm,
    /// Stock QEMU, `-incoming` of a migration stream in a file.
    Stream,
    /// Stock QEMU, `-incoming` of a file with memory at fixed places (QEMU 9 and later).
    MappedRam,
    /// The same kernel and disk, booted until Docker answers.
    ColdBoot,
    /// A container of crun, without a virtual machine.
    #[value(name = "crun")]
    #[serde(rename = "crun")]
    Container,
}

impl System {
    /// Returns the name for tables and plots.
    pub fn name(self) -> &'static str {
        match self {
            Self::Standby => "Mayfly, standby",
            Self::Fork => "Mayfly, fork",
            Self::Shell => "Mayfly, shell",
            Self::Cold => "Mayfly, cold",
            Self::LoadVm => "QEMU -loadvm",
            Self::Stream => "QEMU file migration",
            Self::MappedRam => "QEMU file, mapped-ram",
            Self::ColdBoot => "cold boot",
            Self::Container => "crun container",
        }
    }

    /// Returns what its start begins with.
    pub fn starts_from(self) -> &'static str {
        match self {
            Self::Standby => "a restored, frozen guest",
            Self::Fork => "a warmed-up VMM",
            Self::Shell => "a spawned VMM",
            Self::Cold
            | Self::LoadVm
            | Self::Stream
            | Self::MappedRam
            | Self::ColdBoot
            | Self::Container => "nothing",
        }
    }

    /// Returns whether it needs the golden in QEMU's own formats.
    pub fn is_stock(&self) -> bool {
        matches!(self, Self::LoadVm | Self::Stream | Self::MappedRam | Self::ColdBoot)
    }
}
