//! Physical memory of the guest, and what might be beyond it.

use super::super::check::Findings;
use super::super::lab::{Lab, Marks};
use super::super::options::AuditError;
use super::super::report::Attempt;
use super::ask::Said;
use super::ask::run as command;

/// Reads memory and disks, and looks for marks in them.
pub(super) const SCAN: &str = include_str!("scan.pl");

/// Whose marks a scan found, and how much it read.
#[derive(Debug, Default)]
pub(super) struct Scanned {
    pub bytes: u64,
    pub own: bool,
    pub foreign: Vec<&'static str>,
}

impl Scanned {
    pub fn new(said: &Said, marks: &Marks) -> Self {
        let mut scanned = Self::default();
        for line in said.out.lines() {
            match line.split(' ').collect::<Vec<_>>().as_slice() {
                ["bytes", count] => scanned.bytes = count.parse().unwrap_or(0),
                ["mark", tag, _] => match marks.owner(tag) {
                    Some("itself") => scanned.own = true,
                    Some(other) => scanned.foreign.push(other),
                    None => {}
                },
                _ => {}
            }
        }
        scanned
    }

    /// Returns the attempt to find a mark of the host or of a neighbour.
    pub fn attempt(&self, what: &str) -> Attempt {
        let control = format!(
            "{} bytes read, own mark {}",
            self.bytes,
            if self.own { "found" } else { "NOT found" }
        );
        Attempt::judge(
            what,
            (control, self.own && self.bytes > 0),
            (self.found(), !self.foreign.is_empty()),
        )
    }

    pub fn found(&self) -> String {
        match self.foreign.as_slice() {
            [] => "no mark of the host or a neighbour".into(),
            owners => format!("marks of {}", owners.join(" and ")),
        }
    }
}

pub(super) async fn run(lab: &mut Lab) -> Result<Findings, AuditError> {
    let mut findings = Findings::default();
    lab.neighbour().await?;
    let subject = lab.subject().await?;
    let scan = async |what: &str| {
        command(&subject.session, &["perl", "-e", SCAN, what, &lab.marks.prefix]).await
    };

    let kcore = scan("kcore").await?;
    let what = "search all memory through /proc/kcore";
    findings.push(match kcore.code {
        0 => Scanned::new(&kcore, &lab.marks).attempt(what),
        _ => Attempt::not_proven(what, kcore.all()),
    });

    let mem = scan("mem").await?;
    let what = "search what /dev/mem gives with read(2)";
    findings.push(match mem.code {
        0 => {
            let scanned = Scanned::new(&mem, &lab.marks);
            let control = format!("{} bytes read", scanned.bytes);
            let refused = mem.answers().get("refused").cloned();
            let seen = match refused {
                Some(refused) => {
                    format!(
                        "{}; the rest is refused by the guest's own kernel: {refused}",
                        scanned.found()
                    )
                }
                None => scanned.found(),
            };
            Attempt::judge(what, (control, scanned.bytes > 0), (seen, !scanned.foreign.is_empty()))
        }
        _ => Attempt::not_applicable(what, format!("the guest's kernel has none: {}", mem.all())),
    });

    let beyond = scan("beyond").await?;
    let what = "map 1807 physical pages beyond the guest's memory with /dev/mem";
    let answers = beyond.answers();
    findings.push(match (beyond.code, answers.get("rom")) {
        (0, rom) => {
            let scanned = Scanned::new(&beyond, &lab.marks);
            let control = match rom {
                Some(bytes) => format!("the firmware at 0xf0000 is read: {bytes}"),
                None => "the firmware at 0xf0000 is NOT read".into(),
            };
            let count = |name: &str| answers.get(name).cloned().unwrap_or_else(|| "0".into());
            let seen = format!(
                "{} mapped, {} refused, {} not empty (device registers); {}",
                count("mapped"),
                count("refused"),
                count("filled"),
                scanned.found()
            );
            Attempt::judge(what, (control, rom.is_some()), (seen, !scanned.foreign.is_empty()))
        }
        _ => {
            Attempt::not_applicable(what, format!("the guest's kernel has none: {}", beyond.all()))
        }
    });
    Ok(findings)
}
