//! Ceilings of what a session may be given, and what it counts for.

use mayfly_api::SessionLimits;
use mayfly_host::cgroup::{OVERLAY_OVERHEAD, VMM_OVERHEAD};
use serde::{Deserialize, Serialize};

use super::admission::host_memory;
use super::error::CreateError;

/// Bounds on what all sessions of a tenant have together. What is absent has no bound.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TotalLimits {
    /// Most memory of guests and VMMs, in MiB.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory_mib: Option<u64>,
    /// Most processors' worth of CPU time.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cpus: Option<f64>,
    /// Most disk space of what they write, in MiB.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub disk_mib: Option<u64>,
}

/// What a session of a golden image has when nobody says otherwise.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Machine {
    pub vcpus: u32,
    pub memory_bytes: u64,
    pub disk_bytes: u64,
}

/// The host, as far as a request cannot ask for more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct HostSize {
    pub memory_mib: u64,
    pub processors: u32,
}

/// What a session counts for in the totals of its tenant.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Demand {
    pub memory_mib: u64,
    /// Thousandths of a processor.
    pub milli_cpus: u64,
    pub disk_mib: u64,
}

/// One of the totals of a tenant, which it would exceed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Excess {
    pub what: &'static str,
    /// The bound, what the tenant has, and what one more would have; of processors thousandths.
    pub most: u64,
    pub used: u64,
    pub more: u64,
}

impl Excess {
    /// A figure of it as the configuration has it.
    pub fn said(&self, figure: u64) -> String {
        if self.what == "cpus" { (figure as f64 / 1e3).to_string() } else { figure.to_string() }
    }

    /// Whether it would be exceeded by this one session alone, so that waiting does not help.
    pub fn by_itself(&self) -> bool {
        self.more > self.most
    }
}

impl HostSize {
    /// This host.
    pub fn of_this_host() -> Self {
        let processors = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        Self {
            memory_mib: host_memory() >> 20,
            processors: u32::try_from(processors).unwrap_or(u32::MAX),
        }
    }
}

/// The lower of two ceilings, in each respect.
pub(super) fn lower(a: SessionLimits, b: SessionLimits) -> SessionLimits {
    fn least<T: PartialOrd>(a: Option<T>, b: Option<T>) -> Option<T> {
        match (a, b) {
            (Some(a), Some(b)) => Some(if b < a { b } else { a }),
            (a, b) => a.or(b),
        }
    }
    SessionLimits {
        memory_mib: least(a.memory_mib, b.memory_mib),
        cpus: least(a.cpus, b.cpus),
        disk_mib: least(a.disk_mib, b.disk_mib),
        io_mib_per_second: least(a.io_mib_per_second, b.io_mib_per_second),
    }
}

/// Checks what a request asks for against the ceilings and the host.
///
/// # Errors
/// [`CreateError::AboveCeiling`], naming the first that is too much.
pub(super) fn check(
    asked: &SessionLimits,
    most: &SessionLimits,
    host: HostSize,
) -> Result<(), CreateError> {
    const OPERATOR: &str = "which the operator has set";
    let refuse = |what: &str, asked: String, most: String, whose: &'static str| {
        Err(CreateError::AboveCeiling { what: format!("limits.{what}"), asked, most, whose })
    };
    for (what, asked, most) in [
        ("memory_mib", asked.memory_mib, most.memory_mib),
        ("disk_mib", asked.disk_mib, most.disk_mib),
        ("io_mib_per_second", asked.io_mib_per_second, most.io_mib_per_second),
    ] {
        if let (Some(asked), Some(most)) = (asked, most)
            && asked > most
        {
            return refuse(what, asked.to_string(), most.to_string(), OPERATOR);
        }
    }
    if let (Some(asked), Some(most)) = (asked.cpus, most.cpus)
        && asked > most
    {
        return refuse("cpus", asked.to_string(), most.to_string(), OPERATOR);
    }
    if let Some(mib) = asked.memory_mib.filter(|mib| *mib > host.memory_mib) {
        let most = host.memory_mib.to_string();
        return refuse("memory_mib", mib.to_string(), most, "which is all that the host has");
    }
    if let Some(cpus) = asked.cpus.filter(|cpus| *cpus > f64::from(host.processors)) {
        let most = host.processors.to_string();
        return refuse("cpus", cpus.to_string(), most, "which is all that the host has");
    }
    Ok(())
}

