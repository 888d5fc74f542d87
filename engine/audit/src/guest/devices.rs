//! Search for devices of the host in the guest.

use super::super::check::Findings;
use super::super::lab::Lab;
use super::super::options::AuditError;
use super::super::report::Attempt;
use super::ask::perl;

const DEVICES: &str = include_str!("devices.pl");

/// Kinds of virtio devices (virtio specification 1.2, section 5) that a session has: disk and
/// serial port.
const EXPECTED_VIRTIO: [&str; 2] = ["2", "3"];

pub(super) async fn run(lab: &mut Lab) -> Result<Findings, AuditError> {
    let mut findings = Findings::default();
    let subject = lab.subject().await?;
    let answers = perl(&subject.session, DEVICES, &[]).await?.answers();
    let get = |name: &str| answers.get(name).map_or("", String::as_str);

    let kinds: Vec<&str> = get("virtio-ids").split_whitespace().collect();
    let extra: Vec<&str> =
        kinds.iter().copied().filter(|kind| !EXPECTED_VIRTIO.contains(kind)).collect();
    findings.push(Attempt::judge(
        "find a virtio device beside disk and channel: network, shared folder, vsock, balloon, memory",
        (format!("kinds {}", kinds.join(" ")), EXPECTED_VIRTIO.iter().all(|kind| kinds.contains(kind))),
        match extra.as_slice() {
            [] => ("none; one device of each kind that a session has".to_owned(), kinds.len() > EXPECTED_VIRTIO.len()),
            extra => (format!("kinds {}", extra.join(" ")), true),
        },
    ));
    let buses: Vec<String> = ["pci", "usb", "scsi", "9p", "vsock"]
        .into_iter()
        .filter(|bus| !get(bus).is_empty())
        .map(|bus| format!("{bus}: {}", get(bus)))
        .collect();
    findings.push(Attempt::judge(
        "find a device on another bus: PCI, USB, SCSI, 9p, vsock",
        (format!("the list of virtio devices shows {}", get("virtio")), !get("virtio").is_empty()),
        (if buses.is_empty() { "none".into() } else { buses.join("; ") }, !buses.is_empty()),
    ));
    findings.push(Attempt::judge(
        "find a second disk",
        (
            format!("block devices: {}", get("block")),
            get("block").split(' ').any(|name| name == "vda"),
        ),
        (get("block").to_owned(), get("block") != "vda"),
    ));
    findings.push(Attempt::judge(
        "open a serial port other than the channel, or the channel a second time",
        (
            format!(
                "{} named {}; opening it again: {}",
                get("ports"),
                get("port-names"),
                get("port-own")
            ),
            get("port-names") == mayfly_protocol::PORT_NAME && get("port-own").contains("busy"),
        ),
        match get("port-opened") {
            "" => ("none of 32 numbers leads to another port".to_owned(), false),
            opened => (format!("opened {opened}"), true),
        },
    ));
    let passed: Vec<String> = answers
        .iter()
        .filter_map(|(name, outcome)| Some(format!("{} {outcome}", name.strip_prefix("open-")?)))
        .collect();
    findings.notes.push(format!(
        "Character devices of the guest's own kernel, which lead no further than that: {}.",
        passed.join(", ")
    ));
    Ok(findings)
}
