//! I/O ports, and QEMU's configuration device behind two of them (QEMU `docs/specs/fw_cfg.rst`).

use mayfly_engine::session::Session;

use super::super::check::Findings;
use super::super::lab::Lab;
use super::super::options::{AuditError, Planted};
use super::super::report::Attempt;
use super::ask::output;
use super::program::{Order, executable};

/// Where the port program is put in a guest.
pub(super) const PROGRAM: &str = "/dev/shm/mayfly-audit-ports";

/// Ports of what microvm has: name, first, last.
const KNOWN: &[(&str, usize, usize)] = &[
    ("interrupt controllers", 0x20, 0x21),
    ("timer", 0x40, 0x43),
    ("keyboard status and speaker", 0x60, 0x64),
    ("clock", 0x70, 0x71),
    ("interrupt controllers", 0xa0, 0xa1),
    ("floating point error", 0xf0, 0xf1),
    ("serial console", 0x3f8, 0x3ff),
    ("level control of interrupts", 0x4d0, 0x4d1),
    ("fw_cfg", 0x510, 0x51b),
];

/// Keys of fw_cfg.
const SIGNATURE: u16 = 0x00;
const DIRECTORY: u16 = 0x19;
/// Files that QEMU's directory has for every machine; each other is named in the report.
const HARMLESS: &[&str] = &["etc/", "bootorder", "genroms/", "bios-geometry"];

pub(super) async fn install(session: &Session) -> Result<(), AuditError> {
    Ok(session.guest().write_file(PROGRAM, 0o755, &executable()).await?)
}

async fn order(session: &Session, order: Order) -> Result<(i32, Vec<u8>), AuditError> {
    let output = output(session, &[PROGRAM], Some(&order.bytes())).await?;
    Ok((output.status.shell_code(), output.stdout))
}

pub(super) async fn run(lab: &mut Lab) -> Result<Findings, AuditError> {
    let mut findings = Findings::default();
    let subject = lab.subject().await?;
    let session = &subject.session;
    install(session).await?;

    let (code, ports) = order(session, Order::ReadAll).await?;
    let what = "read all I/O ports";
    if code != 0 || ports.len() != 0x1_0000 {
        findings
            .push(Attempt::not_proven(what, format!("exit code {code}, {} ports", ports.len())));
        return Ok(findings);
    }
    // What is not there reads as all ones.
    let there: Vec<usize> = (0..ports.len()).filter(|port| ports[*port] != 0xff).collect();
    let known =
        |port: usize| KNOWN.iter().find(|(_, first, last)| (*first..=*last).contains(&port));
    let unknown: Vec<String> = there
        .iter()
        .filter(|port| known(**port).is_none())
        .take(32)
        .map(|port| format!("{port:#x}"))
        .collect();
    let mut names: Vec<&str> =
        there.iter().filter_map(|port| known(*port).map(|(name, ..)| *name)).collect();
    names.dedup();
    findings.push(Attempt::judge(
        what,
        (
            format!("{} ports answer: {}", there.len(), names.join(", ")),
            names.contains(&"interrupt controllers"),
        ),
        match unknown.as_slice() {
            [] => ("no port of a device that microvm does not have".to_owned(), false),
            ports => (format!("unknown devices at {}", ports.join(" ")), true),
        },
    ));
    findings.push(configuration(lab, session).await?);
    Ok(findings)
}

/// Reads all that fw_cfg has, and looks for anything of the host.
async fn configuration(lab: &Lab, session: &Session) -> Result<Attempt, AuditError> {
    let what = "read all files of QEMU's configuration device (fw_cfg) and look for paths, names and secrets of the host";
    let (_, signature) = order(session, Order::Configuration(SIGNATURE, 4)).await?;
    let reached = signature == b"QEMU";
    let (_, head) = order(session, Order::Configuration(DIRECTORY, 4)).await?;
    let count = head.first_chunk().map_or(0, |bytes| u32::from_be_bytes(*bytes)).min(256);
    let (_, directory) = order(session, Order::Configuration(DIRECTORY, 4 + count * 64)).await?;
    let (mut names, mut content) = (Vec::new(), directory.clone());
    // `struct FWCfgFile`: u32 size, u16 key, u16 reserved, 56 bytes of name, big-endian.
    for entry in directory.get(4..).unwrap_or_default().chunks_exact(64) {
        let size = u32::from_be_bytes([entry[0], entry[1], entry[2], entry[3]]).min(0xffff);
        let key = u16::from_be_bytes([entry[4], entry[5]]);
        names.push(String::from_utf8_lossy(&entry[8..]).trim_end_matches('\0').to_owned());
        content.extend(order(session, Order::Configuration(key, size)).await?.1);
    }
    // The items without a file: command line, initial ramdisk, kernel and their like.
    for key in (0x01..0x19).chain(0x8000..0x8004) {
        content.extend(order(session, Order::Configuration(key, 512)).await?.1);
    }
    if lab.options.plants(Planted::LeakedSecrets) {
        content.extend(lab.engine.layout().home().as_os_str().as_encoded_bytes());
    }
    let host_name = nix::unistd::gethostname()
        .map(|name| name.to_string_lossy().into_owned())
        .unwrap_or_default();
    let (home, run) = (
        lab.engine.layout().home().display().to_string(),
        lab.engine.layout().run().display().to_string(),
    );
    let secrets = [home, run, lab.marks.host.clone(), lab.marks.neighbour.clone(), host_name];
    // A host name of a few letters is found anywhere.
    let leaked: Vec<&str> = secrets
        .iter()
        .filter(|secret| {
            secret.len() > 3 && content.windows(secret.len()).any(|part| part == secret.as_bytes())
        })
        .map(String::as_str)
        .collect();
    let strange: Vec<&str> = names
        .iter()
        .map(String::as_str)
        .filter(|name| !HARMLESS.iter().any(|prefix| name.starts_with(prefix)))
        .collect();
    let control =
        format!("signature {:?}, {} files", String::from_utf8_lossy(&signature), names.len());
    let mut seen = format!("{} bytes, files: {}", content.len(), names.join(" "));
    match leaked.as_slice() {
        [] => seen.push_str("; nothing of the host"),
        leaked => seen.push_str(&format!("; OF THE HOST: {}", leaked.join(", "))),
    }
    if !strange.is_empty() {
        seen.push_str(&format!("; UNEXPECTED: {}", strange.join(", ")));
    }
    Ok(Attempt::judge(
        what,
        (control, reached && !names.is_empty()),
        (seen, !leaked.is_empty() || !strange.is_empty()),
    ))
}
