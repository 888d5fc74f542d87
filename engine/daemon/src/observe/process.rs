//! Resource usage of the daemon's own process, read at each scrape.

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::Unit;

/// Figures of this process, proc(5).
#[derive(Debug)]
pub(super) struct OwnProcess;

struct Figures {
    resident_bytes: u64,
    descriptors: u64,
    cpu_seconds: f64,
}

fn figures() -> procfs::ProcResult<Figures> {
    let process = procfs::process::Process::myself()?;
    let stat = process.stat()?;
    Ok(Figures {
        resident_bytes: stat.rss * procfs::page_size(),
        descriptors: process.fd_count()? as u64,
        cpu_seconds: (stat.utime + stat.stime) as f64 / procfs::ticks_per_second() as f64,
    })
}

impl Collector for OwnProcess {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        // Without /proc there are no such figures, and the others are still worth having.
        let Ok(figures) = figures() else { return Ok(()) };
        let mut one = |name: &str, text: &str, unit: Option<&Unit>, metric: &dyn EncodeMetric| {
            metric.encode(encoder.encode_descriptor(name, text, unit, metric.metric_type())?)
        };
        let memory = ConstGauge::new(figures.resident_bytes);
        one("process_resident_memory", "Memory of the daemon itself", Some(&Unit::Bytes), &memory)?;
        let descriptors = ConstGauge::new(figures.descriptors);
        one(
            "process_open_descriptors",
            "File descriptors of the daemon itself",
            None,
            &descriptors,
        )?;
        let cpu = ConstCounter::new(figures.cpu_seconds);
        one("process_cpu", "Processor time of the daemon itself", Some(&Unit::Seconds), &cpu)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_are_of_this_process() {
        let before = figures().unwrap();
        let files: Vec<_> = (0..100).map(|_| std::fs::File::open("/dev/null").unwrap()).collect();
        let block = std::hint::black_box(vec![1u8; 256 << 20]);
        let after = figures().unwrap();
        // Wide margins: other tests of this process take and give back some meanwhile.
        assert!(after.resident_bytes >= before.resident_bytes + (128 << 20));
        assert!(after.descriptors >= before.descriptors + 50);
        assert!(after.cpu_seconds >= before.cpu_seconds);
        drop((files, block));
    }
}
