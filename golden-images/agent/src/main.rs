//! The guest agent: init, service start, identity and the guest end of the channel.
//!
//! One static binary in several roles:
//! - `/init` of the initramfs: loads modules, mounts the root disk, switches to it ([`initramfs`]);
//! - PID 1 of the root file system: mounts, cgroups, services, reaping ([`init`]);
//! - its child, the agent proper: the guest end of the channel ([`parked`], then [`open`]);
//! - `serve --fd N --state DIR`: the same channel over an inherited socket, with the identity
//!   written to files of DIR, for tests on a host;
//! - `quiesce`, `pack FORM WHO PATH`, `unpack WHO DIR`: the work of one Quiesce, PackTar or
//!   UnpackTar request, in a process of its own.

mod cli;
mod clock;
mod config;
mod console;
mod context;
mod egress;
mod exec;
mod files;
mod forward;
mod health;
mod identity;
mod init;
mod initramfs;
mod open;
mod parked;
mod port;
mod quiesce;
mod rights;
mod stats;
mod tar;
mod threads;
mod time_scale;
mod watch;
mod wire;

fn main() -> std::process::ExitCode {
    cli::run()
}
