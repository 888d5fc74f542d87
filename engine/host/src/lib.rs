//! Facts about this host, and what of Mayfly has a name on it.
//!
//! - [`layout`] says where files, sockets and helper programs are, [`instance`] gives one engine
//!   process its own folder and removes what dead ones left;
//! - [`cgroup`] bounds sessions, [`project_quota`] their disks, [`uid`] gives each its own user id;
//! - [`facts`] remembers what was found out about this host until it reboots, [`time_scale`] is
//!   how slow it is;
//! - [`namespaces`] and [`userfaultfd`] say whether its kernel lets sessions run,
//!   [`core_scheduling`] whether it can keep them off each other's processor cores;
//! - [`pidfd`] and [`memory`] look at its processes, [`descriptors`] is a limit of this one,
//!   [`oom`] protects it, and [`lines`] its log.

pub mod cgroup;
pub mod core_scheduling;
pub mod descriptors;
pub mod facts;
pub mod instance;
pub mod layout;
pub mod lines;
pub mod memory;
pub mod namespaces;
pub mod oom;
pub mod pidfd;
pub mod project_quota;
pub mod time_scale;
pub mod uid;
pub mod userfaultfd;