/// The bounds of a session, and what it counts for. Where nobody says a bound and a ceiling or a
/// total is set, it is made: what is not bounded cannot be counted.
///
/// `wanted` are those of the request, and where that says nothing the operator's defaults.
pub(super) fn bounds(
    wanted: SessionLimits,
    most: &SessionLimits,
    totals: &TotalLimits,
    machine: Option<Machine>,
) -> (SessionLimits, Demand) {
    let mut bounds = lower(wanted, *most);
    let mib = |bytes: u64| bytes.div_ceil(1 << 20);
    // Bounds of its own keep a session from being started from a standby (disk), and cost a write
    // (memory): what the machine has anyway is not said.
    let own = |bound: &mut Option<u64>, said: Option<u64>, usual: Option<u64>| match usual {
        Some(usual) if said.is_none() && bound.is_none_or(|most| most >= usual) => {
            *bound = None;
            usual
        }
        _ => bound.unwrap_or(0),
    };
    let memory = machine.map(|m| mib(m.memory_bytes.saturating_add(VMM_OVERHEAD)));
    let disk = machine.map(|m| mib(m.disk_bytes.saturating_add(OVERLAY_OVERHEAD)));
    let memory_mib = own(&mut bounds.memory_mib, wanted.memory_mib, memory);
    let disk_mib = own(&mut bounds.disk_mib, wanted.disk_mib, disk);
    if bounds.cpus.is_none() && totals.cpus.is_some() {
        bounds.cpus = machine.map(|m| f64::from(m.vcpus));
    }
    let milli_cpus = bounds.cpus.map_or(0, milli);
    (bounds, Demand { memory_mib, milli_cpus, disk_mib })
}

impl TotalLimits {
    /// The first total that `used` and `more` exceed together.
    pub(super) fn excess(&self, used: &Demand, more: &Demand) -> Option<Excess> {
        let all = [
            ("memory_mib", self.memory_mib, used.memory_mib, more.memory_mib),
            ("cpus", self.cpus.map(milli), used.milli_cpus, more.milli_cpus),
            ("disk_mib", self.disk_mib, used.disk_mib, more.disk_mib),
        ];
        all.into_iter().find_map(|(what, most, used, more)| {
            let most = most.filter(|most| used.saturating_add(more) > *most)?;
            Some(Excess { what, most, used, more })
        })
    }

    /// Checks what the types alone cannot. The error names the first value that cannot be used.
    pub(super) fn check(&self) -> Result<(), String> {
        if self.memory_mib == Some(0) || self.disk_mib == Some(0) {
            return Err("total_limits.memory_mib and disk_mib must be at least 1".into());
        }
        // What is not a number is not more than 0.
        if self.cpus.is_some_and(|cpus| !(cpus > 0.0 && cpus.is_finite())) {
            return Err("total_limits.cpus must be more than 0".into());
        }
        Ok(())
    }
}

impl Demand {
    /// Adds that of one more.
    pub fn add(&mut self, more: &Self) {
        self.memory_mib = self.memory_mib.saturating_add(more.memory_mib);
        self.milli_cpus = self.milli_cpus.saturating_add(more.milli_cpus);
        self.disk_mib = self.disk_mib.saturating_add(more.disk_mib);
    }

    /// Takes back what was added.
    pub fn take_back(&mut self, less: &Self) {
        self.memory_mib = self.memory_mib.saturating_sub(less.memory_mib);
        self.milli_cpus = self.milli_cpus.saturating_sub(less.milli_cpus);
        self.disk_mib = self.disk_mib.saturating_sub(less.disk_mib);
    }
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "a float outside of u64 becomes its least or its largest value"
)]
fn milli(cpus: f64) -> u64 {
    (cpus * 1e3).ceil() as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOST: HostSize = HostSize { memory_mib: 8192, processors: 4 };
    const MACHINE: Machine = Machine { vcpus: 2, memory_bytes: 1 << 30, disk_bytes: 2 << 30 };
    const NONE: SessionLimits =
        SessionLimits { memory_mib: None, cpus: None, disk_mib: None, io_mib_per_second: None };

    #[test]
    fn nobody_gets_more_than_a_ceiling_or_the_host_has() {
        let most = SessionLimits {
            memory_mib: Some(1000),
            cpus: Some(0.5),
            disk_mib: Some(100),
            io_mib_per_second: Some(10),
        };
        check(&most, &most, HOST).unwrap();
        for (asked, word) in [
            (SessionLimits { memory_mib: Some(1001), ..NONE }, "memory_mib must be at most 1000"),
            (SessionLimits { cpus: Some(0.51), ..NONE }, "cpus must be at most 0.5"),
            (SessionLimits { disk_mib: Some(101), ..NONE }, "disk_mib must be at most 100"),
            (SessionLimits { io_mib_per_second: Some(11), ..NONE }, "io_mib_per_second"),
        ] {
            let error = check(&asked, &most, HOST).unwrap_err();
            assert!(error.code() == "above_ceiling" && error.to_string().contains(word), "{error}");
            check(&asked, &NONE, HOST).unwrap();
        }
        for asked in [
            SessionLimits { memory_mib: Some(8193), ..NONE },
            SessionLimits { cpus: Some(4.01), ..NONE },
        ] {
            let error = check(&asked, &NONE, HOST).unwrap_err();
            assert!(error.to_string().contains("the host"), "{error}");
        }
    }

    #[test]
    fn without_ceilings_and_totals_nothing_is_added() {
        let totals = TotalLimits::default();
        let (of_it, demand) = bounds(NONE, &NONE, &totals, Some(MACHINE));
        assert_eq!(of_it, NONE);
        assert_eq!(demand, Demand { memory_mib: 1792, milli_cpus: 0, disk_mib: 2112 });
        let wanted = SessionLimits { memory_mib: Some(4000), disk_mib: Some(5000), ..NONE };
        assert_eq!(bounds(wanted, &NONE, &totals, Some(MACHINE)).0, wanted);
    }

    #[test]
    fn a_ceiling_bounds_also_who_asks_for_nothing_and_keeps_standbys_where_it_can() {
        let most = SessionLimits {
            memory_mib: Some(1000),
            cpus: Some(0.5),
            disk_mib: Some(5000),
            io_mib_per_second: Some(10),
        };
        let (of_it, demand) = bounds(NONE, &most, &TotalLimits::default(), Some(MACHINE));
        // The disk of the machine is smaller than the ceiling.
        assert_eq!(of_it, SessionLimits { disk_mib: None, ..most });
        assert_eq!(demand, Demand { memory_mib: 1000, milli_cpus: 500, disk_mib: 2112 });
        // The operator's defaults are not above the ceilings either.
        let wanted = SessionLimits { cpus: Some(3.0), disk_mib: Some(9000), ..NONE };
        let (of_it, _) = bounds(wanted, &most, &TotalLimits::default(), Some(MACHINE));
        assert_eq!((of_it.cpus, of_it.disk_mib), (Some(0.5), Some(5000)));
    }

    #[test]
    fn with_a_total_of_processors_every_session_has_a_bound() {
        let totals = TotalLimits { cpus: Some(3.0), ..TotalLimits::default() };
        let (of_it, demand) = bounds(NONE, &NONE, &totals, Some(MACHINE));
        assert_eq!((of_it.cpus, demand.milli_cpus), (Some(2.0), 2000));
        let mut used = Demand::default();
        assert_eq!(totals.excess(&used, &demand), None);
        used.add(&demand);
        let excess = totals.excess(&used, &demand).unwrap();
        assert_eq!((excess.what, excess.by_itself()), ("cpus", false));
        assert_eq!((excess.said(excess.most), excess.said(excess.more)), ("3".into(), "2".into()));
        used.take_back(&demand);
        assert_eq!(used, Demand::default());
    }

    #[test]
    fn the_total_that_is_exceeded_is_named() {
        let totals = TotalLimits { memory_mib: Some(100), cpus: None, disk_mib: Some(100) };
        let used = Demand { memory_mib: 60, milli_cpus: u64::MAX, disk_mib: 90 };
        let more = |memory_mib, disk_mib| Demand { memory_mib, milli_cpus: 9, disk_mib };
        assert_eq!(totals.excess(&used, &more(40, 10)), None);
        assert_eq!(totals.excess(&used, &more(41, 0)).unwrap().what, "memory_mib");
        let disk = totals.excess(&used, &more(0, 101)).unwrap();
        assert!(disk.what == "disk_mib" && disk.by_itself());
        for bad in [
            TotalLimits { memory_mib: Some(0), ..totals },
            TotalLimits { cpus: Some(f64::NAN), ..totals },
            TotalLimits { cpus: Some(-1.0), ..totals },
        ] {
            bad.check().unwrap_err();
        }
        totals.check().unwrap();
    }
}
